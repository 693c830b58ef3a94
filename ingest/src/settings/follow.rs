//! Follows the settings topic from its first record on, and publishes what is in force. Until the end that was there
//! at the start is reached, the value says that it is not complete, and nobody may stamp an event by it. With Kafka away
//! it stays what it was: nothing is appended then either. Knows neither Postgres nor who looks.

use super::{partitions, record};
use crate::listener::{self, Quiet};
use chrono::{DateTime, Utc};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::settings::{SETTINGS_TOPIC, Settings};
use tidelog_events::topic_name;
use tokio::sync::watch;

/// Between two attempts to make a consumer.
const PAUSE: Duration = Duration::from_secs(1);

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
    let topic = topic_name(&config.topic_prefix, SETTINGS_TOPIC);
    while !publish.is_closed() {
        let read = async {
            match consumer(&config, &topic) {
                Ok(consumer) => {
                    let consumer = Arc::new(consumer);
                    tokio::select! {
                        () = read(&consumer, &publish) => {}
                        () = listener::stay(&consumer, &config.brokers, &topic) => {}
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

/// A consumer of the whole topic, which has one partition.
fn consumer(config: &FollowConfig, topic: &str) -> Result<StreamConsumer<Quiet>, KafkaError> {
    let consumer = listener::consumer(&config.brokers, "tidelog-settings", true)?;
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(topic, 0, Offset::Beginning)?;
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
