//! The form of a sealed value: `sealed:1:<kind>:<key id>:<tag>:<ciphertext>`, a JSON string. The kind says what it was, for
//! whoever cannot open it any more; the tag is the same for the same value at the same place of the same record, whatever
//! the key, so that a fold without any key knows what has changed. Base64url without padding. Knows no cipher.

use super::Scope;
use super::secret::SealSecret;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::digest::Key;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

/// What every sealed value begins with. The 1 is the version of the form.
pub const PREFIX: &str = "sealed:1:";

/// The bytes of a key's id and of a tag.
pub(super) const SHORT: usize = 16;

/// The same in base64url.
const SHORT_TEXT: usize = 22;

/// What a value was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string, or an element of a list of strings.
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list that is not one of strings.
    List,
}

impl Kind {
    pub(super) fn letter(self) -> char {
        match self {
            Kind::Text => 's',
            Kind::Number => 'n',
            Kind::Boolean => 'b',
            Kind::List => 'a',
        }
    }

    fn of_letter(letter: &str) -> Option<Kind> {
        [Kind::Text, Kind::Number, Kind::Boolean, Kind::List]
            .into_iter()
            .find(|kind| kind.letter().encode_utf8(&mut [0; 4]) == letter)
    }

    /// The kind of a value that is sealed whole; none of `null` and of objects.
    pub(super) fn of(value: &Value) -> Option<Kind> {
        match value {
            Value::String(_) => Some(Kind::Text),
            Value::Number(_) => Some(Kind::Number),
            Value::Bool(_) => Some(Kind::Boolean),
            Value::Array(_) => Some(Kind::List),
            Value::Null | Value::Object(_) => None,
        }
    }
}

/// A sealed value's parts, as they stand in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal<'a> {
    /// What it was.
    pub kind: Kind,
    /// The key's id.
    pub key: &'a str,
    /// The tag.
    pub tag: &'a str,
    /// The ciphertext.
    pub ciphertext: &'a str,
}

impl<'a> Seal<'a> {
    /// Reads a text of that form. That it has the form does not say that it was sealed here: the key's id does.
    pub fn parse(text: &'a str) -> Option<Seal<'a>> {
        let mut parts = text.strip_prefix(PREFIX)?.splitn(4, ':');
        let kind = Kind::of_letter(parts.next()?)?;
        let (key, tag, ciphertext) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let whole = key.len() == SHORT_TEXT && tag.len() == SHORT_TEXT;
        (whole && ours(key) && ours(tag) && ours(ciphertext)).then_some(Seal {
            kind,
            key,
            tag,
            ciphertext,
        })
    }

    /// What two sealed values that hold the same have in common.
    pub(super) fn same(&self) -> String {
        format!("{PREFIX}{}::{}:", self.kind.letter(), self.tag)
    }

    pub(super) fn text(kind: Kind, key: &str, tag: &[u8; SHORT], ciphertext: &[u8]) -> String {
        let mut text = String::with_capacity(64 + ciphertext.len() * 4 / 3);
        text.push_str(PREFIX);
        text.push(kind.letter());
        for part in [key, &encode(tag), &encode(ciphertext)] {
            text.push(':');
            text.push_str(part);
        }
        text
    }
}

/// Whether a JSON text may hold sealed values at all: most do not, and are passed on unread.
pub fn mentions(json: &str) -> bool {
    json.contains("\"sealed:1:")
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// HMAC pads a key that is shorter than its block with zeros (RFC 2104), as is done here.
pub(super) fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = Key::<Hmac<Sha256>>::default();
    block[..key.len()].copy_from_slice(key);
    Hmac::new(&block)
}

/// Makes the tags of a tenant.
pub struct Tagger(Hmac<Sha256>);

impl Tagger {
    pub(super) fn new(secret: &SealSecret, tenant: &str) -> Tagger {
        Tagger(mac(&secret.derive(&["tag", tenant])))
    }

    /// Of one value: bound to its record and its path, so that equal words in two records do not show.
    pub(super) fn tag(&self, scope: &Scope<'_>, path: &str, kind: Kind, canonical: &[u8]) -> [u8; SHORT] {
        let mut mac = self.0.clone();
        for part in [scope.domain, scope.subject, path] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.update(&[kind.letter() as u8]);
        mac.update(canonical);
        let whole = mac.finalize().into_bytes();
        let mut tag = [0; SHORT];
        tag.copy_from_slice(&whole[..SHORT]);
        tag
    }
}

/// What the cipher binds a value to: it opens at no other place, in no other record, as nothing else.
pub(super) fn bound_to(scope: &Scope<'_>, path: &str, kind: Kind, tag: &[u8]) -> Vec<u8> {
    let parts = [scope.tenant, scope.domain, scope.subject, path];
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum::<usize>() + 32);
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.push(kind.letter() as u8);
    bytes.extend_from_slice(tag);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_another_form_is_no_sealed_value() {
        let text = Seal::text(Kind::Number, &encode(&[7; 16]), &[9; 16], b"xyz");
        let seal = Seal::parse(&text).expect("a sealed value");
        assert_eq!((seal.kind, seal.ciphertext), (Kind::Number, "eHl6"));
        assert!(mentions(&format!("[\"{text}\"]")) && !mentions("[\"sealed:2:\"]"));
        for other in [
            "",
            "sealed:1:",
            "sealed:1:s:a:b:c",
            &text.replace(":n:", ":x:"),
            &text.replace("sealed:1", "sealed:2"),
            &format!("{text}=="),
            &format!(" {text}"),
        ] {
            assert_eq!(Seal::parse(other), None, "{other}");
        }
    }
}
