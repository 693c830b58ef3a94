//! A record's document: what of an item goes into it, what a change touched, and whether the result may stand. Pure,
//! and ignorant of versions and of who asks.

use crate::state::Doc;
use serde_json::Value;
use tidelog_events::doc::{Json, Names, Rewrite};
use tidelog_events::domain::{Domain, Field, FieldType, parse_datetime};
use tidelog_events::error::ItemError;

/// Members that say where a device stands; they are columns of a row and no part of its document.
const NOT_DOCUMENT: [&str; 4] = ["mobile_id", "version", "sync_status", "last_sync_timestamp"];

/// Which members of a document a change touched, and what those were that existed before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Touched {
    /// Names, in order.
    pub fields: Names,
    /// The values before; a member that is missing here was not there.
    pub before: Doc,
}

/// The item as a patch of the document: enumerations in their stored letter case, without what the server gives.
pub fn patch_of(domain: &Domain, item: &Doc) -> Doc {
    item.rewritten(|name, value| match domain.field(name) {
        None if NOT_DOCUMENT.contains(&name) => Rewrite::Drop,
        None => Rewrite::Keep,
        Some(field) if field.read_only => Rewrite::Drop,
        Some(field) => match stored_otherwise(field, value) {
            Some(stored) => Rewrite::Put(stored.to_string()),
            None => Rewrite::Keep,
        },
    })
}

fn stored_otherwise(field: &Field, value: Json<'_>) -> Option<Value> {
    if !matches!(field.kind, FieldType::Enum { .. }) {
        return None;
    }
    Some(field.stored_otherwise(&value.as_str()?)?.into())
}

/// What a new record gets where the device said nothing. Also clears the nulls that a first patch may hold.
pub fn with_defaults(initial: &Doc, doc: &Doc) -> Doc {
    doc.only(|_, value| !value.is_null()).or(initial)
}

/// Whether a document may stand: required members, times in order, and the step from the status before.
pub fn judge<'a>(domain: &Domain, old: Option<&'a Doc>, new: &'a Doc) -> Result<(), ItemError> {
    for field in domain.fields.iter().filter(|field| field.required) {
        if new.get(&field.name).is_none_or(Json::is_null) {
            return Err(ItemError::field(
                &field.name,
                "required",
                format!("{} is required", field.name),
            ));
        }
    }
    for order in &domain.orders {
        let time = |name: &str| {
            let text = new.get(name).and_then(Json::as_str);
            text.and_then(|text| parse_datetime(&text))
        };
        if let (Some(earlier), Some(later)) = (time(&order.earlier), time(&order.later))
            && later < earlier
        {
            let message = format!("{} lies before {}", order.later, order.earlier);
            return Err(ItemError::field(&order.later, "order", message));
        }
    }
    let Some(machine) = &domain.status else {
        return Ok(());
    };
    let status = |doc: &'a Doc| doc.get(&machine.field).and_then(Json::as_str);
    let (Some(from), Some(to)) = (old.and_then(status), status(new)) else {
        return Ok(());
    };
    let (from, to) = (&*from, &*to);
    let allowed = machine.allowed(from);
    if from == to || allowed.iter().any(|allowed| allowed == to) {
        Ok(())
    } else {
        Err(ItemError::transition(&machine.field, from, to, allowed))
    }
}

/// The difference of two documents, by their top-level members.
pub fn touched(old: &Doc, new: &Doc) -> Touched {
    let (before, fields) = old.difference(new);
    Touched { fields, before }
}
