//! The one place where a record's value becomes text. Whatever has to happen to a value before people may read it, such
//! as opening what is sealed, happens in [`Payload::of`] and nowhere else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// A record's value as it is exported.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Payload {
    /// The item as it was sent, byte for byte; what is no text, in base64. None where the record has no value.
    pub(super) text: Option<String>,
    /// How to read it: `text`, or `base64`.
    pub(super) encoding: Option<&'static str>,
    item: Option<Map<String, Value>>,
}

impl Payload {
    /// Of a record's value.
    pub(super) fn of(value: Option<&[u8]>) -> Payload {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Payload::default();
        };
        match std::str::from_utf8(value) {
            // No reader of CSV takes a NUL.
            Ok(text) if !text.contains('\0') => Payload {
                item: serde_json::from_str(text).ok(),
                text: Some(text.to_owned()),
                encoding: Some("text"),
            },
            _ => Payload {
                item: None,
                text: Some(STANDARD.encode(value)),
                encoding: Some("base64"),
            },
        }
    }

    /// A member of the item, where it is one.
    pub(super) fn member(&self, name: &str) -> Option<&Value> {
        self.item.as_ref()?.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_text_that_was_sent_and_base64_where_it_is_none() {
        let spaced = br#"{ "a" : 1.50 }"#;
        let payload = Payload::of(Some(spaced));
        assert_eq!(payload.text.as_deref(), Some(r#"{ "a" : 1.50 }"#));
        assert_eq!(payload.encoding, Some("text"));
        assert!(payload.member("a").is_some());
        let bytes = Payload::of(Some(b"\xff\xfe"));
        assert_eq!(
            (bytes.text.as_deref(), bytes.encoding),
            (Some("//4="), Some("base64"))
        );
        assert_eq!(Payload::of(Some(b"a\0b")).encoding, Some("base64"));
        assert_eq!(Payload::of(None), Payload::default());
        assert_eq!(Payload::of(Some(b"")), Payload::default());
    }
}
