//! The key under which a request has one effect: `Idempotency-Key` (IETF httpapi draft).
//!
//! Reads and checks the key; must not know where keys are claimed, nor what they are scoped by.

use std::fmt;

use http::{HeaderMap, HeaderName};

use crate::problem::Problem;

/// The header that carries the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header that marks a stored answer.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

const SHORTEST: usize = 16;
const LONGEST: usize = 255;

/// 16 to 255 characters of visible ASCII, chosen by the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey(String);

/// The rule that a key breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Under 16 or over 255 characters.
    #[error("an idempotency key has 16 to 255 characters, this one {0}")]
    Length(usize),
    /// A space, a control character or something outside ASCII.
    #[error("an idempotency key is made of visible ASCII characters, without spaces")]
    Character,
    /// A quote that doesn't close, an escape that isn't one, or something after the closing quote.
    #[error(
        "Idempotency-Key is a string in double quotes (RFC 8941, section 3.3.3), or a bare key without any"
    )]
    Quoting,
    /// Two keys say nothing.
    #[error("Idempotency-Key is there more than once")]
    Repeated,
}

impl KeyError {
    /// The rule's name in the problem document.
    pub fn rule(&self) -> &'static str {
        match self {
            KeyError::Length(_) => "length",
            KeyError::Character => "visible-ascii",
            KeyError::Quoting => "quoting",
            KeyError::Repeated => "once",
        }
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Problem {
        Problem::new(
            http::StatusCode::BAD_REQUEST,
            "idempotency-key-invalid",
            "The idempotency key is not one",
        )
        .detail(error.to_string())
        .with("rule", error.rule())
    }
}

impl IdempotencyKey {
    /// A key as it is, without quotes around it: the form of the body's `idempotency_key`.
    pub fn new(text: &str) -> Result<Self, KeyError> {
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(KeyError::Character);
        }
        if !(SHORTEST..=LONGEST).contains(&text.len()) {
            return Err(KeyError::Length(text.len()));
        }
        Ok(IdempotencyKey(text.to_owned()))
    }

    /// A header's value: a Structured Field string, or the bare key. `"k"` and `k` are the same key.
    pub fn parse(value: &str) -> Result<Self, KeyError> {
        let value = value.trim_matches([' ', '\t']);
        match value.strip_prefix('"') {
            Some(quoted) => Self::new(&unquote(quoted)?),
            // A bare key that holds a quote is a quoted one that went wrong.
            None if value.contains('"') => Err(KeyError::Quoting),
            None => Self::new(value),
        }
    }

    /// The request's key, or none if it has no such header.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, KeyError> {
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::parse(value.to_str().map_err(|_| KeyError::Character)?).map(Some),
            (Some(_), Some(_)) => Err(KeyError::Repeated),
        }
    }

    /// The key without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The string whose opening quote is gone already. Parameters may follow it, and mean nothing here.
fn unquote(quoted: &str) -> Result<String, KeyError> {
    let mut key = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                let rest = chars.as_str().trim_start_matches(' ');
                return if rest.is_empty() || rest.starts_with(';') {
                    Ok(key)
                } else {
                    Err(KeyError::Quoting)
                };
            }
            '\\' => match chars.next() {
                Some(c @ ('"' | '\\')) => key.push(c),
                _ => return Err(KeyError::Quoting),
            },
            c => key.push(c),
        }
    }
    Err(KeyError::Quoting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

    #[test]
    fn quoted_and_bare_are_the_same_key() {
        let bare = IdempotencyKey::parse(KEY).unwrap();
        assert_eq!(IdempotencyKey::parse(&format!("\"{KEY}\"")).unwrap(), bare);
        assert_eq!(IdempotencyKey::parse(&format!(" \"{KEY}\"; v=1 ")).unwrap(), bare);
        assert_eq!(bare.as_str(), KEY);
    }

    #[test]
    fn escapes_are_undone_before_the_length_counts() {
        let key = IdempotencyKey::parse(r#""0123456789\"\\abc""#);
        assert_eq!(key, Err(KeyError::Length(15)));
        assert_eq!(
            IdempotencyKey::parse(r#""0123456789\"\\abcd""#).unwrap().as_str(),
            r#"0123456789"\abcd"#
        );
    }

    #[test]
    fn sixteen_and_255_are_keys_and_their_neighbours_are_not() {
        for (length, good) in [(0, false), (15, false), (16, true), (255, true), (256, false)] {
            assert_eq!(
                IdempotencyKey::parse(&"k".repeat(length)).is_ok(),
                good,
                "{length}"
            );
            assert_eq!(
                IdempotencyKey::parse(&format!("\"{}\"", "k".repeat(length))).is_ok(),
                good,
                "{length}"
            );
        }
    }

    #[test]
    fn a_broken_key_is_a_400_that_names_the_rule() {
        for (value, rule) in [
            ("short", "length"),
            ("with a space in it, and long", "visible-ascii"),
            ("\"with a space in it, and long\"", "visible-ascii"),
            ("\"0123456789abcdef", "quoting"),
            ("0123456789abcdef\"", "quoting"),
            ("\"0123456789abcdef\" more", "quoting"),
            ("\"0123456789abcdef\\n\"", "quoting"),
            ("\"0123456789abcdef\\", "quoting"),
        ] {
            let problem = Problem::from(IdempotencyKey::parse(value).unwrap_err());
            let document: serde_json::Value = serde_json::from_slice(&problem.to_bytes()).unwrap();
            assert_eq!(
                (&document["status"], &document["rule"]),
                (&400.into(), &rule.into()),
                "{value}"
            );
        }
    }

    #[test]
    fn a_request_has_one_key_or_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(IdempotencyKey::from_headers(&headers), Ok(None));
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static(KEY));
        assert_eq!(
            IdempotencyKey::from_headers(&headers).unwrap().unwrap().as_str(),
            KEY
        );
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static(KEY));
        assert_eq!(IdempotencyKey::from_headers(&headers), Err(KeyError::Repeated));
        let mut latin = HeaderMap::new();
        latin.insert(
            IDEMPOTENCY_KEY,
            HeaderValue::from_bytes(b"0123456789abcd\xe9\xe8").unwrap(),
        );
        assert_eq!(IdempotencyKey::from_headers(&latin), Err(KeyError::Character));
    }
}
