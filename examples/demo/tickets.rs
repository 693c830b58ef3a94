//! What the phones have to tell: tickets of a day on a site, each as the JSON text that goes over the wire. The text
//! is kept, since the value on the topic is exactly that.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

const ASSETS: [&str; 10] = [
    "Pump 3",
    "Lift B",
    "Boiler 1",
    "Gate 7",
    "Chiller 2",
    "Generator 1",
    "Fire panel 4",
    "Conveyor 5",
    "Crane 2",
    "Air handler 6",
];
const FAULTS: [&str; 10] = [
    "is leaking oil",
    "makes a grinding noise",
    "does not start",
    "trips its breaker",
    "runs hot",
    "shows error 17",
    "has lost its cover",
    "stops by itself",
    "vibrates strongly",
    "is due for inspection",
];
const PRIORITIES: [&str; 3] = ["HIGH", "MEDIUM", "LOW"];

/// One item of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// The record's identity, made by the phone.
    pub(crate) id: String,
    /// JSON, as sent.
    pub(crate) text: String,
}

impl Item {
    fn of(item: &Value) -> Self {
        Self {
            id: item["mobile_id"].as_str().unwrap_or_default().to_owned(),
            text: item.to_string(),
        }
    }

    /// One of its members.
    pub(crate) fn member(&self, name: &str) -> Value {
        let item: Value = serde_json::from_str(&self.text).unwrap_or_default();
        item[name].clone()
    }
}

/// A hundred new tickets, one a minute up to now.
pub(crate) fn hundred(user: &str) -> Vec<Item> {
    (0..100).map(|n| Item::of(&ticket(user, n))).collect()
}

/// A hundred new tickets of which three are bad, and at which indexes.
pub(crate) fn hundred_with_three_bad(user: &str) -> (Vec<Item>, [usize; 3]) {
    let bad = [10, 42, 77];
    let items = (0..100).map(|n| {
        let mut ticket = ticket(user, n);
        match n {
            10 => ticket["ticketdesc"] = "Broken".into(),
            42 => ticket["priority"] = "URGENT".into(),
            77 => ticket["mobile_id"] = "ticket-77".into(),
            _ => {}
        }
        Item::of(&ticket)
    });
    (items.collect(), bad)
}

/// A change of a record that the phone has at that version: only what it changes.
pub(crate) fn change(id: &str, version: i64, members: &[(&str, &str)]) -> Item {
    let mut item = json!({
        "mobile_id": id,
        "version": version,
        "sync_status": "pending_sync",
        "client_timestamp": instant(Utc::now()),
    });
    for (name, value) in members {
        item[*name] = (*value).into();
    }
    Item::of(&item)
}

/// The body of a batch around the items' own texts.
pub(crate) fn batch(device: &str, items: &[Item]) -> String {
    let entries: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
    let sent_at = instant(Utc::now());
    format!(
        r#"{{"client_id":"{device}","sent_at":"{sent_at}","entries":[{}]}}"#,
        entries.join(",")
    )
}

fn ticket(user: &str, n: usize) -> Value {
    let minutes = i64::try_from(100 - n).unwrap_or(0);
    json!({
        "mobile_id": Uuid::new_v4(),
        "version": 0,
        "sync_status": "pending_sync",
        "ticketdesc": format!("{} {}", ASSETS[n % 10], FAULTS[n / 10 % 10]),
        "priority": PRIORITIES[n % 3],
        "bu": 4,
        "cuser": user,
        "client_timestamp": instant(Utc::now() - TimeDelta::minutes(minutes)),
    })
}

fn instant(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
