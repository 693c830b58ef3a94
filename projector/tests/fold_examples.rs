//! The fold, rule by rule: each test is a sentence of DOMAINS.

mod common;

use common::*;
use serde_json::{Value, json};
use tidelog_events::error::ErrorCode;
use tidelog_events::item::Operation::{self, Append, Create, Delete, Update};
use tidelog_events::outcome::{Change, Outcome, Winner};

/// A conversation about one ticket: each step is a batch of one item.
struct Story {
    log: Log,
    shelf: Shelf,
    batch: u64,
}

impl Story {
    fn new() -> Story {
        Story {
            log: Log::new(),
            shelf: Shelf::default(),
            batch: 0,
        }
    }

    fn send(&mut self, sent: &Sent) -> Outcome {
        let event = self.log.append(sent);
        self.shelf.fold(&self.log.registry, &[event], &[]);
        self.shelf.check();
        self.shelf.outcome(sent.batch).expect("an outcome")
    }

    fn next(
        &mut self,
        domain: &'static str,
        phone: Phone,
        operation: Operation,
        subject: &str,
        base: i64,
        item: Value,
    ) -> Sent {
        self.batch += 1;
        Sent {
            batch: self.batch,
            ..Sent::new(domain, phone, operation, subject, base, item)
        }
    }

    fn ticket(&mut self, phone: Phone, operation: Operation, base: i64, fields: Value) -> Outcome {
        let sent = self.next("helpdesk", phone, operation, TICKET, base, ticket(fields));
        self.send(&sent)
    }

    fn doc(&self) -> Value {
        Value::Object(self.shelf.state(TICKET).doc.to_map())
    }
}

fn applied(change: Change, version: i64) -> Outcome {
    Outcome::Applied { change, version }
}

fn refusal(outcome: Outcome) -> (ErrorCode, Option<String>, Option<String>) {
    let Outcome::Refused { error } = outcome else {
        panic!("a refusal, not {outcome:?}")
    };
    (error.error_code, error.field, error.rule)
}

const DESC: &str = "the pump is leaking";

#[test]
fn a_create_gets_defaults_and_a_number() {
    let mut story = Story::new();
    let outcome = story.ticket(
        ANNA,
        Create,
        0,
        json!({"ticketdesc": DESC, "priority": "high", "ticketno": "X", "note": {"a": 1}}),
    );
    assert_eq!(outcome, applied(Change::Created, 1));
    let expected = json!({"ticketdesc": DESC, "priority": "HIGH", "note": {"a": 1}, "status": "NEW", "identifier": "TICKET", "ticketno": "TKT-0-0"});
    assert_eq!(story.doc(), expected);
}

#[test]
fn an_update_is_a_patch() {
    let mut story = Story::new();
    story.ticket(
        ANNA,
        Create,
        0,
        json!({"ticketdesc": DESC, "comments": "a", "note": {"a": 1, "b": 2}}),
    );
    assert_eq!(
        story.ticket(
            BERT,
            Update,
            1,
            json!({"comments": null, "note": {"a": null, "c": 3}})
        ),
        applied(Change::Updated, 2)
    );
    assert_eq!(story.doc()["note"], json!({"b": 2, "c": 3}));
    assert!(story.doc().get("comments").is_none());
    assert_eq!(story.doc()["ticketdesc"], DESC);
    let last = story.shelf.feed.last().expect("a row");
    assert_eq!(last.fields, ["comments", "note"].into_iter().collect());
    assert_eq!(last.before, json!({"comments": "a", "note": {"a": 1, "b": 2}}));
}

#[test]
fn what_the_document_needs_is_judged_as_it_would_become() {
    let mut story = Story::new();
    let required = (
        ErrorCode::ValidationError,
        Some("ticketdesc".into()),
        Some("required".into()),
    );
    assert_eq!(
        refusal(story.ticket(ANNA, Create, 0, json!({"comments": "no description"}))),
        required
    );
    assert!(story.shelf.states.is_empty());
    assert_eq!(
        story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC})),
        applied(Change::Created, 1)
    );
    let (code, field, rule) = refusal(story.ticket(ANNA, Update, 1, json!({"status": "closed"})));
    assert_eq!(
        (code, field.as_deref(), rule.as_deref()),
        (ErrorCode::InvalidTransition, Some("status"), Some("transition"))
    );
    assert_eq!(
        story.ticket(ANNA, Update, 1, json!({"status": "open"})),
        applied(Change::Updated, 2)
    );
    assert_eq!(story.doc()["status"], "OPEN");
    assert_eq!(
        story.ticket(ANNA, Update, 2, json!({"status": "OPEN"})),
        applied(Change::Updated, 3),
        "staying is no step"
    );
}

#[test]
fn two_times_keep_their_order() {
    let mut story = Story::new();
    let item = json!({"mobile_id": TICKET, "jobdesc": "inspect", "plandatetime": "2026-01-02T00:00:00Z", "expirydatetime": "2026-01-02T05:00:00+05:30"});
    let sent = story.next("activity", ANNA, Create, TICKET, 0, item);
    let (_, field, rule) = refusal(story.send(&sent));
    assert_eq!(
        (field.as_deref(), rule.as_deref()),
        (Some("expirydatetime"), Some("order"))
    );
}

#[test]
fn a_stale_version_is_a_conflict_and_both_sides_are_kept() {
    let mut story = Story::new();
    story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC}));
    story.ticket(BERT, Update, 1, json!({"comments": "bert"}));
    let outcome = story.ticket(ANNA, Update, 1, json!({"comments": "anna"}));
    let Outcome::Conflict {
        conflict_id,
        winner,
        server_version,
        client_version,
        ..
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!((winner, server_version, client_version), (Winner::Server, 2, 1));
    assert_eq!(story.doc()["comments"], "bert");
    let kept = &story.shelf.conflicts[&conflict_id];
    assert_eq!(kept.client_doc["comments"], "anna");
    assert_eq!(kept.server_doc.as_ref().expect("a document")["comments"], "bert");
}

#[test]
fn a_base_of_0_for_a_record_that_exists_is_behind() {
    let mut story = Story::new();
    story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC}));
    assert!(matches!(
        story.ticket(BERT, Create, 0, json!({"ticketdesc": "another leaking pump"})),
        Outcome::Conflict { .. }
    ));
}

#[test]
fn a_device_is_never_behind_itself() {
    let mut story = Story::new();
    assert_eq!(
        story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC})),
        applied(Change::Created, 1)
    );
    assert_eq!(
        story.ticket(ANNA, Create, 0, json!({"comments": "1"})),
        applied(Change::Updated, 2)
    );
    assert_eq!(
        story.ticket(ANNA, Update, 1, json!({"comments": "2"})),
        applied(Change::Updated, 3)
    );
    assert_eq!(
        story.ticket(ANNA, Delete, 0, json!({})),
        applied(Change::Deleted, 4)
    );
    let back = json!({"ticketdesc": DESC, "client_timestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(story.ticket(ANNA, Create, 0, back), applied(Change::Created, 5));
    assert!(
        story.doc().get("comments").is_none(),
        "back from an empty document"
    );
    let tablet = story.ticket(ANNAS_TABLET, Update, 4, json!({"comments": "tablet"}));
    assert!(
        matches!(tablet, Outcome::Conflict { .. }),
        "another device of hers is another device"
    );
}

#[test]
fn another_phones_change_in_between_ends_the_run() {
    let mut story = Story::new();
    story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC}));
    story.ticket(BERT, Update, 1, json!({"comments": "bert"}));
    assert!(matches!(
        story.ticket(ANNA, Update, 1, json!({"comments": "2"})),
        Outcome::Conflict { .. }
    ));
    assert_eq!(
        story.ticket(ANNA, Update, 2, json!({"comments": "3"})),
        applied(Change::Updated, 3)
    );
    assert_eq!(
        story.ticket(ANNA, Update, 2, json!({"comments": "4"})),
        applied(Change::Updated, 4),
        "her new run began at 2"
    );
    assert!(matches!(
        story.ticket(ANNA, Update, 1, json!({"comments": "5"})),
        Outcome::Conflict { .. }
    ));
}

#[test]
fn a_base_ahead_is_applied_and_its_repeat_is_known() {
    let mut story = Story::new();
    assert_eq!(
        story.ticket(ANNA, Update, 7, json!({"ticketdesc": DESC})),
        applied(Change::Created, 1)
    );
    assert_eq!(
        story.ticket(BERT, Update, 9, json!({"comments": "far ahead"})),
        applied(Change::Updated, 2)
    );
    let again = story.ticket(BERT, Update, 9, json!({"comments": "far ahead"}));
    assert_eq!(
        again,
        Outcome::Duplicate {
            first: Box::new(applied(Change::Updated, 2))
        }
    );
}

#[test]
fn deleting_what_is_not_there_changes_nothing() {
    let mut story = Story::new();
    assert_eq!(
        story.ticket(ANNA, Delete, 3, json!({})),
        Outcome::NoEffect { version: None }
    );
    let again = story.ticket(ANNA, Delete, 3, json!({}));
    assert_eq!(
        again,
        Outcome::Duplicate {
            first: Box::new(Outcome::NoEffect { version: None })
        }
    );
    story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC}));
    story.ticket(ANNA, Delete, 1, json!({}));
    assert_eq!(
        story.ticket(BERT, Delete, 0, json!({})),
        Outcome::NoEffect { version: Some(2) }
    );
    assert_eq!(story.shelf.state(TICKET).version, 2);
    assert_eq!(
        story.ticket(BERT, Update, 2, json!({"ticketdesc": "back again, leaking"})),
        applied(Change::Created, 3)
    );
}

#[test]
fn the_same_item_from_another_batch_is_a_duplicate_with_the_first_outcome() {
    let mut story = Story::new();
    story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC}));
    let again = story.ticket(
        ANNA,
        Create,
        0,
        json!({"sync_status": "sync_error", "ticketdesc": DESC}),
    );
    assert_eq!(
        again,
        Outcome::Duplicate {
            first: Box::new(applied(Change::Created, 1))
        }
    );
    story.ticket(BERT, Update, 1, json!({"comments": "b"}));
    let conflict = story.ticket(ANNA, Update, 0, json!({"comments": "a"}));
    let repeated = story.ticket(ANNA, Update, 0, json!({"comments": "a"}));
    assert_eq!(
        repeated,
        Outcome::Duplicate {
            first: Box::new(conflict)
        }
    );
    let later = story.ticket(
        BERT,
        Update,
        1,
        json!({"comments": "b", "client_timestamp": "2026-01-01T00:00:00Z"}),
    );
    assert_eq!(
        later,
        applied(Change::Updated, 3),
        "the same edit made again later is another item"
    );
}

#[test]
fn a_refusal_is_judged_anew_unless_it_is_the_same_event() {
    let mut story = Story::new();
    let patch = json!({"comments": "early"});
    let early = story.next("helpdesk", ANNA, Create, TICKET, 0, ticket(patch.clone()));
    let first = story.send(&early);
    refusal(first.clone());
    story.ticket(ANNA, Create, 0, json!({"ticketdesc": DESC}));
    assert_eq!(
        story.send(&early),
        first,
        "the same event always gives the first outcome"
    );
    assert_eq!(story.shelf.state(TICKET).version, 1);
    assert_eq!(story.ticket(ANNA, Create, 0, patch), applied(Change::Updated, 2));
}

#[test]
fn only_the_owner_writes_an_attendance() {
    let mut story = Story::new();
    let item = json!({"mobile_id": TICKET, "deviceid": "d-123", "gpslocation": {"type": "Point", "coordinates": [1, 2]}});
    let mine = story.next("attendance", ANNA, Create, TICKET, 0, item.clone());
    assert_eq!(story.send(&mine), applied(Change::Created, 1));
    let theirs = story.next("attendance", BERT, Update, TICKET, 1, item);
    assert_eq!(refusal(story.send(&theirs)).0, ErrorCode::Forbidden);
    let doc = &story.shelf.state(TICKET).doc.to_map();
    assert_eq!(
        (&doc["status"], &doc["identifier"], &doc["transportmode"]),
        (&json!("PENDING"), &json!("TRACKING"), &json!("WALK"))
    );
}

#[test]
fn an_entry_says_who_reads_and_writes_it_and_its_media_follow() {
    let mut story = Story::new();
    let entry = |fields: Value| {
        let mut item = json!({"mobile_id": ENTRY});
        item.as_object_mut()
            .expect("object")
            .extend(fields.as_object().expect("object").clone());
        item
    };
    let media = json!({"mobile_id": MEDIA, "journal_entry": ENTRY, "media_type": "PHOTO", "original_filename": "a.jpg", "mime_type": "image/jpeg"});
    // The photo comes before its entry: nobody but its owner sees it yet.
    let photo = story.next("journal-media", ANNA, Create, MEDIA, 0, media);
    assert_eq!(story.send(&photo), applied(Change::Created, 1));
    assert_eq!(
        story.shelf.state(MEDIA).audience.as_ref().expect("audience").0,
        ["user:anna"]
    );
    let created = story.next(
        "journal",
        ANNA,
        Create,
        ENTRY,
        0,
        entry(json!({"entry_type": "gratitude", "timestamp": "2026-01-01T00:00:00Z"})),
    );
    story.send(&created);
    let stranger = story.next(
        "journal",
        BERT,
        Update,
        ENTRY,
        1,
        entry(json!({"title": "mine now"})),
    );
    assert_eq!(refusal(story.send(&stranger)).0, ErrorCode::Forbidden);
    let shared = story.next(
        "journal",
        ANNA,
        Update,
        ENTRY,
        1,
        entry(json!({"privacy_scope": "team", "team_members": ["bert"]})),
    );
    story.send(&shared);
    assert_eq!(
        story.shelf.state(MEDIA).audience.as_ref().expect("audience").0,
        ["user:anna", "user:bert"]
    );
    assert_eq!(
        story.shelf.state(MEDIA).version,
        1,
        "who sees it is no version of it"
    );
    let edited = story.next("journal", BERT, Update, ENTRY, 2, entry(json!({"title": "ours"})));
    assert_eq!(story.send(&edited), applied(Change::Updated, 3));
    assert_eq!(*story.shelf.state(ENTRY).owner, *"anna");
    let gone = story.next("journal", ANNA, Delete, ENTRY, 3, entry(json!({})));
    story.send(&gone);
    assert!(
        story
            .shelf
            .state(MEDIA)
            .audience
            .as_ref()
            .expect("audience")
            .0
            .is_empty()
    );
    let row = story.shelf.feed.last().expect("a row");
    assert_eq!((row.operation, &*row.record.subject), ("audience", MEDIA));
}

#[test]
fn telemetry_is_written_once_and_a_session_is_replaced() {
    let mut story = Story::new();
    let voice = |verified: bool| json!({"verification_id": "v-1", "verified": verified, "timestamp": "2026-01-01T00:00:00Z"});
    let first = story.next("voice", ANNA, Append, "v-1", 0, voice(true));
    assert_eq!(story.send(&first), applied(Change::Created, 1));
    let again = story.next("voice", ANNA, Append, "v-1", 0, voice(false));
    assert_eq!(
        story.send(&again),
        Outcome::Duplicate {
            first: Box::new(applied(Change::Created, 1))
        }
    );
    assert_eq!(story.shelf.state("v-1").doc.to_map()["verified"], true);
    let open = json!({"session_id": "s", "status": "open"});
    let session = story.next("sessions", ANNA, Append, "anna/s", 0, open.clone());
    story.send(&session);
    let closed = story.next(
        "sessions",
        ANNA,
        Append,
        "anna/s",
        0,
        json!({"session_id": "s", "status": "closed"}),
    );
    assert_eq!(story.send(&closed), applied(Change::Updated, 2));
    let late = story.next("sessions", ANNA, Append, "anna/s", 0, open);
    assert!(
        matches!(story.send(&late), Outcome::Duplicate { .. }),
        "an old copy sent again does not bring it back"
    );
    assert_eq!(story.shelf.state("anna/s").doc.to_map()["status"], "closed");
}
