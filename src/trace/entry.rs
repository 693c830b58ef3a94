//! What a trace tells: batches and items, as JSON and for people. Knows not where they were found.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use tidelog_events::answer::RefusedItem;
use tidelog_events::outcome::Winner;
use uuid::Uuid;

use super::Trace;
use crate::look::became::{Became, Undecided, won};
use crate::look::time;
use crate::output::{counted, printable};

/// A batch as its gateway saw it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Batch {
    pub(super) batch_id: Uuid,
    pub(super) received_at: DateTime<Utc>,
    /// What it was posted to.
    pub(super) domain: String,
    pub(super) user: String,
    pub(super) device: String,
    /// How many were posted, and how many of them reached the log.
    pub(super) items: i32,
    pub(super) appended_items: i32,
    /// Where they lie: topic, partition, last offset.
    pub(super) appended: Vec<(String, i32, i64)>,
    /// What the gateway refused.
    pub(super) refused: Vec<RefusedItem>,
    /// Its key, for as long as that is kept.
    pub(super) key: Option<String>,
    /// How often it came again under its key.
    pub(super) hits: Option<i64>,
}

/// An item, by what is kept of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Item {
    pub(super) log_time: DateTime<Utc>,
    pub(super) domain: Option<String>,
    pub(super) record: Option<String>,
    pub(super) user: Option<String>,
    pub(super) device: Option<String>,
    pub(super) batch_id: Option<Uuid>,
    pub(super) batch_index: Option<u32>,
    pub(super) operation: Option<String>,
    pub(super) base_version: Option<i64>,
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// What reading the log there again showed.
    pub(super) in_log: InLog,
    pub(super) outcome: Became,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) conflict: Option<Conflict>,
}

/// What lies at a place of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InLog {
    /// The item.
    There,
    /// Nothing: the log does not reach so far back, or was made anew.
    Gone,
    /// Another record: the topic was made anew, or this is another cluster.
    Another,
    /// It was not looked at.
    NotSeen,
}

/// How a conflict was decided.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Conflict {
    pub(super) conflict_id: Uuid,
    pub(super) policy: String,
    pub(super) winner: String,
    pub(super) client_version: i64,
    pub(super) server_version: i64,
    pub(super) result_version: i64,
    /// What was kept from whom.
    pub(super) kept: Option<Value>,
    /// Who had changed the record since the version that the device knew.
    pub(super) changed_by: Vec<Change>,
    /// The decision of a person.
    pub(super) resolved_by: Option<String>,
    pub(super) resolved_at: Option<DateTime<Utc>>,
    pub(super) strategy: Option<String>,
}

/// A change of a record by somebody.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Change {
    pub(super) version: i64,
    pub(super) user: String,
    pub(super) device: String,
    pub(super) at: DateTime<Utc>,
    pub(super) fields: Vec<String>,
}

impl Item {
    pub(super) fn place(&self) -> (&str, i32, i64) {
        (&self.topic, self.partition, self.offset)
    }

    /// By time; within a partition as it lies there.
    pub(super) fn order(&self) -> (DateTime<Utc>, &str, i32, i64) {
        (self.log_time, &self.topic, self.partition, self.offset)
    }
}

/// For people: batches and items in the order of time.
pub(super) fn text(trace: &Trace) -> String {
    let batches = trace
        .batches
        .iter()
        .map(|batch| (batch.received_at, 0, batch_text(batch)));
    let items = trace.items.iter().map(|item| (item.log_time, 1, item_text(item)));
    let mut told: Vec<(DateTime<Utc>, u8, String)> = batches.chain(items).collect();
    told.sort_by_key(|(at, kind, _)| (*at, *kind));
    let mut text: String = told.into_iter().map(|(_, _, text)| text).collect();
    if text.is_empty() {
        text.push_str("Nothing is known of it.\n");
    }
    if let Some(index) = trace.no_such_item {
        text.push_str(&no_item(index, trace.batches.first()));
    }
    if trace.has_more {
        text.push_str("There is more: see --limit and --since\n");
    }
    for unseen in &trace.unseen {
        text.push_str(&format!("NOT SEEN: {}\n", printable(unseen)));
    }
    text
}

/// Of a batch whose items are known by their number, an item that is not among them.
fn no_item(index: u32, batch: Option<&Batch>) -> String {
    match batch {
        Some(batch) if i64::from(index) >= i64::from(batch.items) => format!(
            "There is no item {index} in the batch {}: it has {}, numbered from 0\n",
            batch.batch_id,
            counted(batch.items, "item", "items")
        ),
        Some(batch) => format!(
            "Nothing is known of the item {index} of the batch {}\n",
            batch.batch_id
        ),
        None => String::new(),
    }
}

fn batch_text(batch: &Batch) -> String {
    let key = match (&batch.key, batch.hits) {
        (Some(key), Some(0)) => format!(", key {key}"),
        (Some(key), hits) => {
            let times = counted(hits.unwrap_or_default(), "time", "times");
            format!(", key {key} came again {times}")
        }
        (None, _) => String::new(),
    };
    let mut text = printable(&format!(
        "{} batch {} to {} by {} from {}: {}, {} appended{key}",
        time(batch.received_at),
        batch.batch_id,
        batch.domain,
        batch.user,
        batch.device,
        counted(batch.items, "item", "items"),
        batch.appended_items,
    ));
    text.push('\n');
    for refused in &batch.refused {
        let subject = refused.subject.as_deref().unwrap_or("unknown");
        text.push_str(&format!(
            "    item {} {}: refused by the gateway: {}: {}\n",
            refused.index,
            printable(subject),
            refused.error.error_code.as_str(),
            printable(&refused.error.error_message)
        ));
    }
    text
}

fn item_text(item: &Item) -> String {
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".into());
    let base = item.base_version.map_or("?".into(), |base| base.to_string());
    let batch = match (item.batch_id, item.batch_index) {
        (Some(batch), Some(index)) => format!("{batch}/{index}"),
        _ => "?".into(),
    };
    let mut text = printable(&format!(
        "{} {} {} {} by {} from {}, upon version {base}",
        time(item.log_time),
        or(&item.domain),
        or(&item.operation),
        or(&item.record),
        or(&item.user),
        or(&item.device),
    ));
    let mut outcome = item.outcome.text();
    if let Became::Decided(tidelog_events::outcome::Outcome::Refused { error }) = &item.outcome {
        outcome.push_str(&format!(": {}", printable(&error.error_message)));
    }
    if item.outcome == Became::Undecided(Undecided::Pending) {
        outcome.push_str(": in the log, and not applied yet");
    }
    let seen = match item.in_log {
        InLog::There => "it is there",
        InLog::Gone => "it is NOT there any more",
        InLog::Another => "ANOTHER record is there",
        InLog::NotSeen => "not looked at",
    };
    let place = format!("{} {}/{}", item.topic, item.partition, item.offset);
    text.push_str(&format!(
        " → {outcome}\n    item {batch}, in the log at {place}: {seen}\n"
    ));
    if let Some(conflict) = &item.conflict {
        text.push_str(&conflict_text(conflict));
    }
    text
}

fn conflict_text(conflict: &Conflict) -> String {
    let winner = Winner::parse(&conflict.winner).map_or("unknown", won);
    let mut text = format!(
        "    conflict {}: {} decided between the device's version {} and the server's {}: {winner}, version {} since\n",
        conflict.conflict_id,
        conflict.policy,
        conflict.client_version,
        conflict.server_version,
        conflict.result_version
    );
    for change in &conflict.changed_by {
        let fields = change.fields.join(", ");
        let line = format!(
            "version {} was made by {} from {} at {}: {fields}",
            change.version,
            change.user,
            change.device,
            time(change.at)
        );
        text.push_str(&format!("      {}\n", printable(&line)));
    }
    if let Some(kept) = &conflict.kept {
        text.push_str(&format!("      kept: {}\n", printable(&kept.to_string())));
    }
    if let (Some(by), Some(at)) = (&conflict.resolved_by, conflict.resolved_at) {
        let strategy = conflict.strategy.as_deref().unwrap_or("unknown");
        text.push_str(&format!(
            "      decided by {} at {}: {strategy}\n",
            printable(by),
            time(at)
        ));
    }
    text
}
