//! A record's document: what of an item goes into it, what a change touched, and whether the result may stand. Pure,
//! and ignorant of versions and of who asks.

use crate::state::Doc;
use serde_json::Value;
use std::cmp::Ordering;
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
        if !doc.contains_key(name) {
            doc.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(status) = &domain.status
        && !doc.contains_key(&status.field)
    {
        doc.insert(status.field.clone(), Value::String(status.initial.clone()));
    }
}

/// Whether a document may stand: required members, times in order, and the step from the status before.
pub fn judge<'a>(domain: &Domain, old: Option<&'a Doc>, new: &'a Doc) -> Result<(), ItemError> {
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
    let status = |doc: Option<&'a Doc>| doc?.get(&machine.field)?.as_str();
    let (Some(from), Some(to)) = (status(old), status(Some(new))) else {
        return Ok(());
    };
    let allowed = machine.allowed(from);
    if from == to || allowed.iter().any(|allowed| allowed == to) {
        Ok(())
    } else {
        Err(ItemError::transition(&machine.field, from, to, allowed))
    }
}

/// The difference of two documents, by their top-level members. Both have them in the order of their names, so one walk through
/// the two finds it.
pub fn touched(old: &Doc, new: &Doc) -> Touched {
    let mut touched = Touched::default();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let next = match (old.peek(), new.peek()) {
            (None, None) => return touched,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let before = if next.is_le() { old.next() } else { None };
        let after = if next.is_ge() { new.next() } else { None };
        match (before, after) {
            (Some((_, before)), Some((_, after))) if before == after => {}
            (Some((name, before)), _) => {
                touched.fields.push(name.clone());
                touched.before.insert(name.clone(), before.clone());
            }
            (None, added) => touched.fields.extend(added.map(|(name, _)| name.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(text: &str) -> Doc {
        serde_json::from_str(text).expect("an object")
    }

    #[test]
    fn a_difference_names_what_was_there_what_is_new_and_what_is_gone() {
        let old = doc(r#"{"z": 1, "b": 2, "same": [3], "gone": null}"#);
        let new = doc(r#"{"new": 4, "b": "2", "same": [3], "z": 1, "a": 5}"#);
        let touched = touched(&old, &new);
        assert_eq!(touched.fields, ["a", "b", "gone", "new"]);
        assert_eq!(touched.before, doc(r#"{"b": 2, "gone": null}"#));
    }

    #[test]
    fn a_document_has_its_members_in_the_order_of_their_names() {
        let names: Vec<String> = doc(r#"{"b": 1, "a": 2}"#)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a", "b"], "which the difference of two goes by");
    }
}
