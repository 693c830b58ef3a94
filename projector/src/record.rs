//! A record of the log, copied out of the client's memory: key, value and headers in one piece. The client's own copy makes an
//! allocation of each header's name and value, which a fold of millions of records pays for. Knows nothing of events.

use chrono::{DateTime, Utc};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use std::sync::Arc;

/// What a header's name and value take, about: of an event's, room for all.
const HEADER: (usize, usize) = (12, 40);

/// A record of one partition.
#[derive(Debug, Clone)]
pub struct LogRecord {
    topic: Arc<str>,
    partition: i32,
    offset: i64,
    log_time: DateTime<Utc>,
    /// Names of headers, one after the other.
    names: String,
    /// Key, value, values of headers.
    bytes: Vec<u8>,
    key: Option<usize>,
    payload: Option<usize>,
    /// Of each header, how long its name and value are.
    headers: Vec<(usize, Option<usize>)>,
}

impl LogRecord {
    /// Copies a message. `topic` is its topic, shared among the records of it.
    pub fn of(message: &BorrowedMessage<'_>, topic: &Arc<str>) -> LogRecord {
        let (key, payload) = (message.key(), message.payload());
        let headers = message.headers();
        let count = headers.map_or(0, Headers::count);
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let mut record = LogRecord {
            topic: topic.clone(),
            partition: message.partition(),
            offset: message.offset(),
            log_time: DateTime::from_timestamp_millis(message.timestamp().to_millis().unwrap_or_default())
                .unwrap_or_default(),
            names: String::with_capacity(count * HEADER.0),
            bytes: Vec::with_capacity(length(key) + length(payload) + count * HEADER.1),
            key: key.map(<[u8]>::len),
            payload: payload.map(<[u8]>::len),
            headers: Vec::with_capacity(count),
        };
        record.bytes.extend_from_slice(key.unwrap_or_default());
        record.bytes.extend_from_slice(payload.unwrap_or_default());
        for header in headers
            .iter()
            .flat_map(|headers| (0..count).map(|at| headers.get(at)))
        {
            record.names.push_str(header.key);
            record.bytes.extend_from_slice(header.value.unwrap_or_default());
            record
                .headers
                .push((header.key.len(), header.value.map(<[u8]>::len)));
        }
        record
    }

    /// The topic's name, with its prefix.
    pub fn topic(&self) -> &str {
        &self.topic
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
        let mut name_at = 0;
        let mut at = self.key.unwrap_or_default() + self.payload.unwrap_or_default();
        self.headers.iter().map(move |(letters, length)| {
            let name = &self.names[name_at..name_at + letters];
            let value = &self.bytes[at..at + length.unwrap_or_default()];
            name_at += letters;
            at += value.len();
            (name, length.map(|_| value))
        })
    }
}
