//! From the log into the shadow's tables: reads partitions from where they stand to where they are to stand, and hands what is
//! selected to workers that fold it in bulk; where one fails, to a lane. Begins anywhere, so a run that was cut off goes on.

use super::select::Selection;
use super::tables::quoted;
use super::{Offsets, Rate, Shadow};
use crate::ProjectorError;
use crate::backlog::LANE_PARCELS;
use crate::bulk::{FeedKeys, Filler, FillerParts, Letters, Seen};
use crate::lane::{LONGEST_WAIT, Lane, LaneParts, Progress, ToLane};
use crate::log::{Log, Parcel};
use crate::ownership::{Owned, claim};
use crate::record::LogRecord;
use crate::retry::waits;
use crate::session::Session;
use chrono::DateTime;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tidelog_events::domain::{Domain, Registry, feed_key};
use tidelog_events::drill;
use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::Config;

/// How many events were passed on to be folded or passed over, for whoever shows progress.
#[derive(Debug, Default, Clone)]
pub struct Passed(Arc<AtomicU64>);

impl Passed {
    /// So far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// So many are passed on once more.
    fn take_back(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

/// The highest time of a record so far, in milliseconds, of each partition.
pub(super) type Clocks = Arc<Mutex<BTreeMap<i32, i64>>>;

impl Shadow {
    /// Where folding goes on: what the tables hold, or further where this process has passed over what is not selected.
    pub async fn positions(&self) -> Result<Offsets, ProjectorError> {
        let client = self.connect().await?;
        let sql = self.positions_of(&self.config.schema);
        let mut positions = self.read_to();
        for row in client.query(&sql, &[&self.topic(), &self.numbers()]).await? {
            let at: &mut i64 = positions.entry(row.get(0)).or_default();
            *at = row.get::<_, i64>(1).max(*at);
        }
        Ok(positions)
    }

    /// Folds what is selected of the log up to `to`. Answers whether it came so far; not where it was told to stop. What was done
    /// by then stays.
    pub async fn fold_to(
        &self,
        to: &Offsets,
        selection: &Arc<Selection>,
        passed: &Passed,
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, ProjectorError> {
        self.fold_gently(to, selection, passed, &Rate::default(), stop)
            .await
    }

    /// The same, no faster than at that rate.
    pub async fn fold_gently(
        &self,
        to: &Offsets,
        selection: &Arc<Selection>,
        passed: &Passed,
        rate: &Rate,
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, ProjectorError> {
        let from = self.positions().await?;
        let mut ranges: BTreeMap<i32, (i64, Option<i64>)> = BTreeMap::new();
        for (&partition, &to) in to {
            let from = from.get(&partition).copied().unwrap_or(0);
            if from < to {
                ranges.insert(partition, (from, Some(to)));
            }
        }
        if ranges.is_empty() {
            return Ok(true);
        }
        if self.read_to().is_empty() {
            self.check_beginnings(&ranges).await?;
        }
        let letters = self.letters(&self.connect().await?).await?;
        let owned = claimed(&self.database(), &self.topic(), &ranges, &self.config.instance).await?;
        // Only who sees the whole log from its beginning knows what is not in the tables.
        let fresh = owned.values().all(|owned| owned.next_offset == 0) && from.values().all(|at| *at == 0);
        // The live schema has tables of these names too.
        let feed = |domain: &Arc<Domain>| {
            (
                quoted(&self.config.schema, &domain.changes_table()),
                feed_key(domain),
            )
        };
        let feeds = self.domains.iter().map(feed).collect();
        let keys = FeedKeys::of(self.database(), feeds, fresh).await?;
        let parts = shares(&ranges, self.config.jobs);
        let memory = u32::try_from(self.config.memory / parts.len().max(1)).unwrap_or(u32::MAX);
        let memory = drill::number("memory", memory) as usize;
        let mut lanes = tokio::task::JoinSet::new();
        for ranges in parts {
            let count = ranges
                .values()
                .map(|(from, to)| to.unwrap_or(0) - from)
                .sum::<i64>();
            let share = Share {
                log: self.log(),
                topic: self.topic(),
                prefix: self.config.topic_prefix.clone(),
                registry: Arc::new(self.config.registry.apart()),
                database: self.database(),
                instance: self.config.instance.clone(),
                owned: ranges.keys().filter_map(|p| owned.get(p).cloned()).collect(),
                seen: fresh.then(|| Seen::new(count.unsigned_abs())),
                memory,
                letters: letters.clone(),
                keys: keys.clone(),
                ranges,
                selection: selection.clone(),
                clocks: self.clocks.clone(),
                passed: passed.clone(),
                rate: rate.clone(),
                stop: stop.clone(),
            };
            lanes.spawn(share.run());
        }
        while let Some(lane) = lanes.join_next().await {
            let ended = lane.map_err(|error| ProjectorError::Consumer(error.to_string()))?;
            match ended {
                Ok(()) => {}
                Err(_) if *stop.borrow() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if *stop.borrow() {
            return Ok(false);
        }
        keys.make().await?;
        self.note_read(to);
        Ok(true)
    }

    /// What the log has no more cannot be folded.
    async fn check_beginnings(
        &self,
        ranges: &BTreeMap<i32, (i64, Option<i64>)>,
    ) -> Result<(), ProjectorError> {
        let bounds = self.log().bounds().await?;
        for (&partition, &(from, to)) in ranges {
            let Some(kept) = bounds.get(&partition) else {
                return Err(ProjectorError::Log(format!(
                    "{} has no partition {partition}",
                    self.topic()
                )));
            };
            if kept.start > from {
                return Err(ProjectorError::Log(format!(
                    "partition {partition} of {} begins at offset {}: what stood before is not in the log any more, so it cannot \
                     be folded from its beginning. Begin with a snapshot that has it (--snapshot DIR; tidelog snapshot takes them)",
                    self.topic(),
                    kept.start
                )));
            }
            if to.is_some_and(|to| to > kept.end) {
                return Err(ProjectorError::Log(format!(
                    "partition {partition} of {} ends at offset {}, before what has been applied: the topic was lost or made anew",
                    self.topic(),
                    kept.end
                )));
            }
        }
        Ok(())
    }
}

/// Partitions for each lane, so that each has about as much to do.
fn shares(ranges: &BTreeMap<i32, (i64, Option<i64>)>, jobs: usize) -> Vec<BTreeMap<i32, (i64, Option<i64>)>> {
    let size = |range: &(i64, Option<i64>)| range.1.unwrap_or(0) - range.0;
    let mut by_size: Vec<_> = ranges.iter().collect();
    by_size.sort_by_key(|(_, range)| -size(range));
    let mut shares = vec![(0, BTreeMap::new()); jobs.clamp(1, ranges.len().max(1))];
    for (partition, range) in by_size {
        if let Some((work, share)) = shares.iter_mut().min_by_key(|(work, _)| *work) {
            *work += size(range);
            share.insert(*partition, *range);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

/// Claims partitions of a shadow's tables.
async fn claimed(
    database: &Config,
    topic: &str,
    ranges: &BTreeMap<i32, (i64, Option<i64>)>,
    instance: &str,
) -> Result<BTreeMap<i32, Owned>, ProjectorError> {
    let mut session = Session::connect(database).await?;
    let wanted = BTreeMap::from([(topic.to_owned(), ranges.keys().copied().collect())]);
    let owned = claim(&mut session, &wanted, instance).await?;
    let owned = owned.into_values().flatten();
    Ok(owned.map(|owned| (owned.partition, owned)).collect())
}

/// Partitions that one worker folds, and with what.
struct Share {
    log: Log,
    topic: String,
    prefix: String,
    registry: Arc<Registry>,
    database: Config,
    instance: String,
    owned: Vec<Owned>,
    seen: Option<Seen>,
    memory: usize,
    letters: Letters,
    keys: Arc<FeedKeys>,
    ranges: BTreeMap<i32, (i64, Option<i64>)>,
    selection: Arc<Selection>,
    clocks: Clocks,
    passed: Passed,
    rate: Rate,
    stop: watch::Receiver<bool>,
}

impl Share {
    /// In bulk, and where that fails, step by step from what it has brought into the tables.
    async fn run(mut self) -> Result<(), ProjectorError> {
        let clocks = self.clocks();
        let passed = Passed::default();
        let filler = Filler::new(FillerParts {
            topic: self.topic.clone(),
            prefix: self.prefix.clone(),
            registry: self.registry.clone(),
            database: self.database.clone(),
            letters: self.letters.clone(),
            keys: self.keys.clone(),
            seen: self.seen.take(),
            memory: self.memory,
        });
        let (sender, inbox) = mpsc::channel(LANE_PARCELS);
        let (fed, filled) = futures_util::join!(self.feed(sender, &passed), filler.run(inbox));
        match filled {
            Ok(owned) => arrived(&self.topic, &fed?, &owned),
            Err(error) if *self.stop.borrow() || !may_be_done_by_steps(&error) => Err(error),
            Err(error) => {
                tracing::info!(topic = %self.topic, %error, "what was begun in bulk is gone on with step by step");
                // The log is read from the same offset, for its clock; what is in the tables by now is passed over.
                self.set_clocks(clocks);
                self.passed.take_back(passed.count());
                self.step_by_step().await
            }
        }
    }

    async fn step_by_step(mut self) -> Result<(), ProjectorError> {
        self.owned = self.claim_again().await?;
        let (sender, inbox) = mpsc::channel(LANE_PARCELS);
        let progress = Progress::default();
        let lane = Lane::new(LaneParts {
            topic: self.topic.clone(),
            prefix: self.prefix.clone(),
            registry: self.registry.clone(),
            database: self.database.clone(),
            inbox,
            progress: progress.clone(),
            moved: Arc::new(Notify::new()),
            dead: None,
            letters: Some(self.letters.clone()),
            shutdown: self.stop.clone(),
        });
        let passed = Passed::default();
        let (fed, ()) = futures_util::join!(self.feed(sender, &passed), lane.run());
        let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        arrived(
            &self.topic,
            &fed?,
            &progress.values().cloned().collect::<Vec<_>>(),
        )
    }

    /// A lane looks things up in feeds.
    async fn claim_once(&self) -> Result<Vec<Owned>, ProjectorError> {
        self.keys.make().await?;
        let owned = claimed(&self.database, &self.topic, &self.ranges, &self.instance).await?;
        Ok(owned.into_values().collect())
    }

    /// As long as Postgres is away, it is waited for, as a lane does.
    async fn claim_again(&mut self) -> Result<Vec<Owned>, ProjectorError> {
        let mut waits = waits();
        loop {
            match self.claim_once().await {
                Ok(owned) => return Ok(owned),
                Err(error) if error.is_transient() => {
                    let wait = waits.next().unwrap_or(LONGEST_WAIT);
                    if unless_stopped(&mut self.stop, tokio::time::sleep(wait))
                        .await
                        .is_none()
                    {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn clocks(&self) -> BTreeMap<i32, i64> {
        let clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |partition: &i32| (*partition, clocks.get(partition).copied().unwrap_or_default());
        self.ranges.keys().map(own).collect()
    }

    fn set_clocks(&self, to: BTreeMap<i32, i64>) {
        let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.extend(to);
    }

    /// Hands over the partitions and what is selected of them; answers, of each, the offset after the last that it handed over.
    /// What was passed on is counted in `passed` too.
    async fn feed(&self, sender: mpsc::Sender<ToLane>, passed: &Passed) -> Result<Offsets, ProjectorError> {
        let mut handed = Offsets::new();
        let gone = || ProjectorError::Consumer("the lane ended".into());
        for owned in &self.owned {
            let sent = sender.send(ToLane::Own(owned.clone())).await;
            sent.map_err(|_| gone())?;
        }
        let mut stop = self.stop.clone();
        let mut parcels = self.log.read(&self.ranges);
        // Who waits for a log that is away, or for the rate, hears all the same that it is to stop.
        while let Some(parcel) = unless_stopped(&mut stop, parcels.recv()).await.flatten() {
            let parcel = parcel?;
            let partition = parcel.partition;
            let count = parcel.records.len() as u64;
            let wait = self.rate.reserve(count);
            if !wait.is_zero()
                && unless_stopped(&mut stop, tokio::time::sleep(wait))
                    .await
                    .is_none()
            {
                break;
            }
            let records = selected(&self.selection, &self.clocks, parcel);
            if let Some(last) = records.last() {
                handed.insert(partition, last.offset() + 1);
                let sent = sender.send(ToLane::Records(records)).await;
                sent.map_err(|_| gone())?;
            }
            self.passed.add(count);
            passed.add(count);
        }
        Ok(handed)
    }
}

/// Whether a lane may come further than a filler came: it waits for Postgres, and finds the event that it refuses.
fn may_be_done_by_steps(error: &ProjectorError) -> bool {
    matches!(
        error,
        ProjectorError::Postgres(_) | ProjectorError::Stored(_) | ProjectorError::Consumer(_)
    )
}

/// What the work comes to; none where it was told to stop before.
async fn unless_stopped<T>(stop: &mut watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        // A sender that is gone can no longer say so.
        Ok(_) = stop.wait_for(|stop| *stop) => None,
        done = work => Some(done),
    }
}

/// What is selected of a parcel, at the times that it would have if nothing were left out.
fn selected(selection: &Selection, clocks: &Clocks, parcel: Parcel) -> Vec<LogRecord> {
    if matches!(selection, Selection::All) {
        return parcel.records;
    }
    let mut clocks = clocks.lock().unwrap_or_else(PoisonError::into_inner);
    let clock = clocks.entry(parcel.partition).or_default();
    let mut records = Vec::new();
    for record in parcel.records {
        *clock = record.log_time().timestamp_millis().max(*clock);
        if selection.takes(&record) {
            let at = DateTime::from_timestamp_millis(*clock).unwrap_or_else(|| record.log_time());
            records.push(record.told_at(at));
        }
    }
    records
}

/// Whether everything that was handed over is in the tables.
fn arrived(topic: &str, handed: &Offsets, owned: &[Owned]) -> Result<(), ProjectorError> {
    for (partition, to) in handed {
        let at = owned.iter().find(|owned| owned.partition == *partition);
        let at = at.map_or(0, |owned| owned.next_offset);
        if at < *to {
            return Err(ProjectorError::Consumer(format!(
                "partition {partition} of {topic} came to {at} instead of {to}: another run may have taken it over"
            )));
        }
    }
    Ok(())
}
