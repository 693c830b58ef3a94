//! The fold over random histories: any chunks give what one by one gives, repeats anywhere later change nothing, and a
//! prefix folded, then the whole again, is the whole folded.

mod common;
#[path = "common/histories.rs"]
mod histories;

use common::sealed::{Sealer, without_hashes};
use common::*;
use histories::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use tidelog_events::domain::Policy;
use tidelog_events::item::Operation;

fn folded(log: &Log, count: usize, sizes: &[usize]) -> Shelf {
    let mut shelf = Shelf::default();
    shelf.fold(&log.registry, &log.events[..count], sizes);
    shelf
}

fn holds(history: &[Sent], sizes: &[usize], cut: usize, repeats: &[prop::sample::Index]) {
    let mut log = Log::new();
    for sent in history {
        log.append(sent);
    }
    let count = log.events.len();
    let one_by_one = folded(&log, count, &vec![1; count]);
    one_by_one.check();
    assert_eq!(
        folded(&log, count, sizes),
        one_by_one,
        "any chunks give what one by one gives"
    );
    assert_eq!(
        folded(&log, count, &[count]),
        one_by_one,
        "one chunk gives what one by one gives"
    );

    // A worker that begins at an old position folds again what it has folded.
    let cut = cut % count;
    let mut again = folded(&log, count, sizes);
    again.fold(&log.registry, &log.events[cut..], sizes);
    assert_eq!(again, one_by_one, "folding a range again changes nothing");

    // The same events appended again, later in the log.
    for index in repeats {
        log.append(index.get(history));
    }
    let repeated = folded(&log, log.events.len(), sizes);
    assert_eq!(repeated, one_by_one, "events repeated later change nothing");
}

/// Sealed, under whichever keys, a history means what it means in plain.
fn means_the_same_sealed(history: &[Sent], sizes: &[usize]) {
    let (mut plain, mut sealed) = (Log::new(), Log::new());
    sealed.sealer = Some(Sealer::new());
    for sent in history {
        plain.append(sent);
        sealed.append(sent);
    }
    let mut expected = without_hashes(folded(&plain, history.len(), sizes));
    let folded = folded(&sealed, history.len(), sizes);
    let sealer = sealed.sealer.as_ref().expect("a sealer");
    let mut found = sealer.opened(&sealed.registry, folded);
    let hits = |shelf: &mut Shelf| {
        let mut hits: Vec<_> = std::mem::take(&mut shelf.hits).into_values().collect();
        hits.sort_by_key(|(.., last, _)| (last.0.0, last.1));
        hits
    };
    assert_eq!(hits(&mut found), hits(&mut expected));
    assert_eq!(found, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn sealed_tickets_mean_what_they_mean_in_plain(history in history(ticket_item()), sizes in prop::collection::vec(1usize..7, 1..8)) {
        means_the_same_sealed(&history, &sizes);
    }

    #[test]
    fn sealed_tickets_that_wait_for_people_mean_what_they_mean_in_plain(history in history(waiting_item()), sizes in prop::collection::vec(1usize..7, 1..8)) {
        means_the_same_sealed(&history, &sizes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn tickets(history in history(ticket_item()), sizes in prop::collection::vec(1usize..7, 1..8), cut in 0usize..40, repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        holds(&history, &sizes, cut, &repeats);
    }

    #[test]
    fn tickets_that_wait_for_people(history in history(waiting_item()), sizes in prop::collection::vec(1usize..7, 1..8), cut in 0usize..40, repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        holds(&history, &sizes, cut, &repeats);
    }

    #[test]
    fn journals_with_media(history in history(journal_item()), sizes in prop::collection::vec(1usize..7, 1..8), cut in 0usize..40, repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        holds(&history, &sizes, cut, &repeats);
    }

    #[test]
    fn sessions(history in history(session_item()), sizes in prop::collection::vec(1usize..7, 1..8), cut in 0usize..40, repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        holds(&history, &sizes, cut, &repeats);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// One takes over from the other, again and again, each with chunks of its own and from a place that the other had
    /// passed already; and one that folds alone has the same.
    #[test]
    fn two_projectors_give_equal_states(
        history in history(waiting_item()),
        turns in prop::collection::vec((any::<prop::sample::Index>(), 0usize..5, 1usize..7), 1..6),
    ) {
        let mut log = Log::new();
        for sent in &history {
            log.append(sent);
        }
        let mut shared = Shelf::default();
        let mut reached = 0;
        for (until, back, size) in turns {
            let until = until.index(log.events.len() + 1).max(reached);
            shared.fold(&log.registry, &log.events[reached.saturating_sub(back)..until], &[size]);
            reached = until;
        }
        shared.fold(&log.registry, &log.events[reached..], &[3]);
        prop_assert_eq!(shared, folded(&log, log.events.len(), &[2]));
    }
}

/// The places of a document that the edits below are spread over: a member, two leaves of an object, elements of a list.
const PLACES: usize = 6;

/// A device's edit of the places that it was given, as an app would send it: its own values, and with `whole` all the
/// rest as it was at version 1.
fn edit(places: &[usize], whole: bool) -> Value {
    let mut item = if whole { original() } else { json!({}) };
    for place in places {
        match place {
            0 => item["comments"] = json!("edited"),
            1 => item["note"]["a"] = json!("edited"),
            2 => item["note"]["deep"]["b"] = Value::Null,
            3 => item["priority"] = json!("HIGH"),
            _ => {}
        }
    }
    if whole || places.contains(&4) || places.contains(&5) {
        let mut tags = vec!["x", "y"];
        if places.contains(&4) {
            tags.push("added");
        }
        if places.contains(&5) {
            tags.retain(|tag| *tag != "x");
        }
        item["tags"] = json!(tags);
    }
    item["mobile_id"] = TICKET.into();
    item
}

fn original() -> Value {
    json!({"ticketdesc": "the pump is leaking", "comments": "first", "note": {"a": 1, "deep": {"b": 1, "c": 1}}, "tags": ["x", "y"], "priority": "LOW"})
}

fn edited() -> Value {
    json!({"ticketdesc": "the pump is leaking", "comments": "edited", "note": {"a": "edited", "deep": {"c": 1}}, "tags": ["y", "added"],
        "priority": "HIGH", "status": "NEW", "identifier": "TICKET", "ticketno": "TKT-0-0"})
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_merge_of_disjoint_edits_loses_none_in_any_order(
        owners in prop::collection::vec(0..3usize, PLACES),
        order in Just(vec![0usize, 1, 2]).prop_shuffle(),
        minutes in prop::collection::vec(0..4i64, 3),
        whole in prop::collection::vec(any::<bool>(), 3),
        sizes in prop::collection::vec(1usize..4, 1..4),
    ) {
        let phones = [ANNAS_TABLET, BERT, CARL];
        let mut log = Log::new();
        let merge = |sent: Sent, batch: u64| Sent { policy: Policy::Merge, batch, ..sent };
        let mut first = original();
        first["mobile_id"] = TICKET.into();
        log.append(&merge(Sent::new("helpdesk", ANNA, Operation::Create, TICKET, 0, first), 0));
        for device in order {
            let places: Vec<usize> = (0..PLACES).filter(|place| owners[*place] == device).collect();
            let item = edit(&places, whole[device]);
            let sent = Sent { minute: Some(minutes[device]), ..Sent::new("helpdesk", phones[device], Operation::Update, TICKET, 1, item) };
            log.append(&merge(sent, device as u64 + 1));
        }
        let shelf = folded(&log, log.events.len(), &sizes);
        prop_assert_eq!(Value::Object(shelf.state(TICKET).doc.to_map()), edited());
    }
}
