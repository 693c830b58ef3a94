//! The formats that are text: JSON lines, and CSV as RFC 4180 has it. Times are RFC 3339 in UTC.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::columns::{Cell, Column, Kind};
use super::sheet::Sheet;

const BUFFER: usize = 256 << 10;

/// An object a line, each with all columns.
pub(super) struct JsonLines {
    out: BufWriter<File>,
    columns: Arc<Vec<Column>>,
}

impl JsonLines {
    pub(super) fn begin(file: File, columns: &Arc<Vec<Column>>) -> JsonLines {
        JsonLines {
            out: BufWriter::with_capacity(BUFFER, file),
            columns: columns.clone(),
        }
    }
}

impl Sheet for JsonLines {
    fn write(&mut self, row: Vec<Cell>) -> Result<()> {
        serde_json::to_writer(&mut self.out, &Object(&self.columns, &row))?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn finish(self: Box<Self>) -> Result<File> {
        Ok(self.out.into_inner().map_err(|error| error.into_error())?)
    }
}

struct Object<'a>(&'a [Column], &'a [Cell]);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.1.len()))?;
        for (column, cell) in self.0.iter().zip(self.1) {
            let name = &column.name;
            match cell {
                Cell::Null => map.serialize_entry(name, &())?,
                Cell::Integer(number) => map.serialize_entry(name, number)?,
                Cell::Number(number) => map.serialize_entry(name, number)?,
                Cell::Boolean(value) => map.serialize_entry(name, value)?,
                Cell::Text(text) => map.serialize_entry(name, text)?,
                Cell::Time(at) => map.serialize_entry(name, &time(*at, column.kind))?,
            }
        }
        map.end()
    }
}

/// Rows with a heading.
pub(super) struct Csv {
    out: BufWriter<File>,
    columns: Arc<Vec<Column>>,
    line: String,
}

impl Csv {
    pub(super) fn begin(file: File, columns: &Arc<Vec<Column>>) -> Result<Csv> {
        let mut out = BufWriter::with_capacity(BUFFER, file);
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        write!(out, "{}\r\n", names.join(","))?;
        Ok(Csv {
            out,
            columns: columns.clone(),
            line: String::new(),
        })
    }
}

impl Sheet for Csv {
    fn write(&mut self, row: Vec<Cell>) -> Result<()> {
        self.line.clear();
        for (at, (column, cell)) in self.columns.iter().zip(&row).enumerate() {
            if at > 0 {
                self.line.push(',');
            }
            match cell {
                Cell::Null => {}
                Cell::Integer(number) => self.line.push_str(&number.to_string()),
                Cell::Number(number) => self.line.push_str(&number.to_string()),
                Cell::Boolean(value) => self.line.push_str(if *value { "true" } else { "false" }),
                Cell::Text(text) => quoted(&mut self.line, text),
                Cell::Time(at) => self.line.push_str(&time(*at, column.kind)),
            }
        }
        self.line.push_str("\r\n");
        Ok(self.out.write_all(self.line.as_bytes())?)
    }

    fn finish(self: Box<Self>) -> Result<File> {
        Ok(self.out.into_inner().map_err(|error| error.into_error())?)
    }
}

/// A text as a cell. One that a spreadsheet would run as a formula gets a `'` before it, and so does one that looks as if
/// it had got one: whoever takes one `'` away from before `=`, `+`, `-`, `@` and their like has every text back.
fn quoted(line: &mut String, text: &str) {
    const FORMULA: [char; 11] = [
        '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
    ];
    let guarded = text.trim_start_matches('\'').starts_with(FORMULA);
    let plain = |c: char| !matches!(c, '"' | ',' | '\r' | '\n' | '\'' | ' ');
    if !guarded && !text.is_empty() && text.chars().all(plain) {
        line.push_str(text);
        return;
    }
    line.push('"');
    if guarded {
        line.push('\'');
    }
    for (at, part) in text.split('"').enumerate() {
        if at > 0 {
            line.push_str("\"\"");
        }
        line.push_str(part);
    }
    line.push('"');
}

fn time(at: DateTime<Utc>, kind: Kind) -> String {
    let digits = match kind {
        Kind::Micros => SecondsFormat::Micros,
        _ => SecondsFormat::Millis,
    };
    at.to_rfc3339_opts(digits, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(text: &str) -> String {
        let mut line = String::new();
        quoted(&mut line, text);
        line
    }

    #[test]
    fn a_cell_is_quoted_where_it_has_to_be() {
        assert_eq!(cell("plain"), "plain");
        // An empty text is no null, which is an empty cell.
        assert_eq!(cell(""), r#""""#);
        assert_eq!(cell("a,b"), r#""a,b""#);
        assert_eq!(cell(r#"{"a":"b"}"#), r#""{""a"":""b""}""#);
        assert_eq!(cell("two\r\nlines"), "\"two\r\nlines\"");
    }

    #[test]
    fn what_a_spreadsheet_would_run_is_text_and_can_be_had_back() {
        for (text, shown) in [
            ("=1+1", "\"'=1+1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("-2", "\"'-2\""),
            ("\t=1", "\"'\t=1\""),
            ("＝1", "\"'＝1\""),
            ("'=1", "\"''=1\""),
            ("'quoted'", "\"'quoted'\""),
            ("1=1", "1=1"),
        ] {
            assert_eq!(cell(text), shown, "{text}");
        }
    }
}
