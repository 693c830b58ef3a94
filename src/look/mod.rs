//! What commands that look share: a record of the log as people read it, and what became of it. Looking moves nothing:
//! no group, no position, no row.

pub(crate) mod became;
pub(crate) mod outcomes;
pub(crate) mod places;
pub(crate) mod seen;

use chrono::{DateTime, SecondsFormat, Utc};

/// A time as all these commands print it, in UTC, to the millisecond.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Text that a stranger may have chosen, fit for a terminal: control characters are written out, not obeyed.
pub(crate) fn plain_text(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_is_told_nothing_by_an_item() {
        assert_eq!(super::plain_text("a\u{1b}[2J\n\u{9b}ü"), "a\\u{1b}[2J\\n\\u{9b}ü");
    }
}
