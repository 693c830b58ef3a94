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
use std::collections::BTreeMap;
use std::sync::Arc;
use tidelog_events::domain::{Domain, Registry};

/// Bytes of rows that are sent at once, about.
const PARCEL: usize = 4 << 20;
/// Rows of one statement, where rows are there already.
const OVERWRITTEN: usize = 2000;

/// The rows that a chunk adds.
pub(crate) struct Spill {
    feeds: Vec<Copying>,
    /// Of tables that all domains share: few rows, and not all of them new.
    others: Vec<(String, Sheet)>,
}

impl Spill {
    pub(crate) fn of(registry: &Registry, results: &Results, topic: &str, dead: &[DeadLetter]) -> Spill {
        let mut feeds: BTreeMap<&str, (&Arc<Domain>, Copying)> = BTreeMap::new();
        for change in &results.feed {
            let table = &*change.record.table;
            if !feeds.contains_key(table)
                && let Some(domain) = registry.by_table(table)
            {
                feeds.insert(table, (domain, Copying::into(domain.changes_table())));
            }
            if let Some((domain, feed)) = feeds.get_mut(table) {
                feed.row(|cells| feed_row(domain, change, cells));
            }
        }
        Spill {
            feeds: feeds.into_values().map(|(_, feed)| feed).collect(),
            others: others(results, topic, dead),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.feeds.is_empty() && self.others.is_empty()
    }

    pub(crate) async fn send(self, session: &mut Session) -> Result<(), ProjectorError> {
        for feed in self.feeds {
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

/// States on their way into the table of one domain.
struct Rows<'a> {
    domain: &'a Arc<Domain>,
    new: Copying,
    there: Vec<(&'a RecordKey, &'a State)>,
}

/// Writes states: by COPY where the record has no row yet, over the one that it has elsewhere. Notes in `with_row` that all have one.
pub(crate) async fn checkpoint_rows<'a>(
    session: &mut Session,
    registry: &'a Registry,
    changed: impl Iterator<Item = (&'a RecordKey, &'a State)>,
    with_row: &mut RecordKeys,
) -> Result<(), ProjectorError> {
    let mut tables: BTreeMap<&str, Rows<'a>> = BTreeMap::new();
    let mut written = Vec::new();
    for (key, state) in changed {
        if !tables.contains_key(&*key.table)
            && let Some(domain) = registry.by_table(&key.table)
        {
            let (new, there) = (Copying::into(domain.table.to_string()), Vec::new());
            tables.insert(&key.table, Rows { domain, new, there });
        }
        let Some(rows) = tables.get_mut(&*key.table) else {
            continue;
        };
        if with_row.contains(key) {
            rows.there.push((key, state));
        } else {
            rows.new.row(|cells| row(rows.domain, key, state, cells));
            written.push(key);
        }
        if rows.new.len() > PARCEL {
            let full = std::mem::replace(&mut rows.new, Copying::into(rows.domain.table.to_string()));
            full.send(session).await?;
        }
        if rows.there.len() == OVERWRITTEN {
            let (sql, sheet) = overwriting(rows.domain, &std::mem::take(&mut rows.there));
            execute(session, &sql, &sheet).await?;
        }
    }
    for rows in tables.into_values() {
        rows.new.send(session).await?;
        if !rows.there.is_empty() {
            let (sql, sheet) = overwriting(rows.domain, &rows.there);
            execute(session, &sql, &sheet).await?;
        }
    }
    with_row.extend(written.into_iter().cloned());
    Ok(())
}
