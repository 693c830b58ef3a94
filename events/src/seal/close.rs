//! An item, sealed: its personal members leaf by leaf, since an update is a patch (RFC 7396). Objects are walked, `null`
//! stays, because it clears; a list of strings is sealed string by string, since lists are merged as sets; any other list is
//! sealed whole. What is not personal stays byte for byte. Judges nothing: that was done on the plain text.

use super::form::{Kind, Tagger};
use super::secret::DataKey;
use super::{Scope, descend};
use crate::domain::Domain;
use crate::item::Operation;
use crate::json::Members;
use serde_json::{Map, Value};

/// The largest sealed item, in bytes of JSON text: with key and headers it has to fit into one message of the log.
pub const MAX_SEALED_BYTES: usize = 900_000;

/// The member of a resolution that holds a patch.
const DATA: &str = "data";

/// What the items of one record are sealed with.
#[derive(Clone, Copy)]
pub struct Sealing<'a> {
    /// The user's key.
    pub key: &'a DataKey,
    /// The tenant's tags.
    pub tagger: &'a Tagger,
    /// The record.
    pub scope: Scope<'a>,
}

impl Sealing<'_> {
    /// Seals an item's text; none where nothing in it is personal, so that it passes as it is.
    pub fn item(&self, domain: &Domain, operation: Operation, raw: &str) -> Option<String> {
        if operation == Operation::Resolve {
            return self.resolution(domain, raw);
        }
        let members: Members<'_> = serde_json::from_str(raw).ok()?;
        let personal = |value: &str| value != "null" && value != "{}" && value != "[]";
        if !members
            .iter()
            .any(|(name, value)| domain.is_personal(name) && personal(value))
        {
            return None;
        }
        let mut text = String::with_capacity(raw.len() * 2);
        for (name, value) in members.iter() {
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&Value::from(name).to_string());
            text.push(':');
            match domain.is_personal(name) {
                false => text.push_str(value),
                true => {
                    // It was read once already, as part of the item.
                    let value: Value = serde_json::from_str(value).ok()?;
                    text.push_str(&self.member(domain, name, value).to_string());
                }
            }
        }
        text.push('}');
        Some(text)
    }

    /// Seals what a person's decision puts into the record.
    fn resolution(&self, domain: &Domain, raw: &str) -> Option<String> {
        let Ok(Value::Object(mut value)) = serde_json::from_str(raw) else {
            return None;
        };
        let Some(Value::Object(data)) = value.remove(DATA) else {
            return None;
        };
        let sealed: Map<String, Value> = data
            .into_iter()
            .map(|(name, inner)| match domain.is_personal(&name) {
                true => {
                    let inner = self.member(domain, &name, inner);
                    (name, inner)
                }
                false => (name, inner),
            })
            .collect();
        value.insert(DATA.to_owned(), sealed.into());
        Some(Value::Object(value).to_string())
    }

    fn member(&self, domain: &Domain, name: &str, value: Value) -> Value {
        // In its stored letter case, which nobody can bring it into afterwards.
        let value = match domain.field(name) {
            Some(field) => field.stored(value),
            None => value,
        };
        let mut path = String::new();
        descend(&mut path, name);
        self.value(&mut path, value)
    }

    fn value(&self, path: &mut String, value: Value) -> Value {
        match value {
            Value::Object(members) => members
                .into_iter()
                .map(|(name, inner)| {
                    let before = descend(path, &name);
                    let sealed = self.value(path, inner);
                    path.truncate(before);
                    (name, sealed)
                })
                .collect::<Map<_, _>>()
                .into(),
            Value::Array(list) if list.iter().all(Value::is_string) => {
                list.into_iter().map(|element| self.leaf(path, element)).collect()
            }
            value => self.leaf(path, value),
        }
    }

    fn leaf(&self, path: &str, value: Value) -> Value {
        let Some(kind) = Kind::of(&value) else {
            return value;
        };
        // The same number in two spellings is the same (RFC 8785), as for every other comparison of items.
        let canonical = serde_json_canonicalizer::to_vec(&value).unwrap_or_default();
        let tag = self.tagger.tag(&self.scope, path, kind, &canonical);
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        self.key.seal(&self.scope, path, kind, &tag, &text).into()
    }
}
