//! The gateway's judgement of one item, alone: is it an object that the log and Postgres can hold, does it say which
//! record it is about, does every field keep its own limits. The bytes are judged where they lie and passed on as
//! they are. What needs the record as it would become is the fold's.

use crate::domain::{Domain, Field, FieldType, IdentityPart, parse_datetime};
use crate::error::{ErrorCode, ItemError};
use crate::ids::{DeviceId, TenantId, UserId};
use crate::json::{Members, check_storable};
use chrono::{DateTime, SecondsFormat, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::LazyLock;
use uuid::Uuid;

/// The largest item, in bytes of JSON text.
pub const MAX_ITEM_BYTES: usize = 256 * 1024;

/// The longest identity, in bytes as `ce_subject` holds it: percent-encoded, and with the spaces around its parts.
pub const MAX_SUBJECT_BYTES: usize = 4096;

/// The greatest base version that a server could have given: what every JSON reader holds exactly.
pub const MAX_VERSION: i64 = (1 << 53) - 1;

/// What an event does to its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The device believes the record is new.
    Create,
    /// The device knows a version of it.
    Update,
    /// The device deleted it.
    Delete,
    /// A person decided a conflict.
    Resolve,
    /// Telemetry.
    Append,
}

impl Operation {
    /// The last part of `ce_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Resolve => "resolve",
            Operation::Append => "append",
        }
    }

    /// The operation of that name.
    pub fn parse(text: &str) -> Option<Operation> {
        use Operation::*;
        [Create, Update, Delete, Resolve, Append]
            .into_iter()
            .find(|operation| operation.as_str() == text)
    }
}

/// One entry of a batch as sent: its text, and its members where it is an object. Taken apart once, for the
/// fingerprint and for the judgement.
#[derive(Debug)]
pub struct Entry<'a> {
    raw: &'a str,
    members: Option<Members<'a>>,
}

impl<'a> Entry<'a> {
    /// Of what stands in a list.
    pub fn of(raw: &'a RawValue) -> Entry<'a> {
        let raw = raw.get();
        let members = serde_json::from_str(raw).ok();
        Entry { raw, members }
    }

    /// The text.
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// The members, where it is an object.
    pub fn members(&self) -> Option<&Members<'a>> {
        self.members.as_ref()
    }
}

/// An item that may go to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<'a> {
    /// The text as sent: the record's value on the topic.
    pub raw: Cow<'a, str>,
    /// The identity as `ce_subject` and the tables hold it.
    pub subject: String,
    /// The record's key on the topic, which decides the partition.
    pub key: String,
    /// What it does.
    pub operation: Operation,
    /// The version that the device last saw; 0 for a record that it believes new, and for telemetry.
    pub base: i64,
    /// When the device did it, by the device's clock, where it says so.
    pub time: Option<DateTime<Utc>>,
    /// That time as it was sent, where it is no part of the text: `ce_clienttime`.
    pub client_time: Option<String>,
}

/// An item that may not, with what is known of its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The identity as far as it could be read.
    pub subject: Option<String>,
    /// Why.
    pub error: ItemError,
}

/// Who posts, and when: what an item does not say itself.
#[derive(Debug, Clone, Copy)]
pub struct Posting<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The user.
    pub user: &'a UserId,
    /// The device.
    pub device: &'a DeviceId,
    /// The device's clock when the batch arrived: arrival, corrected by its skew.
    pub device_now: DateTime<Utc>,
    /// What stands for the time of an item that names none.
    pub default_time: DateTime<Utc>,
    /// The most bytes of an item: [`MAX_ITEM_BYTES`], or what the tenant has set.
    pub item_bytes: usize,
}

/// Judges an item of a batch to one domain.
pub fn judge<'a>(domain: &Domain, entry: &Entry<'a>, posting: &Posting<'_>) -> Result<Item<'a>, Rejected> {
    let raw = entry.raw();
    let members = entry.members().ok_or_else(|| Rejected {
        subject: None,
        error: not_an_object(raw),
    })?;
    judge_members(domain, raw, members, posting).map_err(|error| Rejected {
        subject: subject_as_sent(domain, members),
        error,
    })
}

fn judge_members<'a>(
    domain: &Domain,
    raw: &'a str,
    members: &Members<'a>,
    posting: &Posting<'_>,
) -> Result<Item<'a>, ItemError> {
    check_size(raw, members, posting)?;
    let base = base_version(members)?;
    let operation = operation(domain, members, base)?;
    check_fields(domain, members, operation, posting)?;
    if !domain.is_entity() {
        require_all(domain, members)?;
    }
    let time = own_time(members);
    let (subject, key) = identify(domain, members, posting, time)?;
    Ok(Item {
        raw: raw.into(),
        subject,
        key,
        operation,
        base,
        time,
        client_time: None,
    })
}

/// When the device says that it did what the members tell.
pub(crate) fn own_time(members: &Members<'_>) -> Option<DateTime<Utc>> {
    time_of(members, "client_timestamp").or_else(|| time_of(members, "updated_at"))
}

/// Whether Postgres can hold it, and it is no larger than it may be.
pub(crate) fn check_size(raw: &str, members: &Members<'_>, posting: &Posting<'_>) -> Result<(), ItemError> {
    if raw.len() > posting.item_bytes {
        let largest = members
            .iter()
            .max_by_key(|(_, value)| value.len())
            .map(|(name, _)| name.to_owned());
        return Err(ItemError::too_large(largest, raw.len(), posting.item_bytes));
    }
    members
        .iter()
        .try_for_each(|(name, value)| check_storable(name, value))
}

/// Judges a patch of a record that is no item: may Postgres hold it, does each field keep its rules.
pub fn check_patch(domain: &Domain, raw: &str, posting: &Posting<'_>) -> Result<(), ItemError> {
    let members: Members<'_> = serde_json::from_str(raw).map_err(|_| not_an_object(raw))?;
    check_size(raw, &members, posting)?;
    check_fields(domain, &members, Operation::Update, posting)
}

/// Whether each field keeps its own rules. Of a deletion only what identifies the record counts.
pub(crate) fn check_fields(
    domain: &Domain,
    members: &Members<'_>,
    operation: Operation,
    posting: &Posting<'_>,
) -> Result<(), ItemError> {
    for (name, value) in members.iter() {
        let judged = operation != Operation::Delete
            || domain.parent.as_ref().is_some_and(|parent| parent.field == name);
        if let Some(field) = envelope_field(name).or_else(|| domain.field(name).filter(|_| judged)) {
            field.check(value, posting.device_now)?;
        }
        if domain.status.as_ref().is_some_and(|status| status.field == name) && value == "null" && judged {
            return Err(ItemError::field(
                name,
                "required",
                format!("{name} is a status and cannot be cleared"),
            ));
        }
    }
    Ok(())
}

pub(crate) fn not_an_object(raw: &str) -> ItemError {
    // Inside a body that is JSON, an object fails to split into members only by a name that is no text.
    if raw.starts_with('{') {
        ItemError::field(
            "",
            "unicode",
            "a member's name holds half of a surrogate pair, which is no character",
        )
    } else {
        ItemError::field("", "object", "an item must be an object")
    }
}

/// Members that every item may carry, judged like any field.
pub(crate) fn envelope_field(name: &str) -> Option<&'static Field> {
    static FIELDS: LazyLock<[Field; 4]> = LazyLock::new(|| {
        let field = |name: &str, kind| Field {
            name: name.into(),
            kind,
            required: false,
            read_only: false,
            personal: false,
            column: false,
            default: None,
        };
        let time = || FieldType::DateTime { not_future: false };
        [
            field("mobile_id", FieldType::Uuid),
            field("client_timestamp", time()),
            field("updated_at", time()),
            field("last_sync_timestamp", time()),
        ]
    });
    FIELDS.iter().find(|field| field.name == name)
}

pub(crate) fn base_version(members: &Members<'_>) -> Result<i64, ItemError> {
    let Some(raw) = members.get("version").filter(|raw| *raw != "null") else {
        return Ok(0);
    };
    match serde_json::from_str::<i64>(raw) {
        Ok(version) if (0..=MAX_VERSION).contains(&version) => Ok(version),
        Ok(version) if version > MAX_VERSION => Err(ItemError {
            error_code: ErrorCode::UnsupportedVersion,
            ..ItemError::field(
                "version",
                "max",
                format!("version {version} is none that a server gave"),
            )
        }),
        _ => Err(ItemError::field(
            "version",
            "min",
            "version must be a whole number from 0",
        )),
    }
}

fn operation(domain: &Domain, members: &Members<'_>, base: i64) -> Result<Operation, ItemError> {
    if !domain.is_entity() {
        return Ok(Operation::Append);
    }
    let status = sync_status(domain, members)?;
    Ok(match status.as_deref() {
        Some("pending_delete") => Operation::Delete,
        _ if delete_flag(domain, members).is_some() => Operation::Delete,
        _ if base == 0 => Operation::Create,
        _ => Operation::Update,
    })
}

/// Where the device says that it stands, if it does and that is a place to stand.
pub(crate) fn sync_status(domain: &Domain, members: &Members<'_>) -> Result<Option<String>, ItemError> {
    const KNOWN: [&str; 4] = ["synced", "pending_sync", "sync_error", "pending_delete"];
    let Some(raw) = members.get("sync_status").filter(|raw| *raw != "null") else {
        return Ok(None);
    };
    let status: String = serde_json::from_str(raw)
        .map_err(|_| ItemError::field("sync_status", "type", "sync_status must be a string"))?;
    if KNOWN.contains(&status.as_str()) || domain.extra_sync_status.contains(&status) {
        return Ok(Some(status));
    }
    let extra = domain.extra_sync_status.iter().map(String::as_str);
    let all: Vec<&str> = KNOWN.into_iter().chain(extra).collect();
    Err(ItemError::field(
        "sync_status",
        "enum",
        format!("sync_status must be one of {}", all.join(", ")),
    ))
}

/// The field by which an item says that its record is deleted, where it does.
pub(crate) fn delete_flag<'d>(domain: &'d Domain, members: &Members<'_>) -> Option<&'d str> {
    let flag = domain.delete_flag.as_deref()?;
    (members.get(flag) == Some("true")).then_some(flag)
}

fn require_all(domain: &Domain, members: &Members<'_>) -> Result<(), ItemError> {
    let missing = domain
        .fields
        .iter()
        .find(|field| field.required && members.get(&field.name).is_none());
    match missing {
        Some(field) => Err(ItemError::field(
            &field.name,
            "required",
            format!("{} is required", field.name),
        )),
        None => Ok(()),
    }
}

fn time_of(members: &Members<'_>, name: &str) -> Option<DateTime<Utc>> {
    parse_datetime(&serde_json::from_str::<String>(members.get(name)?).ok()?)
}

/// Subject and key. An entity's are its `mobile_id`; a child's key is its parent's, so that it follows it in order.
fn identify(
    domain: &Domain,
    members: &Members<'_>,
    posting: &Posting<'_>,
    time: Option<DateTime<Utc>>,
) -> Result<(String, String), ItemError> {
    if domain.is_entity() {
        let subject = required_uuid(members, "mobile_id")?.to_string();
        let root = match &domain.parent {
            Some(parent) => required_uuid(members, &parent.field)?.to_string(),
            None => subject.clone(),
        };
        return Ok((subject, record_key(posting.tenant, &root)));
    }
    let mut parts = Vec::with_capacity(domain.identity.len());
    for part in &domain.identity {
        let text = match part {
            IdentityPart::User => posting.user.as_str().to_owned(),
            IdentityPart::Device => posting.device.as_str().to_owned(),
            IdentityPart::Field(names) => {
                identity_field(domain, members, names, time.unwrap_or(posting.default_time))?
            }
        };
        parts.push(encode_part(&text));
    }
    let subject = parts.join("/");
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(identity_too_long(domain, subject.len()));
    }
    let key = item_key(posting.tenant, &subject);
    Ok((subject, key))
}

/// Told of the first field that the device has a say in.
fn identity_too_long(domain: &Domain, bytes: usize) -> ItemError {
    let field = domain.identity.iter().find_map(|part| match part {
        IdentityPart::Field(names) => names.first(),
        _ => None,
    });
    let message = format!("the identity takes {bytes} bytes in a key; at most {MAX_SUBJECT_BYTES} are taken");
    ItemError::field(field.cloned().unwrap_or_default(), "max_size", message)
}

pub(crate) fn required_uuid(members: &Members<'_>, name: &str) -> Result<Uuid, ItemError> {
    let raw = members
        .get(name)
        .filter(|raw| *raw != "null")
        .ok_or_else(|| ItemError::field(name, "required", format!("{name} is required")))?;
    let text: String = serde_json::from_str(raw)
        .map_err(|_| ItemError::field(name, "uuid", format!("{name} must be a UUID")))?;
    Uuid::try_parse(&text).map_err(|_| ItemError::field(name, "uuid", format!("{name} must be a UUID")))
}

fn identity_field(
    domain: &Domain,
    members: &Members<'_>,
    names: &[String],
    time: DateTime<Utc>,
) -> Result<String, ItemError> {
    let found = names
        .iter()
        .find_map(|name| Some((name, members.get(name).filter(|raw| *raw != "null")?)));
    let kind = names
        .first()
        .and_then(|name| domain.field(name))
        .map(|field| &field.kind);
    let is_time = matches!(kind, Some(FieldType::DateTime { .. }));
    match found {
        Some((name, _)) if is_time => Ok(instant_text(time_of(members, name).unwrap_or(time))),
        Some((name, raw)) => match serde_json::from_str::<Value>(raw) {
            Ok(Value::String(text)) => Ok(text),
            Ok(Value::Number(number)) => Ok(number.to_string()),
            _ => Err(ItemError::field(
                name,
                "type",
                format!("{name} must be a string or a number"),
            )),
        },
        None if is_time => Ok(instant_text(time)),
        None => {
            let all = names.join(" or ");
            Err(ItemError::field(
                names.first().cloned().unwrap_or_default(),
                "required",
                format!("{all} is required"),
            ))
        }
    }
}

fn instant_text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn subject_as_sent(domain: &Domain, members: &Members<'_>) -> Option<String> {
    let text = |name: &str| match serde_json::from_str::<Value>(members.get(name)?) {
        Ok(Value::String(text)) => Some(text.chars().take(256).filter(|c| *c != '\0').collect()),
        Ok(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    if domain.is_entity() {
        return text("mobile_id");
    }
    domain.identity.iter().find_map(|part| match part {
        IdentityPart::Field(names) => names.iter().find_map(|name| text(name)),
        _ => None,
    })
}

/// What RFC 3986 leaves unreserved; everything else in a part of a key, subject or source is percent-encoded.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One part of a key, subject or source, so that `/` only ever parts the parts.
pub fn encode_part(part: &str) -> String {
    Cow::from(utf8_percent_encode(part, UNRESERVED)).into_owned()
}

/// A part as it was before [`encode_part`]; none where it never was text.
pub fn decode_part(part: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(part).decode_utf8().ok()
}

/// The key of a record's events on its topic: tenant and identity.
pub fn record_key(tenant: &TenantId, identity: &str) -> String {
    let mut key = key_of_tenant(tenant, identity.len());
    key.extend(utf8_percent_encode(identity, UNRESERVED));
    key
}

/// The key of a telemetry item's events, whose identity is a list of encoded parts already.
pub fn item_key(tenant: &TenantId, subject: &str) -> String {
    let mut key = key_of_tenant(tenant, subject.len());
    key.push_str(subject);
    key
}

/// What every key of a tenant begins with, with room for as much more.
fn key_of_tenant(tenant: &TenantId, more: usize) -> String {
    let mut key = String::with_capacity(tenant.as_str().len() + 1 + more);
    key.extend(utf8_percent_encode(tenant.as_str(), UNRESERVED));
    key.push('/');
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Registry;

    fn judged(domain: &str, text: &str) -> Result<(String, String, Operation, i64), Rejected> {
        let registry = Registry::shipped();
        let (tenant, user, device) = (
            TenantId::parse("acme").expect("tenant"),
            UserId::parse("u/1").expect("user"),
            DeviceId::parse("phone-1").expect("device"),
        );
        let now = parse_datetime("2026-01-31T09:30:00Z").expect("time");
        let posting = Posting {
            tenant: &tenant,
            user: &user,
            device: &device,
            device_now: now,
            default_time: now,
            item_bytes: MAX_ITEM_BYTES,
        };
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        let domain = registry.by_name(domain).expect("domain");
        judge(domain, &Entry::of(&raw), &posting)
            .map(|item| (item.subject, item.key, item.operation, item.base))
    }

    fn rule(domain: &str, text: &str) -> (Option<String>, Option<String>) {
        let rejected = judged(domain, text).expect_err("a rejection");
        (rejected.error.field, rejected.error.rule)
    }

    const ID: &str = "6f1c3f6e-0d55-4f36-9c56-0d1f7a4f0001";

    #[test]
    fn the_operation_follows_from_base_and_sync_status() {
        let of = |rest: &str| {
            judged("journal", &format!(r#"{{"mobile_id":"{ID}"{rest}}}"#))
                .expect("an item")
                .2
        };
        assert_eq!(of(""), Operation::Create);
        assert_eq!(of(r#","version":3"#), Operation::Update);
        assert_eq!(
            of(r#","version":3,"sync_status":"pending_delete","title":7"#),
            Operation::Delete
        );
        assert_eq!(of(r#","is_deleted":true"#), Operation::Delete);
        assert_eq!(of(r#","sync_status":"draft""#), Operation::Create);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |field: &str, rule: &str| (Some(field.to_owned()), Some(rule.to_owned()));
        assert_eq!(rule("helpdesk", "{}"), named("mobile_id", "required"));
        assert_eq!(
            rule("helpdesk", r#"{"mobile_id":"x"}"#),
            named("mobile_id", "uuid")
        );
        assert_eq!(rule("helpdesk", "7"), named("", "object"));
        let item = |rest: &str| format!(r#"{{"mobile_id":"{ID}",{rest}}}"#);
        assert_eq!(
            rule("helpdesk", &item(r#""version":-1"#)),
            named("version", "min")
        );
        assert_eq!(
            rule("helpdesk", &item(r#""status":null"#)),
            named("status", "required")
        );
        assert_eq!(
            rule("helpdesk", &item(r#""sync_status":"draft""#)),
            named("sync_status", "enum")
        );
        assert_eq!(
            rule("helpdesk", &item(r#""comments":"a\u0000""#)),
            named("comments", "no_nul")
        );
        assert_eq!(
            rule("helpdesk", &item(r#""escalation_level":-2"#)),
            named("escalation_level", "min")
        );
        let deep = format!(r#""x":{}{}"#, "[".repeat(1000), "]".repeat(1000));
        assert_eq!(rule("helpdesk", &item(&deep)), named("x", "max_nesting"));
        let long = format!(r#""comments":"{}""#, "x".repeat(2 << 20));
        assert_eq!(rule("helpdesk", &item(&long)), named("comments", "max_size"));
        assert_eq!(
            rule("journal-media", &item(r#""sync_status":"pending_delete""#)),
            named("journal_entry", "required")
        );
        assert_eq!(
            rule("voice", r#"{"verification_id":"v","verified":true}"#),
            named("timestamp", "required")
        );
        let unsupported = judged("helpdesk", &item(r#""version":9007199254740992"#))
            .expect_err("a rejection")
            .error;
        assert_eq!(unsupported.error_code, ErrorCode::UnsupportedVersion);
    }

    #[test]
    fn keys_and_subjects_are_parts_percent_encoded() {
        let (subject, key, ..) =
            judged("helpdesk", &format!(r#"{{"mobile_id":"{}"}}"#, ID.to_uppercase())).expect("an item");
        assert_eq!((subject.as_str(), key), (ID, format!("acme/{ID}")));
        let (subject, key, ..) =
            judged("behavioral", r#"{"id":"a b","timestamp":"2026-01-01T00:00:00Z"}"#).expect("an item");
        assert_eq!(
            (subject.as_str(), key.as_str()),
            ("u%2F1/a%20b", "acme/u%2F1/a%20b")
        );
        let (subject, ..) = judged(
            "metrics",
            r#"{"metric_name":"cpu","value":1,"timestamp":"2026-01-01T05:30:00+05:30"}"#,
        )
        .expect("an item");
        assert_eq!(subject, "phone-1/cpu/2026-01-01T00%3A00%3A00Z");
        let media =
            format!(r#"{{"mobile_id":"{ID}","journal_entry":"00000000-0000-4000-8000-000000000001"}}"#);
        let (subject, key, ..) = judged("journal-media", &media).expect("an item");
        assert_eq!(
            (subject.as_str(), key.as_str()),
            (ID, "acme/00000000-0000-4000-8000-000000000001")
        );
    }
}
