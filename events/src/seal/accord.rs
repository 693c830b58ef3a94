//! Which secret a deployment seals with, as the topic of keys tells it. Whoever seals first says so there, in a record that
//! has the secret's print, which follows from the secret and gives nothing of it away. The first such record holds: whoever
//! has another secret, or none, learns that he cannot take part. Each has a key of its own, so that compaction leaves the first
//! the first. In a topic of a release that said nothing, the ids of its keys tell. Pure.

use super::record;
use super::secret::SealSecret;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::sync::Arc;

/// What such a record's key begins with. A user's key has three parts, this one two.
const BEGINS: &str = "secret/";

#[derive(Serialize, Deserialize)]
struct Said {
    print: String,
}

/// How what this process has stands to what the deployment seals with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accord {
    /// The topic has not been read to where it tells.
    #[default]
    Unread,
    /// Nobody has sealed anything yet.
    Unused,
    /// The deployment seals with the secret that is here.
    Same,
    /// It seals with another one.
    Other,
    /// It seals, and there is no secret here.
    Missing,
}

impl Accord {
    /// Whether this process neither seals nor opens as the deployment does. Nothing but another setting mends that.
    pub fn is_wrong(self) -> bool {
        matches!(self, Accord::Other | Accord::Missing)
    }

    /// What is wrong, in words that name the setting.
    pub fn wrong(self) -> Option<&'static str> {
        match self {
            Accord::Other => {
                Some("seal_secret is not the one that this deployment seals with, says sync.keys.v1")
            }
            Accord::Missing => {
                Some("seal_secret is not set, and this deployment seals with one, says sync.keys.v1")
            }
            Accord::Unread | Accord::Unused | Accord::Same => None,
        }
    }
}

/// Whether a record of the topic says which secret it is, rather than being a user's key.
pub fn is_said(key: &[u8]) -> bool {
    key.starts_with(BEGINS.as_bytes()) && key.iter().filter(|&&byte| byte == b'/').count() == 1
}

/// Key and value of the record in which somebody says that he seals with this secret. `unique` is in no other's.
pub fn said(secret: &SealSecret, unique: impl Display) -> (String, String) {
    let said = Said {
        print: secret.print(),
    };
    // A plain text always serialises.
    let value = serde_json::to_string(&said).unwrap_or_default();
    (format!("{BEGINS}{unique}"), value)
}

/// Reads the topic from its first record on, and tells how one stands.
#[derive(Debug)]
pub struct Witness {
    secret: Option<Arc<SealSecret>>,
    at_end: bool,
    /// Whether the first who said it has the same secret.
    same: Option<bool>,
    ours: u64,
    others: u64,
}

impl Witness {
    /// Of nothing yet. `secret` is what this process has.
    pub fn new(secret: Option<Arc<SealSecret>>) -> Witness {
        Witness {
            secret,
            at_end: false,
            same: None,
            ours: 0,
            others: 0,
        }
    }

    /// One more record. What it cannot read is passed over.
    pub fn note(&mut self, key: &[u8], value: Option<&[u8]>) {
        if self.same.is_some() {
            return;
        }
        let secret = self.secret.as_deref();
        if is_said(key) {
            if let Some(said) = value.and_then(|value| serde_json::from_slice::<Said>(value).ok()) {
                self.same = Some(secret.is_some_and(|secret| secret.print() == said.print));
            }
        } else if let Ok((name, _)) = record::read(key, value) {
            let ours =
                secret.is_some_and(|secret| secret.key_id(name.tenant.as_str(), &name.key_id).is_some());
            if ours { self.ours += 1 } else { self.others += 1 }
        }
    }

    /// The end that the topic had when the reading began was reached.
    pub fn at_end(&mut self) {
        self.at_end = true;
    }

    /// How one stands. What the first said stays; where nobody has said anything, it may change with each record.
    pub fn accord(&self) -> Accord {
        let wrong = match self.secret {
            Some(_) => Accord::Other,
            None => Accord::Missing,
        };
        match self.same {
            Some(true) => Accord::Same,
            Some(false) => wrong,
            None if !self.at_end => Accord::Unread,
            // Where two secrets were in use without anybody's notice, most keys are the deployment's.
            None if self.others > self.ours => wrong,
            None => Accord::Unused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{TenantId, UserId};
    use crate::seal::record::{KeyName, value};
    use crate::seal::secret::RANDOM_BYTES;

    fn secret(letter: &str) -> Arc<SealSecret> {
        Arc::new(SealSecret::new(&letter.repeat(32)).expect("long enough"))
    }

    type Record = (String, String);

    /// A user's key, as a release that says nothing leaves it; `byte` tells keys apart.
    fn key(secret: &SealSecret, byte: u8) -> Record {
        let key = secret.make_key("acme", &[byte; RANDOM_BYTES]);
        let name = KeyName {
            tenant: TenantId::parse("acme").expect("a tenant"),
            user: UserId::parse("asha").expect("a user"),
            key_id: key.id().as_str().to_owned(),
        };
        (name.to_text(), value(Some(&secret.wrap("acme", &key))))
    }

    fn erased((key, _): Record) -> Record {
        (key, value(None))
    }

    fn accord(secret: Option<&Arc<SealSecret>>, records: &[Record]) -> Accord {
        let mut witness = Witness::new(secret.cloned());
        for (key, value) in records {
            witness.note(key.as_bytes(), Some(value.as_bytes()));
        }
        witness.at_end();
        witness.accord()
    }

    #[test]
    fn the_first_who_says_it_holds() {
        let (ours, theirs) = (secret("s"), secret("t"));
        assert_eq!(accord(Some(&ours), &[]), Accord::Unused);
        assert_eq!(accord(None, &[]), Accord::Unused);
        let records = [
            said(&ours, 1),
            key(&ours, 1),
            said(&theirs, 2),
            key(&theirs, 2),
            key(&theirs, 3),
        ];
        for upto in 1..=records.len() {
            let records = &records[..upto];
            assert_eq!(accord(Some(&ours), records), Accord::Same);
            assert_eq!(accord(Some(&theirs), records), Accord::Other);
            assert_eq!(accord(None, records), Accord::Missing);
        }
        // Every key was destroyed, or compaction took the keys before it: what was said stays.
        let left = [said(&ours, 1), said(&theirs, 2), erased(key(&ours, 1))];
        assert_eq!(accord(Some(&ours), &left), Accord::Same);
    }

    #[test]
    fn where_nobody_said_anything_most_keys_tell() {
        let (ours, theirs) = (secret("s"), secret("t"));
        let records = [key(&ours, 1), key(&theirs, 2), key(&ours, 3)];
        assert_eq!(accord(Some(&ours), &records), Accord::Unused);
        assert_eq!(accord(Some(&theirs), &records), Accord::Other);
        assert_eq!(accord(None, &records), Accord::Missing);
        let destroyed = [erased(key(&ours, 1))];
        assert_eq!(accord(Some(&ours), &destroyed), Accord::Unused);
        assert_eq!(accord(Some(&theirs), &destroyed), Accord::Other);
    }

    #[test]
    fn before_it_is_read_nobody_knows_and_what_is_no_record_is_passed_over() {
        let ours = secret("s");
        let mut witness = Witness::new(Some(ours.clone()));
        for (key, value) in [
            (&b"secret/1"[..], Some(&b"{}"[..])),
            (b"secret/2", None),
            (b"x", None),
        ] {
            witness.note(key, value);
            assert_eq!(witness.accord(), Accord::Unread);
        }
        let (key_of, value) = said(&ours, 3);
        witness.note(key_of.as_bytes(), Some(value.as_bytes()));
        assert_eq!(witness.accord(), Accord::Same, "known before the end");
        // A tenant may have that name.
        let key = key(&ours, 1).0.replacen("acme", "secret", 1);
        assert!(is_said(key_of.as_bytes()) && !is_said(key.as_bytes()), "{key}");
        assert!(!value.contains("sss"), "{value}");
    }
}
