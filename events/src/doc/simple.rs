//! JSON that is canonical (RFC 8785) once its members are put in order: no escape in a value, no number but integers that every
//! reader holds, no name outside ASCII (RFC 8785 sorts by UTF-16), no name twice. Nearly every item is. It is read in one go, and
//! what it says is borrowed from its text; what is not simple is an error here, and its reader's to parse. Knows no domains.

use super::Doc;
use super::writer::Writer;
use crate::json::MAX_NESTING;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Integers up to this are the same in every reader: fifteen digits.
const MOST: i64 = 999_999_999_999_999;
const MEMBERS: usize = 16;

/// A value.
enum Simple<'a> {
    Text(&'a str),
    Integer(i64),
    Literal(&'static str),
    Nested(String),
}

impl Simple<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Simple::Text(text) => {
                out.push('"');
                out.push_str(text);
                out.push('"');
            }
            // Writing into memory does not fail.
            Simple::Integer(number) => drop(write!(out, "{number}")),
            Simple::Literal(text) => out.push_str(text),
            Simple::Nested(text) => out.push_str(text),
        }
    }
}

/// Members as they were sent.
type Members<'a> = Vec<(Cow<'a, str>, Simple<'a>)>;

/// Of an object's members those that are wanted, put in order: their canonical form too. None where the text is no object, or not
/// simple.
pub(crate) fn simple_doc(text: &str, wanted: impl Fn(&str) -> bool) -> Option<Doc> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let members = reader.deserialize_map(Object { depth: 1, wanted }).ok()?;
    reader.end().ok()?;
    ordered(members, text.len())
}

/// The same of members whose values are text yet.
pub(crate) fn simple_members<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Doc> {
    let read = |(name, text): (&'a str, &'a str)| {
        let mut reader = serde_json::Deserializer::from_str(text);
        let value = Inside(1).deserialize(&mut reader).ok()?;
        Some((Cow::Borrowed(name), value))
    };
    ordered(members.map(read).collect::<Option<_>>()?, 512)
}

fn ordered(mut members: Members<'_>, room: usize) -> Option<Doc> {
    members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let twice = members.windows(2).any(|pair| pair[0].0 == pair[1].0);
    if twice || !members.iter().all(|(name, _)| is_plain(name)) {
        return None;
    }
    let mut writer = Writer::with_room(room);
    for (name, value) in &members {
        writer.written(name, |text| value.write(text));
    }
    Some(writer.end())
}

/// A name that is itself, quoted, and sorts by its bytes as it does by its UTF-16.
fn is_plain(name: &str) -> bool {
    let stands = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\' || byte == b' ';
    name.bytes().all(stands)
}

/// Reads an object at that depth, the outermost being at 1.
struct Object<F> {
    depth: usize,
    wanted: F,
}

impl<'de, F: Fn(&str) -> bool> Visitor<'de> for Object<F> {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::with_capacity(MEMBERS);
        while let Some(name) = map.next_key_seed(Name)? {
            if (self.wanted)(&name) {
                let value = map.next_value_seed(Inside(self.depth))?;
                members.push((name, value));
            } else if map.next_value::<&RawValue>()?.get().starts_with(['{', '[']) {
                return Err(A::Error::custom("nobody has seen how deep it nests"));
            }
        }
        Ok(members)
    }
}

/// Reads a member's name.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Reads a value inside an object or a list at that depth.
struct Inside(usize);

impl Inside {
    fn deeper<E: Error>(&self) -> Result<usize, E> {
        match self.0 < MAX_NESTING {
            true => Ok(self.0 + 1),
            false => Err(E::custom("nested too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Inside {
    type Value = Simple<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Simple<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inside {
    type Value = Simple<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simple value")
    }

    /// What has no escape is borrowed; `visit_str` is told the others, and is an error by default.
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Simple<'de>, E> {
        Ok(Simple::Text(text))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Simple<'de>, E> {
        match number.unsigned_abs() <= MOST.unsigned_abs() {
            true => Ok(Simple::Integer(number)),
            false => Err(E::custom("a large number")),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Simple<'de>, E> {
        let number = i64::try_from(number).map_err(E::custom)?;
        self.visit_i64(number)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Simple<'de>, E> {
        Ok(Simple::Literal(if value { "true" } else { "false" }))
    }

    fn visit_unit<E: Error>(self) -> Result<Simple<'de>, E> {
        Ok(Simple::Literal("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Simple<'de>, A::Error> {
        let depth = self.deeper()?;
        let mut text = String::from("[");
        while let Some(value) = list.next_element_seed(Inside(depth))? {
            if text.len() > 1 {
                text.push(',');
            }
            value.write(&mut text);
        }
        text.push(']');
        Ok(Simple::Nested(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Simple<'de>, A::Error> {
        let depth = self.deeper()?;
        let members = Object {
            depth,
            wanted: |_: &str| true,
        }
        .visit_map(map)?;
        match ordered(members, 0) {
            Some(doc) => Ok(Simple::Nested(doc.text().to_owned())),
            None => Err(A::Error::custom("its names are not simple")),
        }
    }
}
