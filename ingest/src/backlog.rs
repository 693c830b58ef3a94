//! Records that wait for Postgres to come back. Bounded: a receipt holds everything that is needed to find a batch's
//! outcomes, so the oldest records may go (what is lost with them is the list of items that the gateway refused).
//! Must not know what a record says.

use crate::ledger::{Failure, Ledger};
use crate::record::Record;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// The queue.
#[derive(Debug)]
pub(crate) struct Backlog {
    limit: usize,
    queue: Mutex<Queue>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Record>,
    bytes: usize,
    /// A task is writing what is here.
    drained: bool,
}

impl Backlog {
    /// Of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Backlog {
        Backlog {
            limit,
            queue: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// How many records wait, and how many were dropped since the start.
    pub(crate) fn counts(&self) -> (usize, u64) {
        (self.lock().records.len(), self.dropped.load(Ordering::Relaxed))
    }

    /// Whether a task writes what waits.
    pub(crate) fn is_being_written(&self) -> bool {
        self.lock().drained
    }

    /// Takes a record in; answers whether a task to write it has to be started.
    fn push(&self, record: Record) -> bool {
        let mut queue = self.lock();
        queue.bytes += record.weight();
        queue.records.push_back(record);
        while queue.bytes > self.limit {
            let Some(oldest) = queue.records.pop_front() else {
                break;
            };
            queue.bytes -= oldest.weight();
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(
                    dropped,
                    "records of batches are dropped: Postgres is away for too long"
                );
            }
        }
        !std::mem::replace(&mut queue.drained, true)
    }

    /// The oldest record; none ends the task that writes them.
    fn pop(&self) -> Option<Record> {
        let mut queue = self.lock();
        let record = queue.records.pop_front();
        match &record {
            Some(record) => queue.bytes -= record.weight(),
            None => queue.drained = false,
        }
        record
    }

    fn put_back(&self, record: Record) {
        let mut queue = self.lock();
        queue.bytes += record.weight();
        queue.records.push_front(record);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Each change is whole before anything in it could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Writes a record once Postgres is back.
    pub(crate) fn record_later(self: &Arc<Self>, record: Record) {
        if self.backlog.push(record) {
            let ledger = self.clone();
            tokio::spawn(async move { ledger.drain().await });
        }
    }

    async fn drain(&self) {
        loop {
            while !self.is_there().await {
                tokio::time::sleep(PAUSE).await;
            }
            let Some(record) = self.backlog.pop() else { break };
            match self.record(&record).await {
                Ok(_) => {}
                Err(Failure::Away) => {
                    self.backlog.put_back(record);
                    tokio::time::sleep(PAUSE).await;
                }
                // Said already; it must not hold up those behind it.
                Err(Failure::Refused) => tracing::error!(batch = %record.identity.batch, "a record is lost"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incoming::Identity;
    use tidelog_events::batch::{BatchId, Fingerprint};
    use tidelog_events::ids::{DeviceId, TenantId, UserId};
    use tidelog_events::position::Appended;

    fn record(key: &str) -> Record {
        let fingerprint = Fingerprint([0; 32]);
        Record {
            identity: Identity {
                tenant: TenantId::parse("t").expect("tenant"),
                user: UserId::parse("u").expect("user"),
                device: DeviceId::parse("phone-1").expect("device"),
                key: key.into(),
                fingerprint,
                batch: BatchId::of(key, &fingerprint),
                key_ttl: Duration::from_secs(1),
            },
            target: "helpdesk".into(),
            received_at: chrono::Utc::now(),
            items: 1,
            appended_items: 1,
            appended: Appended::default(),
            refused: Vec::new(),
            receipt: "r".into(),
            answer: None,
        }
    }

    #[test]
    fn when_full_the_oldest_go_and_are_counted() {
        let weight = record("a").weight();
        let backlog = Backlog::new(2 * weight);
        assert!(backlog.push(record("a")));
        assert!(!backlog.push(record("b")), "one task writes them");
        assert!(!backlog.push(record("c")));
        assert_eq!(backlog.counts(), (2, 1));
        let first = backlog.pop().expect("a record");
        assert_eq!(first.identity.key, "b");
        backlog.put_back(first);
        let order: Vec<String> = std::iter::from_fn(|| backlog.pop())
            .map(|record| record.identity.key)
            .collect();
        assert_eq!(order, ["b", "c"]);
        assert!(backlog.push(record("d")), "the task had ended");
    }
}
