//! A file's contents in one format: rows go in, and in the end the file is whole. What rows hold is `columns`' to know,
//! where the file lies `folder`'s.

use std::fs::File;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::columns::{Cell, Column};
use super::lines::{Csv, JsonLines};
use super::parquet::Parquet;

/// The formats that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// Typed columns, compressed with zstd
    Parquet,
    /// An object a line
    Jsonl,
    /// RFC 4180, with a heading; an empty cell is null, "" an empty text, and a ' stands before text that a
    /// spreadsheet would take for a formula
    Csv,
}

/// A file that is being written.
pub(super) trait Sheet: Send {
    /// One more row, with a cell for each column.
    fn write(&mut self, row: Vec<Cell>) -> Result<()>;

    /// Writes what is left. The file is whole then, though perhaps not on the disk yet.
    fn finish(self: Box<Self>) -> Result<File>;
}

impl Format {
    /// The name on the command line, and how a file's name ends.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Jsonl => "jsonl",
            Format::Csv => "csv",
        }
    }

    /// Begins a file. `notes` are about the whole of it, for formats that have a place for them.
    pub(super) fn begin(
        self,
        file: File,
        columns: &Arc<Vec<Column>>,
        notes: &[(&str, String)],
    ) -> Result<Box<dyn Sheet>> {
        Ok(match self {
            Format::Parquet => Box::new(Parquet::begin(file, columns, notes)?),
            Format::Jsonl => Box::new(JsonLines::begin(file, columns)),
            Format::Csv => Box::new(Csv::begin(file, columns)?),
        })
    }
}
