//! A user's key as a record of the compacted topic: its key is tenant, user and key id, parts percent-encoded; its value the
//! wrapped key, or, once it is destroyed, that it is. That is a value and no tombstone: compaction takes the wrapped key away
//! all the same, but keeps the word that there was one, so that a projection made anew years later knows erased from unknown.
//! Pure.

use super::form::{decode, encode};
use crate::ids::{TenantId, UserId};
use crate::item::{decode_part, encode_part};
use serde::{Deserialize, Serialize};

/// Whose key, and its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    /// The tenant.
    pub tenant: TenantId,
    /// The user.
    pub user: UserId,
    /// The key's id, as sealed values name it.
    pub key_id: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Value {
    Wrapped(String),
    Erased(bool),
}

/// Why a record is none of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// The record's key is not what it has to be.
    #[error("its key is not tenant, user and key id")]
    Key,
    /// The record's value is not what it has to be.
    #[error("its value is no wrapped key")]
    Value,
}

impl KeyName {
    /// The record's key.
    pub fn to_text(&self) -> String {
        format!(
            "{}/{}/{}",
            encode_part(self.tenant.as_str()),
            encode_part(self.user.as_str()),
            self.key_id
        )
    }

    fn parse(key: &[u8]) -> Option<KeyName> {
        let mut parts = std::str::from_utf8(key).ok()?.split('/');
        let name = KeyName {
            tenant: TenantId::parse(&decode_part(parts.next()?)?).ok()?,
            user: UserId::parse(&decode_part(parts.next()?)?).ok()?,
            key_id: parts.next()?.to_owned(),
        };
        let whole = parts.next().is_none() && decode(&name.key_id).is_some_and(|id| id.len() == 16);
        whole.then_some(name)
    }
}

/// The record's value: the wrapped key; none where it is destroyed.
pub fn value(wrapped: Option<&[u8]>) -> String {
    let value = match wrapped {
        Some(wrapped) => Value::Wrapped(encode(wrapped)),
        None => Value::Erased(true),
    };
    // An enum of plain texts always serialises.
    serde_json::to_string(&value).unwrap_or_default()
}

/// Reads a record: whose key, and the wrapped key; none where it was destroyed.
pub fn read(key: &[u8], value: Option<&[u8]>) -> Result<(KeyName, Option<Vec<u8>>), NoKey> {
    let name = KeyName::parse(key).ok_or(NoKey::Key)?;
    let Some(value) = value else {
        return Ok((name, None));
    };
    match serde_json::from_slice(value) {
        Ok(Value::Wrapped(text)) => Ok((name, Some(decode(&text).ok_or(NoKey::Value)?))),
        Ok(Value::Erased(_)) => Ok((name, None)),
        Err(_) => Err(NoKey::Value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_so_does_its_end() {
        let name = KeyName {
            tenant: TenantId::parse("acme/north").expect("a tenant"),
            user: UserId::parse("jürgen@x").expect("a user"),
            key_id: encode(&[3; 16]),
        };
        let text = name.to_text();
        let written = value(Some(b"wrapped"));
        assert_eq!(
            read(text.as_bytes(), Some(written.as_bytes())),
            Ok((name.clone(), Some(b"wrapped".to_vec())))
        );
        assert_eq!(read(text.as_bytes(), None), Ok((name.clone(), None)));
        assert_eq!(value(None), r#"{"erased":true}"#);
        assert_eq!(
            read(text.as_bytes(), Some(value(None).as_bytes())),
            Ok((name, None))
        );
        for other in ["", "a/b", "a/b/c", &format!("{text}/x")] {
            assert_eq!(read(other.as_bytes(), None), Err(NoKey::Key), "{other}");
        }
        assert_eq!(read(text.as_bytes(), Some(b"{}")), Err(NoKey::Value));
    }
}
