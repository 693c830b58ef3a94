//! Writes what is read, a file a day and partition, one at a time, and notes how far each partition has come. Runs on a
//! thread of its own, since it waits for the disk. Knows neither Kafka nor Postgres.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::NaiveDate;
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

use super::columns::{self, Column, Told};
use super::folder::{Again, DayFile, Folder, Progress, cannot_write};
use super::payload::Payload;
use super::plan::Span;
use super::reading::{Kept, Page};
use super::sheet::{Format, Sheet};
use crate::look::became::Became;
use crate::output::counted;

/// A file that a run wrote.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    /// Its path within the domain's folder.
    file: PathBuf,
    date: NaiveDate,
    partition: i32,
    /// Rows.
    pub(super) events: u64,
    /// Its size; none in a trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    first_offset: i64,
    last_offset: i64,
    /// It is the last one of its partition, and is written again if there is more for its day.
    open: bool,
}

impl Written {
    /// In words.
    pub(super) fn text(&self) -> String {
        format!(
            "  {}  {}",
            self.file.display(),
            counted(self.events, "event", "events")
        )
    }
}

/// What writes.
pub(super) struct Writing {
    folder: Folder,
    format: Format,
    columns: Arc<Vec<Column>>,
    /// What is noted in every file that has room for it.
    notes: Vec<(&'static str, String)>,
    trial: bool,
    span: Option<Spanned>,
    written: Vec<Written>,
}

/// The span that is being written.
struct Spanned {
    span: Span,
    day: Option<Day>,
    /// The first file that holds pending events: from there on all is written again next time.
    pending: Option<Again>,
}

/// The day that is being written.
struct Day {
    date: NaiveDate,
    first_offset: i64,
    /// From its first row on.
    file: Option<(DayFile, Box<dyn Sheet>)>,
    events: u64,
    rows: Option<(i64, i64)>,
}

impl Writing {
    /// Into this folder. A trial writes nothing and counts.
    pub(super) fn new(
        folder: Folder,
        format: Format,
        columns: Vec<Column>,
        notes: Vec<(&'static str, String)>,
        trial: bool,
    ) -> Writing {
        Writing {
            folder,
            format,
            columns: Arc::new(columns),
            notes,
            trial,
            span: None,
            written: Vec::new(),
        }
    }

    /// Writes what comes. Where that ends in the midst of a span, the file that was begun is given up.
    pub(super) fn run(mut self, mut pages: Receiver<Page>) -> Result<Vec<Written>> {
        while let Some(page) = pages.blocking_recv() {
            match page {
                Page::Begin(span) => {
                    self.span = Some(Spanned {
                        span,
                        day: None,
                        pending: None,
                    });
                }
                Page::Day {
                    date,
                    first_offset,
                    kept,
                } => {
                    self.turn(date, first_offset)?;
                    kept.iter().try_for_each(|kept| self.row(kept))?;
                }
                Page::End => self.end()?,
            }
        }
        Ok(self.written)
    }

    /// Another day begins: the one before is whole, and will stay as it is unless it holds pending events.
    fn turn(&mut self, date: NaiveDate, first_offset: i64) -> Result<()> {
        let spanned = self.span.as_mut().context("a day without its partition")?;
        if spanned.day.as_ref().is_some_and(|day| day.date == date) {
            return Ok(());
        }
        let before = spanned.day.replace(Day {
            date,
            first_offset,
            file: None,
            events: 0,
            rows: None,
        });
        let Some(before) = before else {
            return Ok(());
        };
        let (partition, pending, from) = (spanned.span.partition, spanned.pending, spanned.span.from);
        // Files with pending events are written again from the first one on; those that are still to come stay due.
        let due = (first_offset < from).then_some(Again {
            date,
            first_offset,
            pending: true,
        });
        let progress = Progress {
            first_offset: spanned.span.first_offset,
            next_offset: first_offset.max(from),
            again: pending.or(due),
        };
        self.whole(before, partition, pending.is_some())?;
        self.folder.note(partition, progress)
    }

    /// The span is over: its last day may go on in another run.
    fn end(&mut self) -> Result<()> {
        let spanned = self.span.take().context("an end without a beginning")?;
        let span = spanned.span;
        let last = spanned.day.as_ref().map(|day| Again {
            date: day.date,
            first_offset: day.first_offset,
            pending: false,
        });
        if let Some(day) = spanned.day {
            self.whole(day, span.partition, true)?;
        }
        let progress = Progress {
            first_offset: span.first_offset,
            next_offset: span.to.max(span.from),
            // Without a single record, the last file is still that of the run before.
            again: spanned.pending.or(last).or(span.again),
        };
        self.folder.note(span.partition, progress)
    }

    fn row(&mut self, kept: &Kept) -> Result<()> {
        let spanned = self.span.as_mut().context("a row without its partition")?;
        let day = spanned.day.as_mut().context("a row without its day")?;
        let offset = kept.seen.offset;
        day.events += 1;
        day.rows = Some((day.rows.map_or(offset, |(first, _)| first), offset));
        let Some(became) = kept.became.as_ref().filter(|_| !self.trial) else {
            return Ok(());
        };
        if *became == Became::PENDING {
            spanned.pending.get_or_insert(Again {
                date: day.date,
                first_offset: day.first_offset,
                pending: true,
            });
        }
        let (file, sheet) = match &mut day.file {
            Some(begun) => begun,
            begun => {
                let mut file = self.folder.begin(day.date, spanned.span.partition)?;
                let mut notes = self.notes.clone();
                notes.push(("date", day.date.to_string()));
                notes.push(("partition", spanned.span.partition.to_string()));
                let sheet = self.format.begin(file.take()?, &self.columns, &notes);
                let sheet = sheet.with_context(|| cannot_write(file.path()))?;
                begun.insert((file, sheet))
            }
        };
        let payload = Payload::of(kept.seen.payload.as_deref());
        let told = Told::of(&kept.seen, kept.tenant.as_ref(), &payload, became);
        let row = columns::row(&self.columns, &told);
        sheet.write(row).with_context(|| cannot_write(file.path()))
    }

    /// A day's file is written to its end. A day of which nothing is kept has none.
    fn whole(&mut self, day: Day, partition: i32, open: bool) -> Result<()> {
        let Some((first_offset, last_offset)) = day.rows else {
            return Ok(());
        };
        let bytes = match day.file {
            Some((file, sheet)) => {
                let made = sheet.finish().with_context(|| cannot_write(file.path()))?;
                Some(file.finish(&made)?)
            }
            None => None,
        };
        self.written.push(Written {
            file: self.folder.name(day.date, partition),
            date: day.date,
            partition,
            events: day.events,
            bytes,
            first_offset,
            last_offset,
            open,
        });
        Ok(())
    }
}
