//! The one Kafka consumer of a process: joins the group, hands records to the lanes, and follows rebalances. A thread
//! of its own, because librdkafka's calls block. Where a partition starts is what Postgres says, never what the group's
//! committed offsets say; those are kept for the tools that show lag. Knows nothing of events.

use crate::ProjectorError;
use crate::backlog::{Backlog, PARCEL_RECORDS};
use crate::lane::{Progress, ToLane};
use crate::ownership::{End, Owned, claim, heartbeat};
use crate::retry::waits;
use crate::session::Session;
use crate::withheld::{LOOK_AGAIN, Withheld, look_again, withhold};
use chrono::Utc;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidelog_events::drill;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Config;

/// How long a rebalance waits for lanes to finish their chunk; a lane that takes longer is fenced off.
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// While a lane has no room: how often it is asked again.
const POLL_WAITING: Duration = Duration::from_millis(2);
/// How long a parcel waits for its next record. A batch's records come partition by partition; taken one parcel each,
/// they would cost a transaction each.
const GATHER: Duration = Duration::from_millis(1);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What the consumer works with.
pub(crate) struct ConsumerParts {
    pub(crate) brokers: String,
    pub(crate) group: String,
    pub(crate) instance: String,
    pub(crate) database: Config,
    /// The lane of each topic.
    pub(crate) lanes: HashMap<String, mpsc::Sender<ToLane>>,
    pub(crate) progress: Progress,
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// Follows rebalances.
pub(crate) struct Context {
    pub(crate) runtime: Handle,
    pub(crate) instance: String,
    pub(crate) database: Config,
    pub(crate) lanes: HashMap<String, mpsc::Sender<ToLane>>,
    shutdown: watch::Receiver<bool>,
    /// What was read and not taken by a lane yet.
    backlog: Mutex<Backlog>,
    /// A commit of the group's offsets is under way.
    committing: AtomicBool,
    /// What the group has taken.
    told: Mutex<Positions>,
    /// Why this process may not go on: a newer one has had a partition that it was to own.
    refused: Mutex<Option<ProjectorError>>,
    /// Partitions that cannot be read from where they stand.
    withheld: Mutex<Withheld>,
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "the consumer's client");
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let result = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, partitions),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                self.revoked(partitions);
                consumer.incremental_unassign(partitions)
            }
            other => {
                tracing::error!(error = ?other, "a rebalance failed");
                consumer.unassign()
            }
        };
        if let Err(error) = result {
            tracing::error!(%error, "the assignment could not be carried out");
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, offsets: &TopicPartitionList) {
        self.committing.store(false, Ordering::Relaxed);
        match result {
            Ok(()) => self
                .told()
                .extend(offsets.elements().iter().filter_map(|element| {
                    let at = (element.topic().to_owned(), element.partition());
                    Some((at, element.offset().to_raw()?))
                })),
            Err(error) => tracing::debug!(%error, "the group's offsets were not committed"),
        }
    }
}

impl Context {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Positions> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn withheld(&self) -> MutexGuard<'_, Withheld> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, Option<ProjectorError>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims in Postgres what the group assigned, tells the lanes, and starts reading where Postgres stands.
    fn assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let mut start = TopicPartitionList::new();
        let mut wanted = by_topic(partitions);
        wanted.retain(|topic, _| self.lanes.contains_key(topic));
        for (topic, owned) in self.claim(&wanted).unwrap_or_default() {
            let Some(lane) = self.lanes.get(&topic) else {
                continue;
            };
            tracing::info!(topic, partitions = ?wanted.get(&topic), "owns");
            for owned in owned {
                // The group may take back only what was assigned: one that is withheld too, of which nothing comes from there.
                start.add_partition_offset(&topic, owned.partition, Offset::Offset(owned.next_offset))?;
                if withhold(consumer, &topic, &owned) {
                    continue;
                }
                tracing::debug!(
                    topic,
                    partition = owned.partition,
                    offset = owned.next_offset,
                    epoch = owned.epoch,
                    "starts"
                );
                // A lane that is gone ends with the process.
                let _ = self.runtime.block_on(lane.send(ToLane::Own(owned)));
            }
        }
        consumer.incremental_assign(&start)?;
        // A pause outlives the assignment in which it was made: a partition that was taken away while its topic was paused would
        // come back paused, with nobody left to resume it. Where there still is too much, it is paused again.
        match drill::guarded("resume") {
            true => consumer.resume(&start),
            false => Ok(()),
        }
    }

    /// Claims all at once, however long Postgres is away; gives up only when the process shuts down.
    fn claim(&self, wanted: &BTreeMap<String, Vec<i32>>) -> Option<BTreeMap<String, Vec<Owned>>> {
        if wanted.is_empty() {
            return None;
        }
        self.runtime.block_on(async {
            let mut shutdown = self.shutdown.clone();
            for wait in waits() {
                let attempt = async {
                    let mut session = Session::connect(&self.database).await?;
                    claim(&mut session, wanted, &self.instance).await
                };
                match attempt.await {
                    Ok(owned) => return Some(owned),
                    Err(error @ ProjectorError::Newer { .. }) => {
                        *self.refused() = Some(error);
                        return None;
                    }
                    Err(error) => tracing::warn!(%error, ?wait, "partitions cannot be claimed yet"),
                }
                tokio::select! {
                    _ = tokio::time::sleep(wait) => {}
                    _ = shutdown.wait_for(|stop| *stop) => return None,
                }
            }
            None
        })
    }

    /// Has the lanes finish what they hold of these partitions.
    fn revoked(&self, partitions: &TopicPartitionList) {
        for (topic, numbers) in by_topic(partitions) {
            let Some(lane) = self.lanes.get(&topic) else {
                continue;
            };
            if !drill::guarded("release") {
                continue;
            }
            self.backlog().forget(&topic, &numbers);
            self.withheld().forget(&topic, &numbers);
            let (done, finished) = oneshot::channel();
            // A lane that waits for Postgres takes no orders, and may have no room for one either.
            let releasing = async {
                lane.send(ToLane::Release(numbers.clone(), done)).await.ok()?;
                finished.await.ok()
            };
            let released = self
                .runtime
                .block_on(async { tokio::time::timeout(RELEASE_DEADLINE, releasing).await });
            // At shutdown the lanes have ended by themselves already.
            if matches!(released, Ok(Some(()))) {
                tracing::info!(topic, partitions = ?numbers, "let go of");
            } else if !*self.shutdown.borrow() {
                tracing::warn!(topic, partitions = ?numbers, "let go of before the lane had finished: it is fenced off");
            }
        }
    }
}

fn by_topic(partitions: &TopicPartitionList) -> BTreeMap<String, Vec<i32>> {
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for element in partitions.elements() {
        topics
            .entry(element.topic().to_owned())
            .or_default()
            .push(element.partition());
    }
    topics
}

/// Runs the consumer until shutdown. Blocks: call it on a thread of its own.
pub(crate) fn run(parts: ConsumerParts, runtime: Handle) -> Result<(), ProjectorError> {
    let topics: Vec<String> = parts.lanes.keys().cloned().collect();
    let context = Context {
        runtime: runtime.clone(),
        instance: parts.instance.clone(),
        database: parts.database.clone(),
        lanes: parts.lanes.clone(),
        shutdown: parts.shutdown.clone(),
        backlog: Mutex::default(),
        committing: AtomicBool::new(false),
        told: Mutex::default(),
        refused: Mutex::default(),
        withheld: Mutex::default(),
    };
    let consumer: Arc<BaseConsumer<Context>> = Arc::new(client_config(&parts).create_with_context(context)?);
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&names)?;
    let reach = Reach {
        brokers: parts.brokers.clone(),
        topic: topics.first().cloned().unwrap_or_default(),
    };
    let pulse = runtime.spawn(pulse(
        consumer.clone(),
        reach,
        parts.database.clone(),
        parts.progress.clone(),
        parts.shutdown.clone(),
    ));
    let (mut committed, mut looked) = (Instant::now(), Instant::now());
    let mut refused = None;
    while !*parts.shutdown.borrow() {
        refused = consumer.context().refused().take();
        if refused.is_some() {
            break;
        }
        read_parcel(&consumer);
        let flow = consumer.context().backlog().hand_over(&consumer.context().lanes);
        for (topics, paused) in [(flow.pause, true), (flow.resume, false)] {
            for topic in topics {
                pause(&consumer, &topic, paused);
            }
        }
        if committed.elapsed() > HEARTBEAT {
            commit(&consumer, &parts.progress);
            committed = Instant::now();
        }
        if looked.elapsed() > LOOK_AGAIN {
            look_again(&consumer, &parts.progress);
            looked = Instant::now();
        }
    }
    // The lanes end their chunks by themselves at shutdown; what they wrote is in Postgres, so nothing is lost if the
    // group's offsets lag behind.
    commit(&consumer, &parts.progress);
    consumer.unsubscribe();
    // The pulse ends with the shutdown, or here. Waited for, so that the last handle on the consumer is this one: closing it calls
    // back into the rebalance, which must not happen on a worker of the runtime.
    if refused.is_some() {
        pulse.abort();
    }
    let _ = runtime.block_on(pulse);
    drop(consumer);
    refused.map_or(Ok(()), Err)
}

fn client_config(parts: &ConsumerParts) -> ClientConfig {
    let session = drill::number("session_ms", 6000);
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &parts.brokers)
        .set("group.id", &parts.group)
        .set("client.id", &parts.instance)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Where the log does not have a position, nothing is read: another place would pass over records without a word.
        .set("auto.offset.reset", "error")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session.to_string())
        .set("heartbeat.interval.ms", (session / 6).to_string())
        .set("max.poll.interval.ms", "300000")
        .set("fetch.wait.max.ms", "500")
        .set("fetch.min.bytes", "1")
        // What is prefetched is memory of this process: bounded by bytes for all partitions together, nearly.
        .set("queued.max.messages.kbytes", "4096")
        .set("queued.min.messages", "4000")
        // When that much is queued, reading on waits for this long: a second by default, in which all of it is folded.
        .set("fetch.queue.backoff.ms", "1")
        .set("fetch.message.max.bytes", "1048576")
        .set("socket.nagle.disable", "true")
        // What a broker that hangs is waited for; a fetch is answered within half a second.
        .set("socket.timeout.ms", "10000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.interval.ms", "5000");
    config
}

/// Reads what has arrived, waiting for the first record and hardly for the others.
fn read_parcel(consumer: &BaseConsumer<Context>) {
    let context = consumer.context();
    let mut wait = if context.backlog().waits() {
        POLL_WAITING
    } else {
        POLL
    };
    for _ in 0..PARCEL_RECORDS {
        // A rebalance takes place within the poll and makes the backlog forget, so a record is gathered at once.
        match consumer.poll(wait) {
            Some(Ok(message)) => context.backlog().gather(&message),
            Some(Err(error)) if lost_its_place(&error) => context.withheld().doubt(),
            Some(Err(error)) => tracing::warn!(%error, "the consumer"),
            None => return,
        }
        wait = GATHER;
    }
}

/// A partition is read no further, since the log does not have its position.
fn lost_its_place(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| matches!(code, AutoOffsetReset | OffsetOutOfRange))
}

fn pause(consumer: &BaseConsumer<Context>, topic: &str, pause: bool) {
    let result = consumer.assignment().and_then(|assigned| {
        let mut partitions = TopicPartitionList::new();
        for element in assigned.elements_for_topic(topic) {
            partitions.add_partition(topic, element.partition());
        }
        if pause {
            consumer.pause(&partitions)
        } else {
            consumer.resume(&partitions)
        }
    });
    if let Err(error) = result {
        tracing::warn!(%error, topic, pause, "a topic could not be paused or resumed");
    }
}

/// Positions as the group was told them.
type Positions = HashMap<(String, i32), i64>;

/// Commits the applied positions to the group, for the tools that show its lag: those that moved, and never beside a
/// commit that is under way. A member that fell out of the group joins again only after every commit of its has been
/// answered; with one a second, a broker that had been frozen for some seconds was left for good.
fn commit(consumer: &BaseConsumer<Context>, progress: &Progress) {
    let committing = &consumer.context().committing;
    if committing.load(Ordering::Relaxed) {
        return;
    }
    let mut offsets = TopicPartitionList::new();
    {
        let told = consumer.context().told();
        let owned = progress.lock().unwrap_or_else(PoisonError::into_inner);
        for ((topic, partition), owned) in owned.iter() {
            if told.get(&(topic.clone(), *partition)) != Some(&owned.next_offset) {
                // A partition is listed once, so adding it cannot fail.
                let _ = offsets.add_partition_offset(topic, *partition, Offset::Offset(owned.next_offset));
            }
        }
    }
    if offsets.count() == 0 {
        return;
    }
    match consumer.commit(&offsets, CommitMode::Async) {
        Ok(()) => committing.store(true, Ordering::Relaxed),
        Err(error) => tracing::debug!(%error, "the group's offsets were not committed"),
    }
}

/// Where a consumer that has lost every broker finds them again, and a topic to ask about.
struct Reach {
    brokers: String,
    topic: String,
}

impl Reach {
    async fn look(&self, consumer: &Arc<BaseConsumer<Context>>) {
        tidelog_kafka::reaches(consumer, |consumer| consumer.client(), &self.brokers, &self.topic).await;
    }
}

/// Every second: where the log ends, so that a partition at its end counts as applied up to now.
async fn pulse(
    consumer: Arc<BaseConsumer<Context>>,
    reach: Reach,
    database: Config,
    progress: Progress,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut session: Option<Session> = None;
    loop {
        tokio::select! {
            _ = tokio::time::sleep(HEARTBEAT) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        let owned: Vec<((String, i32), Owned)> = progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(at, owned)| (at.clone(), owned.clone()))
            .collect();
        if owned.is_empty() {
            reach.look(&consumer).await;
            continue;
        }
        let asked_at = Utc::now();
        let asking = consumer.clone();
        let ends = match tokio::task::spawn_blocking(move || ends(&asking, owned)).await {
            Ok(Ok(ends)) => ends,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the log's ends could not be asked for");
                reach.look(&consumer).await;
                continue;
            }
            Err(_) => return,
        };
        if session.is_none() {
            session = Session::connect(&database).await.ok();
        }
        if let Some(open) = &mut session
            && let Err(error) = heartbeat(open, &ends, asked_at).await
        {
            tracing::debug!(%error, "the positions' heartbeat was not written");
            session = None;
        }
    }
}

/// One ListOffsets request a broker, whatever the number of partitions.
fn ends(
    consumer: &BaseConsumer<Context>,
    owned: Vec<((String, i32), Owned)>,
) -> Result<Vec<End>, KafkaError> {
    let mut ask = TopicPartitionList::new();
    let mut epochs = HashMap::new();
    for ((topic, partition), owned) in owned {
        ask.add_partition_offset(&topic, partition, Offset::End)?;
        epochs.insert((topic, partition), owned.epoch);
    }
    let answered = consumer.offsets_for_times(ask, Duration::from_secs(5))?;
    let mut ends = Vec::new();
    for element in answered.elements() {
        let at = (element.topic().to_owned(), element.partition());
        if let (Offset::Offset(end_offset), Some(epoch)) = (element.offset(), epochs.get(&at)) {
            ends.push(End {
                topic: at.0,
                partition: at.1,
                epoch: *epoch,
                end_offset,
            });
        }
    }
    Ok(ends)
}
