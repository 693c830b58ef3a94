//! The six policies, case by case, with results written by hand: who wins, at which version the record stands, and what
//! it says. Each case is told in a record's own log: what the server had, then the item that did not know of it.

mod common;

use common::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tidelog_events::domain::Policy::{
    self, ClientWins, Manual, Merge, MostRecentWins, PreserveEscalation, ServerWins,
};
use tidelog_events::error::ErrorCode;
use tidelog_events::item::Operation::{self, Create, Delete, Update};
use tidelog_events::outcome::{Outcome, Winner};

const DESC: &str = "the pump is leaking";

/// One record's log, every event stamped with the same policy.
struct Tale {
    log: Log,
    shelf: Shelf,
    policy: Policy,
    domain: &'static str,
    device_type: Option<&'static str>,
}

impl Tale {
    /// A ticket that Anna made at minute 0.
    fn of_a_ticket(policy: Policy) -> Tale {
        let mut tale = Tale::of("helpdesk", policy);
        let first = json!({"ticketdesc": DESC, "comments": "first", "priority": "LOW"});
        tale.tell(ANNA, Create, 0, 0, first);
        tale
    }

    fn of(domain: &'static str, policy: Policy) -> Tale {
        Tale {
            log: Log::new(),
            shelf: Shelf::default(),
            policy,
            domain,
            device_type: None,
        }
    }

    fn tell(&mut self, phone: Phone, operation: Operation, base: i64, minute: i64, fields: Value) -> Outcome {
        let batch = self.log.events.len() as u64;
        let sent = Sent {
            policy: self.policy,
            minute: Some(minute),
            device_type: self.device_type,
            batch,
            ..Sent::new(self.domain, phone, operation, TICKET, base, ticket(fields))
        };
        let event = self.log.append(&sent);
        self.shelf.fold(&self.log.registry, &[event], &[]);
        self.shelf.check();
        self.shelf.outcome(batch).expect("an outcome")
    }

    /// The item is behind; answers who won, at which version the record stands, and what it says.
    fn behind(
        &mut self,
        phone: Phone,
        operation: Operation,
        base: i64,
        minute: i64,
        fields: Value,
    ) -> (Winner, i64, String) {
        let before = self.shelf.state(TICKET).version;
        let outcome = self.tell(phone, operation, base, minute, fields);
        let Outcome::Conflict {
            conflict_id,
            policy,
            winner,
            server_version,
            client_version,
        } = outcome
        else {
            panic!("a conflict, not {outcome:?}")
        };
        assert_eq!((policy, client_version), (self.policy, base));
        let kept = &self.shelf.conflicts[&conflict_id];
        assert_eq!((kept.winner, kept.result_version), (winner, server_version));
        assert_eq!(kept.server_version, before, "the version that it met");
        assert_eq!(self.shelf.state(TICKET).version, server_version);
        (winner, server_version, self.says())
    }

    /// Comments, priority and kind of the ticket, in short.
    fn says(&self) -> String {
        let state = self.shelf.state(TICKET);
        if state.deleted {
            return "deleted".into();
        }
        let member = |name: &str| {
            state
                .doc
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("-")
                .to_owned()
        };
        format!("{} {}", member("comments"), member("priority"))
    }

    fn doc(&self) -> Value {
        Value::Object(self.shelf.state(TICKET).doc.clone())
    }

    /// Which side each value came from, in the latest conflict.
    fn kept(&self) -> BTreeMap<&str, &str> {
        let last = self.log.events.last().expect("an event");
        let (batch, index) = last.key();
        let kept = &self.shelf.conflicts[&batch.conflict_id(index)].kept;
        kept.iter()
            .map(|(path, origin)| (path.as_str(), origin.as_str()))
            .collect()
    }
}

/// What Bert did at minute 10 to version 1, and what Anna, at version 1 still, wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Clash {
    /// Both changed `comments`.
    Overlap,
    /// Bert changed `comments`, Anna `priority`.
    Apart,
    /// Bert changed `comments`, Anna deleted.
    DeleteOfChanged,
    /// Bert deleted, Anna changed `comments`.
    ChangeOfDeleted,
}

use Clash::*;

const OLDER: i64 = 5;
const EQUAL: i64 = 10;
const NEWER: i64 = 15;

fn clash(policy: Policy, clash: Clash, minute: i64) -> (Winner, i64, String) {
    let mut tale = Tale::of_a_ticket(policy);
    match clash {
        ChangeOfDeleted => tale.tell(BERT, Delete, 1, 10, json!({})),
        _ => tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"})),
    };
    assert_eq!(tale.shelf.state(TICKET).version, 2);
    match clash {
        Overlap | ChangeOfDeleted => tale.behind(ANNA, Update, 1, minute, json!({"comments": "anna"})),
        Apart => tale.behind(ANNA, Update, 1, minute, json!({"priority": "HIGH"})),
        DeleteOfChanged => tale.behind(ANNA, Delete, 1, minute, json!({})),
    }
}

fn table(policy: Policy, rows: [(Clash, i64, Winner, i64, &str); 12]) {
    for (case, minute, winner, version, says) in rows {
        assert_eq!(
            clash(policy, case, minute),
            (winner, version, says.to_owned()),
            "{policy:?}, {case:?}, Anna at minute {minute}, Bert at 10"
        );
    }
}

#[test]
fn client_wins_applies_the_devices_item_whatever_the_time() {
    table(
        ClientWins,
        [
            (Overlap, OLDER, Winner::Client, 3, "anna LOW"),
            (Overlap, EQUAL, Winner::Client, 3, "anna LOW"),
            (Overlap, NEWER, Winner::Client, 3, "anna LOW"),
            (Apart, OLDER, Winner::Client, 3, "bert HIGH"),
            (Apart, EQUAL, Winner::Client, 3, "bert HIGH"),
            (Apart, NEWER, Winner::Client, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Client, 3, "deleted"),
            (DeleteOfChanged, EQUAL, Winner::Client, 3, "deleted"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Client, 3, "anna LOW"),
            (ChangeOfDeleted, EQUAL, Winner::Client, 3, "anna LOW"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn server_wins_leaves_the_record_as_it_is() {
    table(
        ServerWins,
        [
            (Overlap, OLDER, Winner::Server, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::Server, 2, "bert LOW"),
            (Overlap, NEWER, Winner::Server, 2, "bert LOW"),
            (Apart, OLDER, Winner::Server, 2, "bert LOW"),
            (Apart, EQUAL, Winner::Server, 2, "bert LOW"),
            (Apart, NEWER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Server, 2, "bert LOW"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Server, 2, "deleted"),
        ],
    );
}

#[test]
fn most_recent_wins_takes_the_later_and_a_tie_keeps_the_servers() {
    table(
        MostRecentWins,
        [
            (Overlap, OLDER, Winner::Server, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::Server, 2, "bert LOW"),
            (Overlap, NEWER, Winner::Client, 3, "anna LOW"),
            (Apart, OLDER, Winner::Server, 2, "bert LOW"),
            (Apart, EQUAL, Winner::Server, 2, "bert LOW"),
            (Apart, NEWER, Winner::Client, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn preserve_escalation_applies_the_item_and_decides_a_deletion_by_time() {
    table(
        PreserveEscalation,
        [
            (Overlap, OLDER, Winner::Merged, 3, "anna LOW"),
            (Overlap, EQUAL, Winner::Merged, 3, "anna LOW"),
            (Overlap, NEWER, Winner::Merged, 3, "anna LOW"),
            (Apart, OLDER, Winner::Merged, 3, "bert HIGH"),
            (Apart, EQUAL, Winner::Merged, 3, "bert HIGH"),
            (Apart, NEWER, Winner::Merged, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn merge_goes_field_by_field_and_decides_a_deletion_by_time() {
    table(
        Merge,
        [
            (Overlap, OLDER, Winner::Merged, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::Merged, 2, "bert LOW"),
            (Overlap, NEWER, Winner::Merged, 3, "anna LOW"),
            (Apart, OLDER, Winner::Merged, 3, "bert HIGH"),
            (Apart, EQUAL, Winner::Merged, 3, "bert HIGH"),
            (Apart, NEWER, Winner::Merged, 3, "bert HIGH"),
            (DeleteOfChanged, OLDER, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::Server, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::Client, 3, "deleted"),
            (ChangeOfDeleted, OLDER, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::Server, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::Client, 3, "anna LOW"),
        ],
    );
}

#[test]
fn manual_applies_nothing_and_nobody_has_won() {
    table(
        Manual,
        [
            (Overlap, OLDER, Winner::None, 2, "bert LOW"),
            (Overlap, EQUAL, Winner::None, 2, "bert LOW"),
            (Overlap, NEWER, Winner::None, 2, "bert LOW"),
            (Apart, OLDER, Winner::None, 2, "bert LOW"),
            (Apart, EQUAL, Winner::None, 2, "bert LOW"),
            (Apart, NEWER, Winner::None, 2, "bert LOW"),
            (DeleteOfChanged, OLDER, Winner::None, 2, "bert LOW"),
            (DeleteOfChanged, EQUAL, Winner::None, 2, "bert LOW"),
            (DeleteOfChanged, NEWER, Winner::None, 2, "bert LOW"),
            (ChangeOfDeleted, OLDER, Winner::None, 2, "deleted"),
            (ChangeOfDeleted, EQUAL, Winner::None, 2, "deleted"),
            (ChangeOfDeleted, NEWER, Winner::None, 2, "deleted"),
        ],
    );
}

/// Bert at 10, then Carl at 12 and Anna at 11, both on version 1 still.
#[test]
fn three_devices_on_one_version() {
    let rows = [
        (
            ClientWins,
            Winner::Client,
            3,
            "carl HIGH",
            Winner::Client,
            4,
            "anna HIGH",
            "REQUEST",
        ),
        (
            ServerWins,
            Winner::Server,
            2,
            "bert LOW",
            Winner::Server,
            2,
            "bert LOW",
            "TICKET",
        ),
        (
            MostRecentWins,
            Winner::Client,
            3,
            "carl HIGH",
            Winner::Server,
            3,
            "carl HIGH",
            "TICKET",
        ),
        (
            PreserveEscalation,
            Winner::Merged,
            3,
            "carl HIGH",
            Winner::Merged,
            4,
            "anna HIGH",
            "REQUEST",
        ),
        (
            Merge,
            Winner::Merged,
            3,
            "carl HIGH",
            Winner::Merged,
            4,
            "carl HIGH",
            "REQUEST",
        ),
        (
            Manual,
            Winner::None,
            2,
            "bert LOW",
            Winner::None,
            2,
            "bert LOW",
            "TICKET",
        ),
    ];
    for (policy, winner, version, says, second_winner, second_version, finally, kind) in rows {
        let mut tale = Tale::of_a_ticket(policy);
        tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
        let carl = tale.behind(
            CARL,
            Update,
            1,
            12,
            json!({"comments": "carl", "priority": "HIGH"}),
        );
        assert_eq!(carl, (winner, version, says.to_owned()), "{policy:?}");
        let anna = tale.behind(
            ANNA,
            Update,
            1,
            11,
            json!({"comments": "anna", "identifier": "REQUEST"}),
        );
        assert_eq!(
            anna,
            (second_winner, second_version, finally.to_owned()),
            "{policy:?}"
        );
        assert_eq!(tale.doc()["identifier"], kind, "{policy:?}");
    }
}

#[test]
fn in_a_merge_a_fields_time_is_that_of_its_own_last_change() {
    let mut tale = Tale::of_a_ticket(Merge);
    tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
    tale.tell(CARL, Update, 2, 20, json!({"priority": "HIGH"}));
    let anna = tale.behind(
        ANNA,
        Update,
        1,
        15,
        json!({"comments": "anna", "priority": "MEDIUM"}),
    );
    assert_eq!(anna, (Winner::Merged, 4, "anna HIGH".into()));
    assert_eq!(
        tale.kept(),
        BTreeMap::from([("comments", "client"), ("priority", "server")])
    );
    // What was merged with an earlier time than the record's does not make the rest of it look older.
    let bert = tale.behind(BERT, Update, 2, 17, json!({"priority": "LOW"}));
    assert_eq!(bert, (Winner::Merged, 4, "anna HIGH".into()));
}

#[test]
fn a_deletion_in_a_merge_has_to_beat_every_change_that_its_device_did_not_know() {
    let mut tale = Tale::of_a_ticket(Merge);
    tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
    tale.behind(CARL, Update, 1, 4, json!({"priority": "HIGH"}));
    // The record's last change is Carl's, at 4; but Anna at 7 would delete what Bert wrote at 10.
    let anna = tale.behind(ANNA, Delete, 1, 7, json!({}));
    assert_eq!(anna, (Winner::Server, 3, "bert HIGH".into()));
}

#[test]
fn a_merge_takes_nested_objects_by_leaf() {
    let mut tale = Tale::of("helpdesk", Merge);
    let first = json!({"ticketdesc": DESC, "note": {"a": 1, "b": 1, "deep": {"x": 1, "y": 1}, "gone": 1}});
    tale.tell(ANNA, Create, 0, 0, first);
    tale.tell(
        BERT,
        Update,
        1,
        10,
        json!({"note": {"a": 2, "deep": {"x": 2}, "gone": null}}),
    );
    tale.tell(
        ANNA,
        Update,
        1,
        5,
        json!({"note": {"a": 3, "b": 3, "deep": {"y": 3}, "new": [1]}}),
    );
    let note = json!({"a": 2, "b": 3, "deep": {"x": 2, "y": 3}, "new": [1]});
    assert_eq!(tale.doc()["note"], note);
    let kept = BTreeMap::from([
        ("note.a", "server"),
        ("note.b", "client"),
        ("note.deep.x", "server"),
        ("note.deep.y", "client"),
        ("note.gone", "server"),
        ("note.new", "client"),
    ]);
    assert_eq!(tale.kept(), kept);
}

#[test]
fn a_merge_takes_lists_of_strings_as_sets() {
    // Before, Bert's, Anna's, and what becomes of them: the time decides nothing here.
    let rows = [
        (
            json!(["a", "b", "c"]),
            json!(["b", "c", "d"]),
            json!(["a", "b", "e"]),
            json!(["b", "d", "e"]),
        ),
        (
            json!(["a"]),
            json!(["a", "b"]),
            json!(["a", "b", "c"]),
            json!(["a", "b", "c"]),
        ),
        (json!(["a", "b"]), json!(["a"]), json!(["b"]), json!([])),
        (
            json!([]),
            json!(["x", "y"]),
            json!(["y", "z"]),
            json!(["x", "y", "z"]),
        ),
        (Value::Null, json!(["x"]), json!(["z"]), json!(["x", "z"])),
        (
            json!(["a", "b"]),
            json!(["a", "b", "c"]),
            Value::Null,
            json!(["c"]),
        ),
        (
            json!(["a", "b"]),
            Value::Null,
            json!(["a", "b", "c"]),
            json!(["c"]),
        ),
    ];
    for (before, berts, annas, expected) in rows {
        let mut tale = Tale::of("helpdesk", Merge);
        tale.tell(ANNA, Create, 0, 0, json!({"ticketdesc": DESC, "tags": before}));
        tale.tell(BERT, Update, 1, 10, json!({"tags": berts}));
        tale.tell(ANNA, Update, 1, 5, json!({"tags": annas}));
        assert_eq!(
            tale.doc()["tags"],
            expected,
            "{before} became {berts} and {annas}"
        );
        assert_eq!(tale.kept(), BTreeMap::from([("tags", "both")]));
    }
    // A list of anything else is one value.
    for (minute, expected) in [(5, json!([1, 2])), (15, json!([1, 3]))] {
        let mut tale = Tale::of("helpdesk", Merge);
        tale.tell(ANNA, Create, 0, 0, json!({"ticketdesc": DESC, "counts": [1]}));
        tale.tell(BERT, Update, 1, 10, json!({"counts": [1, 2]}));
        tale.tell(ANNA, Update, 1, minute, json!({"counts": [1, 3]}));
        assert_eq!(tale.doc()["counts"], expected);
    }
}

#[test]
fn in_a_merge_a_value_sent_as_it_was_is_no_change() {
    let mut tale = Tale::of_a_ticket(Merge);
    tale.tell(
        BERT,
        Update,
        1,
        10,
        json!({"comments": "bert", "priority": "HIGH"}),
    );
    // Anna's app sends the whole ticket; she changed the priority alone, to what Bert chose too.
    let whole = json!({"ticketdesc": DESC, "comments": "first", "priority": "HIGH", "status": "NEW"});
    let anna = tale.behind(ANNA, Update, 1, 15, whole);
    assert_eq!(anna, (Winner::Merged, 2, "bert HIGH".into()));
    assert_eq!(
        tale.kept(),
        BTreeMap::from([("comments", "server"), ("priority", "both")])
    );
}

#[test]
fn in_a_merge_clearing_is_a_change_like_any_other() {
    for (minute, comments, version) in [(5, "bert", 2), (15, "-", 3)] {
        let mut tale = Tale::of_a_ticket(Merge);
        tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
        let anna = tale.behind(ANNA, Update, 1, minute, json!({"comments": null}));
        assert_eq!(anna, (Winner::Merged, version, format!("{comments} LOW")));
    }
}

#[test]
fn a_merge_with_base_0_starts_from_an_empty_document() {
    for (minute, says) in [(5, "bert LOW"), (15, "anna LOW")] {
        let mut tale = Tale::of("helpdesk", Merge);
        tale.tell(
            BERT,
            Create,
            0,
            10,
            json!({"ticketdesc": DESC, "comments": "bert", "priority": "LOW"}),
        );
        let item = json!({"ticketdesc": DESC, "comments": "anna", "note": {"a": 1}});
        let anna = tale.behind(ANNA, Create, 0, minute, item);
        assert_eq!(anna, (Winner::Merged, 2, says.into()));
        assert_eq!(
            (&tale.doc()["note"], &tale.doc()["status"]),
            (&json!({"a": 1}), &json!("NEW"))
        );
        let kept = tale.kept();
        let side = if minute == 5 { "server" } else { "client" };
        let of = ["ticketdesc", "comments", "note", "priority"].map(|name| kept[name]);
        assert_eq!(of, ["both", side, "client", "server"]);
    }
}

#[test]
fn preserve_escalation_keeps_escalation_and_status_as_the_server_has_them() {
    let mut tale = Tale::of_a_ticket(PreserveEscalation);
    let escalated = json!({"status": "OPEN", "escalation_level": 2, "escalated_by": "bert", "escalated_at": "2026-01-01T00:00:00Z"});
    tale.tell(BERT, Update, 1, 10, escalated);
    let item = json!({"comments": "anna", "priority": "LOW", "status": "CLOSED", "escalation_level": 1, "escalated_by": null, "note": 1});
    let anna = tale.behind(ANNA, Update, 1, 15, item);
    assert_eq!(anna, (Winner::Merged, 3, "anna LOW".into()));
    let doc = tale.doc();
    let stays = ["status", "escalation_level", "escalated_by", "escalated_at"].map(|name| doc[name].clone());
    assert_eq!(
        stays,
        [
            json!("OPEN"),
            json!(2),
            json!("bert"),
            json!("2026-01-01T00:00:00Z")
        ]
    );
    let kept = BTreeMap::from([
        ("comments", "client"),
        ("note", "client"),
        ("priority", "both"),
        ("status", "server"),
        ("escalation_level", "server"),
        ("escalated_by", "server"),
    ]);
    assert_eq!(tale.kept(), kept);
    let nothing = tale.behind(
        ANNA,
        Update,
        1,
        20,
        json!({"status": "OPEN", "escalation_level": 9}),
    );
    assert_eq!(
        nothing,
        (Winner::Merged, 3, "anna LOW".into()),
        "nothing changes, so no version"
    );
}

#[test]
fn preserve_escalation_keeps_the_status_of_any_domain() {
    let mut tale = Tale::of("activity", PreserveEscalation);
    tale.tell(ANNA, Create, 0, 0, json!({"jobdesc": "inspect the pump"}));
    tale.tell(
        BERT,
        Update,
        1,
        10,
        json!({"jobstatus": "INPROGRESS", "escalation_level": 3}),
    );
    tale.tell(
        ANNA,
        Update,
        1,
        15,
        json!({"jobstatus": "STANDBY", "escalation_level": 0, "remarks": "anna"}),
    );
    let doc = tale.doc();
    assert_eq!(
        (&doc["jobstatus"], &doc["escalation_level"], &doc["remarks"]),
        (&json!("INPROGRESS"), &json!(3), &json!("anna"))
    );
}

#[test]
fn manual_keeps_both_sides_for_a_person() {
    let mut tale = Tale::of_a_ticket(Manual);
    tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
    tale.behind(ANNA, Update, 1, 15, json!({"comments": "anna"}));
    let kept = tale.shelf.conflicts.values().next().expect("a conflict");
    assert_eq!(kept.client_doc["comments"], "anna");
    assert_eq!(kept.server_doc.as_ref().expect("a document")["comments"], "bert");
}

#[test]
fn the_policy_decides_first_and_the_status_machine_judges_the_result() {
    // From NEW, Bert goes to OPEN. What Anna asks for is judged from OPEN, the server's.
    for policy in [ClientWins, MostRecentWins, Merge] {
        let mut tale = Tale::of_a_ticket(policy);
        tale.tell(BERT, Update, 1, 10, json!({"status": "OPEN"}));
        let outcome = tale.tell(ANNA, Update, 1, 15, json!({"status": "RESOLVED"}));
        let Outcome::Refused { error } = outcome else {
            panic!("{policy:?}: a refusal, not {outcome:?}")
        };
        assert_eq!(error.error_code, ErrorCode::InvalidTransition);
        assert_eq!(
            (tale.shelf.state(TICKET).version, tale.shelf.conflicts.len()),
            (2, 0)
        );
        let fine = tale.behind(ANNA, Update, 1, 16, json!({"status": "INPROGRESS"}));
        assert_eq!(fine.1, 3, "{policy:?}");
        assert_eq!(tale.doc()["status"], "INPROGRESS");
    }
    for (policy, winner) in [
        (ServerWins, Winner::Server),
        (Manual, Winner::None),
        (PreserveEscalation, Winner::Merged),
    ] {
        let mut tale = Tale::of_a_ticket(policy);
        tale.tell(BERT, Update, 1, 10, json!({"status": "OPEN"}));
        let anna = tale.behind(ANNA, Update, 1, 15, json!({"status": "RESOLVED"}));
        assert_eq!(
            anna,
            (winner, 2, "first LOW".into()),
            "the server's status stays, so there is nothing to judge"
        );
    }
}

#[test]
fn required_members_and_orders_judge_a_merge_too() {
    let mut tale = Tale::of("activity", Merge);
    tale.tell(ANNA, Create, 0, 0, json!({"jobdesc": "inspect", "plandatetime": "2026-01-02T00:00:00Z", "expirydatetime": "2026-01-05T00:00:00Z"}));
    tale.tell(
        BERT,
        Update,
        1,
        10,
        json!({"plandatetime": "2026-01-04T00:00:00Z"}),
    );
    let outcome = tale.tell(
        ANNA,
        Update,
        1,
        15,
        json!({"expirydatetime": "2026-01-03T00:00:00Z"}),
    );
    assert!(
        matches!(outcome, Outcome::Refused { .. }),
        "each alone is fine, together they are not: {outcome:?}"
    );
}

#[test]
fn an_update_that_beats_a_deletion_goes_on_from_what_that_removed() {
    let mut tale = Tale::of_a_ticket(MostRecentWins);
    tale.tell(BERT, Update, 1, 5, json!({"status": "OPEN", "note": {"a": 1}}));
    tale.tell(BERT, Delete, 2, 10, json!({}));
    let outcome = tale.tell(ANNA, Update, 1, 15, json!({"status": "CLOSED"}));
    assert!(
        matches!(outcome, Outcome::Refused { .. }),
        "OPEN does not go to CLOSED: {outcome:?}"
    );
    let anna = tale.behind(ANNA, Update, 1, 16, json!({"status": "ONHOLD", "note": {"b": 2}}));
    assert_eq!(anna, (Winner::Client, 4, "first LOW".into()));
    assert_eq!(
        (
            &tale.doc()["ticketno"],
            &tale.doc()["status"],
            &tale.doc()["note"]
        ),
        (&json!("TKT-0-0"), &json!("ONHOLD"), &json!({"a": 1, "b": 2}))
    );
    assert_eq!(tale.shelf.feed.last().expect("a row").operation, "create");
}

#[test]
fn a_repeat_of_a_decided_conflict_is_a_duplicate_with_its_first_outcome() {
    for policy in [
        ClientWins,
        ServerWins,
        MostRecentWins,
        PreserveEscalation,
        Merge,
        Manual,
    ] {
        let mut tale = Tale::of_a_ticket(policy);
        tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
        let first = tale.tell(ANNA, Update, 1, 15, json!({"comments": "anna"}));
        let version = tale.shelf.state(TICKET).version;
        tale.tell(BERT, Update, version, 16, json!({"comments": "bert again"}));
        let again = tale.tell(ANNA, Update, 1, 15, json!({"comments": "anna"}));
        assert_eq!(
            again,
            Outcome::Duplicate {
                first: Box::new(first)
            },
            "{policy:?}"
        );
        assert_eq!(tale.says(), "bert again LOW");
    }
}

#[test]
fn of_two_changes_that_one_device_made_at_one_time_the_later_in_the_log_is_the_later() {
    // Items without a time of their own all have their batch's.
    for policy in [MostRecentWins, Merge] {
        let mut tale = Tale::of_a_ticket(policy);
        tale.tell(BERT, Update, 1, 10, json!({"comments": "bert"}));
        tale.behind(ANNA, Update, 1, 15, json!({"comments": "one"}));
        let second = tale.behind(ANNA, Update, 1, 15, json!({"comments": "two"}));
        assert_eq!((second.1, second.2.as_str()), (4, "two LOW"), "{policy:?}");
        let third = tale.behind(ANNA, Delete, 1, 15, json!({}));
        assert_eq!((third.1, third.2.as_str()), (5, "deleted"), "{policy:?}");
    }
}

/// The tablet's item meets the phone's change of minute 10.
fn devices(
    policy: Policy,
    phone: (Phone, &'static str),
    tablet: (Phone, Option<&'static str>),
    minute: i64,
) -> (Winner, String) {
    let mut tale = Tale::of_a_ticket(policy);
    tale.tell(CARL, Update, 1, 1, json!({"priority": "MEDIUM"}));
    tale.device_type = Some(phone.1);
    tale.tell(phone.0, Update, 2, 10, json!({"comments": "phone"}));
    tale.device_type = tablet.1;
    let (winner, _, says) = tale.behind(tablet.0, Update, 2, minute, json!({"comments": "tablet"}));
    (winner, says)
}

#[test]
fn between_two_devices_of_one_user_priority_decides_before_time_does() {
    let (older, newer) = (5, 15);
    let rows = [
        (
            "a higher one wins though it is older",
            (ANNA, "phone/40"),
            (ANNAS_TABLET, Some("tablet/60")),
            older,
            true,
        ),
        (
            "a lower one loses though it is newer",
            (ANNA, "phone/80"),
            (ANNAS_TABLET, Some("tablet/60")),
            newer,
            false,
        ),
        (
            "equal ones leave it to time",
            (ANNA, "phone/60"),
            (ANNAS_TABLET, Some("tablet/60")),
            newer,
            true,
        ),
        (
            "equal ones leave it to time",
            (ANNA, "phone/60"),
            (ANNAS_TABLET, Some("tablet/60")),
            older,
            false,
        ),
        (
            "one that is not told leaves it to time",
            (ANNA, "phone/80"),
            (ANNAS_TABLET, None),
            newer,
            true,
        ),
        (
            "another user's device has no say",
            (BERT, "phone/40"),
            (ANNAS_TABLET, Some("tablet/60")),
            older,
            false,
        ),
        (
            "another user's device has no say",
            (BERT, "phone/80"),
            (ANNAS_TABLET, Some("tablet/60")),
            newer,
            true,
        ),
    ];
    for (why, phone, tablet, minute, tablet_wins) in rows {
        let says = if tablet_wins {
            "tablet MEDIUM"
        } else {
            "phone MEDIUM"
        };
        let winner = if tablet_wins {
            Winner::Client
        } else {
            Winner::Server
        };
        assert_eq!(
            devices(MostRecentWins, phone, tablet, minute),
            (winner, says.into()),
            "{why}"
        );
        assert_eq!(
            devices(Merge, phone, tablet, minute),
            (Winner::Merged, says.into()),
            "{why}"
        );
    }
}
