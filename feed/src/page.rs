//! The page that a pull answers with: documents and removals, one at most for each record, in JSON. Documents are
//! spliced from Postgres's text without being read. Knows nothing of where they come from.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use uuid::Uuid;

/// A record within its domain; a child's identity counts under its parent.
type Key = (String, Option<Uuid>);

/// A page as it fills.
pub(crate) struct Page {
    limit: usize,
    entries: Vec<Option<String>>,
    places: HashMap<Key, usize>,
}

/// A record as it now is.
pub(crate) struct Document<'a> {
    pub(crate) id: &'a str,
    pub(crate) version: i64,
    pub(crate) synced_at: DateTime<Utc>,
    /// The text of a JSON object.
    pub(crate) doc: &'a str,
}

impl Page {
    pub(crate) fn new(limit: usize) -> Page {
        Page {
            limit,
            entries: Vec::with_capacity(limit),
            places: HashMap::with_capacity(limit),
        }
    }

    /// How many entries more it is to hold.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.len())
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Puts in what a record is now, in place of what the page said of it before.
    pub(crate) fn put(&mut self, id: &str, parent: Option<Uuid>, entry: String) {
        let before = self.places.insert((id.to_owned(), parent), self.entries.len());
        if let Some(before) = before {
            self.entries[before] = None;
        }
        self.entries.push(Some(entry));
    }

    /// The answer's body.
    pub(crate) fn to_json(&self, has_more: bool, next_timestamp: DateTime<Utc>, cursor: &str) -> String {
        let size: usize = self.entries.iter().flatten().map(|entry| entry.len() + 1).sum();
        let mut body = String::with_capacity(size + cursor.len() + 128);
        body.push_str(r#"{"items":["#);
        for (at, entry) in self.entries.iter().flatten().enumerate() {
            if at > 0 {
                body.push(',');
            }
            body.push_str(entry);
        }
        body.push_str(r#"],"has_more":"#);
        body.push_str(if has_more { "true" } else { "false" });
        body.push_str(r#","next_timestamp":""#);
        body.push_str(&instant(next_timestamp));
        // A sealed cursor is of base64url's alphabet.
        body.push_str(r#"","cursor":""#);
        body.push_str(cursor);
        body.push_str("\"}");
        body
    }
}

impl Document<'_> {
    /// The document with what the server says of it in front. `id_column` names the identity.
    pub(crate) fn to_json(&self, id_column: &str) -> String {
        let mut text = String::with_capacity(self.doc.len() + 160);
        text.push_str("{\"");
        text.push_str(id_column);
        text.push_str("\":");
        push_string(&mut text, self.id);
        text.push_str(",\"version\":");
        text.push_str(&self.version.to_string());
        text.push_str(r#","sync_status":"synced","last_sync_timestamp":""#);
        text.push_str(&instant(self.synced_at));
        text.push('"');
        match self.doc.get(1..) {
            Some("}") | None => text.push('}'),
            Some(members) => {
                text.push(',');
                text.push_str(members);
            }
        }
        text
    }
}

/// What tells a reader that a record is gone, for them at least.
pub(crate) fn removal(id_column: &str, id: &str, version: i64) -> String {
    let mut text = format!("{{\"{id_column}\":");
    push_string(&mut text, id);
    text.push_str(&format!(",\"deleted\":true,\"version\":{version}}}"));
    text
}

/// A time as every answer writes it.
pub(crate) fn instant(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn push_string(text: &mut String, value: &str) {
    let plain = value
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'%'));
    match plain {
        true => {
            text.push('"');
            text.push_str(value);
            text.push('"');
        }
        false => text.push_str(&Value::from(value).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(doc: &str) -> Value {
        let document = Document {
            id: "a\"b",
            version: 3,
            synced_at: DateTime::UNIX_EPOCH,
            doc,
        };
        serde_json::from_str(&document.to_json("item_id")).expect("JSON")
    }

    #[test]
    fn a_document_has_the_servers_members_and_its_own() {
        let own = document(r#"{"a": 1, "b": {"c": "}"}}"#);
        assert_eq!(own["item_id"], "a\"b");
        assert_eq!(own["last_sync_timestamp"], "1970-01-01T00:00:00.000000Z");
        assert_eq!((&own["a"], &own["b"]["c"]), (&Value::from(1), &Value::from("}")));
        assert_eq!(document("{}").as_object().map(serde_json::Map::len), Some(4));
    }

    #[test]
    fn a_record_is_on_a_page_once_as_it_was_last() {
        let mut page = Page::new(2);
        page.put("x", None, r#"{"n":1}"#.into());
        page.put("y", None, r#"{"n":2}"#.into());
        page.put("x", None, r#"{"n":3}"#.into());
        assert_eq!((page.len(), page.room()), (2, 0));
        let body: Value = serde_json::from_str(&page.to_json(true, DateTime::UNIX_EPOCH, "c")).expect("JSON");
        assert_eq!(body["items"], serde_json::json!([{"n": 2}, {"n": 3}]));
        assert_eq!(body["has_more"], true);
    }
}
