//! What a decision keeps, restores and refuses, beside who wins: preserved fields, the status machine, deletions undone,
//! repeats, and priorities of devices.

mod common;

use common::tale::Tale;
use common::*;
use serde_json::json;
use std::collections::BTreeMap;
use tidelog_events::domain::Policy::{
    self, ClientWins, Manual, Merge, MostRecentWins, PreserveEscalation, ServerWins,
};
use tidelog_events::error::ErrorCode;
use tidelog_events::item::Operation::{Create, Delete, Update};
use tidelog_events::outcome::{Outcome, Winner};

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
