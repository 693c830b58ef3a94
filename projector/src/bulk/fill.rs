//! Fills tables of its own from the log as fast as Postgres takes it. States are held in memory and written once, as they end;
//! what the log adds line by line, feeds above all, goes out by COPY as it comes. All of it is one transaction up to a checkpoint,
//! which moves the positions too: what was done by then stays. Whatever goes wrong ends it with an error, and who began it goes on
//! from the last checkpoint with a `Lane`, which knows how to find the event that Postgres refuses, and how to wait.

use super::spill::{Spill, checkpoint_rows};
use super::{CHUNK_BYTES, CHUNK_RECORDS, FeedKeys, Leave, Letters, RecordKeys, Seen};
use crate::ProjectorError;
use crate::chunk::{OUTCOMES_ALONE, Results, World, fold_chunk, needed_pasts};
use crate::event::Arrived;
use crate::lane::ToLane;
use crate::load::{load_families, load_known, load_rest};
use crate::ownership::Owned;
use crate::reading::Reader;
use crate::record::LogRecord;
use crate::session::Session;
use crate::state::{EventKey, RecordKey};
use crate::write::{Move, move_positions};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::Config;

/// So long at most is done again after a kill.
const CHECKPOINT: Duration = Duration::from_secs(30);
/// What a held state takes beside its document, and how much more that is in memory than in the log; about.
const STATE_BYTES: usize = 600;
const DOCUMENT_FACTOR: usize = 3;
/// More events than these that did not apply are not told apart in memory: the table is asked.
const MOST_ANSWERED: usize = 2_000_000;

/// What it works with.
pub(crate) struct FillerParts {
    /// The topic's name in the log, and what stands before it there by the deployment's wish.
    pub(crate) topic: String,
    pub(crate) prefix: String,
    pub(crate) registry: Arc<Registry>,
    pub(crate) database: Config,
    pub(crate) letters: Letters,
    pub(crate) keys: Arc<FeedKeys>,
    /// None where the tables were not empty when it began.
    pub(crate) seen: Option<Seen>,
    /// Bytes of states that may be held, about.
    pub(crate) memory: usize,
}

/// The worker.
pub(crate) struct Filler {
    parts: FillerParts,
    /// Where each partition stands in memory, and in Postgres.
    folded: BTreeMap<i32, Owned>,
    stored: BTreeMap<i32, Owned>,
    /// Records as they are, whole families of them; no pasts.
    world: World,
    held: usize,
    /// Those that have a row.
    rows: RecordKeys,
    /// Events that did not apply; none where only the table knows.
    answered: Option<HashSet<EventKey>>,
    /// Rows that were added and are not on their way yet.
    spill: Spill,
    /// None while rows are written.
    session: Option<Session>,
    writing: Option<JoinHandle<Result<Session, ProjectorError>>>,
    /// When the transaction began, and the leave for it.
    begun: Option<(Instant, Leave)>,
}

impl Filler {
    pub(crate) fn new(parts: FillerParts) -> Filler {
        let answered = parts.seen.as_ref().map(|_| HashSet::new());
        Filler {
            parts,
            folded: BTreeMap::new(),
            stored: BTreeMap::new(),
            world: World::default(),
            held: 0,
            rows: RecordKeys::default(),
            answered,
            spill: Spill::default(),
            session: None,
            writing: None,
            begun: None,
        }
    }

    /// Folds what comes until nothing will; answers where each partition stands then, in Postgres.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<ToLane>,
    ) -> Result<Vec<Owned>, ProjectorError> {
        let keys = self.parts.keys.clone();
        loop {
            let first = tokio::select! {
                first = inbox.recv() => first,
                () = keys.wanted(), if self.begun.is_some() => {
                    self.end().await?;
                    continue;
                }
            };
            let Some(first) = first else {
                break;
            };
            let records = self.gather(first, &mut inbox);
            self.take(&records).await?;
            let full = self.held > self.parts.memory;
            let long = |(begun, _): &(Instant, Leave)| begun.elapsed() > CHECKPOINT;
            if full || self.begun.as_ref().is_some_and(long) {
                self.checkpoint().await?;
            }
            if keys.are_wanted() {
                self.end().await?;
            }
            if full {
                self.let_go();
            }
        }
        self.checkpoint().await?;
        // What was held is much to let go of; nobody need wait for it.
        let held = std::mem::take(&mut self.world);
        tokio::task::spawn_blocking(move || drop(held));
        Ok(self.stored.into_values().collect())
    }

    fn gather(&mut self, first: ToLane, inbox: &mut mpsc::Receiver<ToLane>) -> Vec<LogRecord> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(told) = next {
            match told {
                ToLane::Own(owned) => {
                    self.stored.insert(owned.partition, owned.clone());
                    self.folded.insert(owned.partition, owned);
                }
                ToLane::Release(partitions, done) => {
                    for partition in partitions {
                        self.folded.remove(&partition);
                    }
                    // Nobody waiting any more is no loss.
                    let _ = done.send(());
                }
                ToLane::Records(parcel) => {
                    bytes += parcel.iter().map(payload).sum::<usize>();
                    records.extend(parcel);
                }
            }
            let room = records.len() < CHUNK_RECORDS && bytes < CHUNK_BYTES;
            next = room.then(|| inbox.try_recv().ok()).flatten();
        }
        records
    }

    async fn take(&mut self, records: &[LogRecord]) -> Result<(), ProjectorError> {
        let registry = self.parts.registry.clone();
        let reader = Reader {
            registry: &registry,
            topic: &self.parts.topic,
            prefix: &self.parts.prefix,
            letters: Some(&self.parts.letters),
        };
        drill::reached("project.fetched");
        let chunk = reader.read(records, &self.folded);
        if chunk.moves.is_empty() {
            return Ok(());
        }
        self.learn(&chunk.events).await?;
        drill::reached("project.loaded");
        let mut results = fold_chunk(&registry, &mut self.world, &chunk.events);
        results.outcomes.extend(chunk.refused.iter().cloned());
        drill::reached("project.folded");
        self.note(&results);
        for moved in &chunk.moves {
            if let Some(owned) = self.folded.get_mut(&moved.partition) {
                owned.next_offset = moved.to;
                owned.log_time = moved.log_time;
            }
        }
        self.spill
            .add(&registry, &results, &self.parts.topic, &chunk.dead);
        let writing = self
            .writing
            .as_ref()
            .is_some_and(|writing| !writing.is_finished());
        if self.spill.is_much() && (!writing || self.spill.is_too_much()) {
            self.write().await?;
        }
        self.held += records
            .iter()
            .map(|record| STATE_BYTES + DOCUMENT_FACTOR * payload(record))
            .sum::<usize>();
        Ok(())
    }

    /// Sees to it that the world has what the fold will ask for. Nothing is asked where every record is new or held and no event
    /// is behind, which is the rule.
    async fn learn(&mut self, events: &[Arc<Arrived>]) -> Result<(), ProjectorError> {
        let registry = self.parts.registry.clone();
        let (held, others): (Vec<_>, Vec<_>) = events
            .iter()
            .cloned()
            .partition(|arrived| self.world.records.contains_key(arrived.head()));
        let strangers = match &mut self.parts.seen {
            None => others,
            Some(seen) => seen.part(&others).1,
        };
        let known: Vec<Arc<Arrived>> = held.iter().chain(&strangers).cloned().collect();
        let answered = |arrived: &Arc<Arrived>| {
            let answered = self.answered.as_ref();
            answered.is_none_or(|answered| answered.contains(&arrived.key()))
        };
        let asked: Vec<Arc<Arrived>> = held.into_iter().filter(answered).collect();
        let past = known.iter().any(|arrived| arrived.resolution.is_some())
            || !needed_pasts(&known, &self.world).is_empty();
        if !strangers.is_empty() || !asked.is_empty() || past {
            self.write().await?;
            let mut session = self.session().await?;
            if !strangers.is_empty() {
                let found = load_families(&mut session, &registry, &strangers).await?;
                let with_row = found.records.iter().filter(|(_, record)| record.state.is_some());
                self.rows.extend(with_row.map(|(key, _)| key.clone()));
                self.world.absorb(found);
            }
            if !asked.is_empty() {
                load_known(&mut session, &asked, &mut self.world).await?;
            }
            self.session = Some(session);
            let in_feed = |after: &i64| *after < OUTCOMES_ALONE;
            if needed_pasts(&known, &self.world).values().any(in_feed) {
                self.end().await?;
                self.parts.keys.make().await?;
            }
            let mut session = self.session().await?;
            load_rest(&mut session, &registry, &known, &mut self.world).await?;
            self.session = Some(session);
        }
        // A parent that is not there is known not to be.
        for parent in events.iter().filter_map(|arrived| arrived.parent_record()) {
            self.world.records.entry(parent.clone()).or_default();
        }
        Ok(())
    }

    /// Keeps of a chunk what later ones need beside the states.
    fn note(&mut self, results: &Results) {
        if let Some(answered) = &mut self.answered {
            answered.extend(results.outcomes.iter().map(|row| row.arrived.key()));
            if answered.len() > MOST_ANSWERED {
                self.answered = None;
            }
        }
    }

    /// Lets go of all states: they are written, and looked up when they are needed again.
    fn let_go(&mut self) {
        self.world = World::default();
        self.rows.clear();
        self.held = 0;
    }

    /// Begins to write what has been added, once what went before is written.
    async fn write(&mut self) -> Result<(), ProjectorError> {
        let spill = std::mem::take(&mut self.spill);
        if spill.is_empty() {
            return Ok(());
        }
        let mut session = self.session().await?;
        self.writing = Some(tokio::spawn(async move {
            spill.send(&mut session).await?;
            Ok(session)
        }));
        Ok(())
    }

    /// The connection, amid a transaction, when nothing is written over it.
    async fn session(&mut self) -> Result<Session, ProjectorError> {
        let session = match (self.writing.take(), self.session.take()) {
            (Some(writing), _) => {
                let ended = writing.await;
                ended.map_err(|error| ProjectorError::Consumer(format!("a write ended: {error}")))??
            }
            (None, Some(session)) => session,
            (None, None) => Session::connect(&self.parts.database).await?,
        };
        if self.begun.is_none() {
            let leave = self.parts.keys.leave().await;
            session.client().batch_execute("BEGIN").await?;
            self.begun = Some((Instant::now(), leave));
        }
        Ok(session)
    }

    /// Ends the transaction, and gives back the leave for it.
    async fn end(&mut self) -> Result<(), ProjectorError> {
        self.checkpoint().await?;
        // Where nothing has moved, nothing was done but looking.
        if self.begun.is_some() {
            let session = self.session().await?;
            session.client().batch_execute("COMMIT").await?;
            self.session = Some(session);
            self.begun = None;
        }
        Ok(())
    }

    /// Writes the states that changed, moves the positions, and commits.
    async fn checkpoint(&mut self) -> Result<(), ProjectorError> {
        let moves: Vec<Move> = self.moves();
        if moves.is_empty() {
            return Ok(());
        }
        self.write().await?;
        let mut session = self.session().await?;
        drill::reached("project.writing");
        let stored = &self.stored;
        let changed = self.world.records.iter().filter_map(|(key, record)| {
            let state = record.state.as_deref()?;
            let since = stored.get(&state.place.partition)?.next_offset;
            (state.place.offset >= since).then_some((key, state))
        });
        let changed = in_order(changed);
        checkpoint_rows(&mut session, &self.parts.registry, &changed, &mut self.rows).await?;
        move_positions(&mut session, &moves).await?;
        drill::reached("project.moved");
        session.client().batch_execute("COMMIT").await?;
        drill::reached("project.committed");
        self.stored.clone_from(&self.folded);
        self.session = Some(session);
        self.begun = None;
        Ok(())
    }

    fn moves(&self) -> Vec<Move> {
        let each = self.folded.values().filter_map(|owned| {
            let from = self.stored.get(&owned.partition)?.next_offset;
            (owned.next_offset > from).then(|| Move {
                topic: self.parts.topic.clone(),
                partition: owned.partition,
                epoch: owned.epoch,
                from,
                to: owned.next_offset,
                log_time: owned.log_time,
            })
        });
        each.collect()
    }
}

/// In the order of their primary key, so that its index grows at one place at a time. Identities lie all over memory, and mostly
/// their first letters tell: those are fetched once.
fn in_order<'a, T>(changed: impl Iterator<Item = (&'a RecordKey, T)>) -> Vec<(&'a RecordKey, T)> {
    let mut of_tenants: HashMap<(&str, &str), Vec<_>> = HashMap::new();
    for (key, value) in changed {
        let first = key.subject.bytes().chain(std::iter::repeat(0)).take(16);
        let first = first.fold(0, |number, byte| number << 8 | u128::from(byte));
        let of_tenant = of_tenants.entry((&key.table, &key.tenant)).or_default();
        of_tenant.push((first, (key, value)));
    }
    let mut of_tenants: Vec<_> = of_tenants.into_iter().collect();
    of_tenants.sort_unstable_by_key(|(tenant, _)| *tenant);
    for (_, records) in &mut of_tenants {
        records.sort_unstable_by_key(|(first, (key, _))| (*first, *key));
    }
    let records = of_tenants.into_iter().flat_map(|(_, records)| records);
    records.map(|(_, record)| record).collect()
}

fn payload(record: &LogRecord) -> usize {
    record.payload().map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Identity;

    proptest::proptest! {
        #[test]
        fn states_are_in_the_order_of_their_keys(
            identities in proptest::collection::btree_set(
                ("[ab]", "[ab]{0,2}", "[ab]{0,3}|[ab]{15,18}|a{15}.{0,2}", proptest::option::of(0u128..3)), 0..40
            ),
        ) {
            let keys = identities.into_iter().map(|(table, tenant, subject, parent)| RecordKey::new(Identity {
                table: table.into(),
                tenant: tenant.into(),
                subject: subject.into(),
                parent: parent.map(uuid::Uuid::from_u128),
            }));
            let keys: Vec<RecordKey> = keys.collect();
            let mut expected: Vec<(&RecordKey, usize)> = keys.iter().zip(0..).collect();
            let given = expected.iter().rev().copied();
            let ordered = in_order(given);
            expected.sort_by_key(|(key, _)| *key);
            proptest::prop_assert_eq!(ordered, expected);
        }
    }
}
