//! What a filler sends to Postgres: of a chunk, the rows that the log adds and never changes; at a checkpoint, states as they are by
//! then. Knows how each is sent fastest, and not when.

use super::RecordKeys;
use crate::ProjectorError;
use crate::chunk::Results;
use crate::copying::Copying;
use crate::rows::{feed_row, row};
use crate::session::Session;
use crate::sheet::Sheet;
use crate::state::{RecordKey, State};
use crate::write::{DeadLetter, others, rows as overwriting};
use std::sync::Arc;
use tidelog_events::domain::{Domain, Registry};

/// Bytes of rows that are sent at once: a statement for fewer costs more than its rows.
const MUCH: usize = 1 << 20;
/// So many times that are gathered at most, while Postgres is busy with what went before.
const TOO_MUCH: usize = 8;
/// Rows of one statement, where rows are there already.
const OVERWRITTEN: usize = 2000;

/// The rows that chunks add.
#[derive(Default)]
pub(crate) struct Spill {
    /// Of each table with a feed.
    feeds: Vec<(Arc<Domain>, Copying)>,
    /// Of tables that all domains share: few rows, and not all of them new.
    others: Vec<(String, Sheet)>,
}

impl Spill {
    /// Adds those of one more chunk.
    pub(crate) fn add(&mut self, registry: &Registry, results: &Results, topic: &str, dead: &[DeadLetter]) {
        for change in &results.feed {
            let of_table = |(domain, _): &(Arc<Domain>, Copying)| domain.table == change.record.table;
            let at = self.feeds.iter().position(of_table).or_else(|| {
                let domain = registry.by_table(&change.record.table)?;
                let copying = Copying::into(domain.changes_table());
                self.feeds.push((domain.clone(), copying));
                Some(self.feeds.len() - 1)
            });
            // A record's table is one of its topic's domains: who read the event found it there.
            if let Some((domain, feed)) = at.and_then(|at| self.feeds.get_mut(at)) {
                feed.row(|cells| feed_row(domain, change, cells));
            }
        }
        self.others.extend(others(results, topic, dead));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.feeds.is_empty() && self.others.is_empty()
    }

    /// Whether it is worth a write.
    pub(crate) fn is_much(&self) -> bool {
        self.len() >= MUCH || !self.others.is_empty()
    }

    /// Whether a write has to be waited for.
    pub(crate) fn is_too_much(&self) -> bool {
        self.len() >= TOO_MUCH * MUCH || self.others.len() >= TOO_MUCH
    }

    fn len(&self) -> usize {
        self.feeds.iter().map(|(_, feed)| feed.len()).sum()
    }

    pub(crate) async fn send(self, session: &mut Session) -> Result<(), ProjectorError> {
        for (_, feed) in self.feeds {
            feed.send(session).await?;
        }
        for (sql, sheet) in self.others {
            execute(session, &sql, &sheet).await?;
        }
        Ok(())
    }
}

async fn execute(session: &mut Session, sql: &str, sheet: &Sheet) -> Result<(), ProjectorError> {
    let statement = session.prepare(sql).await?;
    session.client().execute(&statement, &sheet.parameters()).await?;
    Ok(())
}

/// Writes states, given in the order of their keys: by COPY where the record has no row yet, over the one that it has elsewhere.
/// Notes in `with_row` that all have one.
pub(crate) async fn checkpoint_rows(
    session: &mut Session,
    registry: &Registry,
    changed: &[(&RecordKey, &State)],
    with_row: &mut RecordKeys,
) -> Result<(), ProjectorError> {
    for of_table in changed.chunk_by(|(one, _), (next, _)| one.table == next.table) {
        let domain = of_table
            .first()
            .and_then(|(key, _)| registry.by_table(&key.table));
        let Some(domain) = domain else {
            continue;
        };
        let (there, new): (Vec<_>, Vec<_>) = of_table.iter().partition(|(key, _)| with_row.contains(*key));
        let mut copying = Copying::into(domain.table.to_string());
        for (key, state) in &new {
            copying.row(|cells| row(domain, key, state, cells));
            copying.send_full(session).await?;
        }
        copying.send(session).await?;
        for some in there.chunks(OVERWRITTEN) {
            let (sql, sheet) = overwriting(domain, some);
            execute(session, &sql, &sheet).await?;
        }
        with_row.extend(new.into_iter().map(|(key, _)| key.clone()));
    }
    Ok(())
}
