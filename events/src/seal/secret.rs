//! The deployment's secret and what follows from it (HKDF-SHA256, RFC 5869): the key under which users' keys are wrapped, the
//! tenants' keys of tags, and what tells the id of a key of ours from a text that somebody made up. A user's key is
//! random and follows from nothing: once its wrapped form is gone, so is everything under it. Values and keys are sealed with
//! AES-256-GCM-SIV (RFC 8452), which forgives a nonce that comes twice; so a value's nonce is its tag, needs no room,
//! and the same value under the same key has the same bytes.

use super::Scope;
use super::form::{Kind, SHORT, Seal, Tagger, bound_to, decode, encode, mac};
use aes_gcm_siv::aead::{Aead, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use hkdf::Hkdf;
use hmac::Mac;
use sha2::Sha256;
use std::fmt;

/// The shortest secret.
pub const LEAST_SECRET: usize = 32;

/// Random bytes that a key is made of: 8 of its id, 32 of the key.
pub const RANDOM_BYTES: usize = 40;

const NONCE: usize = 12;

/// The deployment's secret. Shown nowhere.
pub struct SealSecret {
    root: Hkdf<Sha256>,
    wrap: Aes256GcmSiv,
}

impl fmt::Debug for SealSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The name of a user's key: unique, and not to be made up without the secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// As it stands in sealed values, keys of records and tables.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A user's key, ready to seal and open. Shown nowhere.
pub struct DataKey {
    id: KeyId,
    bytes: [u8; 32],
    cipher: Aes256GcmSiv,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (hidden)", self.id.0)
    }
}

impl SealSecret {
    /// From the setting's text; none where it is too short.
    pub fn new(text: &str) -> Option<SealSecret> {
        if text.len() < LEAST_SECRET {
            return None;
        }
        let root = Hkdf::<Sha256>::new(Some(b"tidelog seal 1"), text.as_bytes());
        let wrap = Aes256GcmSiv::new(&derived(&root, &["wrap"]).into());
        Some(SealSecret { root, wrap })
    }

    pub(super) fn derive(&self, info: &[&str]) -> [u8; 32] {
        derived(&self.root, info)
    }

    /// What tells this secret from another and gives nothing of it away.
    pub(super) fn print(&self) -> String {
        encode(&self.derive(&["print"])[..SHORT])
    }

    /// What makes a tenant's tags.
    pub fn tagger(&self, tenant: &str) -> Tagger {
        Tagger::new(self, tenant)
    }

    /// A new key of a user of that tenant, out of as many random bytes.
    pub fn make_key(&self, tenant: &str, random: &[u8; RANDOM_BYTES]) -> DataKey {
        let (name, key) = random.split_at(SHORT / 2);
        let mut id = [0; SHORT];
        id[..SHORT / 2].copy_from_slice(name);
        id[SHORT / 2..].copy_from_slice(&self.proof(tenant, name));
        let mut bytes = [0; 32];
        bytes.copy_from_slice(key);
        DataKey::new(KeyId(encode(&id)), bytes)
    }

    /// The id, if it is one that was given out here to that tenant. Any other text is somebody's own words.
    pub fn key_id(&self, tenant: &str, text: &str) -> Option<KeyId> {
        let bytes = decode(text).filter(|bytes| bytes.len() == SHORT)?;
        let (name, proof) = bytes.split_at(SHORT / 2);
        (proof == self.proof(tenant, name)).then(|| KeyId(text.to_owned()))
    }

    /// The last half of a key's id.
    fn proof(&self, tenant: &str, name: &[u8]) -> [u8; SHORT / 2] {
        let mut proof = [0; SHORT / 2];
        let mut mac = mac(&self.derive(&["id", tenant]));
        mac.update(name);
        proof.copy_from_slice(&mac.finalize().into_bytes()[..SHORT / 2]);
        proof
    }

    /// A key as it may be stored: nobody opens it without the secret.
    pub fn wrap(&self, tenant: &str, key: &DataKey) -> Vec<u8> {
        let bound = format!("{}/{tenant}", key.id.0);
        let payload = Payload {
            msg: &key.bytes,
            aad: bound.as_bytes(),
        };
        // It fails only beyond 64 GiB.
        self.wrap
            .encrypt(&nonce(key.id.0.as_bytes()), payload)
            .unwrap_or_default()
    }

    /// A stored key; none where it was stored under another secret or name.
    pub fn unwrap_key(&self, tenant: &str, id: &KeyId, wrapped: &[u8]) -> Option<DataKey> {
        let bound = format!("{}/{tenant}", id.0);
        let payload = Payload {
            msg: wrapped,
            aad: bound.as_bytes(),
        };
        let bytes = self.wrap.decrypt(&nonce(id.0.as_bytes()), payload).ok()?;
        Some(DataKey::new(id.clone(), bytes.try_into().ok()?))
    }
}

impl DataKey {
    fn new(id: KeyId, bytes: [u8; 32]) -> DataKey {
        let cipher = Aes256GcmSiv::new(&bytes.into());
        DataKey { id, bytes, cipher }
    }

    /// Its name.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Seals one value's text.
    pub(super) fn seal(
        &self,
        scope: &Scope<'_>,
        path: &str,
        kind: Kind,
        tag: &[u8; SHORT],
        text: &str,
    ) -> String {
        let payload = Payload {
            msg: text.as_bytes(),
            aad: &bound_to(scope, path, kind, tag),
        };
        // It fails only beyond 64 GiB.
        let ciphertext = self.cipher.encrypt(&nonce(tag), payload).unwrap_or_default();
        Seal::text(kind, &self.id.0, tag, &ciphertext)
    }

    /// Opens one value's text; none where it was sealed elsewhere, or is damaged.
    pub(super) fn open(&self, scope: &Scope<'_>, path: &str, seal: &Seal<'_>) -> Option<String> {
        let tag = decode(seal.tag)?;
        let ciphertext = decode(seal.ciphertext)?;
        let payload = Payload {
            msg: &ciphertext,
            aad: &bound_to(scope, path, seal.kind, &tag),
        };
        String::from_utf8(self.cipher.decrypt(&nonce(&tag), payload).ok()?).ok()
    }
}

fn nonce(unique: &[u8]) -> Nonce {
    let mut bytes = [0; NONCE];
    let most = unique.len().min(NONCE);
    bytes[..most].copy_from_slice(&unique[..most]);
    bytes.into()
}

fn derived(root: &Hkdf<Sha256>, info: &[&str]) -> [u8; 32] {
    let info = info.join("\0");
    let mut key = [0; 32];
    // It fails only for more than 8160 bytes.
    let made = root.expand(info.as_bytes(), &mut key);
    debug_assert!(made.is_ok());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_wrapped_for_its_tenant_under_its_name() {
        let secret = SealSecret::new(&"s".repeat(32)).expect("long enough");
        assert!(SealSecret::new(&"s".repeat(31)).is_none());
        let key = secret.make_key("acme", &[7; RANDOM_BYTES]);
        let wrapped = secret.wrap("acme", &key);
        let id = secret.key_id("acme", key.id().as_str()).expect("ours");
        let again = secret.unwrap_key("acme", &id, &wrapped).expect("the key");
        assert_eq!(again.bytes, key.bytes);
        assert!(secret.unwrap_key("other", &id, &wrapped).is_none());
        assert!(secret.key_id("other", id.as_str()).is_none());
        let made_up = KeyId(encode(&[7; 16]));
        assert!(secret.key_id("acme", made_up.as_str()).is_none());
        assert!(secret.unwrap_key("acme", &made_up, &wrapped).is_none());
        let other = SealSecret::new(&"t".repeat(32)).expect("long enough");
        assert!(other.unwrap_key("acme", &id, &wrapped).is_none());
        assert_eq!(
            format!("{secret:?} {key:?}"),
            format!("(hidden) {} (hidden)", id.as_str())
        );
    }
}
