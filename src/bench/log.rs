//! The log without Tidelog: its records read back as they lie there, and produced again by a bare librdkafka producer.
//! What the gateway is compared with therefore has the same keys, values and headers, byte for byte.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::tickets::BATCH;
use crate::kafka::client_config;
use crate::settings::KafkaSettings;

/// How long the log may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// What every client here starts from. What goes wrong shows in what it does; the rest is noise between the figures.
pub(super) fn quiet(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = client_config(kafka, "bench");
    config.set_log_level(RDKafkaLogLevel::Error);
    config
}

/// A record as it lies in the log.
pub(super) struct Record {
    key: Vec<u8>,
    pub(super) value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            key: message.key().unwrap_or_default().to_vec(),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect(),
        }
    }

    /// Bytes of all headers, names included.
    pub(super) fn header_bytes(&self) -> usize {
        self.headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    fn batch(&self) -> (&[u8], usize) {
        let place = self
            .headers
            .iter()
            .find(|(name, _)| name == "ce_batch")
            .map(|(_, value)| value.as_slice());
        let place = place.unwrap_or_default();
        let slash = place.iter().position(|byte| *byte == b'/').unwrap_or(place.len());
        let index = std::str::from_utf8(&place[slash..])
            .unwrap_or_default()
            .trim_start_matches('/');
        (&place[..slash], index.parse().unwrap_or_default())
    }

    /// Hands it to a producer, to a partition of one's choice or to the key's.
    pub(super) fn send<C: ProducerContext<DeliveryOpaque = ()>>(
        &self,
        producer: &ThreadedProducer<C>,
        topic: &str,
        partition: Option<i32>,
    ) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(self.headers.len());
        for (key, value) in &self.headers {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        let mut record = BaseRecord::to(topic)
            .key(&self.key)
            .payload(&self.value)
            .headers(headers);
        record.partition = partition;
        producer.send(record).map_err(|(error, _)| error)
    }
}

/// Records of a topic from offsets on to the offsets before `to`, batch by batch in the order in which each was posted.
pub(super) async fn read(
    kafka: &KafkaSettings,
    topic: &str,
    from: &[(i32, i64)],
    to: &[(i32, i64)],
) -> Result<Vec<Vec<Record>>> {
    let mut config = quiet(kafka);
    config.set("group.id", "bench").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().context("cannot make a Kafka consumer")?;
    let before: HashMap<i32, i64> = from.iter().copied().collect();
    let mut list = TopicPartitionList::new();
    let mut expected = 0;
    for (partition, end) in to {
        let start = before.get(partition).copied().unwrap_or_default();
        list.add_partition_offset(topic, *partition, Offset::Offset(start))?;
        expected += usize::try_from(end - start)?;
    }
    consumer.assign(&list)?;
    let mut records = tokio::task::spawn_blocking(move || consume(&consumer, expected)).await??;
    records.sort_by(|one, other| one.batch().cmp(&other.batch()));
    let mut batches: Vec<Vec<Record>> = Vec::with_capacity(expected / BATCH);
    for record in records {
        match batches
            .last_mut()
            .filter(|batch| batch[0].batch().0 == record.batch().0)
        {
            Some(batch) => batch.push(record),
            None => batches.push(vec![record]),
        }
    }
    Ok(batches)
}

fn consume(consumer: &BaseConsumer, expected: usize) -> Result<Vec<Record>> {
    let mut records = Vec::with_capacity(expected);
    while records.len() < expected {
        match consumer.poll(SILENCE) {
            Some(message) => records.push(Record::of(&message?)),
            None => bail!("the log holds {} records of {expected}", records.len()),
        }
    }
    Ok(records)
}

/// Counts what was delivered.
#[derive(Default)]
pub(super) struct Deliveries {
    good: AtomicU64,
    bad: AtomicU64,
}

/// What tells a [`ThreadedProducer`] of deliveries.
#[derive(Clone, Default)]
pub(super) struct Counting(Arc<Deliveries>);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.good } else { &self.0.bad };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A producer that gives the promises of the gateway's: idempotent, every replica, the same partition for a key.
pub(super) fn producer(
    kafka: &KafkaSettings,
    linger_ms: u32,
) -> Result<(ThreadedProducer<Counting>, Counting)> {
    let mut config = quiet(kafka);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", linger_ms.to_string());
    let counting = Counting::default();
    let producer = config
        .create_with_context(counting.clone())
        .context("cannot make a Kafka producer")?;
    Ok((producer, counting))
}

/// Produces all records as fast as one thread can hand them over, and waits until the last one is acknowledged.
pub(super) async fn produce(
    kafka: &KafkaSettings,
    topic: &str,
    records: &Arc<Vec<Vec<Record>>>,
    linger_ms: u32,
) -> Result<Duration> {
    let (producer, counting) = producer(kafka, linger_ms)?;
    let (topic, records) = (topic.to_owned(), records.clone());
    let work = move || {
        // Connected, and its partitions known, before the clock starts.
        for record in records.iter().flatten().take(BATCH) {
            record.send(&producer, &topic, None)?;
        }
        producer.flush(SILENCE)?;
        let began = Instant::now();
        for record in records.iter().flatten() {
            while let Err(error) = record.send(&producer, &topic, None) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        producer.flush(SILENCE)?;
        let elapsed = began.elapsed();
        let expected = records.iter().map(Vec::len).sum::<usize>() + BATCH;
        let (good, bad) = (
            counting.0.good.load(Ordering::Relaxed),
            counting.0.bad.load(Ordering::Relaxed),
        );
        if bad > 0 || good != expected as u64 {
            bail!("the bare producer delivered {good} records of {expected}");
        }
        Ok(elapsed)
    };
    tokio::task::spawn_blocking(work).await?
}
