//! A record of the log, made ready for the fold: headers read, value parsed, content hashed. What cannot be read is
//! told apart here, so that the fold only ever sees events.

use crate::document::patch_of;
use crate::state::{Doc, EventKey, Identity, RecordKey};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tidelog_events::content::{hash_content, simple_item};
use tidelog_events::doc::Json;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::envelope::{EnvelopeError, Event};
use tidelog_events::item::{Operation, item_key, record_key};
use tidelog_events::position::Place;
use tidelog_events::resolution::Resolution;
use tidelog_events::seal;
use uuid::Uuid;

/// The member that says when the device did it, where an item of a domain's own batch says so.
const CLIENT_TIMESTAMP: &str = "client_timestamp";

/// An event with its value, its place and the log's time.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The headers.
    pub event: Event,
    /// Its domain.
    pub domain: Arc<Domain>,
    /// The item as a patch of its record's document, with the device's own time where a header holds that.
    pub patch: Doc,
    /// What tells the same item from another (DOMAINS: the same item).
    pub content: Uuid,
    /// The parent that the item names, for domains that have one.
    pub parent: Option<Uuid>,
    /// The record that it is about: asked for again and again.
    record: RecordKey,
    /// The one that this hangs on.
    parent_record: Option<RecordKey>,
    /// The key that it has to have on its topic.
    topic_key: String,
    /// What it decides, where it is the resolution of a conflict.
    pub resolution: Option<Resolution>,
    /// Where it lies.
    pub place: Place,
    /// The log's time, never lower than that of the record before it in the partition.
    pub log_time: DateTime<Utc>,
}

/// Why a record is no event that can be folded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The headers are not ours.
    #[error("{0}")]
    Envelope(#[from] EnvelopeError),
    /// The value is not an object in JSON.
    #[error("the value is not an object in JSON: {0}")]
    Value(String),
    /// The domain lives on another topic.
    #[error("events of {0} do not belong on this topic")]
    WrongTopic(String),
    /// The operation is none that this domain's records know.
    #[error("records of {table} know no operation {operation:?}")]
    Operation {
        /// The domain's table.
        table: String,
        /// The operation.
        operation: &'static str,
    },
    /// A resolution that does not say what it decides.
    #[error("a resolution's {0} is missing or not what it has to be")]
    Resolution(&'static str),
    /// The identity is not of the domain's kind.
    #[error("the subject or parent is not a UUID: {0:?}")]
    Identity(String),
    /// It lies under another key than its record's history.
    #[error("the key is not its record's, {0:?}")]
    Key(String),
}

impl Arrived {
    /// Reads a record. `topic` is the topic's name without the deployment's prefix.
    pub fn read<'a>(
        registry: &Registry,
        topic: &str,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        value: Option<&[u8]>,
        place: Place,
        log_time: DateTime<Utc>,
    ) -> Result<Arrived, Unreadable> {
        let event = Event::from_headers(headers, registry)?;
        Arrived::of(registry, topic, event, value, place, log_time)
    }

    /// The same of an event whose headers are read already.
    pub(crate) fn of(
        registry: &Registry,
        topic: &str,
        event: Event,
        value: Option<&[u8]>,
        place: Place,
        log_time: DateTime<Utc>,
    ) -> Result<Arrived, Unreadable> {
        let domain = registry
            .by_table(&event.table)
            .filter(|domain| domain.topic == topic)
            .cloned();
        let domain = domain.ok_or_else(|| Unreadable::WrongTopic(event.table.to_string()))?;
        let raw = value.unwrap_or_default();
        let (item, parsed) = item_of(raw)?;
        let appends = event.operation == Operation::Append;
        let resolves = event.operation == Operation::Resolve;
        if appends == domain.is_entity() || resolves && !domain.is_entity() {
            return Err(Unreadable::Operation {
                table: event.table.to_string(),
                operation: event.operation.as_str(),
            });
        }
        if domain.is_entity() {
            Uuid::try_parse(&event.subject).map_err(|_| Unreadable::Identity(event.subject.to_string()))?;
        }
        let parent = match &domain.parent {
            None => None,
            Some(parent) => {
                let text = item.get(&parent.field).and_then(Json::as_str).unwrap_or_default();
                Some(
                    Uuid::try_parse(&text)
                        .map_err(|_| Unreadable::Identity(text.chars().take(64).collect()))?,
                )
            }
        };
        let resolution = resolves.then(|| Resolution::read(&item.to_map())).transpose();
        let resolution = resolution.map_err(Unreadable::Resolution)?;
        let content = content_of(&event, &domain, &item, parsed);
        // From here on it is an item like any other: its document has its time, and not that of an earlier change.
        let item = match &event.client_time {
            Some(time) => item.with(CLIENT_TIMESTAMP, &time.as_str().into()),
            None => item,
        };
        let parent_record = parent.and_then(|id| parent_key(registry, &domain, &event, id));
        let record = RecordKey::new(Identity {
            table: event.table.clone(),
            tenant: event.tenant.shared(),
            subject: event.subject.clone(),
            parent,
        });
        Ok(Arrived {
            patch: patch_of(&domain, &item),
            topic_key: topic_key(&domain, &event, parent),
            event,
            domain,
            content,
            parent,
            record,
            parent_record,
            resolution,
            place,
            log_time,
        })
    }

    /// Sees to it that it lies under its record's key.
    pub fn under(self, key: Option<&[u8]>) -> Result<Arrived, Unreadable> {
        match key {
            Some(key) if key == self.topic_key.as_bytes() => Ok(self),
            _ => Err(Unreadable::Key(self.topic_key)),
        }
    }

    /// The key that it has to have on its topic: another one would lie in another partition, and a record's history is
    /// one partition.
    pub fn topic_key(&self) -> &str {
        &self.topic_key
    }

    /// The record that it is about.
    pub fn record(&self) -> &RecordKey {
        &self.record
    }

    /// The record that its record hangs on, in the parent's table.
    pub fn parent_record(&self) -> Option<&RecordKey> {
        self.parent_record.as_ref()
    }

    /// The record that stands for its family: what its record hangs on, or its own.
    pub(crate) fn head(&self) -> &RecordKey {
        self.parent_record.as_ref().unwrap_or(&self.record)
    }

    /// Its identity as an event: one item of one batch.
    pub fn key(&self) -> EventKey {
        (self.event.batch, self.event.index)
    }

    /// How far back it looks; what is older counts as if it had never been.
    pub fn horizon(&self) -> DateTime<Utc> {
        self.domain.horizon(self.log_time)
    }

    /// When the device did it: corrected by the gateway, never later than the log's time.
    pub fn item_time(&self) -> DateTime<Utc> {
        self.event.time.min(self.log_time)
    }
}

fn parent_key(registry: &Registry, domain: &Domain, event: &Event, id: Uuid) -> Option<RecordKey> {
    let parent = domain.parent.as_ref()?;
    Some(RecordKey::new(Identity {
        table: registry.by_name(&parent.domain)?.table.clone(),
        tenant: event.tenant.shared(),
        subject: id.to_string().into(),
        parent: None,
    }))
}

fn topic_key(domain: &Domain, event: &Event, parent: Option<Uuid>) -> String {
    match (domain.is_entity(), parent) {
        (true, Some(parent)) => record_key(&event.tenant, &parent.to_string()),
        (true, None) => record_key(&event.tenant, &event.subject),
        (false, _) => item_key(&event.tenant, &event.subject),
    }
}

/// The item of a value; also as it was parsed, where its text is not its canonical form.
fn item_of(raw: &[u8]) -> Result<(Doc, Option<Map<String, Value>>), Unreadable> {
    if let Some(item) = std::str::from_utf8(raw).ok().and_then(simple_item) {
        return Ok((item, None));
    }
    match serde_json::from_slice::<Value>(raw) {
        Ok(Value::Object(item)) => Ok((item.clone().into(), Some(item))),
        Ok(_) => Err(Unreadable::Value("it is something else".into())),
        Err(error) => Err(Unreadable::Value(error.to_string())),
    }
}

/// Record, operation, user, base and the item's canonical form, in which a sealed value counts as what it holds: under
/// another key it is the same item.
fn content_of(event: &Event, domain: &Domain, item: &Doc, parsed: Option<Map<String, Value>>) -> Uuid {
    let mut hash = Sha256::new();
    for part in [
        event.tenant.as_str(),
        &event.table,
        &event.subject,
        event.operation.as_str(),
        event.user.as_str(),
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(event.base.to_be_bytes());
    // An item's own time tells the same edit made again later from a repeat; mostly it is in the value.
    if let Some(time) = &event.client_time {
        hash.update((time.len() as u64).to_be_bytes());
        hash.update(time.as_bytes());
    }
    match seal::content(domain, item).or(parsed) {
        Some(item) => hash_content(&mut hash, &item),
        None => hash.update(item.text()),
    }
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes)
}
