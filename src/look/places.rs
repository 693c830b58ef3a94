//! Single records of the log, read again by their places: to tell how old one is, or that it is still there. One consumer
//! for all of them, outside any group. Librdkafka's calls block, so it runs on a thread that may.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tidelog_events::position::TopicPartition;
use tidelog_projector::record::{Copyist, LogRecord};

use crate::kafka::client_config;
use crate::settings::KafkaSettings;

/// A wanted record so near after another is read on to, rather than asked for anew.
const NEAR: i64 = 200;
const POLL: Duration = Duration::from_millis(100);

/// What is wanted: offsets by partition.
pub(crate) type Wanted = BTreeMap<TopicPartition, BTreeSet<i64>>;

/// What was found.
pub(crate) struct Records {
    /// The records that are there.
    pub(crate) found: HashMap<(TopicPartition, i64), LogRecord>,
    /// Whether there was time for all of them.
    pub(crate) complete: bool,
}

/// Reads the records at these places, for so long at the most.
pub(crate) async fn read(kafka: &KafkaSettings, wanted: Wanted, patience: Duration) -> Result<Records> {
    let mut config = client_config(kafka, "places");
    config
        // Nothing is ever committed under it: librdkafka wants a name where partitions are assigned by hand.
        .set("group.id", "tidelog-places")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        // A place that the log does not have any more leads to its end, where there is nothing.
        .set("auto.offset.reset", "latest")
        .set("fetch.message.max.bytes", "131072")
        .set("queued.min.messages", "1")
        .set("queued.max.messages.kbytes", "2048")
        .set_log_level(RDKafkaLogLevel::Error);
    tokio::task::spawn_blocking(move || {
        let consumer = config
            .create_with_context(Quiet)
            .context("cannot make a Kafka client")?;
        let mut reading = Reading {
            consumer,
            until: Instant::now() + patience,
            found: HashMap::new(),
        };
        let mut complete = true;
        let mut topics: BTreeMap<String, BTreeMap<i32, BTreeSet<i64>>> = BTreeMap::new();
        for (at, offsets) in wanted {
            topics.entry(at.topic).or_default().insert(at.partition, offsets);
        }
        for (topic, mut wanted) in topics {
            complete &= reading
                .topic(&topic, &mut wanted)
                .with_context(|| format!("{topic} cannot be read"))?;
        }
        Ok(Records {
            found: reading.found,
            complete,
        })
    })
    .await?
}

struct Reading {
    consumer: BaseConsumer<Quiet>,
    until: Instant,
    found: HashMap<(TopicPartition, i64), LogRecord>,
}

impl Reading {
    /// Round by round: each partition from its next wanted offset on. Answers whether there was time for all.
    fn topic(&mut self, topic: &str, wanted: &mut BTreeMap<i32, BTreeSet<i64>>) -> Result<bool, KafkaError> {
        let mut copyist = Copyist::of(topic);
        loop {
            let mut start = TopicPartitionList::new();
            for (partition, offsets) in wanted.iter() {
                if let Some(first) = offsets.first() {
                    start.add_partition_offset(topic, *partition, Offset::Offset(*first))?;
                }
            }
            if start.count() == 0 {
                return Ok(true);
            }
            let mut open: BTreeSet<i32> = start
                .elements()
                .iter()
                .map(|element| element.partition())
                .collect();
            self.consumer.assign(&start)?;
            while !open.is_empty() {
                if Instant::now() >= self.until {
                    return Ok(false);
                }
                match self.consumer.poll(POLL) {
                    Some(Ok(message)) => {
                        let (partition, offset) = (message.partition(), message.offset());
                        if let Some(offsets) =
                            wanted.get_mut(&partition).filter(|_| open.contains(&partition))
                        {
                            if offsets.contains(&offset) {
                                let at = TopicPartition {
                                    topic: topic.to_owned(),
                                    partition,
                                };
                                self.found.insert((at, offset), copyist.copy(&message));
                            }
                            // What lies before what came is not there.
                            *offsets = offsets.split_off(&(offset + 1));
                            if offsets.first().is_none_or(|next| *next > offset + NEAR) {
                                open.remove(&partition);
                            }
                        }
                    }
                    Some(Err(KafkaError::PartitionEOF(partition))) => {
                        if open.remove(&partition) {
                            wanted.remove(&partition);
                        }
                    }
                    Some(Err(error)) if is_the_end(&error) => return Err(error),
                    Some(Err(_)) | None => {}
                }
            }
        }
    }
}

/// What waiting does not mend.
fn is_the_end(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fatal, UnknownPartition, UnknownTopicOrPartition};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| matches!(code, Fatal | UnknownPartition | UnknownTopicOrPartition))
}

/// Says nothing by itself: its user is told what was found.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "places are read");
    }
}

impl ConsumerContext for Quiet {}
