//! An item of a mixed batch: an envelope that says what is done to which record of which kind, around the data that goes
//! to the log. The data is judged as the item of a batch to its domain would be; what the envelope says goes into the
//! event's headers, so the data's bytes pass through.

use crate::domain::{Domain, Registry, parse_datetime};
use crate::error::ItemError;
use crate::item::{
    Entry, Item, Operation, Posting, base_version, check_fields, check_size, delete_flag, envelope_field,
    not_an_object, own_time, record_key, required_uuid, sync_status,
};
use crate::json::Members;
use std::borrow::Cow;
use uuid::Uuid;

/// An item that may not, with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The identity, as far as it could be read.
    pub subject: Option<String>,
    /// What kind of record, as far as it could be read.
    pub entity_type: Option<String>,
    /// Why.
    pub error: ItemError,
}

/// Judges an item of a mixed batch.
pub fn judge<'r, 'a>(
    registry: &'r Registry,
    entry: &Entry<'a>,
    posting: &Posting<'_>,
) -> Result<(&'r Domain, Item<'a>), Box<Rejected>> {
    let Some(members) = entry.members() else {
        return Err(Box::new(Rejected {
            subject: None,
            entity_type: None,
            error: not_an_object(entry.raw()),
        }));
    };
    judge_members(registry, members, posting).map_err(|error| {
        Box::new(Rejected {
            subject: text(members, "mobile_id"),
            entity_type: text(members, "entity_type"),
            error,
        })
    })
}

fn judge_members<'r, 'a>(
    registry: &'r Registry,
    members: &Members<'a>,
    posting: &Posting<'_>,
) -> Result<(&'r Domain, Item<'a>), ItemError> {
    let id = required_uuid(members, "mobile_id")?;
    let domain = domain(registry, members)?;
    let operation = operation(members)?;
    let base = base_version(members)?;
    let client_time = client_time(members, posting)?;
    let raw = data(members, operation)?;
    let inner: Members<'_> = serde_json::from_str(raw).map_err(|_| inside_data(not_an_object(raw)))?;
    check_size(raw, &inner, posting)
        .and_then(|()| check_fields(domain, &inner, operation, posting))
        .and_then(|()| sync_status(domain, &inner))
        .and_then(|_| agrees(domain, &inner, id, base, operation))
        .map_err(inside_data)?;
    let subject = id.to_string();
    Ok((
        domain,
        Item {
            raw: Cow::Borrowed(raw),
            key: record_key(posting.tenant, &subject),
            subject,
            operation,
            base,
            // Of the envelope this one alone: no other time of it goes into the header by which the fold tells an edit
            // that was made again later from a repeat.
            time: client_time
                .as_deref()
                .and_then(parse_datetime)
                .or_else(|| own_time(&inner)),
            client_time,
        },
    ))
}

/// What data breaks is told with the path that it has in the envelope.
pub(crate) fn inside_data(error: ItemError) -> ItemError {
    let field = match error.field.as_deref() {
        None | Some("") => "data".to_owned(),
        Some(field) => format!("data.{field}"),
    };
    ItemError {
        field: Some(field),
        ..error
    }
}

fn domain<'r>(registry: &'r Registry, members: &Members<'_>) -> Result<&'r Domain, ItemError> {
    let wanted = required_text(members, "entity_type")?;
    let found = registry.by_entity_type(&wanted);
    found.map(AsRef::as_ref).ok_or_else(|| {
        let known: Vec<&str> = registry
            .iter()
            .filter_map(|domain| domain.entity_type.as_deref())
            .collect();
        ItemError::field(
            "entity_type",
            "enum",
            format!("entity_type must be one of {}", known.join(", ")),
        )
    })
}

fn operation(members: &Members<'_>) -> Result<Operation, ItemError> {
    let wanted = required_text(members, "operation")?;
    [Operation::Create, Operation::Update, Operation::Delete]
        .into_iter()
        .find(|operation| operation.as_str() == wanted)
        .ok_or_else(|| {
            ItemError::field(
                "operation",
                "enum",
                "operation must be one of create, update, delete",
            )
        })
}

/// The device's own time, as it was sent.
fn client_time(members: &Members<'_>, posting: &Posting<'_>) -> Result<Option<String>, ItemError> {
    const NAME: &str = "client_timestamp";
    let Some(raw) = members.get(NAME).filter(|raw| *raw != "null") else {
        return Ok(None);
    };
    if let Some(field) = envelope_field(NAME) {
        field.check(raw, posting.device_now)?;
    }
    Ok(serde_json::from_str(raw).ok())
}

/// A deletion needs none.
fn data<'a>(members: &Members<'a>, operation: Operation) -> Result<&'a str, ItemError> {
    match members.get("data").filter(|raw| *raw != "null") {
        Some(raw) => Ok(raw),
        None if operation == Operation::Delete => Ok("{}"),
        None => Err(ItemError::field("data", "required", "data is required")),
    }
}

/// Data may repeat what the envelope says, and must not say otherwise. `sync_status` is where the device stands and no
/// word on what it did; a flag that deletes is part of the document, and no record that is there has it.
fn agrees(
    domain: &Domain,
    inner: &Members<'_>,
    id: Uuid,
    base: i64,
    operation: Operation,
) -> Result<(), ItemError> {
    let repeats = |name: &str| inner.get(name).is_some_and(|raw| raw != "null");
    if repeats("mobile_id") && required_uuid(inner, "mobile_id")? != id {
        return Err(ItemError::field(
            "mobile_id",
            "equal",
            "the data's mobile_id is another than the item's",
        ));
    }
    if repeats("version") && base_version(inner)? != base {
        return Err(ItemError::field(
            "version",
            "equal",
            "the data's version is another than the item's",
        ));
    }
    if operation != Operation::Delete
        && let Some(flag) = delete_flag(domain, inner)
    {
        let message = format!(
            "the data's {flag} says delete, and the operation is {}",
            operation.as_str()
        );
        return Err(ItemError::field(flag, "equal", message));
    }
    Ok(())
}

fn required_text(members: &Members<'_>, name: &str) -> Result<String, ItemError> {
    let raw = members.get(name).filter(|raw| *raw != "null");
    let raw = raw.ok_or_else(|| ItemError::field(name, "required", format!("{name} is required")))?;
    serde_json::from_str(raw).map_err(|_| ItemError::field(name, "type", format!("{name} must be a string")))
}

/// A member as it can be told back.
fn text(members: &Members<'_>, name: &str) -> Option<String> {
    let text: String = serde_json::from_str(members.get(name)?).ok()?;
    Some(text.chars().take(256).filter(|c| *c != '\0').collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::ids::{DeviceId, TenantId, UserId};
    use crate::item::MAX_ITEM_BYTES;
    use chrono::DateTime;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    const ID: &str = "11111111-1111-4111-8111-111111111111";

    fn judged(item: Value) -> Result<(String, Item<'static>), Box<Rejected>> {
        let registry = Registry::shipped();
        let (tenant, user, device) = (
            TenantId::parse("acme").expect("tenant"),
            UserId::parse("asha").expect("user"),
            DeviceId::parse("phone-1").expect("device"),
        );
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let posting = Posting {
            tenant: &tenant,
            user: &user,
            device: &device,
            device_now: now,
            default_time: now,
            item_bytes: MAX_ITEM_BYTES,
        };
        let raw: &'static RawValue = Box::leak(RawValue::from_string(item.to_string()).expect("JSON"));
        let (domain, item) = judge(&registry, &Entry::of(raw), &posting)?;
        Ok((domain.name.clone(), item))
    }

    fn ticket(changes: Value) -> Value {
        let mut item = json!({"mobile_id": ID, "entity_type": "ticket", "operation": "update", "version": 3, "data": {"priority": "HIGH"}});
        for (name, value) in changes.as_object().expect("an object") {
            item[name] = value.clone();
        }
        item
    }

    #[test]
    fn the_envelope_says_what_and_the_data_passes_through() {
        let (domain, item) =
            judged(ticket(json!({"client_timestamp": "2026-01-01T00:00:00Z"}))).expect("an item");
        assert_eq!(
            (domain.as_str(), item.subject.as_str(), item.base),
            ("helpdesk", ID, 3)
        );
        assert_eq!(
            (item.operation, item.raw.as_ref()),
            (Operation::Update, r#"{"priority":"HIGH"}"#)
        );
        assert_eq!(item.client_time.as_deref(), Some("2026-01-01T00:00:00Z"));
        let (_, item) =
            judged(json!({"mobile_id": ID, "entity_type": "task", "operation": "delete"})).expect("an item");
        assert_eq!((item.raw.as_ref(), item.base, item.client_time), ("{}", 0, None));
        // What the data repeats of the envelope is no contradiction, and the operation is the envelope's.
        let repeats = json!({"data": {"mobile_id": ID, "version": 3, "sync_status": "pending_delete"}});
        assert_eq!(
            judged(ticket(repeats)).expect("an item").1.operation,
            Operation::Update
        );
    }

    #[test]
    fn what_is_wrong_is_told_by_field_and_rule() {
        let other = "22222222-2222-4222-8222-222222222222";
        for (change, field, rule) in [
            (json!({"mobile_id": null}), "mobile_id", "required"),
            (json!({"mobile_id": "7"}), "mobile_id", "uuid"),
            (json!({"entity_type": null}), "entity_type", "required"),
            (json!({"entity_type": 7}), "entity_type", "type"),
            (json!({"entity_type": "voice"}), "entity_type", "enum"),
            (json!({"entity_type": "journal-media"}), "entity_type", "enum"),
            (json!({"operation": "resolve"}), "operation", "enum"),
            (json!({"operation": null}), "operation", "required"),
            (json!({"version": -1}), "version", "min"),
            (
                json!({"client_timestamp": "yesterday"}),
                "client_timestamp",
                "rfc3339",
            ),
            (json!({"data": null}), "data", "required"),
            (
                json!({"data": {"sync_status": "lost"}}),
                "data.sync_status",
                "enum",
            ),
            (
                json!({"entity_type": "journal", "data": {"is_deleted": true}}),
                "data.is_deleted",
                "equal",
            ),
            (json!({"data": [1]}), "data", "object"),
            (json!({"data": {"priority": "URGENT"}}), "data.priority", "enum"),
            (json!({"data": {"mobile_id": other}}), "data.mobile_id", "equal"),
            (json!({"data": {"version": 4}}), "data.version", "equal"),
            (json!({"data": {"a": "\u{0}"}}), "data.a", "no_nul"),
        ] {
            let rejected = judged(ticket(change.clone())).expect_err("an error");
            assert_eq!(
                rejected.error.field.as_deref(),
                Some(field),
                "{change}: {rejected:?}"
            );
            assert_eq!(
                rejected.error.rule.as_deref(),
                Some(rule),
                "{change}: {rejected:?}"
            );
        }
        let large =
            judged(ticket(json!({"data": {"comments": "x".repeat(MAX_ITEM_BYTES)}}))).expect_err("too large");
        assert_eq!(large.error.error_code, ErrorCode::TooLarge);
        assert_eq!(
            (large.subject.as_deref(), large.entity_type.as_deref()),
            (Some(ID), Some("ticket"))
        );
        assert_eq!(judged(json!(7)).expect_err("no object").subject, None);
    }

    #[test]
    fn the_items_time_is_the_envelopes_client_timestamp_else_the_datas_own() {
        let time = |changes: Value| {
            let (_, item) = judged(ticket(changes)).expect("an item");
            (item.time.map(|time| time.to_rfc3339()), item.client_time)
        };
        let (early, late) = ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00");
        let both = json!({"client_timestamp": late, "data": {"updated_at": early}});
        assert_eq!(time(both), (Some(late.into()), Some(late.into())));
        let inside = json!({"data": {"updated_at": early}});
        assert_eq!(time(inside), (Some(early.into()), None));
        // An unknown member of the envelope, like any other.
        assert_eq!(time(json!({"updated_at": late})), (None, None));
        let unknown = json!({"updated_at": late, "data": {"client_timestamp": early}});
        assert_eq!(time(unknown), (Some(early.into()), None));
    }
}
