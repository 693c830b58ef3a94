//! A document, opened for whoever reads it: once, and only where a personal member holds a value of the sealed form with
//! a key's id that was given out here. Whatever else looks like one is somebody's words. What is under a destroyed key
//! shows as erased. Which keys there are is asked of the caller, who collects what is [`wanted`] before.

use super::form::{Kind, Seal};
use super::secret::{DataKey, SealSecret};
use super::{KeyId, Scope, descend};
use crate::domain::Domain;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a string that nobody can read any more shows as; a value of another type is `null`.
pub const ERASED: &str = "[erased]";

/// What a string shows as that its own key does not open: it was moved or damaged.
pub const UNREADABLE: &str = "[unreadable]";

/// A key, looked for.
#[derive(Debug, Clone)]
pub enum Found {
    /// Here it is.
    Key(Arc<DataKey>),
    /// Destroyed.
    Erased,
    /// Not known, yet: nothing can be said of what is under it.
    Unknown,
}

/// Where keys are found.
pub trait KeySource {
    /// The key of that id.
    fn key(&self, id: &KeyId) -> Found;
}

/// A key that is not known: reading has to be tried again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key is not known here yet")]
pub struct UnknownKey;

/// How a document was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// Values opened.
    pub opened: usize,
    /// Values of a destroyed key.
    pub erased: usize,
    /// Values that their key does not open.
    pub unreadable: usize,
}

/// Adds the ids of the keys that a document's values are under.
pub fn wanted(
    secret: &SealSecret,
    domain: &Domain,
    tenant: &str,
    doc: &Map<String, Value>,
    ids: &mut BTreeSet<KeyId>,
) {
    for (name, value) in doc {
        if domain.is_personal(name) {
            seals(value, &mut |seal| ids.extend(secret.key_id(tenant, seal.key)));
        }
    }
}

/// Every value of the sealed form in `value`.
pub(super) fn seals<'v>(value: &'v Value, take: &mut impl FnMut(Seal<'v>)) {
    match value {
        Value::String(text) => {
            if let Some(seal) = Seal::parse(text) {
                take(seal);
            }
        }
        Value::Object(members) => members.values().for_each(|inner| seals(inner, take)),
        Value::Array(list) => list.iter().for_each(|inner| seals(inner, take)),
        _ => {}
    }
}

/// Whether an item holds something personal that is not sealed. Of a resolution only what it puts into the record counts.
pub fn holds_plain(domain: &Domain, resolves: bool, item: &Map<String, Value>) -> bool {
    let of = |members: &Map<String, Value>| {
        members
            .iter()
            .any(|(name, value)| domain.is_personal(name) && plain(value))
    };
    match resolves {
        true => item.get("data").and_then(Value::as_object).is_some_and(of),
        false => of(item),
    }
}

fn plain(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => Seal::parse(text).is_none(),
        Value::Object(members) => members.values().any(plain),
        Value::Array(list) => list.iter().any(plain),
        _ => true,
    }
}

/// Opens a document's personal members in place.
pub fn open(
    secret: &SealSecret,
    domain: &Domain,
    scope: Scope<'_>,
    doc: &mut Map<String, Value>,
    keys: &impl KeySource,
) -> Result<Opened, UnknownKey> {
    let mut opener = Opener {
        secret,
        scope,
        keys,
        path: String::new(),
        opened: Opened::default(),
    };
    for (name, value) in doc.iter_mut().filter(|(name, _)| domain.is_personal(name)) {
        opener.under(name, value)?;
    }
    Ok(opener.opened)
}

struct Opener<'a, K> {
    secret: &'a SealSecret,
    scope: Scope<'a>,
    keys: &'a K,
    path: String,
    opened: Opened,
}

impl<K: KeySource> Opener<'_, K> {
    fn under(&mut self, name: &str, value: &mut Value) -> Result<(), UnknownKey> {
        let before = descend(&mut self.path, name);
        let opened = self.value(value);
        self.path.truncate(before);
        opened
    }

    fn value(&mut self, value: &mut Value) -> Result<(), UnknownKey> {
        match value {
            Value::String(text) => {
                if let Some(opened) = self.leaf(text)? {
                    *value = opened;
                }
            }
            Value::Array(list) => {
                for element in list {
                    if element.is_string() {
                        self.value(element)?;
                    }
                }
            }
            Value::Object(members) => {
                for (name, inner) in members {
                    self.under(name, inner)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn leaf(&mut self, text: &str) -> Result<Option<Value>, UnknownKey> {
        let Some(seal) = Seal::parse(text) else {
            return Ok(None);
        };
        let Some(id) = self.secret.key_id(self.scope.tenant, seal.key) else {
            return Ok(None);
        };
        let key = match self.keys.key(&id) {
            Found::Key(key) => key,
            Found::Unknown => return Err(UnknownKey),
            Found::Erased => {
                self.opened.erased += 1;
                return Ok(Some(instead(seal.kind, ERASED)));
            }
        };
        let opened = key
            .open(&self.scope, &self.path, &seal)
            .and_then(|text| match seal.kind {
                Kind::Text => Some(Value::String(text)),
                _ => serde_json::from_str(&text).ok(),
            });
        match opened {
            Some(_) => self.opened.opened += 1,
            None => self.opened.unreadable += 1,
        }
        Ok(Some(opened.unwrap_or_else(|| instead(seal.kind, UNREADABLE))))
    }
}

fn instead(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Text => text.into(),
        _ => Value::Null,
    }
}
