//! A record of the log as people read it: the headers of its event, or why it has none that can be read. Knows nothing
//! of what became of it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::envelope::Event;
use tidelog_events::position::TopicPartition;
use tidelog_projector::record::LogRecord;
use uuid::Uuid;

use super::became::Became;
use super::time;
use crate::output::printable;

/// A record of the log.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Where it lies.
    pub(crate) at: TopicPartition,
    /// And there.
    pub(crate) offset: i64,
    /// When the log took it.
    pub(crate) log_time: DateTime<Utc>,
    /// Its headers, or why they cannot be read.
    pub(crate) event: Result<(Event, Arc<Domain>), String>,
    /// The item, where it was asked for.
    pub(crate) payload: Option<Vec<u8>>,
}

/// As JSON: a line of `tail`, an item of `trace`.
#[derive(Serialize)]
struct Line<'a> {
    log_time: String,
    domain: Option<&'a str>,
    topic: &'a str,
    partition: i32,
    offset: i64,
    tenant: Option<&'a str>,
    user: Option<&'a str>,
    device: Option<&'a str>,
    operation: Option<&'a str>,
    record: Option<&'a str>,
    base_version: Option<i64>,
    policy: Option<&'a str>,
    item_time: Option<String>,
    batch_id: Option<Uuid>,
    batch_index: Option<u32>,
    event_id: Option<Uuid>,
    /// Why the headers cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<&'a str>,
    outcome: &'a Became,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Payload<'a>>,
}

/// The item as it was sent, or as text where it is no JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Json(&'a RawValue),
    Text(String),
}

impl Seen {
    /// Reads a record; keeps its value only where it is wanted.
    pub(crate) fn of(record: &LogRecord, registry: &Registry, payload: bool) -> Seen {
        let event = Event::from_headers(record.headers(), registry);
        let event = event.map_err(|error| error.to_string()).and_then(|event| {
            let domain = registry.by_table(&event.table).cloned();
            domain
                .map(|domain| (event, domain))
                .ok_or_else(|| "no domain here has its table".into())
        });
        Seen {
            at: TopicPartition {
                topic: record.topic().to_owned(),
                partition: record.partition(),
            },
            offset: record.offset(),
            log_time: record.log_time(),
            event,
            payload: payload.then(|| record.payload().unwrap_or_default().to_vec()),
        }
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        1024 + self.payload.as_ref().map_or(0, Vec::len)
    }

    /// One line, and the item on another where it is kept.
    pub(crate) fn text(&self, became: &Became) -> String {
        let place = format!("{}/{}", self.at.partition, self.offset);
        let time = time(self.log_time);
        let mut line = match &self.event {
            Ok((event, domain)) => {
                let words = [
                    domain.name.as_str(),
                    &place,
                    event.tenant.as_str(),
                    event.user.as_str(),
                    event.device.as_str(),
                    event.operation.as_str(),
                    &event.subject,
                ];
                printable(&format!("{time} {} {}", words.join(" "), event.base))
            }
            Err(why) => printable(&format!("{time} {} {place} cannot be read: {why}", self.at.topic)),
        };
        line.push_str(&format!(" → {}\n", became.text()));
        if let Some(payload) = &self.payload {
            let text = String::from_utf8_lossy(payload);
            let compact =
                serde_json::from_str::<Value>(&text).map_or(text.into_owned(), |value| value.to_string());
            line.push_str(&format!("    {}\n", printable(&compact)));
        }
        line
    }

    /// One line of JSON.
    pub(crate) fn json(&self, became: &Became) -> serde_json::Result<String> {
        let event = self.event.as_ref().ok().map(|(event, _)| event);
        let line = Line {
            log_time: time(self.log_time),
            domain: self.event.as_ref().ok().map(|(_, domain)| domain.name.as_str()),
            topic: &self.at.topic,
            partition: self.at.partition,
            offset: self.offset,
            tenant: event.map(|event| event.tenant.as_str()),
            user: event.map(|event| event.user.as_str()),
            device: event.map(|event| event.device.as_str()),
            operation: event.map(|event| event.operation.as_str()),
            record: event.map(|event| &*event.subject),
            base_version: event.map(|event| event.base),
            policy: event.map(|event| event.policy.as_str()),
            item_time: event.map(|event| time(event.time)),
            batch_id: event.map(|event| event.batch.0),
            batch_index: event.map(|event| event.index),
            event_id: event.map(|event| event.id),
            unreadable: self.event.as_ref().err().map(String::as_str),
            outcome: became,
            payload: self.payload.as_deref().map(payload),
        };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        Ok(text)
    }
}

fn payload(bytes: &[u8]) -> Payload<'_> {
    // A value with line breaks would make two lines of one object.
    let one_line = |raw: &&RawValue| !raw.get().contains(['\n', '\r']);
    match serde_json::from_slice::<&RawValue>(bytes) {
        Ok(raw) if one_line(&raw) => Payload::Json(raw),
        _ => Payload::Text(String::from_utf8_lossy(bytes).into_owned()),
    }
}
