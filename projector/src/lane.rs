//! A lane: one worker that folds the partitions it was given of one topic, chunk by chunk. It takes what has arrived,
//! never waiting for more, and writes each chunk with its positions in one transaction; while one is written the next
//! is read, loaded and folded, and what goes wrong is done again step by step. Kafka's
//! clients and rebalances are the consumer's; a lane is told which partitions are its own and where they stand.

use crate::ProjectorError;
use crate::bulk::Letters;
use crate::chunk::{Results, World, fold_chunk};
use crate::dead::DeadLetterTopic;
use crate::flight::{Flight, Folded};
use crate::load::load;
use crate::ownership::Owned;
use crate::reading::{Chunk, Reader};
use crate::record::LogRecord;
use crate::retry::waits;
use crate::session::Session;
use crate::write::{DeadLetter, write};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_postgres::Config;

/// Most records of a chunk: rates level off between 100 and 500 (see BENCHMARKS.md).
const CHUNK_RECORDS: usize = 500;
/// Most bytes of a chunk's values.
const CHUNK_BYTES: usize = 2 << 20;

/// Between two attempts at a chunk.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// What a lane is told.
pub(crate) enum ToLane {
    /// A partition is this lane's from now on.
    Own(Owned),
    /// These partitions are not any more; answered when the lane has let go of them.
    Release(Vec<i32>, oneshot::Sender<()>),
    /// Records of the log, of each partition in its order.
    Records(Vec<LogRecord>),
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
    /// Where dead letters are told of; none where the log is folded again.
    pub(crate) dead: Option<Arc<DeadLetterTopic>>,
    /// What is a dead letter already, where the log is folded again.
    pub(crate) letters: Option<Letters>,
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// The worker.
pub(crate) struct Lane {
    parts: LaneParts,
    /// Where each partition stands once everything that was begun has landed.
    owned: BTreeMap<i32, Owned>,
    /// Writes; lent to the chunk in flight.
    session: Option<Session>,
    /// Reads beside a chunk in flight; opened when that is first needed.
    beside: Option<Session>,
    flight: Option<Flight>,
}

impl Lane {
    pub(crate) fn new(parts: LaneParts) -> Lane {
        Lane {
            parts,
            owned: BTreeMap::new(),
            session: None,
            beside: None,
            flight: None,
        }
    }

    /// Runs until the inbox closes or the process shuts down; a chunk that was begun is finished first.
    pub(crate) async fn run(mut self) {
        let mut shutdown = self.parts.shutdown.clone();
        loop {
            let turn = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => Turn::Order(None),
                ended = end_of(&mut self.flight) => Turn::Landed(Box::new(ended)),
                order = self.parts.inbox.recv() => Turn::Order(order),
            };
            let first = match turn {
                Turn::Order(order) => order,
                Turn::Landed(ended) => {
                    self.landed(*ended).await;
                    continue;
                }
            };
            let Some(first) = first else {
                self.land().await;
                return;
            };
            let records = self.gather(first).await;
            if !records.is_empty() {
                self.take(records).await;
            }
        }
    }

    /// Takes what has arrived. Orders to own or release end the chunk, so that they act between two transactions.
    async fn gather(&mut self, first: ToLane) -> Vec<LogRecord> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(order) = next.take() {
            match order {
                ToLane::Own(owned) => {
                    self.land().await;
                    self.own(owned);
                }
                ToLane::Release(partitions, done) => {
                    self.land().await;
                    // Records of these partitions that were gathered are dropped with the ownership.
                    self.release(&partitions);
                    records.retain(|record: &LogRecord| !partitions.contains(&record.partition()));
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
        note(&self.parts.progress, &self.parts.topic, owned);
    }

    /// Makes a chunk ready while the one before it is written, then begins to write it. Where anything goes wrong, the
    /// chunk before is brought to its end first, and this one is done from its start, step by step.
    async fn take(&mut self, records: Vec<LogRecord>) {
        let prepared = self.prepare(&records).await;
        let straight = self.land().await;
        match prepared {
            Ok(None) if straight => {}
            Ok(Some(folded)) if straight => self.begin(folded, records).await,
            // It was made ready on a state that did not come to be.
            Ok(_) => self.project(records).await,
            Err(error) => {
                tracing::debug!(topic = %self.parts.topic, %error, "a chunk is done step by step");
                self.beside = None;
                self.project(records).await;
            }
        }
    }

    async fn begin(&mut self, folded: Folded, records: Vec<LogRecord>) {
        if connected(&mut self.session, &self.parts.database).await.is_err() {
            return self.project(records).await;
        }
        let Some(session) = self.session.take() else {
            return;
        };
        let mut before = Vec::new();
        let mut after = Vec::new();
        for moved in &folded.chunk.moves {
            if let Some(owned) = self.owned.get_mut(&moved.partition) {
                before.push(owned.clone());
                owned.next_offset = moved.to;
                owned.log_time = moved.log_time;
                after.push(owned.clone());
            }
        }
        let (progress, topic, wake) = (
            self.parts.progress.clone(),
            self.parts.topic.clone(),
            self.parts.moved.clone(),
        );
        let landed = move || {
            for owned in &after {
                note(&progress, &topic, owned);
            }
            wake.notify_one();
        };
        let (registry, topic) = (self.parts.registry.clone(), self.parts.topic.clone());
        self.flight = Some(Flight::begin(
            session, registry, topic, folded, records, before, landed,
        ));
    }

    /// Waits for the chunk in flight; answers whether it landed as it was begun.
    async fn land(&mut self) -> bool {
        match &mut self.flight {
            None => true,
            Some(flight) => {
                let ended = flight.end().await;
                self.landed(ended).await
            }
        }
    }

    /// A write has ended. One that failed is done again, step by step, from where its partitions stood.
    async fn landed(&mut self, (session, written): Ended) -> bool {
        self.session = session;
        let Some(flight) = self.flight.take() else {
            return true;
        };
        let Err(error) = written else { return true };
        tracing::debug!(topic = %self.parts.topic, %error, "a chunk is done again");
        if error.is_transient() {
            self.session = None;
        }
        for owned in flight.before {
            self.owned.insert(owned.partition, owned);
        }
        self.project(flight.records).await;
        false
    }

    /// Reads, loads and folds a chunk; none where it moves nothing.
    async fn prepare(&mut self, records: &[LogRecord]) -> Result<Option<Folded>, ProjectorError> {
        drill::reached("project.fetched");
        let chunk = self.reader().read(records, &self.owned);
        self.publish_dead(&chunk.dead).await?;
        if chunk.moves.is_empty() {
            return Ok(None);
        }
        let registry = self.parts.registry.clone();
        let mut world = World::default();
        let (later, now): (Vec<_>, Vec<_>) = chunk.events.iter().cloned().partition(|arrived| {
            let flight = self.flight.as_ref();
            flight.is_some_and(|flight| flight.touches(arrived))
        });
        let database = &self.parts.database;
        let free = match self.flight {
            Some(_) => &mut self.beside,
            None => &mut self.session,
        };
        if !now.is_empty() {
            world = load(connected(free, database).await?, &registry, &now).await?;
        }
        if !later.is_empty() {
            if !self.land().await {
                return Err(ProjectorError::Stored("the chunk before was done again".into()));
            }
            let session = connected(&mut self.session, &self.parts.database).await?;
            world.absorb(load(session, &registry, &later).await?);
        }
        drill::reached("project.loaded");
        let mut results = fold_chunk(&registry, &mut world, &chunk.events);
        results.outcomes.extend(chunk.refused.iter().cloned());
        drill::reached("project.folded");
        Ok(Some(Folded {
            chunk,
            world,
            results,
        }))
    }

    /// Brings a chunk into Postgres, however long Postgres is away. Ends early only when the process shuts down or the
    /// partitions are lost.
    async fn project(&mut self, records: Vec<LogRecord>) {
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
                        tracing::warn!(topic = %self.parts.topic, %error, wait = ?wait, "a chunk waits");
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
                        _ = shutdown.wait_for(|stop| *stop) => {
                            // Given up. Whatever came after this chunk would move the positions over it.
                            if drill::guarded("give-up") {
                                self.owned.clear();
                            }
                            return;
                        }
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, records: &[LogRecord]) -> Result<(), ProjectorError> {
        let mut chunk = self.reader().read(records, &self.owned);
        connected(&mut self.session, &self.parts.database).await?;
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
                self.reader().refuse(&mut chunk, records, &error);
                self.publish_dead(&chunk.dead).await?;
                self.apply(&chunk).await
            }
            other => other,
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            registry: &self.parts.registry,
            topic: &self.parts.topic,
            prefix: &self.parts.prefix,
            letters: self.parts.letters.as_ref(),
        }
    }

    async fn publish_dead(&self, dead: &[DeadLetter]) -> Result<(), ProjectorError> {
        let Some(topic) = &self.parts.dead else {
            return Ok(());
        };
        for letter in dead {
            tracing::warn!(topic = %letter.topic, partition = letter.partition, offset = letter.offset, reason = %letter.reason, "a dead letter");
            if !drill::guarded("poison") {
                return Err(ProjectorError::Stored(letter.reason.clone()));
            }
            topic.publish(letter).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, chunk: &Chunk) -> Result<(), ProjectorError> {
        if chunk.moves.is_empty() {
            return Ok(());
        }
        let session = connected(&mut self.session, &self.parts.database).await?;
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

    /// Takes over what the table says of this lane's partitions, and lets go of those that are another worker's.
    async fn reread_positions(&mut self) -> Result<(), ProjectorError> {
        if !drill::guarded("reread") {
            return Ok(());
        }
        let session = connected(&mut self.session, &self.parts.database).await?;
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

/// What a lane does next.
enum Turn {
    /// What it was told; nothing more will come where there is none.
    Order(Option<ToLane>),
    Landed(Box<Ended>),
}

type Ended = (Option<Session>, Result<(), ProjectorError>);

/// The end of the chunk in flight; never, where there is none.
async fn end_of(flight: &mut Option<Flight>) -> Ended {
    match flight {
        Some(flight) => flight.end().await,
        None => std::future::pending().await,
    }
}

/// The connection in its place, opened where there is none.
async fn connected<'a>(
    place: &'a mut Option<Session>,
    database: &Config,
) -> Result<&'a mut Session, ProjectorError> {
    match place {
        Some(session) => Ok(session),
        None => Ok(place.insert(Session::connect(database).await?)),
    }
}

fn note(progress: &Progress, topic: &str, owned: &Owned) {
    progress
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert((topic.to_owned(), owned.partition), owned.clone());
}
