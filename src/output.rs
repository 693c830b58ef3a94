//! How commands print what they found: for people, or as one JSON document for programs, both on stdout.
//! Progress and complaints are not output; they go to stderr.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// What a command prints its result as.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// Form of the result on stdout
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

/// The form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

impl Output {
    /// Prints a result: its text, or itself as JSON.
    pub(crate) fn print<T: Serialize>(self, result: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let mut shown = match self {
            Output::Text => text(result),
            Output::Json => serde_json::to_string_pretty(result)?,
        };
        if !shown.is_empty() && !shown.ends_with('\n') {
            shown.push('\n');
        }
        write(&shown).map(|_| ())
    }
}

/// Writes to stdout; answers whether somebody still reads. One that has gone (`| head`) wants no more: that is no error.
pub(crate) fn write(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// Whether the reader of stdout is gone, where it is a pipe: who has nothing to write for long would not find out.
pub(crate) fn is_abandoned() -> bool {
    let out = io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    // An error here says nothing of the reader.
    let _ = poll(&mut fds, Some(&Timespec::default()));
    fds[0].revents().contains(PollFlags::ERR)
}

/// Rows under a heading, in columns as wide as they need; `right` names the columns of numbers.
pub(crate) fn table<const N: usize>(heading: [&str; N], right: [bool; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .fold(heading[column].len(), usize::max)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in std::iter::once(heading.map(str::to_owned)).chain(rows.iter().cloned()) {
        let cells = (0..N).map(|i| {
            let (cell, width) = (&row[i], widths[i]);
            if right[i] {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number with what is counted, in the singular where it is one: `1 letter`, `2 letters`.
pub(crate) fn counted<N: fmt::Display + PartialEq + From<u8>>(number: N, one: &str, many: &str) -> String {
    let what = worded(&number, one, many);
    format!("{number} {what}")
}

/// What is counted alone, for a number that is shown in a form of its own.
pub(crate) fn worded<'a, N: PartialEq + From<u8>>(number: &N, one: &'a str, many: &'a str) -> &'a str {
    if *number == N::from(1) { one } else { many }
}

/// Text of a stranger's, without what would move a terminal's cursor or turn its text around.
pub(crate) fn printable(text: &str) -> String {
    let tricky = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match tricky(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = [["a".into(), "7".into()], ["long name".into(), "1000".into()]];
        assert_eq!(
            table(["topic", "lag"], [false, true], &rows),
            "topic       lag\na             7\nlong name  1000\n"
        );
    }

    #[test]
    fn one_of_them_is_told_in_the_singular() {
        let told = [0, 1, 2].map(|number| counted(number, "letter", "letters"));
        assert_eq!(told, ["0 letters", "1 letter", "2 letters"]);
    }

    #[test]
    fn a_strangers_text_cannot_move_the_cursor() {
        assert_eq!(
            printable("a\u{1b}[2Jb\u{202e}c é\n"),
            "a\\u{1b}[2Jb\\u{202e}c é\\u{a}"
        );
    }
}
