//! A lane: one worker that folds the partitions it was given of one topic, chunk by chunk, over one connection. It
//! takes what has arrived, never waiting for more, and writes each chunk with its positions in one transaction. Kafka's
//! clients and rebalances are the consumer's; a lane is told which partitions are its own and where they stand.

use crate::ProjectorError;
use crate::chunk::{OutcomeRow, Results, World, fold_chunk};
use crate::dead::DeadLetterTopic;
use crate::event::Arrived;
use crate::load::{load, not_before};
use crate::retry::waits;
use crate::session::Session;
use crate::write::{DeadLetter, Move, write};
use chrono::{DateTime, Utc};
use rdkafka::message::{Headers, Message, OwnedMessage};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidelog_events::domain::Registry;
use tidelog_events::error::{ErrorCode, ItemError};
use tidelog_events::outcome::Outcome;
use tidelog_events::position::Place;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_postgres::Config;

/// Most records of a chunk: rates level off between 100 and 500 (see BENCHMARKS.md).
const CHUNK_RECORDS: usize = 500;
/// Most bytes of a chunk's values.
const CHUNK_BYTES: usize = 2 << 20;

/// Between two attempts at a chunk.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// What a lane is told.
pub(crate) enum ToLane {
    /// A partition is this lane's from now on.
    Own(Owned),
    /// These partitions are not any more; answered when the lane has let go of them.
    Release(Vec<i32>, oneshot::Sender<()>),
    /// Records of the log, of each partition in its order.
    Records(Vec<OwnedMessage>),
}

/// A partition as a lane holds it.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
    pub(crate) next_offset: i64,
    pub(crate) log_time: DateTime<Utc>,
}

/// Applied positions of this process, for the group's offsets and the heartbeat.
pub(crate) type Progress = Arc<Mutex<HashMap<(String, i32), Owned>>>;

/// What a lane works with.
pub(crate) struct LaneParts {
    pub(crate) topic: String,
    pub(crate) prefix: String,
    pub(crate) registry: Arc<Registry>,
    pub(crate) database: Config,
    pub(crate) inbox: mpsc::Receiver<ToLane>,
    pub(crate) progress: Progress,
    pub(crate) moved: Arc<Notify>,
    pub(crate) dead: Arc<DeadLetterTopic>,
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// The worker.
pub(crate) struct Lane {
    parts: LaneParts,
    owned: BTreeMap<i32, Owned>,
    session: Option<Session>,
}

impl Lane {
    pub(crate) fn new(parts: LaneParts) -> Lane {
        Lane {
            parts,
            owned: BTreeMap::new(),
            session: None,
        }
    }

    /// Runs until the inbox closes or the process shuts down; a chunk that was begun is finished first.
    pub(crate) async fn run(mut self) {
        let mut shutdown = self.parts.shutdown.clone();
        loop {
            let first = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => return,
                message = self.parts.inbox.recv() => message,
            };
            let Some(first) = first else { return };
            let records = self.gather(first);
            if !records.is_empty() {
                self.project(records).await;
            }
        }
    }

    /// Takes what has arrived. Orders to own or release end the chunk, so that they act between two transactions.
    fn gather(&mut self, first: ToLane) -> Vec<OwnedMessage> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(order) = next.take() {
            match order {
                ToLane::Own(owned) => self.own(owned),
                ToLane::Release(partitions, done) => {
                    // Records of these partitions that were gathered are dropped with the ownership.
                    self.release(&partitions);
                    records.retain(|record: &OwnedMessage| !partitions.contains(&record.partition()));
                    // Nobody waiting any more is no loss.
                    let _ = done.send(());
                }
                ToLane::Records(parcel) => {
                    bytes += parcel
                        .iter()
                        .map(|record| record.payload().map_or(0, <[u8]>::len))
                        .sum::<usize>();
                    records.extend(parcel);
                }
            }
            if records.len() < CHUNK_RECORDS && bytes < CHUNK_BYTES {
                next = self.parts.inbox.try_recv().ok();
            }
        }
        records
    }

    fn own(&mut self, owned: Owned) {
        self.note(&owned);
        self.owned.insert(owned.partition, owned);
    }

    fn release(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.owned.remove(partition);
            let key = (self.parts.topic.clone(), *partition);
            self.parts
                .progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
        }
    }

    fn note(&self, owned: &Owned) {
        let key = (self.parts.topic.clone(), owned.partition);
        self.parts
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, owned.clone());
    }

    /// Brings a chunk into Postgres, however long Postgres is away. Ends early only when the process shuts down or the
    /// partitions are lost.
    async fn project(&mut self, records: Vec<OwnedMessage>) {
        let mut waits = waits();
        let mut shutdown = self.parts.shutdown.clone();
        loop {
            match self.attempt(&records).await {
                Ok(()) => {
                    self.parts.moved.notify_one();
                    return;
                }
                Err(error) => {
                    let wait = waits.next().unwrap_or(LONGEST_WAIT);
                    if error.is_transient() {
                        tracing::warn!(topic = %self.parts.topic, %error, detail = ?error, wait = ?wait, "a chunk waits");
                        self.session = None;
                    } else {
                        tracing::warn!(topic = %self.parts.topic, %error, wait = ?wait, "positions are read again");
                    }
                    // The transaction may have been committed although its answer was lost, or another worker may
                    // own a partition by now: the table says which.
                    if let Err(error) = self.reread_positions().await {
                        tracing::debug!(%error, "positions cannot be read yet");
                    }
                    tokio::select! {
                        _ = tokio::time::sleep(wait) => {}
                        _ = shutdown.wait_for(|stop| *stop) => return,
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, records: &[OwnedMessage]) -> Result<(), ProjectorError> {
        let mut chunk = self.read(records);
        if self.session.is_none() {
            self.session = Some(Session::connect(&self.parts.database).await?);
        }
        self.publish_dead(&chunk.dead).await?;
        let size = chunk.events.len();
        match self.apply(&chunk).await {
            Err(error) if error.is_data() && size > 1 => {
                // One item that Postgres refuses harms itself alone: find it by halves.
                let middle = records.len() / 2;
                Box::pin(self.attempt(&records[..middle])).await?;
                Box::pin(self.attempt(&records[middle..])).await
            }
            Err(error) if error.is_data() && size == 1 => {
                self.refuse(&mut chunk, records, &error);
                self.publish_dead(&chunk.dead).await?;
                self.apply(&chunk).await
            }
            other => other,
        }
    }

    async fn publish_dead(&self, dead: &[DeadLetter]) -> Result<(), ProjectorError> {
        for letter in dead {
            tracing::warn!(topic = %letter.topic, partition = letter.partition, offset = letter.offset, reason = %letter.reason, "a dead letter");
            self.parts.dead.publish(letter).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, chunk: &Chunk) -> Result<(), ProjectorError> {
        if chunk.moves.is_empty() {
            return Ok(());
        }
        let Some(session) = &mut self.session else {
            return Err(ProjectorError::Consumer("no connection".into()));
        };
        let registry = self.parts.registry.clone();
        let (world, mut results) = if chunk.events.is_empty() {
            (World::default(), Results::default())
        } else {
            let mut world = load(session, &registry, &chunk.events).await?;
            let results = fold_chunk(&registry, &mut world, &chunk.events);
            (world, results)
        };
        results.outcomes.extend(chunk.refused.iter().cloned());
        write(
            session,
            &registry,
            &world,
            &results,
            &self.parts.topic,
            &chunk.moves,
            &chunk.dead,
        )
        .await?;
        for moved in &chunk.moves {
            if let Some(owned) = self.owned.get_mut(&moved.partition) {
                owned.next_offset = moved.to;
                owned.log_time = moved.log_time;
                let owned = owned.clone();
                self.note(&owned);
            }
        }
        Ok(())
    }

    /// An event that Postgres will not store becomes a dead letter with an outcome, so that its batch is answered.
    fn refuse(&self, chunk: &mut Chunk, records: &[OwnedMessage], error: &ProjectorError) {
        for arrived in std::mem::take(&mut chunk.events) {
            let reason = format!("Postgres cannot store it: {error}");
            if let Some(record) = records
                .iter()
                .find(|r| r.partition() == arrived.place.partition && r.offset() == arrived.place.offset)
            {
                let tenant = Some(arrived.event.tenant.as_str().to_owned());
                chunk
                    .dead
                    .push(self.dead_letter(record, tenant, reason, arrived.log_time));
            }
            let error = ItemError {
                error_code: ErrorCode::ValidationError,
                ..ItemError::field("", "storable", "the item holds a value that cannot be stored")
            };
            chunk.refused.push(OutcomeRow {
                arrived,
                outcome: Outcome::Refused { error },
            });
        }
    }

    /// Reads records into events and dead letters, and says where each partition stands after them.
    fn read(&self, records: &[OwnedMessage]) -> Chunk {
        let mut chunk = Chunk::default();
        let mut moves: BTreeMap<i32, Move> = BTreeMap::new();
        for record in records {
            let Some(owned) = self.owned.get(&record.partition()) else {
                continue;
            };
            let moved = moves.entry(record.partition()).or_insert_with(|| Move {
                topic: self.parts.topic.clone(),
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
            moved.log_time = not_before(log_time(record), moved.log_time);
            match self.arrived(record, moved.log_time) {
                Ok(arrived) => chunk.events.push(Arc::new(arrived)),
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

    fn arrived(&self, record: &OwnedMessage, log_time: DateTime<Utc>) -> Result<Arrived, String> {
        let place = Place {
            partition: record.partition(),
            offset: record.offset(),
        };
        let topic = self
            .parts
            .topic
            .strip_prefix(&self.parts.prefix)
            .unwrap_or(&self.parts.topic);
        let headers = record
            .headers()
            .into_iter()
            .flat_map(|headers| headers.iter())
            .map(|header| (header.key, header.value));
        Arrived::read(
            &self.parts.registry,
            topic,
            headers,
            record.payload(),
            place,
            log_time,
        )
        .map_err(|error| error.to_string())
    }

    fn dead_letter(
        &self,
        record: &OwnedMessage,
        tenant: Option<String>,
        reason: String,
        log_time: DateTime<Utc>,
    ) -> DeadLetter {
        let headers = record.headers().into_iter().flat_map(|headers| headers.iter());
        DeadLetter {
            topic: self.parts.topic.clone(),
            partition: record.partition(),
            offset: record.offset(),
            tenant,
            reason,
            headers: headers
                .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.payload().map(<[u8]>::to_vec),
            log_time,
        }
    }

    /// Takes over what the table says of this lane's partitions, and lets go of those that are another worker's.
    async fn reread_positions(&mut self) -> Result<(), ProjectorError> {
        if self.session.is_none() {
            self.session = Some(Session::connect(&self.parts.database).await?);
        }
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let partitions: Vec<i32> = self.owned.keys().copied().collect();
        let sql = "SELECT partition, next_offset, epoch, last_log_time FROM positions WHERE topic = $1 AND partition = ANY($2)";
        let rows = session.query(sql, &[&self.parts.topic, &partitions]).await?;
        for row in rows {
            let (partition, next_offset, epoch): (i32, i64, i64) = (row.get(0), row.get(1), row.get(2));
            match self.owned.get_mut(&partition) {
                Some(owned) if owned.epoch == epoch => {
                    owned.next_offset = next_offset;
                    owned.log_time = row.get(3);
                }
                _ => {
                    tracing::info!(topic = %self.parts.topic, partition, "another worker owns the partition");
                    self.release(&[partition]);
                }
            }
        }
        Ok(())
    }
}

/// What a lane takes at once.
#[derive(Default)]
struct Chunk {
    events: Vec<Arc<Arrived>>,
    dead: Vec<DeadLetter>,
    refused: Vec<OutcomeRow>,
    moves: Vec<Move>,
}

fn log_time(record: &OwnedMessage) -> DateTime<Utc> {
    record
        .timestamp()
        .to_millis()
        .and_then(DateTime::from_timestamp_millis)
        .unwrap_or_default()
}
