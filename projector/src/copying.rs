//! Rows on their way into one table by COPY, in its binary format: what costs Postgres least. Any number of rows is one buffer and
//! one statement; nothing waits for an answer in between. For tables of one's own, since a row that is there already is an error.

use crate::ProjectorError;
use crate::rows::Cells;
use crate::session::Session;
use crate::state::Doc;
use bytes::{BufMut, Bytes};
use chrono::{DateTime, Utc};
use futures_util::SinkExt;
use std::pin::Pin;
use tokio_postgres::CopyInSink;
use uuid::Uuid;

/// "PGCOPY", its signature, no flags and no extension (PostgreSQL, COPY, "Binary Format").
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// How a value of `jsonb` begins that is sent as text.
const JSONB_VERSION: u8 = 1;
/// The type of an array's elements: `text`.
const TEXT_OID: i32 = 25;
/// Microseconds from 1970 to 2000, where Postgres' clock begins.
const EPOCH: i64 = 946_684_800_000_000;
/// Sent at once. Buffers of this size are made anew without the system's help; one that grew with the rows was moved, and its pages
/// cleared, for a quarter of the time that all the rest took.
const PIECE: usize = 128 << 10;
/// Room for the row that makes a piece full.
const ROOM: usize = 16 << 10;

/// Rows of one table.
pub(crate) struct Copying {
    table: String,
    names: Vec<&'static str>,
    /// What is full, and what is being filled.
    pieces: Vec<Bytes>,
    bytes: Vec<u8>,
    rows: usize,
    /// Where the row at hand begins, and how many values it has.
    row: (usize, i16),
    /// A value that is not of its column's type.
    wrong: Option<String>,
    /// The statement, once something was sent.
    sink: Option<Pin<Box<CopyInSink<Bytes>>>>,
}

impl Copying {
    pub(crate) fn into(table: String) -> Copying {
        let mut bytes = Vec::with_capacity(PIECE + ROOM);
        bytes.put_slice(HEADER);
        Copying {
            table,
            names: Vec::new(),
            pieces: Vec::new(),
            bytes,
            rows: 0,
            row: (0, 0),
            wrong: None,
            sink: None,
        }
    }

    /// Adds what `fill` gives for a row.
    pub(crate) fn row(&mut self, fill: impl FnOnce(&mut Copying)) {
        self.row = (self.bytes.len(), 0);
        self.bytes.put_i16(0);
        fill(self);
        let (at, cells) = self.row;
        self.bytes[at..at + 2].copy_from_slice(&cells.to_be_bytes());
        self.rows += 1;
        if self.bytes.len() >= PIECE {
            let full = std::mem::replace(&mut self.bytes, Vec::with_capacity(PIECE + ROOM));
            self.pieces.push(full.into());
        }
    }

    /// Bytes that wait to be sent, about.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len() * PIECE + self.bytes.len()
    }

    /// Sends what is full, so that Postgres has something to do while more is made. The statement that this begins has the session to
    /// itself until [`send`](Self::send) ends it.
    pub(crate) async fn send_full(&mut self, session: &mut Session) -> Result<(), ProjectorError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        if let Some(wrong) = self.wrong.take() {
            return Err(ProjectorError::Stored(wrong));
        }
        if self.sink.is_none() {
            let names: Vec<String> = self.names.iter().map(|name| format!("\"{name}\"")).collect();
            let sql = format!(
                "COPY {} ({}) FROM STDIN (FORMAT binary)",
                self.table,
                names.join(", ")
            );
            let statement = session.prepare(&sql).await?;
            let sink = session.client().copy_in(&statement).await?;
            self.sink = Some(Box::pin(sink));
        }
        if let Some(sink) = &mut self.sink {
            for piece in self.pieces.drain(..) {
                sink.feed(piece).await?;
            }
        }
        Ok(())
    }

    /// Sends them all. An empty buffer is no statement.
    pub(crate) async fn send(mut self, session: &mut Session) -> Result<(), ProjectorError> {
        if self.rows == 0 {
            return Ok(());
        }
        self.bytes.put_i16(-1);
        self.pieces.push(std::mem::take(&mut self.bytes).into());
        self.send_full(session).await?;
        if let Some(mut sink) = self.sink {
            sink.as_mut().finish().await?;
        }
        Ok(())
    }

    fn cell(&mut self, name: &'static str) {
        if self.rows == 0 {
            self.names.push(name);
        }
        self.row.1 += 1;
    }

    fn null(&mut self) {
        self.bytes.put_i32(-1);
    }

    /// A value whose length shows once it is written.
    fn sized(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.bytes.len();
        self.bytes.put_i32(0);
        write(&mut self.bytes);
        // No value comes near 2 GiB: an item is bounded by the log's largest record.
        let length = (self.bytes.len() - at - 4) as i32;
        self.bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

impl Cells for Copying {
    fn text(&mut self, name: &'static str, value: Option<&str>) {
        self.cell(name);
        match value {
            Some(text) => self.sized(|bytes| bytes.put_slice(text.as_bytes())),
            None => self.null(),
        }
    }

    fn uuid_text(&mut self, name: &'static str, value: &str) {
        match Uuid::try_parse(value) {
            Ok(uuid) => self.uuid(name, Some(uuid)),
            Err(_) => {
                self.wrong = Some(format!("{name} of a row of {} is no UUID: {value:?}", self.table));
                self.uuid(name, None);
            }
        }
    }

    fn uuid(&mut self, name: &'static str, value: Option<Uuid>) {
        self.cell(name);
        match value {
            Some(uuid) => {
                self.bytes.put_i32(16);
                self.bytes.put_slice(uuid.as_bytes());
            }
            None => self.null(),
        }
    }

    fn bigint(&mut self, name: &'static str, value: Option<i64>) {
        self.cell(name);
        match value {
            Some(number) => {
                self.bytes.put_i32(8);
                self.bytes.put_i64(number);
            }
            None => self.null(),
        }
    }

    fn integer(&mut self, name: &'static str, value: i32) {
        self.cell(name);
        self.bytes.put_i32(4);
        self.bytes.put_i32(value);
    }

    fn boolean(&mut self, name: &'static str, value: bool) {
        self.cell(name);
        self.bytes.put_i32(1);
        self.bytes.put_u8(u8::from(value));
    }

    fn time(&mut self, name: &'static str, value: DateTime<Utc>) {
        self.cell(name);
        self.bytes.put_i32(8);
        self.bytes.put_i64(value.timestamp_micros() - EPOCH);
    }

    fn json(&mut self, name: &'static str, value: Option<&Doc>) {
        self.cell(name);
        match value {
            Some(doc) => self.sized(|bytes| {
                bytes.put_u8(JSONB_VERSION);
                bytes.put_slice(doc.text().as_bytes());
            }),
            None => self.null(),
        }
    }

    fn texts<'a>(&mut self, name: &'static str, value: Option<impl ExactSizeIterator<Item = &'a str>>) {
        self.cell(name);
        let Some(items) = value else {
            return self.null();
        };
        self.sized(|bytes| {
            // Dimensions, whether there are nulls, the elements' type; of the one dimension its length and first index.
            bytes.put_i32(i32::from(items.len() > 0));
            bytes.put_i32(0);
            bytes.put_i32(TEXT_OID);
            if items.len() > 0 {
                bytes.put_i32(items.len() as i32);
                bytes.put_i32(1);
            }
            for item in items {
                bytes.put_i32(item.len() as i32);
                bytes.put_slice(item.as_bytes());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_its_values_and_each_value_its_bytes() {
        let mut copying = Copying::into("t".into());
        copying.row(|row| {
            row.text("name", Some("ab"));
            row.json("doc", None);
            row.texts("list", Some(["x"].into_iter()));
        });
        let bytes = &copying.bytes[HEADER.len()..];
        assert_eq!(bytes[..2], 3i16.to_be_bytes());
        assert_eq!(bytes[2..8], [0, 0, 0, 2, b'a', b'b']);
        assert_eq!(bytes[8..12], (-1i32).to_be_bytes());
        assert_eq!(bytes[12..16], 25i32.to_be_bytes());
        assert_eq!(copying.names, ["name", "doc", "list"]);
        assert!(copying.wrong.is_none());
    }

    #[test]
    fn what_is_no_uuid_is_not_sent() {
        let mut copying = Copying::into("t".into());
        copying.row(|row| row.uuid_text("mobile_id", "seven"));
        assert!(copying.wrong.is_some_and(|wrong| wrong.contains("mobile_id")));
    }
}
