//! A record's document, as its text: one piece of JSON, members in the order of their names, and where each begins. A fold keeps a
//! document for every version at hand, patches it, compares it, and writes it out; all of that is copying and comparing stretches of
//! text, and nothing in it is parsed that nobody asks for. Equal values have equal texts, so comparing texts is comparing
//! values. Knows neither domains nor who asks.

mod names;
mod simple;
mod writer;

pub use names::Names;
pub(crate) use simple::{simple_doc, simple_members};

use crate::json::{MAX_NESTING, merge_patch};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;
use writer::Writer;

/// Bytes of a small change, about.
const SMALL: usize = 128;

/// A JSON object; of one without members nothing is kept.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Doc(Option<Arc<Body>>);

#[derive(PartialEq, Eq)]
struct Body {
    /// `{"name":value,"name":value}`
    text: String,
    members: Vec<Member>,
}

/// What becomes of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewrite {
    /// It stays.
    Keep,
    /// It goes.
    Drop,
    /// It gets this value, as JSON.
    Put(String),
}

/// Where a member stands in the text: its name between the quotes, then `":`, then its value.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Member {
    name: u32,
    name_end: u32,
    value_end: u32,
    /// The name is not what it says, but what its escapes stand for.
    escaped: bool,
}

/// A member's value, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    /// The text.
    pub fn text(self) -> &'a str {
        self.0
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// What a string says; none of another value.
    pub fn as_str(self) -> Option<Cow<'a, str>> {
        let inner = self.0.strip_prefix('"')?.strip_suffix('"')?;
        match inner.contains('\\') {
            false => Some(Cow::Borrowed(inner)),
            true => serde_json::from_str(self.0).ok().map(Cow::Owned),
        }
    }

    /// The value.
    pub fn to_value(self) -> Value {
        // It was written by this file, or read by serde_json before.
        serde_json::from_str(self.0).unwrap_or_default()
    }

    fn is_object(self) -> bool {
        self.0.starts_with('{')
    }

    /// Whether it stands as it is where a patch has it.
    fn replaces(self) -> bool {
        !self.0.starts_with(['{', 'n'])
    }
}

impl Doc {
    /// Without members.
    pub fn new() -> Doc {
        Doc::default()
    }

    /// Reads an object; none where the text is something else.
    pub fn parse(text: &str) -> Option<Doc> {
        simple_doc(text, |_| true).or_else(|| Doc::parse_all(text))
    }

    fn parse_all(text: &str) -> Option<Doc> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Some(map.into()),
            _ => None,
        }
    }

    /// The text: JSON without blanks, members in the order of their names' bytes.
    pub fn text(&self) -> &str {
        self.0.as_ref().map_or("{}", |body| &body.text)
    }

    fn members(&self) -> &[Member] {
        self.0.as_ref().map_or(&[], |body| &body.members)
    }

    /// Whether it has no member.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<Json<'_>> {
        Some(self.value(self.members()[self.find(name).ok()?]))
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.members()
            .binary_search_by(|member| (*self.name(*member)).cmp(name))
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, Json<'_>)> {
        let members = self.members().iter();
        members.map(|member| (self.name(*member), self.value(*member)))
    }

    /// What is left and put where each member is judged.
    #[must_use]
    pub fn rewritten(&self, judge: impl Fn(&str, Json<'_>) -> Rewrite) -> Doc {
        let members = self.members();
        // What stays and follows each other is copied in one piece; where all stays, nothing is.
        let (mut from, mut changed) = (0, None);
        for (at, member) in members.iter().enumerate() {
            let judged = judge(&self.name(*member), self.value(*member));
            if judged == Rewrite::Keep {
                continue;
            }
            let writer = changed.get_or_insert_with(|| Writer::with_room(self.text().len()));
            writer.copy(self, &members[from..at]);
            from = at + 1;
            if let Rewrite::Put(text) = judged {
                writer.member(self, *member, &text);
            }
        }
        match changed {
            None => self.clone(),
            Some(mut writer) => {
                writer.copy(self, &members[from..]);
                writer.end()
            }
        }
    }

    /// The members that are wanted.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&str, Json<'_>) -> bool) -> Doc {
        self.rewritten(|name, value| match wanted(name, value) {
            true => Rewrite::Keep,
            false => Rewrite::Drop,
        })
    }

    /// The same with other values for those members for which `instead` has one.
    #[must_use]
    pub fn replaced(&self, instead: impl Fn(&str, Json<'_>) -> Option<Value>) -> Doc {
        self.rewritten(|name, value| match instead(name, value) {
            Some(value) => Rewrite::Put(text_of(&value)),
            None => Rewrite::Keep,
        })
    }

    /// The same with this value for that name.
    #[must_use]
    pub fn with(&self, name: &str, value: &Value) -> Doc {
        let (before, after) = match self.find(name) {
            Ok(at) => (&self.members()[..at], &self.members()[at + 1..]),
            Err(at) => self.members().split_at(at),
        };
        let text = text_of(value);
        let mut writer = Writer::with_room(self.text().len() + name.len() + text.len() + 4);
        writer.copy(self, before);
        writer.named(name, &text);
        writer.copy(self, after);
        writer.end()
    }

    /// Its own members, and those of another that it has not.
    #[must_use]
    pub fn or(&self, other: &Doc) -> Doc {
        let mut writer = Writer::with_room(self.text().len() + other.text().len());
        self.beside(other, |own, others| match (own, others) {
            (own, None) => writer.copy(self, own),
            ([], Some(others)) => writer.copy(other, &[others]),
            (own, Some(_)) => writer.copy(self, own),
        });
        writer.end()
    }

    /// What a patch makes of it (RFC 7396): `null` removes, objects merge member by member, everything else replaces.
    #[must_use]
    pub fn patched(&self, patch: &Doc) -> Doc {
        if self.is_empty()
            && patch
                .members()
                .iter()
                .all(|member| patch.value(*member).replaces())
        {
            return patch.clone();
        }
        let mut writer = Writer::with_room(self.text().len() + patch.text().len());
        self.beside(patch, |own, new| {
            let Some(new) = new else {
                return writer.copy(self, own);
            };
            let value = patch.value(new);
            if value.is_object() {
                let old = own.first().map(|old| self.value(*old).to_value());
                writer.member(patch, new, &text_of(&merged(old, value.to_value())));
            } else if !value.is_null() {
                writer.copy(patch, &[new]);
            }
        });
        writer.end()
    }

    /// Goes through both in order: told are stretches of its own members whose names the other has not, and each of the other's, with
    /// its own of the same name where it has it.
    fn beside<'a>(&'a self, other: &Doc, mut tell: impl FnMut(&'a [Member], Option<Member>)) {
        let mut rest = self.members();
        for member in other.members() {
            let name = other.name(*member);
            let place = rest.binary_search_by(|own| (*self.name(*own)).cmp(&*name));
            let (before, after) = rest.split_at(place.unwrap_or_else(|at| at));
            let (same, after) = after.split_at(usize::from(place.is_ok()));
            if !before.is_empty() {
                tell(before, None);
            }
            tell(same, Some(*member));
            rest = after;
        }
        if !rest.is_empty() {
            tell(rest, None);
        }
    }

    /// The members in which it differs from what it became, as they were, and the names of all in which the two differ, in order.
    pub fn difference(&self, after: &Doc) -> (Doc, Names) {
        // What is new has all names and no values before; otherwise a change is small.
        let (values, names, count) = match self.is_empty() {
            true => (0, after.text().len(), after.members().len()),
            false => (SMALL, SMALL, 0),
        };
        let (mut before, mut names) = (Writer::with_room(values), Names::with_room(names, count));
        let (mut old, mut new) = (self.members(), after.members());
        loop {
            let order = match (old.first(), new.first()) {
                (None, None) => return (before.end(), names),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) if self.stretch(*one) == after.stretch(*other) => {
                    (old, new) = (&old[1..], &new[1..]);
                    continue;
                }
                (Some(one), Some(other)) => self.name(*one).cmp(&after.name(*other)),
            };
            let was = old.first().filter(|_| order.is_le());
            let is = new.first().filter(|_| order.is_ge());
            if let Some(was) = was {
                names.push(&self.name(*was));
                before.copy(self, &[*was]);
            } else if let Some(is) = is {
                names.push(&after.name(*is));
            }
            (old, new) = (
                &old[usize::from(was.is_some())..],
                &new[usize::from(is.is_some())..],
            );
        }
    }

    /// The same as a map, its values parsed.
    pub fn to_map(&self) -> Map<String, Value> {
        self.iter()
            .map(|(name, value)| (name.into_owned(), value.to_value()))
            .collect()
    }

    fn name(&self, member: Member) -> Cow<'_, str> {
        let name = &self.text()[member.name as usize..member.name_end as usize];
        match member.escaped {
            false => Cow::Borrowed(name),
            // It was escaped by this file.
            true => Cow::Owned(serde_json::from_str(&format!("\"{name}\"")).unwrap_or_default()),
        }
    }

    /// Name and value, as they stand in the text.
    fn stretch(&self, member: Member) -> &str {
        &self.text()[member.name as usize..member.value_end as usize]
    }

    fn value(&self, member: Member) -> Json<'_> {
        Json(&self.text()[member.name_end as usize + 2..member.value_end as usize])
    }
}

/// An object of a patch, upon what there was.
fn merged(old: Option<Value>, patch: Value) -> Value {
    let mut object = match old {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    if let Value::Object(patch) = patch {
        merge_patch(&mut object, patch);
    }
    Value::Object(object)
}

/// A value's text. Equal values have equal ones: a zero has no sign, as in Postgres.
fn text_of(value: &Value) -> String {
    let text = value.to_string();
    match text.contains("-0.0") {
        true => without_signed_zeros(value.clone()).to_string(),
        false => text,
    }
}

fn without_signed_zeros(value: Value) -> Value {
    match value {
        Value::Number(number) if number.as_f64() == Some(0.0) && number.is_f64() => Value::from(0.0),
        Value::Array(list) => list.into_iter().map(without_signed_zeros).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| (name, without_signed_zeros(value)))
            .collect(),
        value => value,
    }
}

impl From<Map<String, Value>> for Doc {
    fn from(map: Map<String, Value>) -> Doc {
        let mut writer = Writer::with_room(0);
        // A map has its members in the order of their names.
        for (name, value) in &map {
            writer.named(name, &text_of(value));
        }
        writer.end()
    }
}

impl fmt::Debug for Doc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

const _: () = assert!(MAX_NESTING < 128, "what is written here, serde_json reads again");

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(text: &str) -> Doc {
        Doc::parse(text).expect("an object")
    }

    #[test]
    fn members_are_in_the_order_of_their_names_and_of_one_name_the_last_counts() {
        let doc = doc(r#"{"b": 1, "a": 2, "ä": [ 3 ], "a": 4, "B": "\u0041", "a": 6, "c\"": null}"#);
        assert_eq!(doc.text(), r#"{"B":"A","a":6,"b":1,"c\"":null,"ä":[3]}"#);
        assert_eq!(doc.get("a").map(Json::text), Some("6"));
        assert_eq!(doc.get("B").and_then(Json::as_str).as_deref(), Some("A"));
        assert!(doc.get("c\"").is_some_and(Json::is_null));
        assert_eq!(doc.get("d"), None);
    }

    #[test]
    fn what_is_no_object_is_none() {
        for text in ["[1]", "7", "{", r#"{"a":1}x"#] {
            assert_eq!(Doc::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_difference_names_what_was_there_what_is_new_and_what_is_gone() {
        let old = doc(r#"{"z": 1, "b": 2, "same": [3], "gone": null}"#);
        let new = doc(r#"{"new": 4, "b": "2", "same": [3], "z": 1, "a": 5}"#);
        let (before, names) = old.difference(&new);
        assert_eq!(names, ["a", "b", "gone", "new"].into_iter().collect());
        assert_eq!(before, doc(r#"{"b": 2, "gone": null}"#));
    }

    #[test]
    fn equal_values_have_equal_texts() {
        assert_eq!(doc(r#"{"a": 1e2, "b": -0.0}"#), doc(r#"{"b": 0.0, "a": 100.0}"#));
        assert_ne!(
            doc(r#"{"a": 1}"#),
            doc(r#"{"a": 1.0}"#),
            "Postgres keeps them apart"
        );
    }

    fn any_object() -> impl proptest::strategy::Strategy<Value = Map<String, Value>> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Null),
            (0..3i64).prop_map(Value::from),
            (-9..9i32).prop_map(|n| Value::from(f64::from(n) / 4.0)),
            "[xy]{0,2}".prop_map(Value::from),
            ".{0,3}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 12, 4, |inner| {
            proptest::collection::btree_map("[a-d\"]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        proptest::collection::btree_map("[a-dé]|.{0,2}", value, 0..6)
            .prop_map(|map| map.into_iter().collect())
    }

    proptest::proptest! {
        #[test]
        fn it_is_what_a_map_is(one in any_object(), patch in any_object(), pretty in proptest::prelude::any::<bool>()) {
            let (doc, by) = (Doc::from(one.clone()), Doc::from(patch.clone()));
            proptest::prop_assert_eq!(doc.to_map(), one.clone());
            let text = if pretty { serde_json::to_string_pretty(&one) } else { serde_json::to_string(&one) };
            proptest::prop_assert_eq!(Doc::parse(&text.expect("JSON")), Some(doc.clone()));
            let mut patched = one.clone();
            merge_patch(&mut patched, patch.clone());
            proptest::prop_assert_eq!(doc.patched(&by), Doc::from(patched));
            let names: std::collections::BTreeSet<&String> = one.keys().chain(patch.keys()).collect();
            let differing = names.into_iter().filter(|name| one.get(*name) != patch.get(*name));
            let (before, told) = doc.difference(&by);
            proptest::prop_assert_eq!(&before, &doc.only(|name, _| told.contains(name)));
            proptest::prop_assert_eq!(told, differing.map(String::as_str).collect());
            for (name, value) in &one {
                let read = doc.get(name).map(Json::to_value);
                proptest::prop_assert_eq!(read.as_ref(), Some(value));
            }
        }
    }
}
