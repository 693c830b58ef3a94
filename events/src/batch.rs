//! A batch as posted to one domain, and its identity: the fingerprint that tells a retry from another body under the
//! same key, and the batch's id, from which every event id follows. Knows nothing of HTTP or of where claims are kept.

use crate::content::{hash_content, hash_simple_members};
use crate::domain::parse_datetime;
use crate::ids::{DeviceId, IdError, TenantId, UserId};
use crate::item::Entry;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use uuid::Uuid;

/// What a batch is posted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint<'a> {
    /// Items of the domain with this name.
    Domain(&'a str),
    /// Items of many.
    Mixed,
    /// The decision about a conflict.
    Conflict(Uuid),
}

impl Endpoint<'_> {
    /// Method and path, without a trailing slash: what a fingerprint begins with.
    fn operation(self) -> String {
        match self {
            Endpoint::Domain(name) => format!("POST /api/v1/{name}/sync"),
            Endpoint::Mixed => "POST /api/v1/sync/batch".into(),
            Endpoint::Conflict(id) => format!("POST /api/v1/conflicts/{id}/resolve"),
        }
    }
}

/// The most items of a batch.
pub const MAX_ENTRIES: usize = 1000;

/// Why a body is no batch at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not JSON, or of another shape.
    #[error("line {line}, column {column}: {message}")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// A member is missing, empty or not what it has to be.
    #[error("{0}")]
    Member(String),
    /// Too many entries.
    #[error("{field} has {count} items; at most {limit} are taken: split the batch")]
    TooMany {
        /// The list's name.
        field: &'static str,
        /// How many there are.
        count: usize,
        /// The most: [`MAX_ENTRIES`], or what the tenant has set.
        limit: usize,
    },
}

impl BatchError {
    /// The HTTP status of the answer. None of these is worth a retry as it is.
    pub fn status(&self) -> u16 {
        match self {
            BatchError::Malformed { .. } | BatchError::Member(_) => 400,
            BatchError::TooMany { .. } => 413,
        }
    }
}

/// The body of `POST /api/v1/{domain}/sync`, or of a mixed batch.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The device that posts, where the body says so.
    pub client_id: Option<DeviceId>,
    /// The device's clock at sending.
    pub sent_at: Option<DateTime<Utc>>,
    /// What kind of device it is, until it registers.
    pub device_type: Option<String>,
    /// The key, where the body of a mixed batch says it.
    pub idempotency_key: Option<String>,
    /// The items, not judged yet.
    pub entries: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(default)]
    client_id: Option<Value>,
    #[serde(default)]
    sent_at: Option<Value>,
    #[serde(default)]
    device_type: Option<Value>,
    #[serde(default)]
    idempotency_key: Option<Value>,
    #[serde(borrow, default)]
    entries: List<'a>,
    #[serde(borrow, default)]
    items: List<'a>,
}

/// What stands where the items should: split in the one pass over the body that parsing it takes anyway.
#[derive(Default)]
enum List<'a> {
    #[default]
    Missing,
    Items(Vec<&'a RawValue>),
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for List<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Split)
    }
}

struct Split;

impl<'de> Visitor<'de> for Split {
    type Value = List<'de>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of items")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<'de>, A::Error> {
        let mut items = Vec::with_capacity(128);
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(List::Items(items))
    }
    fn visit_unit<E: de::Error>(self) -> Result<List<'de>, E> {
        Ok(List::Missing)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<List<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(List::Other)
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<List<'de>, E> {
        Ok(List::Other)
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<List<'de>, E> {
        Ok(List::Other)
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<List<'de>, E> {
        Ok(List::Other)
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<List<'de>, E> {
        Ok(List::Other)
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<List<'de>, E> {
        Ok(List::Other)
    }
}

/// Where the items of a body stand.
#[derive(Clone, Copy)]
enum Items {
    Entries,
    Mixed,
    None,
}

impl<'a> Batch<'a> {
    /// Reads the envelope of a batch to one domain; the items stay as they are.
    pub fn parse(body: &'a str) -> Result<Batch<'a>, BatchError> {
        Batch::read(body, Items::Entries)
    }

    /// Reads that of a mixed batch, whose list is `items` and which may name its key.
    pub fn parse_mixed(body: &'a str) -> Result<Batch<'a>, BatchError> {
        Batch::read(body, Items::Mixed)
    }

    /// Reads the members that are no items: of a body that has none.
    pub fn parse_envelope(body: &'a str) -> Result<Batch<'a>, BatchError> {
        Batch::read(body, Items::None)
    }

    fn read(body: &'a str, items_are: Items) -> Result<Batch<'a>, BatchError> {
        refuse_list(body)?;
        let Body {
            client_id,
            sent_at,
            device_type,
            idempotency_key,
            entries,
            items,
        } = serde_json::from_str(body).map_err(malformed)?;
        let client_id = text_member("client_id", client_id)?
            .map(|text| {
                DeviceId::parse(&text)
                    .map_err(|IdError { rule, .. }| BatchError::Member(format!("client_id must be {rule}")))
            })
            .transpose()?;
        let sent_at = text_member("sent_at", sent_at)?
            .map(|text| {
                parse_datetime(&text)
                    .ok_or_else(|| BatchError::Member("sent_at must be an RFC 3339 date and time".into()))
            })
            .transpose()?;
        let device_type = text_member("device_type", device_type)?;
        if let Some(kind) = &device_type
            && !["phone", "tablet", "laptop", "desktop"].contains(&kind.as_str())
        {
            return Err(BatchError::Member(
                "device_type must be one of phone, tablet, laptop, desktop".into(),
            ));
        }
        let idempotency_key = match items_are {
            Items::Mixed => text_member("idempotency_key", idempotency_key)?,
            _ => None,
        };
        let entries = match items_are {
            Items::Entries => list(entries, "entries")?,
            Items::Mixed => list(items, "items")?,
            Items::None => Vec::new(),
        };
        Ok(Batch {
            client_id,
            sent_at,
            device_type,
            idempotency_key,
            entries,
        })
    }
}

/// A derived struct would take a list too, its members by their order.
fn refuse_list(body: &str) -> Result<(), BatchError> {
    let rest = body.trim_start_matches([' ', '\t', '\n', '\r']);
    if !rest.starts_with('[') {
        return Ok(());
    }
    let before = &body[..body.len() - rest.len()];
    Err(BatchError::Malformed {
        line: before.matches('\n').count() + 1,
        column: before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1,
        message: "the body is not a batch in JSON: it is a list, and a batch is an object".into(),
    })
}

fn malformed(error: serde_json::Error) -> BatchError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    // serde_json ends its message with the place, which stands in front already.
    let message = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(message, _)| message)
        .to_owned();
    BatchError::Malformed {
        line,
        column,
        message: format!("the body is not a batch in JSON: {message}"),
    }
}

fn text_member(name: &str, value: Option<Value>) -> Result<Option<String>, BatchError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(BatchError::Member(format!("{name} must be a string"))),
    }
}

fn list<'a>(list: List<'a>, field: &'static str) -> Result<Vec<Entry<'a>>, BatchError> {
    match list {
        List::Missing => Err(BatchError::Member(format!(
            "{field} is missing: the list of items"
        ))),
        List::Other => Err(BatchError::Member(format!("{field} must be a list of items"))),
        List::Items(items) => match items.len() {
            0 => Err(BatchError::Member(format!(
                "{field} is empty: a batch has 1 to {MAX_ENTRIES} items"
            ))),
            count if count > MAX_ENTRIES => Err(BatchError::TooMany {
                field,
                count,
                limit: MAX_ENTRIES,
            }),
            _ => Ok(items.into_iter().map(Entry::of).collect()),
        },
    }
}

/// SHA-256 over operation, tenant, user, device and the items' canonical form. Envelope members that a retry renews
/// (`sent_at`, `last_sync_timestamp`) are no part of it, so that a retry is a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a batch.
    pub fn of(
        endpoint: Endpoint<'_>,
        tenant: &TenantId,
        user: &UserId,
        device: &DeviceId,
        entries: &[Entry<'_>],
    ) -> Fingerprint {
        let mixed = endpoint == Endpoint::Mixed;
        let operation = endpoint.operation();
        let mut hash = Sha256::new();
        for part in [&operation, tenant.as_str(), user.as_str(), device.as_str()] {
            hash_part(&mut hash, part.as_bytes());
        }
        for entry in entries {
            // The data of a mixed item is content of its own, of which a retry may renew what is no part of it.
            let data = entry.members().and_then(|members| members.get("data"));
            if let (true, Some(data)) = (mixed, data)
                && let Ok(Value::Object(object)) = serde_json::from_str(entry.raw())
                && let Ok(Value::Object(data)) = serde_json::from_str(data)
            {
                let mut envelope = object;
                envelope.remove("data");
                hash_content(&mut hash, &envelope);
                hash_part(&mut hash, b"data");
                hash_content(&mut hash, &data);
                continue;
            }
            if let Some(members) = entry.members()
                && hash_simple_members(&mut hash, members)
            {
                continue;
            }
            // What is no object is refused later, and is the same item all the same when it is written anew. What is no value at
            // all (a number beyond a double) has only its text.
            match serde_json::from_str::<Value>(entry.raw()) {
                Ok(Value::Object(object)) => hash_content(&mut hash, &object),
                Ok(other) => hash_part(&mut hash, canonical(&other, entry.raw()).as_bytes()),
                Err(_) => hash_part(&mut hash, entry.raw().as_bytes()),
            }
        }
        Fingerprint(hash.finalize().into())
    }

    /// The key of a batch that was sent without one.
    pub fn as_key(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A value's canonical form (RFC 8785); its text where it has none.
fn canonical<'a>(value: &Value, raw: &'a str) -> Cow<'a, str> {
    serde_json_canonicalizer::to_string(value).map_or(Cow::Borrowed(raw), Cow::Owned)
}

/// Length first, so that two lists of parts never hash alike.
fn hash_part(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_be_bytes());
    hash.update(part);
}

/// A batch's identity: the same for every retry of the same body under the same key, on any gateway, at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub Uuid);

impl BatchId {
    /// From the key and the fingerprint, which holds tenant, user and device. The fingerprint takes part so that a key
    /// used again for another body, after its 24 hours, never meets the event ids of the first.
    pub fn of(key: &str, fingerprint: &Fingerprint) -> BatchId {
        let mut hash = Sha256::new();
        hash_part(&mut hash, b"batch");
        hash_part(&mut hash, key.as_bytes());
        hash_part(&mut hash, &fingerprint.0);
        BatchId(uuid_of(hash))
    }

    /// The id of the event that an item becomes: `ce_id`. An append repeated after a crash bears the same.
    pub fn event_id(&self, index: u32) -> Uuid {
        let mut hash = Sha256::new();
        hash_part(&mut hash, b"event");
        hash.update(self.0.as_bytes());
        hash.update(index.to_be_bytes());
        uuid_of(hash)
    }

    /// The id of the conflict that an item may become; the same in every rebuild.
    pub fn conflict_id(&self, index: u32) -> Uuid {
        let mut hash = Sha256::new();
        hash_part(&mut hash, b"conflict");
        hash.update(self.0.as_bytes());
        hash.update(index.to_be_bytes());
        uuid_of(hash)
    }
}

impl std::fmt::Display for BatchId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A version 8 UUID (RFC 9562 section 5.8) of the first 16 bytes.
pub(crate) fn uuid_of(hash: Sha256) -> Uuid {
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(body: &str) -> Fingerprint {
        let batch = Batch::parse(body).expect("a batch");
        let (tenant, user, device) = (
            TenantId::parse("t").expect("tenant"),
            UserId::parse("u").expect("user"),
            DeviceId::parse("phone-1").expect("device"),
        );
        Fingerprint::of(
            Endpoint::Domain("helpdesk"),
            &tenant,
            &user,
            &device,
            &batch.entries,
        )
    }

    #[test]
    fn what_is_no_item_is_the_same_however_it_is_written() {
        let of = |entries: &str| fingerprint(&format!("{{\"entries\":[{entries}]}}"));
        assert_eq!(of("1e1"), of("10.0"));
        assert_eq!(of("[ 1 , \"\\u0061\" ]"), of("[1,\"a\"]"));
        assert_ne!(of("1,11"), of("11,1"));
        assert_ne!(of("1"), of("\"1\""));
    }

    #[test]
    fn a_retry_has_the_same_fingerprint_whatever_its_spelling() {
        let first = fingerprint(
            r#"{"client_id":"phone-1","sent_at":"2026-01-01T00:00:00Z","entries":[{"a":1,"sync_status":"pending_sync"}]}"#,
        );
        let again =
            fingerprint(r#"{"entries":[{ "sync_status":"sync_error", "a":1.0 }],"client_id":"phone-1"}"#);
        assert_eq!(first, again);
        assert_ne!(first, fingerprint(r#"{"entries":[{"a":2}]}"#));
        assert_ne!(first, fingerprint(r#"{"entries":[{"a":1},{"a":1}]}"#));
    }

    #[test]
    fn ids_follow_from_key_and_fingerprint() {
        let print = fingerprint(r#"{"entries":[{"a":1}]}"#);
        let id = BatchId::of("key-of-sixteen-characters", &print);
        assert_eq!(id, BatchId::of("key-of-sixteen-characters", &print));
        assert_ne!(id, BatchId::of("key-of-seventeen-characters", &print));
        assert_ne!(id.event_id(0), id.event_id(1));
        assert_ne!(id.event_id(0), id.conflict_id(0));
    }

    #[test]
    fn what_is_no_batch_is_told_where() {
        let error = |body: &str| Batch::parse(body).expect_err("an error");
        assert!(matches!(
            error("{\n \"entries\": [}"),
            BatchError::Malformed { line: 2, .. }
        ));
        assert_eq!(error("{}").to_string(), "entries is missing: the list of items");
        assert_eq!(error(r#"{"entries":[]}"#).status(), 400);
        assert_eq!(
            error(&format!(r#"{{"entries":[{}1]}}"#, "1,".repeat(1000))).status(),
            413
        );
        assert!(
            error(r#"{"client_id":"x","entries":[1]}"#)
                .to_string()
                .starts_with("client_id must be 5 to 100")
        );
        assert_eq!(error("[1]").status(), 400);
        assert!(matches!(
            error("\n [\"phone-1\",null,null,[{}]]"),
            BatchError::Malformed {
                line: 2,
                column: 2,
                ..
            }
        ));
    }

    #[test]
    fn an_item_nested_a_thousand_deep_does_not_fail_its_batch() {
        let body = format!(
            r#"{{"entries":[{{"a":{}{}}},{{"b":"\ud800"}}]}}"#,
            "[".repeat(1000),
            "]".repeat(1000)
        );
        assert_eq!(Batch::parse(&body).expect("a batch").entries.len(), 2);
        fingerprint(&body);
    }
}
