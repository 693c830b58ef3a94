//! The merge, value by value: whose each becomes, by what only one side has changed and by each value's own time.

mod common;

use common::tale::{DESC, Tale};
use common::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tidelog_events::domain::Policy::Merge;
use tidelog_events::item::Operation::{Create, Delete, Update};
use tidelog_events::outcome::{Outcome, Winner};

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
