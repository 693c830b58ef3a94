//! A chunk on its way into Postgres while the next one is made ready. What the next one may read meanwhile is
//! everything that this one does not touch; the rest it reads once this one has landed. Knows nothing of partitions or
//! of what happens when a write fails: that is the lane's.

use crate::ProjectorError;
use crate::chunk::{Results, World};
use crate::event::Arrived;
use crate::ownership::Owned;
use crate::reading::Chunk;
use crate::record::LogRecord;
use crate::session::Session;
use crate::state::RecordKey;
use crate::write::write;
use std::collections::HashSet;
use std::sync::Arc;
use tidelog_events::domain::Registry;
use tokio::task::JoinHandle;

/// A chunk that was folded.
pub(crate) struct Folded {
    pub(crate) chunk: Chunk,
    pub(crate) world: World,
    pub(crate) results: Results,
}

impl Folded {
    /// Writes it, in one transaction.
    pub(crate) async fn write(
        &self,
        session: &mut Session,
        registry: &Registry,
        topic: &str,
    ) -> Result<(), ProjectorError> {
        let Chunk { moves, dead, .. } = &self.chunk;
        write(session, registry, &self.world, &self.results, topic, moves, dead).await
    }
}

/// A write under way, in a task of its own.
pub(crate) struct Flight {
    /// The chunk's records, should it have to be done again.
    pub(crate) records: Vec<LogRecord>,
    /// Where its partitions stood before it.
    pub(crate) before: Vec<Owned>,
    touched: HashSet<RecordKey>,
    writing: JoinHandle<(Session, Result<(), ProjectorError>)>,
}

impl Flight {
    /// Begins to write. `landed` is called in the writing task, after the commit.
    pub(crate) fn begin(
        mut session: Session,
        registry: Arc<Registry>,
        topic: String,
        folded: Folded,
        records: Vec<LogRecord>,
        before: Vec<Owned>,
        landed: impl FnOnce() + Send + 'static,
    ) -> Flight {
        let touched = touched(&folded.chunk.events);
        let writing = tokio::spawn(async move {
            let written = folded.write(&mut session, &registry, &topic).await;
            if written.is_ok() {
                landed();
            }
            (session, written)
        });
        Flight {
            records,
            before,
            touched,
            writing,
        }
    }

    /// Whether an event's record, or the one that it hangs on, is as this chunk leaves it.
    pub(crate) fn touches(&self, arrived: &Arrived) -> bool {
        self.touched.contains(arrived.record())
            || arrived
                .parent_record()
                .is_some_and(|parent| self.touched.contains(parent))
    }

    /// Waits for the end of the write. Safe to drop and to call again while there is none.
    pub(crate) async fn end(&mut self) -> (Option<Session>, Result<(), ProjectorError>) {
        match (&mut self.writing).await {
            Ok((session, written)) => (Some(session), written),
            // A panic in the write must not look like a write that Postgres refused.
            Err(error) => (
                None,
                Err(ProjectorError::Consumer(format!("a write ended: {error}"))),
            ),
        }
    }
}

/// A child's parent counts as touched: whatever else hangs on it may have been moved with it.
fn touched(events: &[Arc<Arrived>]) -> HashSet<RecordKey> {
    let mut touched = HashSet::with_capacity(events.len());
    for arrived in events {
        touched.insert(arrived.record().clone());
        touched.extend(arrived.parent_record().cloned());
    }
    touched
}
