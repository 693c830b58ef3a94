//! Records as they came, read into a chunk: events for the fold, dead letters for what is none, and where each
//! partition stands afterwards. Knows the log and what a lane owns of it; no store, and no fold.

use crate::bulk::{KnownLetter, Letters};
use crate::chunk::OutcomeRow;
use crate::event::{Arrived, Unreadable};
use crate::ownership::Owned;
use crate::record::LogRecord;
use crate::write::{DeadLetter, Move};
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidelog_events::domain::Registry;
use tidelog_events::envelope::{Event, LastSource};
use tidelog_events::error::{ErrorCode, ItemError};
use tidelog_events::outcome::Outcome;
use tidelog_events::position::Place;

/// What a lane takes at once.
#[derive(Default)]
pub(crate) struct Chunk {
    pub(crate) events: Vec<Arc<Arrived>>,
    pub(crate) dead: Vec<DeadLetter>,
    pub(crate) refused: Vec<OutcomeRow>,
    pub(crate) moves: Vec<Move>,
}

/// A topic's records, read by the domains that live on it.
pub(crate) struct Reader<'a> {
    pub(crate) registry: &'a Registry,
    /// The topic's name in the log.
    pub(crate) topic: &'a str,
    /// What stands before it there, by the deployment's wish.
    pub(crate) prefix: &'a str,
    /// What is a dead letter already, where the log is folded again.
    pub(crate) letters: Option<&'a Letters>,
}

impl Reader<'_> {
    /// Reads records of the partitions that are owned, from where each stands; passes over the others.
    pub(crate) fn read(&self, records: &[LogRecord], owned: &BTreeMap<i32, Owned>) -> Chunk {
        let mut chunk = Chunk::default();
        let mut moves: BTreeMap<i32, Move> = BTreeMap::new();
        let mut last = LastSource::default();
        for record in records {
            let Some(owned) = owned.get(&record.partition()) else {
                continue;
            };
            let moved = moves.entry(record.partition()).or_insert_with(|| Move {
                topic: self.topic.to_owned(),
                partition: record.partition(),
                epoch: owned.epoch,
                from: owned.next_offset,
                to: owned.next_offset,
                log_time: owned.log_time,
            });
            if record.offset() < moved.to {
                continue;
            }
            moved.to = record.offset() + 1;
            moved.log_time = not_before(record.log_time(), moved.log_time);
            let known = self
                .letters
                .and_then(|letters| letters.get(&(record.partition(), record.offset())));
            match self.arrived(record, moved.log_time, &mut last) {
                Ok(arrived) => match known {
                    None => chunk.events.push(Arc::new(arrived)),
                    Some(letter) => self.stays_dead(&mut chunk, record, arrived, letter),
                },
                Err(reason) => chunk
                    .dead
                    .push(self.dead_letter(record, None, reason, moved.log_time)),
            }
        }
        chunk.moves = moves
            .into_values()
            .filter(|moved| moved.to > moved.from)
            .collect();
        chunk
    }

    fn arrived<'r>(
        &self,
        record: &'r LogRecord,
        log_time: DateTime<Utc>,
        last: &mut LastSource<'r>,
    ) -> Result<Arrived, String> {
        let place = Place {
            partition: record.partition(),
            offset: record.offset(),
        };
        let topic = self.topic.strip_prefix(self.prefix).unwrap_or(self.topic);
        Event::of_batch(record.headers(), self.registry, last)
            .map_err(Unreadable::from)
            .and_then(|event| Arrived::of(self.registry, topic, event, record.payload(), place, log_time))
            .and_then(|arrived| arrived.under(record.key()))
            .map_err(|error| error.to_string())
    }

    /// An event that Postgres will not store becomes a dead letter with an outcome, so that its batch is answered.
    pub(crate) fn refuse(&self, chunk: &mut Chunk, records: &[LogRecord], why: &dyn std::fmt::Display) {
        for arrived in std::mem::take(&mut chunk.events) {
            let reason = format!("Postgres cannot store it: {why}");
            if let Some(record) = records
                .iter()
                .find(|r| r.partition() == arrived.place.partition && r.offset() == arrived.place.offset)
            {
                let tenant = Some(arrived.event.tenant.as_str().to_owned());
                chunk
                    .dead
                    .push(self.dead_letter(record, tenant, reason, arrived.log_time));
            }
            chunk.refused.push(not_storable(arrived));
        }
    }

    /// What was a dead letter stays one, and whoever was told so stays right.
    fn stays_dead(&self, chunk: &mut Chunk, record: &LogRecord, arrived: Arrived, letter: &KnownLetter) {
        let (tenant, reason) = (letter.tenant.clone(), letter.reason.clone());
        let dead = self.dead_letter(record, tenant, reason, arrived.log_time);
        chunk.dead.push(dead);
        if letter.tenant.is_some() {
            chunk.refused.push(not_storable(Arc::new(arrived)));
        }
    }

    fn dead_letter(
        &self,
        record: &LogRecord,
        tenant: Option<String>,
        reason: String,
        log_time: DateTime<Utc>,
    ) -> DeadLetter {
        DeadLetter {
            topic: self.topic.to_owned(),
            partition: record.partition(),
            offset: record.offset(),
            tenant,
            reason,
            headers: record
                .headers()
                .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
                .collect(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            log_time,
        }
    }
}

/// What the sender of an item is told that Postgres refuses.
fn not_storable(arrived: Arc<Arrived>) -> OutcomeRow {
    let error = ItemError {
        error_code: ErrorCode::ValidationError,
        ..ItemError::field("", "storable", "the item holds a value that cannot be stored")
    };
    OutcomeRow {
        arrived,
        outcome: Outcome::Refused { error },
    }
}

/// The log's clock of a partition never runs back.
fn not_before(time: DateTime<Utc>, last: DateTime<Utc>) -> DateTime<Utc> {
    time.max(last)
}
