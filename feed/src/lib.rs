//! The read side: changes, snapshots, records, receipts, conflicts. Everything here reads Postgres and nothing writes it; what
//! the projector means by a row or a feed row is told in `events` and in the tables themselves.
//!
//! - [`routes`] and [`Feed`]: the paths, and the state behind them
//! - `changes`: one page, put together from `snapshot` (a first sync's walk over the rows), `scan` (the feed from a
//!   place in each partition on) and `since` (a time turned into places); `page` is what fills, `cursor` where the
//!   next one begins, `query` and `filter` what was asked for
//! - `checksum`: the proof for who follows the cursor that they hold what they should
//! - `records` and `receipts`: one record, one batch
//! - `history` and `conflicts`: what became of a record, and of the items that were behind theirs
//! - [`OutcomeStore`]: what became of a batch's items, for `receipts` and for the gateway's write side
//! - [`positions`]: how far the projection has come, for whoever waits for it, as `wait` does
//! - [`opening`]: sealed values opened, on their way out
//! - `reading`: whose eyes a read has; `sql`: all statements; `store`: how one is run; [`FeedError`]: what may go wrong

mod changes;
mod checksum;
mod conflicts;
pub mod cursor;
mod error;
mod filter;
mod history;
pub mod opening;
mod outcomes;
mod page;
#[cfg(test)]
mod plans;
pub mod positions;
mod query;
mod reading;
mod receipts;
mod records;
mod routes;
mod scan;
mod since;
mod snapshot;
mod sql;
mod store;
mod wait;

pub use error::FeedError;
pub use opening::{Closed, Opener};
pub use outcomes::OutcomeStore;
pub use routes::{Feed, FeedParts, routes};
pub use store::SESSION_SETTINGS;
