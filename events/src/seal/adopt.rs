//! What the fold makes of sealed values without any key: equal tags are equal values. A value that did not change keeps the
//! seal that it has, so comparing documents stays comparing texts, and a colleague who sends a whole record again does not
//! bring another's words under a key of his own. An item's content is told by its tags, so that the same item under another
//! key is the same item. Pure.

use super::form::{Seal, mentions};
use super::open::seals;
use crate::doc::Doc;
use crate::domain::Domain;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The seals of a record, by tag. A tag is bound to its path, so one map serves the whole document.
#[derive(Debug, Default)]
pub struct Seals(HashMap<String, String>);

impl Seals {
    /// Notes those of a document. What was noted first stands.
    pub fn note(&mut self, domain: &Domain, doc: &Doc) {
        if !mentions(doc.text()) {
            return;
        }
        for (_, value) in doc.iter().filter(|(name, _)| domain.is_personal(name)) {
            texts(&value.to_value(), &mut |seal, text| {
                self.0
                    .entry(seal.tag.to_owned())
                    .or_insert_with(|| text.to_owned());
            });
        }
    }

    /// Whether none was noted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts those that were noted in the place of those in `doc` that hold the same.
    pub fn adopt(&self, domain: &Domain, doc: &mut Doc) {
        if self.is_empty() || !mentions(doc.text()) {
            return;
        }
        *doc = doc.replaced(|name, value| {
            let mut value = domain.is_personal(name).then(|| value.to_value())?;
            self.put(&mut value);
            Some(value)
        });
    }

    fn put(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let known = Seal::parse(text).and_then(|seal| self.0.get(seal.tag));
                if let Some(known) = known.filter(|known| *known != text) {
                    *text = known.clone();
                }
            }
            Value::Object(members) => members.values_mut().for_each(|inner| self.put(inner)),
            Value::Array(list) => list.iter_mut().for_each(|inner| self.put(inner)),
            _ => {}
        }
    }
}

fn texts<'v>(value: &'v Value, take: &mut impl FnMut(Seal<'v>, &'v str)) {
    match value {
        Value::String(text) => {
            if let Some(seal) = Seal::parse(text) {
                take(seal, text);
            }
        }
        Value::Object(members) => members.values().for_each(|inner| texts(inner, take)),
        Value::Array(list) => list.iter().for_each(|inner| texts(inner, take)),
        _ => {}
    }
}

/// An item without what depends on the key that it was sealed under; none where nothing does.
pub fn content(domain: &Domain, item: &Doc) -> Option<Map<String, Value>> {
    let may = domain.has_personal() && mentions(item.text());
    if !may {
        return None;
    }
    let mut sealed = false;
    let mut item = item.to_map();
    for (_, value) in item.iter().filter(|(name, _)| domain.is_personal(name)) {
        seals(value, &mut |_| sealed = true);
    }
    if !sealed {
        return None;
    }
    for (_, value) in item.iter_mut().filter(|(name, _)| domain.is_personal(name)) {
        without_key(value);
    }
    Some(item)
}

fn without_key(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(seal) = Seal::parse(text) {
                *text = seal.same();
            }
        }
        Value::Object(members) => members.values_mut().for_each(without_key),
        Value::Array(list) => list.iter_mut().for_each(without_key),
        _ => {}
    }
}
