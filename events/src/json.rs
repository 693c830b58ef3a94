//! JSON as Postgres and every phone can hold it: what serde_json accepts and `jsonb` does not is found here, field by
//! field, before it reaches the log. Also what an object's members are before anybody parses them, and how a patch merges. Knows
//! nothing of domains.

use crate::error::ItemError;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;

/// How deep an item may nest, the item itself being 1.
pub const MAX_NESTING: usize = 32;

/// An object's members as they stand in the text, the values unparsed. A name that occurs twice has its last value,
/// as in `jsonb`.
#[derive(Debug, Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The value of a member, as text.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, raw)| raw.get())
    }

    /// Every member in the order sent; of a repeated name, all of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, raw)| (key.as_ref(), raw.get()))
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some((Name(key), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

/// Checks one member of an item for what `jsonb` refuses: nesting beyond [`MAX_NESTING`], U+0000, a lone surrogate, a
/// number outside of 64-bit integers and doubles. `raw` is syntactically valid JSON, as serde_json captured it.
pub fn check_storable(field: &str, raw: &str) -> Result<(), ItemError> {
    if field.contains('\0') {
        return Err(ItemError::field(
            field.replace('\0', "\\u0000"),
            "no_nul",
            "a member's name holds U+0000",
        ));
    }
    let bytes = raw.as_bytes();
    let mut depth = 1; // the item around this member
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_NESTING {
                    let message = format!("{field} nests deeper than {MAX_NESTING} levels");
                    return Err(ItemError::field(field, "max_nesting", message));
                }
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b'"' => at = check_string(field, bytes, at + 1)?,
            b'-' | b'0'..=b'9' => at = check_number(field, raw, at)?,
            _ => at += 1,
        }
    }
    Ok(())
}

/// Walks a string from behind its opening quote; answers the place behind the closing one.
fn check_string(field: &str, bytes: &[u8], mut at: usize) -> Result<usize, ItemError> {
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return Ok(at + 1),
            b'\\' if bytes.get(at + 1) == Some(&b'u') => {
                let unit = hex4(bytes, at + 2);
                at += 6;
                match unit {
                    0 => {
                        return Err(ItemError::field(
                            field,
                            "no_nul",
                            format!("{field} holds U+0000, which no text column can"),
                        ));
                    }
                    0xD800..=0xDBFF
                        if bytes.get(at) == Some(&b'\\')
                            && bytes.get(at + 1) == Some(&b'u')
                            && (0xDC00..=0xDFFF).contains(&hex4(bytes, at + 2)) =>
                    {
                        at += 6;
                    }
                    0xD800..=0xDFFF => {
                        let message =
                            format!("{field} holds half of a surrogate pair, which is no character");
                        return Err(ItemError::field(field, "unicode", message));
                    }
                    _ => {}
                }
            }
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    Ok(at)
}

fn hex4(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .unwrap_or(0)
}

fn check_number(field: &str, raw: &str, start: usize) -> Result<usize, ItemError> {
    let rest = &raw[start..];
    let length = rest
        .bytes()
        .position(|b| !matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
        .unwrap_or(rest.len());
    let digits = &rest[..length];
    let holds = if digits.bytes().any(|b| matches!(b, b'.' | b'e' | b'E')) {
        length <= 400 && digits.parse::<f64>().is_ok_and(f64::is_finite) && has_exponent_of_a_double(digits)
    } else {
        length <= 15 || digits.parse::<i64>().is_ok() || digits.parse::<u64>().is_ok()
    };
    if holds {
        return Ok(start + length);
    }
    // Not the number itself: a refusal is kept, and the number may be somebody's own.
    Err(ItemError::field(
        field,
        "number_range",
        format!("{field} holds a number that fits neither 64 bits nor a double"),
    ))
}

/// A number far below the smallest double is zero to one, and too many digits for Postgres, which keeps them all.
fn has_exponent_of_a_double(digits: &str) -> bool {
    let exponent = digits.split_once(['e', 'E']).map(|(_, exponent)| exponent);
    exponent.is_none_or(|exponent| {
        exponent
            .parse::<i32>()
            .is_ok_and(|exponent| exponent.abs() <= 400)
    })
}

/// RFC 7396: `null` removes, objects merge member by member, everything else replaces.
pub fn merge_patch(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.remove(&name);
            }
            Value::Object(inner) => {
                let slot = target.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(object) = slot {
                    merge_patch(object, inner);
                }
            }
            other => {
                target.insert(name, other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(raw: &str) -> Option<String> {
        check_storable("f", raw).err().and_then(|error| error.rule)
    }

    #[test]
    fn what_jsonb_cannot_hold_is_found() {
        assert_eq!(rule(r#""a\u0000b""#).as_deref(), Some("no_nul"));
        assert_eq!(rule(r#"{"deep":["x\ud800"]}"#).as_deref(), Some("unicode"));
        assert_eq!(rule(r#""\udc00\ud800""#).as_deref(), Some("unicode"));
        assert_eq!(rule("1e999").as_deref(), Some("number_range"));
        assert_eq!(
            rule("[123456789012345678901234567890]").as_deref(),
            Some("number_range")
        );
        assert_eq!(
            rule(&format!("{}{}", "[".repeat(32), "]".repeat(32))).as_deref(),
            Some("max_nesting")
        );
    }

    #[test]
    fn what_jsonb_can_hold_passes() {
        for raw in [
            r#""\ud83d\ude00""#,
            r#""\\u0000""#,
            "-1.5e-7",
            "1e-300",
            "18446744073709551615",
            "null",
            "[]",
            r#"{"a":{}}"#,
        ] {
            assert_eq!(rule(raw), None, "{raw}");
        }
        assert_eq!(rule(&format!("{}{}", "[".repeat(31), "]".repeat(31))), None);
    }

    #[test]
    fn a_number_that_is_nothing_to_a_double_and_too_much_for_postgres_is_told() {
        for raw in ["1e-17000", "0e-17000", "-0.0E-99999999999", "1e400"] {
            assert_eq!(rule(raw).as_deref(), Some("number_range"), "{raw}");
        }
    }

    #[test]
    fn of_a_repeated_member_the_last_counts() {
        let members: Members<'_> = serde_json::from_str(r#"{"a":1,"\u0061":2}"#).expect("an object");
        assert_eq!(members.get("a"), Some("2"));
    }

    #[test]
    fn merge_patch_follows_rfc_7396() {
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ];
        for (target, patch, expected) in cases {
            let (Value::Object(mut target), Value::Object(patch)) = (target, patch) else {
                panic!("objects")
            };
            merge_patch(&mut target, patch);
            assert_eq!(Value::Object(target), expected);
        }
    }
}
