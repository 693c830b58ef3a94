//! A record's document: what of an item goes into it, what a change touched, and whether the result may stand. Pure,
//! and ignorant of versions and of who asks.

use crate::state::Doc;
use serde_json::Value;
use tidelog_events::domain::{Domain, parse_datetime};
use tidelog_events::error::ItemError;

/// Members that say where a device stands; they are columns of a row and no part of its document.
const NOT_DOCUMENT: [&str; 4] = ["mobile_id", "version", "sync_status", "last_sync_timestamp"];

/// Which members of a document a change touched, and what those were that existed before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Touched {
    /// Names, in order.
    pub fields: Vec<String>,
    /// The values before; a member that is missing here was not there.
    pub before: Doc,
}

/// The item as a patch of the document: enumerations in their stored letter case, without what the server gives.
pub fn patch_of(domain: &Domain, mut item: Doc) -> Doc {
    item.retain(|name, value| {
        if NOT_DOCUMENT.contains(&name.as_str()) {
            return false;
        }
        let Some(field) = domain.field(name) else {
            return true;
        };
        *value = field.stored(std::mem::take(value));
        !field.read_only
    });
    item
}

/// What a new record gets where the device said nothing. Also clears the nulls that a first patch may hold.
pub fn write_defaults(domain: &Domain, doc: &mut Doc) {
    doc.retain(|_, value| !value.is_null());
    for (name, value) in domain.defaults() {
        doc.entry(name).or_insert_with(|| value.clone());
    }
    if let Some(status) = &domain.status {
        doc.entry(status.field.as_str())
            .or_insert_with(|| Value::String(status.initial.clone()));
    }
}

/// Whether a document may stand: required members, times in order, and the step from the status before.
pub fn judge(domain: &Domain, old: Option<&Doc>, new: &Doc) -> Result<(), ItemError> {
    for field in domain.fields.iter().filter(|field| field.required) {
        if new.get(&field.name).is_none_or(Value::is_null) {
            return Err(ItemError::field(
                &field.name,
                "required",
                format!("{} is required", field.name),
            ));
        }
    }
    for order in &domain.orders {
        let time = |name: &str| new.get(name).and_then(Value::as_str).and_then(parse_datetime);
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
    let status = |doc: &Doc| doc.get(&machine.field).and_then(Value::as_str).map(str::to_owned);
    let (Some(from), Some(to)) = (old.and_then(status), status(new)) else {
        return Ok(());
    };
    let allowed = machine.allowed(&from);
    if from == to || allowed.contains(&to) {
        Ok(())
    } else {
        Err(ItemError::transition(&machine.field, &from, &to, allowed))
    }
}

/// The difference of two documents, by their top-level members.
pub fn touched(old: &Doc, new: &Doc) -> Touched {
    let mut touched = Touched::default();
    for (name, value) in old {
        if new.get(name) != Some(value) {
            touched.fields.push(name.clone());
            touched.before.insert(name.clone(), value.clone());
        }
    }
    touched
        .fields
        .extend(new.keys().filter(|name| !old.contains_key(*name)).cloned());
    touched.fields.sort();
    touched
}
