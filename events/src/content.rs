//! What an item says, apart from where its device stands: its canonical form (RFC 8785), which fingerprints and item identities
//! hash. Knows nothing of domains.

use crate::doc::{Doc, simple_doc, simple_members};
use crate::json::Members;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::io;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
