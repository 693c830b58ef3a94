//! Domains that remember for a while: what lies beyond their horizon counts as if it had never been. Whenever the store forgets
//! what it may, and in whatever chunks the log is folded, the same comes of it as where nothing was ever removed.

mod common;
#[path = "common/histories.rs"]
mod histories;

use common::sealed::{Sealer, without_hashes};
use common::*;
use histories::*;
use proptest::prelude::*;
use serde_json::json;
use tidelog_events::doc::Json;
use tidelog_events::domain::Policy;
use tidelog_events::error::ErrorCode;
use tidelog_events::item::Operation::{Create, Delete, Resolve, Update};
use tidelog_events::outcome::{Change, Outcome, Winner};
use tidelog_projector::state::Standing;

/// The log has an event each seven hours; a history of 40 of them spans several of these.
const HOURS: u32 = 3600;

fn log_of(history: &[Sent], hours: u32) -> Log {
    let mut log = Log::remembering(hours * HOURS);
    for sent in history {
        log.append(&sent.clone().in_own_domain());
    }
    log
}

/// Folded without ever removing anything; what may be gone by then is left out at the end.
fn kept(log: &Log, sizes: &[usize]) -> Shelf {
    let mut shelf = Shelf::default();
    shelf.fold(&log.registry, &log.events, sizes);
    shelf.forget(floor(log, log.events.len()));
    shelf
}

/// Folded in stretches, and after each the store forgets.
fn forgetting(log: &Log, stretches: &[usize], sizes: &[usize]) -> Shelf {
    let (mut shelf, mut at) = (Shelf::default(), 0);
    for stretch in stretches.iter().copied().chain([log.events.len()]) {
        let until = (at + stretch).min(log.events.len());
        shelf.fold(&log.registry, &log.events[at..until], sizes);
        at = until;
        shelf.forget(floor(log, at));
    }
    shelf
}

fn holds(history: &[Sent], hours: u32, sizes: &[usize], stretches: &[usize]) {
    let log = log_of(history, hours);
    let one_by_one = kept(&log, &[1]);
    assert_eq!(
        kept(&log, sizes),
        one_by_one,
        "any chunks give what one by one gives"
    );
    assert_eq!(
        kept(&log, &[log.events.len()]),
        one_by_one,
        "one chunk gives what one by one gives"
    );
    assert_eq!(
        forgetting(&log, stretches, sizes),
        one_by_one,
        "what is removed was not looked at"
    );
    assert_eq!(
        forgetting(&log, &vec![1; log.events.len()], &[1]),
        one_by_one,
        "removed at once or later"
    );
    // A worker that begins at an old position folds again what it has folded; the store has forgotten nothing meanwhile.
    let cut = stretches.first().copied().unwrap_or_default() % log.events.len();
    if floor(&log, log.events.len()).0 == 0 {
        let mut again = kept(&log, sizes);
        again.fold(&log.registry, &log.events[cut..], sizes);
        assert_eq!(again, one_by_one, "folding a range again changes nothing");
    }
}

fn hours() -> impl Strategy<Value = u32> {
    prop_oneof![Just(8u32), Just(20), Just(50), Just(120), Just(1000)]
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..7, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn tickets(history in history(ticket_item()), hours in hours(), sizes in sizes(), stretches in prop::collection::vec(1usize..12, 0..6)) {
        holds(&history, hours, &sizes, &stretches);
    }

    #[test]
    fn tickets_that_wait_for_people(history in history(waiting_item()), hours in hours(), sizes in sizes(), stretches in prop::collection::vec(1usize..12, 0..6)) {
        holds(&history, hours, &sizes, &stretches);
    }

    #[test]
    fn journals_with_media(history in history(journal_item()), hours in hours(), sizes in sizes(), stretches in prop::collection::vec(1usize..12, 0..6)) {
        holds(&history, hours, &sizes, &stretches);
    }

    #[test]
    fn sessions(history in history(session_item()), hours in hours(), sizes in sizes(), stretches in prop::collection::vec(1usize..12, 0..6)) {
        holds(&history, hours, &sizes, &stretches);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_domain_that_looks_back_over_all_of_the_log_means_what_one_does_that_forgets_nothing(history in history(waiting_item()), sizes in sizes()) {
        let mut shipped = Log::new();
        for sent in &history {
            shipped.append(sent);
        }
        let log = log_of(&history, 1000);
        let (mut own, mut ever) = (Shelf::default(), Shelf::default());
        own.fold(&log.registry, &log.events, &sizes);
        ever.fold(&shipped.registry, &shipped.events, &sizes);
        let docs = |shelf: &Shelf| shelf.states.values().map(|state| (state.version, state.doc.clone())).collect::<Vec<_>>();
        prop_assert_eq!(docs(&own), docs(&ever));
        prop_assert_eq!(own.feed.len(), ever.feed.len());
        let outcomes = |shelf: &Shelf| shelf.outcomes.values().map(|(.., outcome)| outcome.clone()).collect::<Vec<_>>();
        prop_assert_eq!(outcomes(&own), outcomes(&ever));
    }

    #[test]
    fn sealed_tickets_mean_what_they_mean_in_plain(history in history(ticket_item()), hours in hours(), sizes in sizes()) {
        let plain = log_of(&history, hours);
        let mut sealed = Log::remembering(hours * HOURS);
        sealed.sealer = Some(Sealer::new());
        for sent in &history {
            sealed.append(&sent.clone().in_own_domain());
        }
        let mut expected = without_hashes(kept(&plain, &sizes));
        let folded = kept(&sealed, &sizes);
        let mut found = sealed.sealer.as_ref().expect("a sealer").opened(&sealed.registry, folded);
        (found.hits, expected.hits) = Default::default();
        prop_assert_eq!(found, expected);
    }
}

/// A log of one ticket, an event each seven hours, of a domain that remembers two days.
struct Desk {
    log: Log,
    shelf: Shelf,
}

impl Desk {
    fn new() -> Desk {
        let mut desk = Desk {
            log: Log::remembering(48 * HOURS),
            shelf: Shelf::default(),
        };
        desk.tell(
            ANNA,
            Create,
            0,
            json!({"ticketdesc": "the pump is leaking", "comments": "first"}),
            Policy::Merge,
        );
        desk
    }

    fn send(&mut self, sent: Sent) -> Outcome {
        let batch = sent.batch;
        let event = self.log.append(&sent.in_own_domain());
        self.shelf.fold(&self.log.registry, &[event], &[]);
        self.shelf.forget(floor(&self.log, self.log.events.len()));
        self.shelf.outcome(batch).expect("an outcome")
    }

    fn tell(
        &mut self,
        phone: Phone,
        operation: tidelog_events::item::Operation,
        base: i64,
        fields: serde_json::Value,
        policy: Policy,
    ) -> Outcome {
        let batch = self.log.events.len() as u64;
        let item = match operation {
            Resolve => fields,
            _ => ticket(fields),
        };
        self.send(Sent {
            policy,
            batch,
            ..Sent::new("helpdesk", phone, operation, TICKET, base, item)
        })
    }

    /// So much happens elsewhere that what was before is beyond the horizon.
    fn days_pass(&mut self) {
        for _ in 0..8 {
            let batch = 1000 + self.log.events.len() as u64;
            self.send(Sent {
                batch,
                ..Sent::new("helpdesk", CARL, Delete, MEDIA, 0, json!({"mobile_id": MEDIA}))
            });
        }
    }

    fn comments(&self) -> String {
        self.shelf
            .state(TICKET)
            .doc
            .get("comments")
            .map_or("null", Json::text)
            .to_owned()
    }
}

fn winner(outcome: &Outcome) -> Option<Winner> {
    match outcome {
        Outcome::Conflict { winner, .. } => Some(*winner),
        _ => None,
    }
}

#[test]
fn an_item_that_needs_what_is_forgotten_waits_for_a_person_and_loses_nothing() {
    let mut desk = Desk::new();
    desk.tell(BERT, Update, 1, json!({"comments": "of Bert's"}), Policy::Merge);
    desk.days_pass();
    for policy in [
        Policy::Merge,
        Policy::ClientWins,
        Policy::PreserveEscalation,
        Policy::MostRecentWins,
        Policy::Manual,
    ] {
        let told = desk.tell(
            CARL,
            Update,
            1,
            json!({"comments": format!("{policy:?}")}),
            policy,
        );
        assert_eq!(winner(&told), Some(Winner::None), "{policy:?}");
    }
    let told = desk.tell(CARL, Update, 1, json!({"comments": "last"}), Policy::ServerWins);
    assert_eq!(winner(&told), Some(Winner::Server));
    let told = desk.tell(CARL, Update, 1, json!({"comments": "of Bert's"}), Policy::Merge);
    assert_eq!(winner(&told), Some(Winner::Server), "what it wants is there");
    assert_eq!(desk.comments(), "\"of Bert's\"");
    let told = desk.tell(CARL, Update, 2, json!({"comments": "of today"}), Policy::Merge);
    assert_eq!(
        told,
        Outcome::Applied {
            change: Change::Updated,
            version: 3
        },
        "its base is the version"
    );
    assert_eq!(desk.shelf.conflicts.len(), 7, "all of them kept");
    desk.days_pass();
    assert_eq!(desk.shelf.conflicts.len(), 5, "what waits is not forgotten");
}

#[test]
fn a_device_that_goes_on_alone_is_not_behind_itself() {
    let mut desk = Desk::new();
    desk.tell(ANNA, Update, 0, json!({"comments": "second"}), Policy::Merge);
    desk.days_pass();
    let told = desk.tell(ANNA, Update, 0, json!({"comments": "third"}), Policy::Merge);
    assert_eq!(
        told,
        Outcome::Applied {
            change: Change::Updated,
            version: 3
        }
    );
    // Made long ago, it may be one of the first two.
    let again = Sent {
        minute: Some(1),
        policy: Policy::ClientWins,
        batch: 77,
        ..Sent::new(
            "helpdesk",
            ANNA,
            Update,
            TICKET,
            0,
            ticket(json!({"comments": "second"})),
        )
    };
    assert_eq!(winner(&desk.send(again)), Some(Winner::None));
    assert_eq!(desk.comments(), "\"third\"");
}

#[test]
fn a_forgotten_deletion_leaves_nothing_and_the_record_begins_anew() {
    let mut desk = Desk::new();
    desk.tell(BERT, Update, 1, json!({"comments": "mine"}), Policy::Manual);
    let told = desk.tell(CARL, Update, 1, json!({"comments": "waits"}), Policy::Manual);
    assert_eq!(winner(&told), Some(Winner::None));
    let of = desk.log.events.len() as u64 - 1;
    desk.tell(BERT, Delete, 2, json!({}), Policy::Merge);
    desk.days_pass();
    assert!(desk.shelf.states.is_empty());
    let told = desk.tell(
        SUE,
        Resolve,
        3,
        resolution(of, "client_wins", None),
        Policy::ClientWins,
    );
    assert!(
        matches!(&told, Outcome::Refused { error } if error.error_code == ErrorCode::RecordMoved),
        "{told:?}"
    );
    let told = desk.tell(
        SUE,
        Resolve,
        3,
        resolution(of, "server_wins", None),
        Policy::ServerWins,
    );
    assert!(
        matches!(
            told,
            Outcome::Resolved {
                version: 0,
                winner: Winner::Server,
                ..
            }
        ),
        "{told:?}"
    );
    let told = desk.tell(
        CARL,
        Create,
        0,
        json!({"ticketdesc": "another pump leaks"}),
        Policy::Merge,
    );
    assert_eq!(
        told,
        Outcome::Applied {
            change: Change::Created,
            version: 1
        }
    );
    assert_eq!(*desk.shelf.state(TICKET).owner, *"carl");
}

#[test]
fn a_decision_of_an_attempt_that_is_forgotten_is_not_one_of_the_same_attempt_made_again() {
    let mut desk = Desk::new();
    desk.tell(BERT, Update, 1, json!({"comments": "mine"}), Policy::Merge);
    let of = desk.log.events.len() as u64;
    let attempt = Sent {
        policy: Policy::Manual,
        batch: of,
        ..Sent::new(
            "helpdesk",
            CARL,
            Update,
            TICKET,
            1,
            ticket(json!({"comments": "waits"})),
        )
    };
    desk.send(attempt.clone());
    desk.tell(
        SUE,
        Resolve,
        2,
        resolution(of, "server_wins", None),
        Policy::ServerWins,
    );
    desk.days_pass();
    assert_eq!(winner(&desk.send(attempt)), Some(Winner::None), "it waits again");
    let one_chunk = kept(&desk.log, &[desk.log.events.len()]);
    assert_eq!(one_chunk, desk.shelf);
    let again = one_chunk.conflicts.values().next().expect("a conflict");
    assert_eq!(
        (again.attempt.standing, again.winner),
        (Standing::Open, Winner::None)
    );
}
