//! A consumer of one compacted topic that each process reads for itself: in no group, committing nothing, and looked at as long
//! as it is polled, since a client that has lost every broker does not come back by itself. Must not know what it reads.

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::KafkaError;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Between two looks whether the consumer still reaches the cluster.
const LOOK: Duration = Duration::from_secs(2);

/// One, assigned nothing yet. `name` is what the cluster is told of it; `tells_ends` where it is to say that it came to the end.
pub(crate) fn consumer(
    brokers: &str,
    name: &'static str,
    tells_ends: bool,
) -> Result<StreamConsumer<Quiet>, KafkaError> {
    let mut native = ClientConfig::new();
    native
        .set("bootstrap.servers", brokers)
        .set("client.id", name)
        // librdkafka wants a name even where no group is joined.
        .set("group.id", format!("{name}-{}", Uuid::new_v4().simple()))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", tells_ends.to_string())
        .set("allow.auto.create.topics", "false")
        .set("auto.offset.reset", "earliest")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Error);
    native.create_with_context(Quiet(name))
}

/// Looks that it reaches its cluster, for as long as this is polled.
pub(crate) async fn stay(consumer: &Arc<StreamConsumer<Quiet>>, brokers: &str, topic: &str) {
    loop {
        tokio::time::sleep(LOOK).await;
        tidelog_kafka::reaches(consumer, |consumer| consumer.client(), brokers, topic).await;
    }
}

/// Says little: the producer and the health check tell of a Kafka that is away.
pub(crate) struct Quiet(&'static str);

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "{}", self.0);
    }
}

impl ConsumerContext for Quiet {}
