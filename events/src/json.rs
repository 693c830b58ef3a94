//! JSON as Postgres and every phone can hold it: what serde_json accepts and `jsonb` does not is found here, field by
//! field, before it reaches the log. Also the canonical form (RFC 8785) that fingerprints and item identities hash.
//! Knows nothing of domains.

use crate::doc::{Doc, simple_doc, simple_members};
use crate::error::ItemError;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt;
use std::io;

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

/// Members that say where a device stands, not what it did: no part of an item's identity (DOMAINS: the same item).
const NOT_CONTENT: [&str; 2] = ["sync_status", "last_sync_timestamp"];

/// Feeds an object's canonical form (RFC 8785), without the members that are no content, to a hash.
pub fn hash_content(hash: &mut Sha256, object: &Map<String, Value>) {
    struct Content<'a>(&'a Map<String, Value>);
    impl serde::Serialize for Content<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(
                self.0
                    .iter()
                    .filter(|(key, _)| !NOT_CONTENT.contains(&key.as_str())),
            )
        }
    }
    hash_canonical(hash, &Content(object));
}

fn hash_canonical(hash: &mut Sha256, value: &impl serde::Serialize) {
    struct Feed<'a>(&'a mut Sha256);
    impl io::Write for Feed<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // A `Value` always serialises, and the writer above never fails; were it otherwise, a marker keeps two
    // different failures from hashing like the empty object.
    let mut buffered = io::BufWriter::with_capacity(1024, Feed(hash));
    let done = serde_json_canonicalizer::to_writer(value, &mut buffered).is_ok()
        && io::Write::flush(&mut buffered).is_ok();
    drop(buffered);
    if !done {
        hash.update(b"\xffnot canonical");
    }
}

/// Feeds an object's content to a hash as [`hash_content`] does, straight from its text where that is simple enough
/// to be put into canonical form without parsing values into a tree (nearly every item is). Answers false, and hashes nothing,
/// where it is not: then parse it.
pub fn hash_simple_members(hash: &mut Sha256, members: &Members<'_>) -> bool {
    let content = members.iter().filter(|(name, _)| !NOT_CONTENT.contains(name));
    match simple_members(content) {
        Some(content) => {
            hash.update(content.text());
            true
        }
        None => false,
    }
}

/// An object that is as simple: its content, whose text is its canonical form. None where it is not: then parse it.
pub fn simple_item(raw: &str) -> Option<Doc> {
    simple_doc(raw, |name| !NOT_CONTENT.contains(&name))
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
    fn order_and_spelling_do_not_change_the_content() {
        let digest = |text: &str| {
            let Ok(Value::Object(object)) = serde_json::from_str(text) else {
                panic!("an object")
            };
            let mut hash = Sha256::new();
            hash_content(&mut hash, &object);
            hash.finalize()
        };
        assert_eq!(
            digest(r#"{"a":1,"b":"\u0041"}"#),
            digest(r#"{ "b":"A", "a":1.0, "sync_status":"synced" }"#)
        );
        assert_ne!(digest(r#"{"a":1}"#), digest(r#"{"a":2}"#));
    }

    fn any_json() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1000i64..1000).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            "[a-z /äé😀]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map("[a-zA-Z_ 0-9]{0,6}|.{0,3}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn simple_content_hashes_as_parsed_content_does(
            mut members in proptest::collection::btree_map("[a-z_]{0,8}|sync_status|.{0,3}", any_json(), 0..8),
            simple in proptest::prelude::any::<bool>(),
            pretty in proptest::prelude::any::<bool>(),
        ) {
            if simple {
                members.retain(|name, value| name.is_ascii() && (value.is_boolean() || value.is_null()));
                members.insert("version".into(), 7.into());
            }
            let object: Map<String, Value> = members.into_iter().collect();
            let raw = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }
                .expect("JSON");
            let (mut fast, mut slow) = (Sha256::new(), Sha256::new());
            // As it is parsed, since that is what is compared with.
            let parsed: Map<String, Value> = serde_json::from_str(&raw).expect("an object");
            hash_content(&mut slow, &parsed);
            let slow = slow.finalize();
            if hash_simple_members(&mut fast, &serde_json::from_str(&raw).expect("an object")) {
                proptest::prop_assert_eq!(fast.finalize(), slow, "{}", raw);
            }
            if let Some(item) = simple_item(&raw) {
                proptest::prop_assert_eq!(Sha256::digest(item.text()), slow, "{}", raw);
                let content = parsed.into_iter().filter(|(name, _)| !NOT_CONTENT.contains(&name.as_str())).collect();
                proptest::prop_assert_eq!(item.to_map(), content);
            }
        }
    }

    #[test]
    fn an_ordinary_item_is_simple_and_what_needs_care_is_not() {
        let simple = |raw: &str| simple_item(raw).is_some();
        assert!(simple(
            r#"{ "mobile_id":"a", "version": 3, "place": {"b":[1,null,"ü"], "a":true} }"#
        ));
        let spelled = simple_item(r#"{"\u0061":1}"#).expect("a plain name");
        assert_eq!(spelled.text(), r#"{"a":1}"#);
        for careful in [
            r#"{"a":1.0}"#,
            r#"{"a":-0}"#,
            r#"{"a":1234567890123456}"#,
            r#"{"a":"\u0041"}"#,
            r#"{"ü":1}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"sync_status":[1]}"#,
            "[1]",
        ] {
            assert!(!simple(careful), "{careful}");
        }
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
