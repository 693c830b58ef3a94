//! Appends a letter's record to the end of its partition: the same key, value and headers. Whether it should be is not known
//! here.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::letter::{Letter, LetterPlace};
use crate::kafka::client_config;
use crate::settings::KafkaSettings;

/// How long Kafka may take for one record, in milliseconds.
const DELIVERY: &str = "30000";
/// How long the local queue is waited for; a record at a time never fills it.
const QUEUE: Duration = Duration::from_secs(1);

/// A producer of records that were in the log before.
pub(super) struct Appender(FutureProducer);

impl Appender {
    /// Connects when the first record is appended.
    pub(super) fn new(kafka: &KafkaSettings) -> Result<Appender> {
        let mut config = client_config(kafka, "dead-letters");
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", DELIVERY)
            // The topic's own limit decides: the record was there before.
            .set("message.max.bytes", "2000000")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Error);
        Ok(Appender(config.create().context("cannot make a Kafka producer")?))
    }

    /// Answers where it lies now, once every copy of the log that has to has it.
    pub(super) async fn append(&self, letter: &Letter) -> Result<LetterPlace> {
        let place = &letter.place;
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len());
        for (name, value) in &letter.headers {
            headers = headers.insert(Header {
                key: name,
                value: value.as_ref(),
            });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(&place.topic)
            .partition(place.partition)
            .headers(headers);
        if let Some(key) = &letter.key {
            record = record.key(key);
        }
        if let Some(value) = &letter.value {
            record = record.payload(value);
        }
        let delivered = self.0.send(record, Timeout::After(QUEUE)).await;
        let delivered = delivered.map_err(|(error, _)| error).with_context(|| {
            format!(
                "Kafka did not confirm that it has {place} again, so the letter stays open. Retry it once Kafka is \
                     well: a second copy in the log changes nothing"
            )
        })?;
        Ok(LetterPlace {
            topic: place.topic.clone(),
            partition: delivered.partition,
            offset: delivered.offset,
        })
    }
}
