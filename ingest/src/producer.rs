//! The one way into the log: an idempotent librdkafka producer, `acks=all`, whose records report to their batch's
//! `Delivery`. Bounded in records and bytes, so that a dead Kafka costs bounded memory; replaced when librdkafka
//! declares it dead. Must not know what an item or an event is.

use crate::delivery::Delivery;
use crate::error::IngestError;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::{ClientContext, Statistics};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tidelog_events::drill;
use tidelog_events::position::Appended;

/// How the log is written.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// Kafka's bootstrap servers, `host:port` with commas between.
    pub brokers: String,
    /// For how long the log may take to acknowledge a record before it counts as undelivered.
    pub delivery_timeout: Duration,
    /// Records that may wait to be acknowledged.
    pub queue_records: usize,
    /// Kilobytes of records that may wait to be acknowledged.
    pub queue_kbytes: usize,
    /// Further librdkafka settings (TLS, SASL); what a promise rests on is set after them and wins.
    pub settings: Vec<(String, String)>,
}

impl ProducerConfig {
    /// The defaults, for a cluster.
    pub fn new(brokers: impl Into<String>) -> ProducerConfig {
        ProducerConfig {
            brokers: brokers.into(),
            delivery_timeout: Duration::from_millis(drill::number("delivery_ms", 10_000).into()),
            queue_records: 50_000,
            queue_kbytes: 48 * 1024,
            settings: Vec::new(),
        }
    }

    fn native(&self) -> ClientConfig {
        let mut native = ClientConfig::new();
        // What a deployment may tune.
        native
            .set("client.id", "tidelog-ingest")
            // Bundled with librdkafka; JSON shrinks to a fifth at a cost that does not show.
            .set("compression.type", "lz4")
            // Measured on 2 cores with batches of 100: without any linger a batch leaves in several requests, and 16
            // phones get a tenth to a fifth less through; one phone alone waits 0.8 ms longer (2.3 to 3.1 ms), with
            // half the p99. The usual 5 ms would cost it the 5 ms.
            .set("linger.ms", "0.5")
            // A batch leaves as a request a partition; each would wait for the answer to the one before.
            .set("socket.nagle.disable", "true")
            // Back soon after Kafka is: the default grows to 10 s.
            .set("reconnect.backoff.max.ms", "1000")
            // A topic that is missing is told as such within the delivery timeout, and not as a timeout.
            .set("topic.metadata.propagation.max.ms", "5000")
            // The brokers' own default limit for one request is a little above.
            .set("message.max.bytes", "1000000");
        for (name, value) in &self.settings {
            native.set(name, value);
        }
        // What the promises rest on.
        native
            .set("bootstrap.servers", &self.brokers)
            .set("enable.idempotence", drill::guarded("idempotence").to_string())
            .set("acks", "all")
            // Java clients choose the same partition for a key.
            .set("partitioner", "murmur2_random")
            .set(
                "message.timeout.ms",
                self.delivery_timeout.as_millis().to_string(),
            )
            .set("queue.buffering.max.messages", self.queue_records.to_string())
            .set("queue.buffering.max.kbytes", self.queue_kbytes.to_string());
        native.set_log_level(RDKafkaLogLevel::Info);
        native
    }
}

/// The settings make no producer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the Kafka producer cannot be made: {0}")]
pub struct ProducerError(String);

/// The process's producer.
pub struct Producer {
    native: ClientConfig,
    brokers: String,
    delivery_timeout: Duration,
    current: RwLock<Arc<Generation>>,
    well: Arc<AtomicBool>,
}

/// One librdkafka instance. A fatal error ends it, and the next generation takes over.
struct Generation(Option<ThreadedProducer<Reports>>);

impl Generation {
    fn of(native: &ClientConfig, well: &Arc<AtomicBool>) -> Result<Arc<Generation>, ProducerError> {
        let reports = Reports { well: well.clone() };
        ThreadedProducer::from_config_and_context(native, reports)
            .map(|inner| Arc::new(Generation(Some(inner))))
            .map_err(|error| ProducerError(error.to_string()))
    }

    fn inner(&self) -> &ThreadedProducer<Reports> {
        // Taken by `drop` alone.
        self.0
            .as_ref()
            .expect("a generation has its producer until it is dropped")
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // librdkafka may take half a second to go, which is no time to spend on a thread that serves requests.
        let inner = self.0.take();
        std::thread::spawn(move || drop(inner));
    }
}

impl Producer {
    /// Makes the producer. Kafka may be away: that shows with the first batch.
    pub fn new(config: ProducerConfig) -> Result<Producer, ProducerError> {
        let native = config.native();
        let well = Arc::new(AtomicBool::new(true));
        Ok(Producer {
            current: RwLock::new(Generation::of(&native, &well)?),
            delivery_timeout: config.delivery_timeout,
            brokers: config.brokers,
            native,
            well,
        })
    }

    /// Whether the last that was heard of the log was good. Cheap; see [`check`](Self::check).
    pub fn healthy(&self) -> bool {
        self.well.load(Ordering::Relaxed)
    }

    /// Whether the log can be reached, for which it asks about a topic, waiting up to [`tidelog_kafka::PATIENCE`]. To be
    /// called from time to time, or a gateway without traffic does not recover.
    pub async fn check(&self, topic: &str) -> bool {
        let (generation, brokers) = (self.generation(), &self.brokers);
        let reached = tidelog_kafka::reaches(
            &generation,
            |generation| generation.inner().client(),
            brokers,
            topic,
        )
        .await;
        self.well.store(reached, Ordering::Relaxed);
        reached
    }

    /// Waits until everything handed over is acknowledged or given up, up to `patience`; answers whether it was.
    pub async fn flush(&self, patience: Duration) -> bool {
        let generation = self.generation();
        let flushed = tokio::task::spawn_blocking(move || generation.inner().flush(patience).is_ok());
        flushed.await.unwrap_or(false)
    }

    /// Begins a batch.
    pub(crate) fn begin(&self) -> Result<Sending<'_>, IngestError> {
        let mut generation = self.generation();
        if generation.inner().client().fatal_error().is_some() {
            generation = self.replace(&generation)?;
        }
        Ok(Sending {
            producer: self,
            generation,
            delivery: Arc::new(Delivery::default()),
        })
    }

    fn generation(&self) -> Arc<Generation> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts a new generation in the place of one that is dead, unless another batch has done so already.
    fn replace(&self, dead: &Arc<Generation>) -> Result<Arc<Generation>, IngestError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, dead) {
            let fatal = dead.inner().client().fatal_error();
            tracing::error!(error = ?fatal, "the Kafka producer is dead; a new one takes over");
            *current = Generation::of(&self.native, &self.well).map_err(|error| {
                tracing::error!(%error, "there is no Kafka producer");
                IngestError::Undelivered
            })?;
            // Whoever waits for a record of the dead one is told now.
            dead.inner().purge(PurgeConfig::default().queue().inflight());
        }
        Ok(current.clone())
    }

    /// Notes that a batch was not appended, and why; a producer that is dead is replaced.
    fn lost(&self, generation: &Arc<Generation>, topic: &str, why: &str) {
        tracing::warn!(topic, why, "a batch was not appended");
        self.well.store(false, Ordering::Relaxed);
        if generation.inner().client().fatal_error().is_some() {
            // What fails here fails again, and is told, with the next batch.
            let _ = self.replace(generation);
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("healthy", &self.healthy())
            .finish_non_exhaustive()
    }
}

/// A batch on its way.
pub(crate) struct Sending<'a> {
    producer: &'a Producer,
    generation: Arc<Generation>,
    delivery: Arc<Delivery>,
}

impl Sending<'_> {
    /// Hands over one record, to that partition or, without one, to what the key is given among all that there are; does not wait. What was handed over before an error is appended all the same, which
    /// does no harm: a retry appends events with the same ids.
    pub(crate) fn send<'h>(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: &str,
        value: &str,
        headers: impl ExactSizeIterator<Item = (&'h str, &'h str)>,
    ) -> Result<(), IngestError> {
        let mut native = OwnedHeaders::new_with_capacity(headers.len());
        for (key, value) in headers {
            native = native.insert(Header {
                key,
                value: Some(value),
            });
        }
        self.delivery.begin();
        let mut record = BaseRecord::with_opaque_to(topic, self.delivery.clone())
            .key(key)
            .payload(value)
            .headers(native);
        record.partition = partition;
        let Err((error, _)) = self.generation.inner().send(record) else {
            return Ok(());
        };
        self.delivery.retract();
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            tracing::warn!("the Kafka producer's queue is full");
            return Err(IngestError::QueueFull);
        }
        self.producer.lost(&self.generation, topic, &error.to_string());
        Err(IngestError::Undelivered)
    }

    /// Waits until every record is acknowledged or given up.
    pub(crate) async fn delivered(self) -> Result<Appended, IngestError> {
        // librdkafka reports every record within its own timeout; this holds should it ever not.
        let patience = self.producer.delivery_timeout + Duration::from_secs(5);
        let reports = tokio::time::timeout(patience, self.delivery.finish()).await;
        match reports.unwrap_or_else(|_| Err("no report".into())) {
            Ok(appended) => Ok(appended),
            Err(why) => {
                self.producer.lost(&self.generation, "", &why);
                Err(IngestError::Undelivered)
            }
        }
    }
}

/// What librdkafka tells, from a thread of its own.
struct Reports {
    well: Arc<AtomicBool>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "{message}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => tracing::info!(facility, "{message}"),
            _ => tracing::warn!(facility, "{message}"),
        }
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.well.store(false, Ordering::Relaxed);
        }
        tracing::warn!(%error, reason, "Kafka");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        match result {
            // Acknowledged as a duplicate of itself, without its place: told as undelivered, since an answer
            // needs the place, and a retry finds one.
            Ok(message) if message.offset() < 0 => {
                delivery.failed(|| "acknowledged without an offset".into())
            }
            Ok(message) => {
                if !self.well.load(Ordering::Relaxed) {
                    self.well.store(true, Ordering::Relaxed);
                }
                delivery.delivered(message.topic(), message.partition(), message.offset());
            }
            Err((error, message)) => delivery.failed(|| match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                    format!(
                        "there is no topic {:?}; `tidelog topics` creates it",
                        message.topic()
                    )
                }
                _ => format!("topic {:?}: {error}", message.topic()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_setting_is_told_by_name() {
        let mut config = ProducerConfig::new("localhost:1");
        config.settings.push(("compression.type".into(), "magic".into()));
        let error = Producer::new(config).expect_err("an error").to_string();
        assert!(
            error.contains("compression.type") && error.contains("magic"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_dead_kafka_is_told_within_the_delivery_timeout() {
        let mut config = ProducerConfig::new("127.0.0.1:1");
        config.delivery_timeout = Duration::from_millis(300);
        let producer = Producer::new(config).expect("a producer");
        let sending = producer.begin().expect("a generation");
        sending
            .send("t", None, "k", "{}", std::iter::empty())
            .expect("queued");
        assert_eq!(sending.delivered().await, Err(IngestError::Undelivered));
        assert!(!producer.healthy());
        assert!(!producer.check("t").await);
    }

    #[tokio::test]
    async fn a_full_queue_is_told_at_once_and_costs_bounded_memory() {
        let mut config = ProducerConfig::new("127.0.0.1:1");
        config.queue_records = 2;
        let producer = Producer::new(config).expect("a producer");
        let sending = producer.begin().expect("a generation");
        let send = || sending.send("t", None, "k", "{}", std::iter::empty());
        assert_eq!(
            (send(), send(), send()),
            (Ok(()), Ok(()), Err(IngestError::QueueFull))
        );
    }
}
