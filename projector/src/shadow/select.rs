//! Which records are folded again: all, every so manyeth, or those that a stretch of the log is about. By the key on the topic,
//! since all that a record's fold depends on has its key: so what is left out changes nothing in what is not.

use crate::record::LogRecord;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use tidelog_events::domain::Domain;

/// Which keys of a topic.
#[derive(Debug, Clone)]
pub enum Selection {
    /// All.
    All,
    /// One share of `of` equal ones.
    Share {
        /// How many shares there are.
        of: u32,
        /// Which, from 0.
        number: u32,
    },
    /// These keys, as they are on the topic.
    Keys(HashSet<Vec<u8>>),
}

impl Selection {
    /// Whether a record of the log is of it. A record without a readable key is nobody's, and of each.
    pub(crate) fn takes(&self, record: &LogRecord) -> bool {
        match (self, record.key()) {
            (Selection::All, _) | (_, None) => true,
            (Selection::Share { of, number }, Some(key)) => {
                identity(key).is_none_or(|identity| share(identity, *of) == *number)
            }
            (Selection::Keys(keys), Some(key)) => keys.contains(key),
        }
    }

    /// The condition under which a row of a domain's tables, called `t`, is of it; none where all are.
    pub(crate) fn of_rows(&self, domain: &Domain, schema: &str) -> Option<String> {
        let identity = match domain.parent {
            Some(_) => "t.parent_id::text".to_owned(),
            None => format!("t.{}::text", domain.id_column()),
        };
        match self {
            Selection::All => None,
            Selection::Share { of, number } => Some(format!("{} = {number}", share_of(&identity, *of))),
            Selection::Keys(_) => Some(selected(schema, &identity)),
        }
    }

    /// The same for rows of the tables that all domains share. These name a record by tenant and subject, and not by its parent: of
    /// records that hang on others the rows are meant that the shadow has too, by `in_shadow`.
    pub(crate) fn of_shared(
        &self,
        domain: &Domain,
        schema: &str,
        subject: &str,
        in_shadow: &str,
    ) -> Option<String> {
        match (self, &domain.parent) {
            (Selection::All, _) => None,
            (_, Some(_)) => Some(in_shadow.to_owned()),
            (Selection::Share { of, number }, None) => Some(format!(
                "{} = {number}",
                share_of(&format!("t.{subject}::text"), *of)
            )),
            (Selection::Keys(_), None) => Some(selected(schema, &format!("t.{subject}::text"))),
        }
    }
}

/// A key of those that the shadow's table `selected` lists.
fn selected(schema: &str, identity: &str) -> String {
    format!(
        "EXISTS (SELECT FROM \"{schema}\".selected s WHERE s.tenant_id = t.tenant_id AND s.identity = {identity})"
    )
}

/// What stands after the tenant in a topic's key: the record's identity, or its parent's.
pub(crate) fn identity(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key)
        .ok()?
        .split_once('/')
        .map(|(_, identity)| identity)
}

/// The share of an identity: the first four bytes of its SHA-256, modulo.
fn share(identity: &str, of: u32) -> u32 {
    let digest = Sha256::digest(identity.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % of.max(1)
}

/// The same in SQL.
fn share_of(identity: &str, of: u32) -> String {
    format!(
        "('x' || encode(substr(sha256(convert_to({identity}, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint % {}",
        of.max(1)
    )
}
