//! A record of the log, copied out of the client's memory: key, value and headers in one piece, the headers' names shared with the
//! records before it. The client's own copy makes an allocation of each header's name and value, which a fold of millions of
//! records pays for. Knows nothing of events.

use chrono::{DateTime, Utc};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers, Message};
use std::sync::Arc;

/// What a header's value takes, about: of an event's, room for all.
const HEADER: usize = 44;
/// The length that a value has which is not there. The log takes no record as large.
const NONE: u32 = u32::MAX;

/// A record of one partition.
#[derive(Debug, Clone)]
pub struct LogRecord {
    kind: Arc<Kind>,
    partition: i32,
    offset: i64,
    log_time: DateTime<Utc>,
    /// Key, value, and of each header its value, a length before it.
    bytes: Vec<u8>,
    key: Option<usize>,
    payload: Option<usize>,
}

/// What records say alike that come one after the other: where they lie, and the names of their headers.
#[derive(Debug)]
struct Kind {
    topic: Arc<str>,
    names: Vec<Box<str>>,
}

/// Copies records of one topic.
pub struct Copyist(Arc<Kind>);

impl Copyist {
    /// Of that topic.
    pub fn of(topic: &str) -> Copyist {
        let (topic, names) = (topic.into(), Vec::new());
        Copyist(Arc::new(Kind { topic, names }))
    }

    /// The topic's name, with its prefix.
    pub fn topic(&self) -> &Arc<str> {
        &self.0.topic
    }

    /// Copies a message of the topic.
    pub fn copy(&mut self, message: &BorrowedMessage<'_>) -> LogRecord {
        let headers = message.headers();
        let headers = || headers.into_iter().flat_map(BorrowedHeaders::iter);
        let (key, payload) = (message.key(), message.payload());
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let mut bytes = Vec::with_capacity(length(key) + length(payload) + self.0.names.len() * HEADER);
        bytes.extend_from_slice(key.unwrap_or_default());
        bytes.extend_from_slice(payload.unwrap_or_default());
        let (mut known, mut same) = (self.0.names.iter(), true);
        for header in headers() {
            same &= known.next().is_some_and(|name| **name == *header.key);
            let length = header.value.map_or(NONE, |value| value.len() as u32);
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(header.value.unwrap_or_default());
        }
        if !same || known.next().is_some() {
            self.0 = Arc::new(Kind {
                topic: self.0.topic.clone(),
                names: headers().map(|header| header.key.into()).collect(),
            });
        }
        LogRecord {
            kind: self.0.clone(),
            partition: message.partition(),
            offset: message.offset(),
            log_time: DateTime::from_timestamp_millis(message.timestamp().to_millis().unwrap_or_default())
                .unwrap_or_default(),
            bytes,
            key: key.map(<[u8]>::len),
            payload: payload.map(<[u8]>::len),
        }
    }
}

impl LogRecord {
    /// The topic's name, with its prefix.
    pub fn topic(&self) -> &str {
        &self.kind.topic
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The offset in it.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// When the log took it; 1970 where it does not say.
    pub fn log_time(&self) -> DateTime<Utc> {
        self.log_time
    }

    /// The same record as of another time.
    pub(crate) fn told_at(self, log_time: DateTime<Utc>) -> LogRecord {
        LogRecord { log_time, ..self }
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        Some(&self.bytes[..self.key?])
    }

    /// The value; none of a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        let from = self.key.unwrap_or_default();
        Some(&self.bytes[from..from + self.payload?])
    }

    /// Names and values of the headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let mut rest = &self.bytes[self.key.unwrap_or_default() + self.payload.unwrap_or_default()..];
        self.kind.names.iter().map_while(move |name| {
            let (length, after) = rest.split_first_chunk()?;
            let length = u32::from_ne_bytes(*length);
            let (value, after) = after.split_at_checked(if length == NONE { 0 } else { length as usize })?;
            rest = after;
            Some((&**name, (length != NONE).then_some(value)))
        })
    }
}
