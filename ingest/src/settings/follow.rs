//! Follows the settings topic from its first record on, and publishes what is in force. Until the end that was there
//! at the start is reached, the value says that it is not complete, and nobody may stamp an event by it. With Kafka away
//! it stays what it was: nothing is appended then either. Knows neither Postgres nor who looks.

use super::{partitions, record};
use chrono::{DateTime, Utc};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::settings::{SETTINGS_TOPIC, Settings};
use tidelog_events::topic_name;
use tokio::sync::watch;
use uuid::Uuid;

/// Between two attempts to make a consumer.
const PAUSE: Duration = Duration::from_secs(1);

/// Between two looks whether the consumer still reaches the cluster.
const LOOK: Duration = Duration::from_secs(2);

/// Where settings are kept.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// Kafka's bootstrap servers.
    pub brokers: String,
    /// What stands before every topic's name.
    pub topic_prefix: String,
}

/// Settings as they change, and the work that keeps them so. The work ends when nobody watches any more; it is to be
/// spawned or awaited beside the rest.
pub fn follow(config: FollowConfig) -> (watch::Receiver<Arc<Settings>>, impl Future<Output = ()> + Send) {
    let (publish, settings) = watch::channel(Arc::new(Settings::unread()));
    (settings, keep(config, publish))
}

async fn keep(config: FollowConfig, publish: watch::Sender<Arc<Settings>>) {
    while !publish.is_closed() {
        let read = async {
            match consumer(&config) {
                Ok(consumer) => {
                    let consumer = Arc::new(consumer);
                    tokio::select! {
                        () = read(&consumer, &publish) => {}
                        () = stay(&consumer, &config) => {}
                    }
                }
                Err(error) => tracing::error!(%error, "settings cannot be read"),
            }
        };
        tokio::select! {
            () = read => tokio::time::sleep(PAUSE).await,
            () = publish.closed() => {}
        }
    }
}

/// Looks that the consumer reaches its cluster, for as long as it is polled.
async fn stay(consumer: &Arc<StreamConsumer<Quiet>>, config: &FollowConfig) {
    let topic = topic_name(&config.topic_prefix, SETTINGS_TOPIC);
    loop {
        tokio::time::sleep(LOOK).await;
        tidelog_kafka::reaches(consumer, |consumer| consumer.client(), &config.brokers, &topic).await;
    }
}

/// A consumer of the whole topic, which has one partition. It is in no group and commits nothing: each process reads
/// everything.
fn consumer(config: &FollowConfig) -> Result<StreamConsumer<Quiet>, KafkaError> {
    let mut native = ClientConfig::new();
    native
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "tidelog-settings")
        // librdkafka wants a name even where no group is joined.
        .set(
            "group.id",
            format!("tidelog-settings-{}", Uuid::new_v4().simple()),
        )
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        .set("auto.offset.reset", "earliest")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Error);
    let consumer: StreamConsumer<Quiet> = native.create_with_context(Quiet)?;
    let mut all = TopicPartitionList::new();
    let topic = topic_name(&config.topic_prefix, SETTINGS_TOPIC);
    all.add_partition_offset(&topic, 0, Offset::Beginning)?;
    consumer.assign(&all)?;
    Ok(consumer)
}

async fn read(consumer: &StreamConsumer<Quiet>, publish: &watch::Sender<Arc<Settings>>) {
    // From the first record on, so that what was read before a failure is no part of it.
    let mut settings = Settings::unread();
    let mut failing = false;
    loop {
        match consumer.recv().await {
            Ok(message) => {
                failing = false;
                note(&mut settings, &message);
                // While it is not complete, nobody may use it; afterwards each change counts at once.
                if settings.complete {
                    publish.send_replace(Arc::new(settings.clone()));
                }
            }
            Err(KafkaError::PartitionEOF(_)) => {
                failing = false;
                if !settings.complete {
                    settings.complete = true;
                    tracing::debug!(through = settings.through, "settings are read");
                    publish.send_replace(Arc::new(settings.clone()));
                }
            }
            // librdkafka goes on by itself; what it says again and again is told once.
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the settings topic cannot be read; `tidelog topics` makes it where it is missing");
                }
            }
        }
    }
}

fn note(settings: &mut Settings, message: &BorrowedMessage<'_>) {
    settings.through = message.offset();
    let millis = message.timestamp().to_millis().unwrap_or_default();
    let at = DateTime::<Utc>::from_timestamp_millis(millis).unwrap_or_default();
    let source = message.headers().and_then(|headers| {
        headers
            .iter()
            .find(|header| header.key == "ce_source")
            .and_then(|header| std::str::from_utf8(header.value?).ok())
    });
    let key = message.key().unwrap_or_default();
    if let Some((topic, number)) = partitions::read(key, message.payload()) {
        settings.note_partitions(topic, number);
        return;
    }
    match record::read(key, message.payload(), source, message.offset(), at) {
        Ok(read) => {
            for defect in &read.not_understood {
                tracing::warn!(tenant = %read.tenant, %defect, "a setting is not understood and has no effect here");
            }
            settings.note(read.tenant, read.in_force);
        }
        Err(error) => {
            tracing::warn!(offset = message.offset(), %error, "a record of the settings topic is passed over");
        }
    }
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The producer and the health check tell of a Kafka that is away.
        tracing::debug!(target: "librdkafka", %error, reason, "settings");
    }
}

impl ConsumerContext for Quiet {}
