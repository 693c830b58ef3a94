//! A dead letter as it is stored: its place, why nobody could read it, its key, value and headers, and what became of it.
//! Which letters a command is about, and what it does with them, is not known here.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use tidelog_events::domain::Registry;
use tidelog_events::envelope::tenant_of;
use tidelog_events::position::Place;
use tidelog_projector::event::Arrived;
use tokio_postgres::{GenericClient, Row};

use crate::database::plain;

/// Where a letter lies: `topic/partition/offset`, the topic with the deployment's prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LetterPlace {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl fmt::Display for LetterPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for LetterPlace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No topic has a slash in its name.
        let parts: Vec<&str> = text.split('/').collect();
        let place = match parts[..] {
            [topic, partition, offset] if !topic.is_empty() => partition
                .parse()
                .ok()
                .zip(offset.parse().ok())
                .map(|(partition, offset): (i32, i64)| LetterPlace {
                    topic: topic.to_owned(),
                    partition,
                    offset,
                }),
            _ => None,
        };
        place
            .filter(|place| place.partition >= 0 && place.offset >= 0)
            .ok_or("give topic/partition/offset as `list` shows it, like sync.helpdesk.v1/2/17")
    }
}

impl Serialize for LetterPlace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A header; its value is bytes.
pub(super) type Header = (String, Option<Vec<u8>>);

/// A letter, whole.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) place: LetterPlace,
    /// What its headers say, which nobody has checked, unless it could be read but not stored.
    pub(super) tenant: Option<String>,
    pub(super) reason: String,
    pub(super) headers: Vec<Header>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) logged_at: DateTime<Utc>,
    pub(super) standing: Standing,
}

/// What became of a letter.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Standing {
    /// `open`, `retried` or `dropped`.
    pub(super) status: String,
    /// RFC 3339.
    pub(super) closed_at: Option<String>,
    pub(super) closed_by: Option<String>,
    pub(super) closed_why: Option<String>,
    /// Where it lies once more, in the same partition.
    pub(super) retried_offset: Option<i64>,
}

impl Standing {
    pub(super) fn is_open(&self) -> bool {
        self.status == "open"
    }

    /// `retried by olga at …`; nothing where it is open.
    pub(super) fn told(&self) -> String {
        let mut told = self.status.clone();
        if let (Some(by), Some(at)) = (&self.closed_by, &self.closed_at) {
            told.push_str(&format!(" by {by} at {at}"));
        }
        if let Some(offset) = self.retried_offset {
            told.push_str(&format!(", appended again at offset {offset}"));
        }
        if let Some(why) = &self.closed_why {
            told.push_str(&format!(": {why}"));
        }
        told
    }
}

/// The columns that [`standing`] reads, in its order.
pub(super) const STANDING: &str = "status, closed_at, closed_by, closed_why, retried_offset";

/// Reads [`STANDING`], which begins at a column.
pub(super) fn standing(row: &Row, at: usize) -> Standing {
    Standing {
        status: row.get(at),
        closed_at: row.get::<_, Option<_>>(at + 1).map(time_text),
        closed_by: row.get(at + 2),
        closed_why: row.get(at + 3),
        retried_offset: row.get(at + 4),
    }
}

/// RFC 3339, to the millisecond.
pub(super) fn time_text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Letter {
    /// Loads the one at a place, if there is one. `locked` keeps others from dealing with it until the transaction ends.
    pub(super) async fn load(
        client: &impl GenericClient,
        place: &LetterPlace,
        locked: bool,
    ) -> Result<Option<Letter>> {
        let sql = format!(
            "SELECT tenant_id, reason, headers, key, value, logged_at, {STANDING} FROM dead_letters
             WHERE topic = $1 AND partition = $2 AND \"offset\" = $3{}",
            if locked { " FOR UPDATE" } else { "" }
        );
        let row = client
            .query_opt(&sql, &[&place.topic, &place.partition, &place.offset])
            .await
            .map_err(plain)?;
        let Some(row) = row else { return Ok(None) };
        let headers = headers(&row.get(2))?;
        let tenant: Option<String> = row.get(0);
        Ok(Some(Letter {
            place: place.clone(),
            tenant: tenant.or_else(|| claimed_tenant(&headers)),
            reason: row.get(1),
            headers,
            key: row.get(3),
            value: row.get(4),
            logged_at: row.get(5),
            standing: standing(&row, 6),
        }))
    }

    /// Reads it as the projector of this build would, or says why it cannot be read.
    pub(super) fn read(&self, registry: &Registry, prefix: &str) -> Result<Arrived, String> {
        let topic = &self.place.topic;
        let place = Place {
            partition: self.place.partition,
            offset: self.place.offset,
        };
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()));
        Arrived::read(
            registry,
            topic.strip_prefix(prefix).unwrap_or(topic),
            headers,
            self.value.as_deref(),
            place,
            self.logged_at,
        )
        .and_then(|arrived| arrived.under(self.key.as_deref()))
        .map_err(|error| error.to_string())
    }
}

/// The tenant that headers tell of. Where nothing else can be read it is all that is known.
pub(super) fn claimed_tenant(headers: &[Header]) -> Option<String> {
    let (_, source) = headers.iter().find(|(name, _)| name == "ce_source")?;
    let tenant = tenant_of(std::str::from_utf8(source.as_ref()?).ok()?)?;
    Some(tenant.as_str().to_owned())
}

/// Headers as the projector stores them: a list of [name, value]; a value is text, nothing, or `{"hex": …}`.
pub(super) fn headers(stored: &Value) -> Result<Vec<Header>> {
    let read = |pair: &Value| -> Option<Header> {
        let name = pair.get(0)?.as_str()?.to_owned();
        let value = match pair.get(1)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            bytes => Some(from_hex(bytes.get("hex")?.as_str()?)?),
        };
        Some((name, value))
    };
    let read = stored
        .as_array()
        .and_then(|pairs| pairs.iter().map(read).collect::<Option<Vec<_>>>());
    match read {
        Some(headers) => Ok(headers),
        None => bail!("a letter's headers are not stored as this build stores them: {stored}"),
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_place_reads_back_as_it_is_shown() {
        let place: LetterPlace = "t.sync.helpdesk.v1/2/17".parse().expect("a place");
        assert_eq!((place.partition, place.offset), (2, 17));
        assert_eq!(place.to_string(), "t.sync.helpdesk.v1/2/17");
        for bad in ["", "a", "a/1", "/1/2", "a/1/2/3", "a/-1/2", "a/1/-2", "a/x/2"] {
            assert!(bad.parse::<LetterPlace>().is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_are_the_bytes_that_they_were() {
        let stored = json!([["a", "text"], ["b", null], ["c", {"hex": "00ff"}], ["d", ""]]);
        let read = headers(&stored).expect("headers");
        assert_eq!(
            read,
            [
                ("a".to_owned(), Some(b"text".to_vec())),
                ("b".to_owned(), None),
                ("c".to_owned(), Some(vec![0, 255])),
                ("d".to_owned(), Some(Vec::new())),
            ]
        );
        for bad in [
            json!({}),
            json!([["a"]]),
            json!([["a", {"hex": "0"}]]),
            json!([["a", 7]]),
        ] {
            assert!(headers(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_tenant_is_what_the_source_says() {
        let of = |source: &str| claimed_tenant(&[("ce_source".to_owned(), Some(source.into()))]);
        assert_eq!(of("/tenants/a%2Fb/users/u/devices/d").as_deref(), Some("a/b"));
        assert_eq!(of("somewhere"), None);
        assert_eq!(claimed_tenant(&[]), None);
    }
}
