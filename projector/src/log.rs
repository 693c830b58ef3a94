//! A topic's log, read from one offset to another outside any group: for replays, for proofs and for people who look. Reading it
//! moves nothing that anybody else goes by. Knows nothing of events.

use crate::ProjectorError;
use crate::record::{Copyist, LogRecord};
use chrono::{DateTime, Utc};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long the cluster may take to say where its log begins and ends.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a partition may be without a leader before that is told, and how often it is looked.
const SETTLING: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);
/// Most records of a parcel, and about how many bytes of values.
const PARCEL_RECORDS: usize = 1000;
const PARCEL_BYTES: usize = 1 << 20;
/// Parcels that wait for whoever reads.
const WAITING: usize = 4;
/// How long a parcel waits for its next record.
const GATHER: Duration = Duration::from_millis(2);
const POLL: Duration = Duration::from_millis(100);

/// Says nothing of a partition's end, which is no error here; the library would, each time.
struct Quiet;

type Client = BaseConsumer<Quiet>;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!(%error, reason, "the log's cluster");
        }
    }
}

impl ConsumerContext for Quiet {}

/// A topic's log.
#[derive(Debug, Clone)]
pub struct Log {
    brokers: String,
    topic: String,
}

/// Records of one partition, in their order.
#[derive(Debug)]
pub struct Parcel {
    /// Which.
    pub partition: i32,
    /// The records; none where the range's last offsets hold none.
    pub records: Vec<LogRecord>,
    /// Everything before this offset has been read.
    pub next_offset: i64,
}

impl Log {
    /// `brokers` as in `bootstrap.servers`; the topic's name with its prefix.
    pub fn new(brokers: &str, topic: &str) -> Log {
        Log {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
        }
    }

    /// The topic's name, with its prefix.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The first offset that each partition still has, and the one after its last.
    pub async fn bounds(&self) -> Result<BTreeMap<i32, Range<i64>>, ProjectorError> {
        let log = self.clone();
        self.ask(move |consumer| {
            let mut bounds = BTreeMap::new();
            for partition in partitions(consumer, &log.topic)? {
                let (low, high) = consumer.fetch_watermarks(&log.topic, partition, PATIENCE)?;
                bounds.insert(partition, low..high);
            }
            Ok(bounds)
        })
        .await
    }

    /// Each partition's first record that is no older than `time`; where there is none, the offset after its last.
    pub async fn at_time(&self, time: DateTime<Utc>) -> Result<BTreeMap<i32, i64>, ProjectorError> {
        let partitions = self.bounds().await?.into_keys();
        self.at_times(partitions.map(|partition| (partition, time)).collect())
            .await
    }

    /// The same, of each of these partitions at a time of its own.
    pub async fn at_times(
        &self,
        times: BTreeMap<i32, DateTime<Utc>>,
    ) -> Result<BTreeMap<i32, i64>, ProjectorError> {
        let log = self.clone();
        self.ask(move |consumer| {
            let mut asked = TopicPartitionList::new();
            for (partition, time) in &times {
                asked.add_partition_offset(
                    &log.topic,
                    *partition,
                    Offset::Offset(time.timestamp_millis()),
                )?;
            }
            let mut found = BTreeMap::new();
            for element in consumer.offsets_for_times(asked, PATIENCE)?.elements() {
                element.error()?;
                let offset = match element.offset() {
                    Offset::Offset(offset) => offset,
                    _ => {
                        consumer
                            .fetch_watermarks(&log.topic, element.partition(), PATIENCE)?
                            .1
                    }
                };
                found.insert(element.partition(), offset);
            }
            Ok(found)
        })
        .await
    }

    /// Reads all that there is now, of every partition; and what comes afterwards if `follow`. As [`read`](Self::read) does.
    pub async fn read_all(
        &self,
        follow: bool,
    ) -> Result<mpsc::Receiver<Result<Parcel, ProjectorError>>, ProjectorError> {
        let bounds = self.bounds().await?;
        let ranges = bounds
            .into_iter()
            .map(|(partition, bounds)| (partition, (bounds.start, (!follow).then_some(bounds.end))))
            .collect();
        Ok(self.read(&ranges))
    }

    /// Reads ranges of partitions, to their ends; one without an end is followed for ever. The channel closes when all is
    /// read, or after an error; dropping it ends the reading. While Kafka is away it waits for it.
    pub fn read(
        &self,
        ranges: &BTreeMap<i32, (i64, Option<i64>)>,
    ) -> mpsc::Receiver<Result<Parcel, ProjectorError>> {
        let (parcels, receiver) = mpsc::channel(WAITING);
        let mut reader = Reader {
            log: self.clone(),
            open: ranges
                .iter()
                .filter(|(_, (from, to))| to.is_none_or(|to| *from < to))
                .map(|(&partition, &(from, to))| (partition, Open::new(from, to)))
                .collect(),
            parcels,
        };
        tokio::task::spawn_blocking(move || {
            let consumer = reader.log.consumer();
            let (consumer, ended) = match consumer {
                Ok(consumer) => {
                    let ended = reader.run(&consumer);
                    (Some(consumer), ended)
                }
                Err(error) => (None, Err(error)),
            };
            if let Err(error) = ended {
                // Nobody listening any more is no error.
                let _ = reader.parcels.blocking_send(Err(error));
            }
            // Whoever reads knows that this is all before the client has taken its leave, which may take it long.
            drop(reader);
            drop(consumer);
        });
        receiver
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&Client) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, ProjectorError> {
        let consumer = self.consumer()?;
        let answered = tokio::task::spawn_blocking(move || {
            let until = Instant::now() + SETTLING;
            loop {
                match question(&consumer) {
                    Err(error) if is_between_leaders(&error) && Instant::now() < until => {
                        std::thread::sleep(AGAIN);
                    }
                    answer => return answer,
                }
            }
        })
        .await;
        Ok(answered.map_err(|error| ProjectorError::Consumer(error.to_string()))??)
    }

    fn consumer(&self) -> Result<Client, ProjectorError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "tidelog-log")
            // Nothing is ever committed under it: librdkafka wants a name where partitions are assigned by hand.
            .set("group.id", "tidelog-log")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // What the log does not have any more is told, never passed over.
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", "8192")
            .set("queued.min.messages", "10000")
            .set("fetch.queue.backoff.ms", "1")
            .set("fetch.message.max.bytes", "1048576")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Error);
        Ok(config.create_with_context(Quiet)?)
    }
}

/// A partition changes its leader, or has been made a moment ago: it passes.
fn is_between_leaders(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{LeaderNotAvailable, NotLeaderForPartition};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| matches!(code, LeaderNotAvailable | NotLeaderForPartition))
}

fn partitions(consumer: &Client, topic: &str) -> Result<Vec<i32>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found {
        Some(found) if found.error().is_none() => Ok(found.partitions().iter().map(|p| p.id()).collect()),
        _ => Err(KafkaError::MetadataFetch(
            RDKafkaErrorCode::UnknownTopicOrPartition,
        )),
    }
}

/// A partition that is not read to its end yet.
struct Open {
    next_offset: i64,
    to: Option<i64>,
    gathered: Vec<LogRecord>,
    /// Nothing more is to come.
    done: bool,
}

impl Open {
    fn new(from: i64, to: Option<i64>) -> Open {
        Open {
            next_offset: from,
            to,
            gathered: Vec::new(),
            done: false,
        }
    }
}

struct Reader {
    log: Log,
    open: BTreeMap<i32, Open>,
    parcels: mpsc::Sender<Result<Parcel, ProjectorError>>,
}

impl Reader {
    fn run(&mut self, consumer: &Client) -> Result<(), ProjectorError> {
        if self.open.is_empty() {
            return Ok(());
        }
        // A client that has not heard of a topic looks for its leaders once a second only: without asking, that is what the first
        // record takes. Where nobody answers now, it waits like that.
        if let Err(error) = partitions(consumer, &self.log.topic) {
            tracing::debug!(%error, topic = %self.log.topic, "its leaders are not known yet");
        }
        let mut start = TopicPartitionList::new();
        for (partition, open) in &self.open {
            start.add_partition_offset(&self.log.topic, *partition, Offset::Offset(open.next_offset))?;
        }
        consumer.assign(&start)?;
        let (mut copyist, mut records, mut bytes) = (Copyist::of(self.log.topic()), 0, 0);
        while !self.open.is_empty() && !self.parcels.is_closed() {
            let wait = if records == 0 { POLL } else { GATHER };
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    bytes += message.payload_len();
                    records += usize::from(self.take(copyist.copy(&message)));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => self.at_end(consumer, partition)?,
                Some(Err(error)) if ends_the_reading(&error) => return Err(error.into()),
                Some(Err(error)) => tracing::warn!(%error, topic = %self.log.topic, "the log is waited for"),
                None if records > 0 => bytes = PARCEL_BYTES,
                None => {}
            }
            if records >= PARCEL_RECORDS || bytes >= PARCEL_BYTES || self.open.values().any(|open| open.done)
            {
                if !self.hand_over(consumer)? {
                    return Ok(());
                }
                (records, bytes) = (0, 0);
            }
        }
        Ok(())
    }

    /// Keeps a record of its range; answers whether it did.
    fn take(&mut self, record: LogRecord) -> bool {
        let Some(open) = self.open.get_mut(&record.partition()) else {
            return false;
        };
        if open.done || open.to.is_some_and(|to| record.offset() >= to) {
            open.done = true;
            return false;
        }
        open.next_offset = record.offset() + 1;
        open.done = open.to.is_some_and(|to| open.next_offset >= to);
        open.gathered.push(record);
        true
    }

    /// The last offsets of a range may hold no record (a transaction's markers): the log's end tells.
    fn at_end(&mut self, consumer: &Client, partition: i32) -> Result<(), ProjectorError> {
        let Some(open) = self.open.get_mut(&partition) else {
            return Ok(());
        };
        let Some(to) = open.to else { return Ok(()) };
        let (_, end) = consumer.fetch_watermarks(&self.log.topic, partition, PATIENCE)?;
        open.done |= end >= to;
        Ok(())
    }

    /// Hands over what was gathered; answers whether somebody takes it.
    fn hand_over(&mut self, consumer: &Client) -> Result<bool, ProjectorError> {
        let mut finished = TopicPartitionList::new();
        for (&partition, open) in &mut self.open {
            if open.done {
                open.next_offset = open.to.unwrap_or(open.next_offset).max(open.next_offset);
                finished.add_partition(&self.log.topic, partition);
            }
            if open.gathered.is_empty() && !open.done {
                continue;
            }
            let parcel = Parcel {
                partition,
                records: std::mem::take(&mut open.gathered),
                next_offset: open.next_offset,
            };
            if self.parcels.blocking_send(Ok(parcel)).is_err() {
                return Ok(false);
            }
        }
        self.open.retain(|_, open| !open.done);
        if finished.count() > 0 && !self.open.is_empty() {
            consumer.incremental_unassign(&finished)?;
        }
        Ok(true)
    }
}

/// What waiting does not mend.
fn ends_the_reading(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, Fatal, OffsetOutOfRange, UnknownTopicOrPartition};
    error.rdkafka_error_code().is_some_and(|code| {
        matches!(
            code,
            OffsetOutOfRange | AutoOffsetReset | Fatal | UnknownTopicOrPartition
        )
    })
}
