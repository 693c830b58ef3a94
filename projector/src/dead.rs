//! The topic of dead letters: what the fold could not read, for whoever watches the log and not the table. Bears the
//! original key, value and headers, and where it came from.

use crate::ProjectorError;
use crate::write::DeadLetter;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::{DEAD_LETTER_TOPIC, topic_name};
use tokio::sync::OnceCell;

/// A producer that is made when the first letter comes.
pub(crate) struct DeadLetterTopic {
    brokers: String,
    topic: String,
    producer: OnceCell<FutureProducer>,
}

impl DeadLetterTopic {
    pub(crate) fn new(brokers: &str, prefix: &str) -> DeadLetterTopic {
        DeadLetterTopic {
            brokers: brokers.to_owned(),
            topic: topic_name(prefix, DEAD_LETTER_TOPIC),
            producer: OnceCell::new(),
        }
    }

    /// Appends a letter. Done before the transaction that moves past it, so a crash between the two repeats the letter
    /// on the topic and loses none; `dlq_place` tells repeats.
    pub(crate) async fn publish(&self, letter: &DeadLetter) -> Result<(), ProjectorError> {
        let producer = self.producer.get_or_try_init(|| async { self.connect() }).await?;
        let place = format!("{}/{}/{}", letter.topic, letter.partition, letter.offset);
        let mut headers = OwnedHeaders::new()
            .insert(Header {
                key: "dlq_place",
                value: Some(place.as_str()),
            })
            .insert(Header {
                key: "dlq_reason",
                value: Some(letter.reason.as_str()),
            });
        for (name, value) in &letter.headers {
            headers = headers.insert(Header {
                key: name,
                value: value.as_ref(),
            });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        if let Some(key) = &letter.key {
            record = record.key(key);
        }
        if let Some(value) = &letter.value {
            record = record.payload(value);
        }
        // The table holds the letter in any case: a topic that cannot take it must not stop the partition.
        if let Err((error, _)) = producer.send(record, Duration::from_secs(1)).await {
            tracing::warn!(%error, topic = %self.topic, place, "a dead letter is in its table but not on its topic");
            tidelog_kafka::reaches(
                &Arc::new(producer.clone()),
                |producer| producer.client(),
                &self.brokers,
                &self.topic,
            )
            .await;
        }
        Ok(())
    }

    fn connect(&self) -> Result<FutureProducer, ProjectorError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true");
        // A letter bears a little more than the record that it was.
        config
            .set("message.max.bytes", "2000000")
            .set("message.timeout.ms", "3000");
        Ok(config.create()?)
    }
}
