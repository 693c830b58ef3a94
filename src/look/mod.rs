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
