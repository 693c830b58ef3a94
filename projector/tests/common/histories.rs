//! Random histories of several domains, as devices and people might make them.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use super::common::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use tidelog_events::domain::Policy;
use tidelog_events::item::Operation;

pub fn phone() -> impl Strategy<Value = Phone> {
    prop_oneof![Just(ANNA), Just(ANNAS_TABLET), Just(BERT)]
}

pub fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        1 => Just(Policy::ClientWins),
        1 => Just(Policy::ServerWins),
        1 => Just(Policy::MostRecentWins),
        1 => Just(Policy::PreserveEscalation),
        4 => Just(Policy::Merge),
        2 => Just(Policy::Manual),
    ]
}

/// Now and then the tenant has device priority on.
pub fn device_type() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![2 => Just(None), 1 => Just(Some("phone/40")), 1 => Just(Some("tablet/60"))]
}

pub fn subject() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just(TICKET), 1 => Just(MEDIA)]
}

pub fn ticket_fields() -> impl Strategy<Value = Value> {
    let description = prop_oneof![
        Just(None),
        Just(Some("the pump is leaking")),
        Just(Some("the valve is stuck"))
    ];
    let status = prop_oneof![
        Just(None),
        Just(Some("NEW")),
        Just(Some("open")),
        Just(Some("INPROGRESS")),
        Just(Some("CLOSED"))
    ];
    let comment = prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        (0..3u8).prop_map(|n| Some(json!(format!("comment {n}"))))
    ];
    let note = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Value::Null)),
        3 => (0..3u8, 0..3u8).prop_map(|(a, b)| Some(json!({"a": a, "deep": {"b": b}}))),
        1 => Just(Some(json!({"deep": {"b": null}})))
    ];
    let tags = prop::option::of(prop::sample::subsequence(vec!["x", "y", "z"], 0..=3));
    (description, status, comment, note, tags).prop_map(|(description, status, comment, note, tags)| {
        let mut item = json!({});
        if let Some(note) = note {
            item["note"] = note;
        }
        if let Some(tags) = tags {
            item["tags"] = json!(tags);
        }
        if let Some(text) = description {
            item["ticketdesc"] = text.into();
        }
        if let Some(text) = status {
            item["status"] = text.into();
        }
        if let Some(value) = comment {
            item["comments"] = value;
        }
        item
    })
}

pub fn ticket_item() -> impl Strategy<Value = Sent> {
    (phone(), subject(), 0..6i64, ticket_fields(), 0..6u8).prop_map(
        |(phone, subject, base, mut item, dice)| {
            item["mobile_id"] = subject.into();
            let operation = match dice {
                0 => Operation::Delete,
                _ if base == 0 => Operation::Create,
                _ => Operation::Update,
            };
            Sent::new("helpdesk", phone, operation, subject, base, item)
        },
    )
}

/// Items that often wait for a person, and people who decide: the right conflict or another, in time or too late.
pub fn waiting_item() -> impl Strategy<Value = Sent> {
    let strategy = prop_oneof![
        Just("client_wins"),
        Just("server_wins"),
        Just("merge"),
        Just("manual")
    ];
    let who = prop_oneof![1 => phone(), 3 => Just(SUE)];
    let decision = (who, 0..6i64, 0..40u64, strategy, ticket_fields()).prop_map(
        |(phone, base, of_batch, strategy, data)| {
            let value = resolution(of_batch, strategy, (strategy == "manual").then_some(data));
            Sent::new("helpdesk", phone, Operation::Resolve, TICKET, base, value)
        },
    );
    prop_oneof![2 => ticket_item(), 1 => decision]
}

pub fn journal_item() -> impl Strategy<Value = Sent> {
    let scope = prop_oneof![Just("private"), Just("team"), Just("shared"), Just("manager")];
    (phone(), any::<bool>(), 0..4i64, scope, 0..5u8).prop_map(|(phone, is_media, base, scope, dice)| {
        let (domain, subject) = if is_media { ("journal-media", MEDIA) } else { ("journal", ENTRY) };
        let item = if is_media {
            json!({"mobile_id": MEDIA, "journal_entry": ENTRY, "media_type": "PHOTO", "original_filename": "a", "mime_type": "image/png", "display_order": base})
        } else {
            json!({"mobile_id": ENTRY, "entry_type": "gratitude", "timestamp": "2026-01-01T00:00:00Z", "privacy_scope": scope, "team_members": ["bert"]})
        };
        let operation = match dice {
            0 => Operation::Delete,
            _ if base == 0 => Operation::Create,
            _ => Operation::Update,
        };
        Sent::new(domain, phone, operation, subject, base, item)
    })
}

pub fn session_item() -> impl Strategy<Value = Sent> {
    (phone(), 0..3u8).prop_map(|(phone, n)| {
        let item = json!({"session_id": "s", "event_count": n});
        Sent::new(
            "sessions",
            phone,
            Operation::Append,
            &format!("{}/s", phone.user),
            0,
            item,
        )
    })
}

/// A history: items in their own batches, some of them events appended again, some the same items under a new batch.
pub fn history(item: impl Strategy<Value = Sent>) -> impl Strategy<Value = Vec<Sent>> {
    let stamps = (policy(), prop::option::of(0..6i64), device_type());
    let step = (item, stamps, any::<prop::sample::Index>(), 0..8u8);
    prop::collection::vec(step, 1..40).prop_map(|steps| {
        let mut history: Vec<Sent> = Vec::new();
        for (number, (mut sent, (policy, minute, device_type), earlier, dice)) in
            steps.into_iter().enumerate()
        {
            (sent.policy, sent.minute, sent.device_type) = (policy, minute, device_type);
            sent.batch = number as u64;
            let again = (!history.is_empty()).then(|| earlier.get(&history).clone());
            history.push(match (dice, again) {
                (0, Some(again)) => again,
                (1, Some(again)) => Sent {
                    batch: number as u64,
                    ..again
                },
                _ => sent,
            });
        }
        history
    })
}
