//! What this program asks a Kafka cluster about itself: topics, end offsets. Reading and writing records is the
//! crates' to do. Librdkafka's calls block, so each runs on a thread that may. What a broker says that is about to pass,
//! as that it does not lead a partition yet, is asked again for a moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tidelog_events::position::TopicPartition;

use crate::settings::KafkaSettings;

/// How long the cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long it is asked again about what is about to pass, and how often.
const SETTLING: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);

/// A cluster, asked.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Arc<BaseConsumer<Said>>,
    brokers: String,
}

/// What the cluster says of itself.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// How many brokers it has.
    pub(crate) brokers: usize,
    /// Its topics.
    pub(crate) topics: BTreeMap<String, Topic>,
}

/// What it says of a topic.
#[derive(Debug, Default, Clone)]
pub(crate) struct Topic {
    /// Each partition's number of copies.
    pub(crate) replicas: BTreeMap<i32, usize>,
    /// Whether every partition has a leader.
    pub(crate) led: bool,
}

/// What every client of the cluster starts from.
pub(crate) fn client_config(settings: &KafkaSettings, use_of: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.kafka_brokers)
        .set("client.id", format!("tidelog-{use_of}"));
    config
}

impl Cluster {
    /// Connects when first asked.
    pub(crate) fn new(settings: &KafkaSettings, use_of: &str) -> Result<Self> {
        let mut config = client_config(settings, use_of);
        // One that only asks has nothing to say by itself.
        config.set_log_level(RDKafkaLogLevel::Error);
        let client = config
            .create_with_context(Said::default())
            .context("cannot make a Kafka client")?;
        Ok(Self {
            client: Arc::new(client),
            brokers: settings.kafka_brokers.clone(),
        })
    }

    /// Brokers and topics.
    pub(crate) async fn metadata(&self) -> Result<Metadata> {
        self.ask(|client| {
            let said = client.fetch_metadata(None, TIMEOUT)?;
            let topics = said
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none())
                .map(|topic| {
                    let partitions = topic.partitions();
                    let replicas = partitions.iter().map(|p| (p.id(), p.replicas().len())).collect();
                    let led = partitions.iter().all(|p| p.leader() >= 0 && p.error().is_none());
                    (topic.name().to_owned(), Topic { replicas, led })
                });
            Ok(Metadata {
                brokers: said.brokers().len(),
                topics: topics.collect(),
            })
        })
        .await
    }

    /// Whether the cluster answers within `patience`. Asks about one topic, since a cluster may have thousands.
    pub(crate) async fn answers(&self, topic: &str) -> bool {
        tidelog_kafka::reaches(&self.client, |client| client.client(), &self.brokers, topic).await
    }

    /// The offset after the last record of each partition, all asked at once.
    pub(crate) async fn end_offsets(
        &self,
        partitions: Vec<TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        self.offsets(partitions, Offset::End).await
    }

    /// The first offset that each partition still has, all asked at once.
    pub(crate) async fn begin_offsets(
        &self,
        partitions: Vec<TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        self.offsets(partitions, Offset::Beginning).await
    }

    async fn offsets(
        &self,
        partitions: Vec<TopicPartition>,
        of: Offset,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.ask(move |client| {
            let mut wanted = TopicPartitionList::with_capacity(partitions.len());
            for at in &partitions {
                // Where a time is asked for, beginning and end have numbers of their own (KIP-79).
                wanted.add_partition_offset(&at.topic, at.partition, of)?;
            }
            let found = client.offsets_for_times(wanted, TIMEOUT)?;
            let mut offsets = BTreeMap::new();
            for element in found.elements() {
                element.error()?;
                if let Offset::Offset(offset) = element.offset() {
                    let (topic, partition) = (element.topic().to_owned(), element.partition());
                    offsets.insert(TopicPartition { topic, partition }, offset);
                }
            }
            Ok(offsets)
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&BaseConsumer<Said>) -> rdkafka::error::KafkaResult<T> + Send + 'static,
    ) -> Result<T> {
        let client = self.client.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let until = Instant::now() + SETTLING;
            loop {
                let error = match question(&client) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                // Without a group there is no message to come: this fetches what librdkafka has to say.
                while client.poll(Duration::from_millis(1)).is_some() {}
                if unready(&error).is_none() || Instant::now() >= until {
                    return Err(error);
                }
                std::thread::sleep(AGAIN);
                // Who leads is looked up anew. Should that fail, the next question says why.
                let _ = client.fetch_metadata(None, TIMEOUT);
            }
        });
        answer.await?.map_err(|error| {
            let said = || self.client.context().last().unwrap_or_else(|| error.to_string());
            match unready(&error) {
                Some(what) => anyhow::anyhow!("Kafka at {} answers, but {what}: {error}", self.brokers),
                None => anyhow::anyhow!(
                    "Kafka at {} does not answer: is it up, and is kafka_brokers right?: {}",
                    self.brokers,
                    said()
                ),
            }
        })
    }
}

/// What is amiss where the cluster answers, and what mostly passes: a partition is between two leaders, or was made a moment
/// ago and is not known everywhere yet.
fn unready(error: &KafkaError) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code()? {
        Code::NotLeaderForPartition
        | Code::LeaderNotAvailable
        | Code::ReplicaNotAvailable
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable => {
            Some("a partition has no leader that answers for it: are all brokers up?")
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            Some("a broker does not know a topic or partition: was it deleted, or is it just being made?")
        }
        _ => None,
    }
}

/// Keeps the last error that librdkafka told of: its calls only say "transport failure".
#[derive(Default)]
struct Said(Mutex<Option<String>>);

impl Said {
    fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Said {
    fn log(&self, _: RDKafkaLogLevel, _: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // "All brokers are down" says less than why the last of them is.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Said {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_not_told_as_a_cluster_that_is_away() {
        let told = |code| unready(&KafkaError::OffsetFetch(code)).unwrap_or_default();
        for code in [
            RDKafkaErrorCode::NotLeaderForPartition,
            RDKafkaErrorCode::LeaderNotAvailable,
        ] {
            assert!(told(code).contains("leader"), "{code}");
        }
        assert!(told(RDKafkaErrorCode::UnknownTopicOrPartition).contains("does not know"));
        for code in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::TopicAuthorizationFailed,
        ] {
            assert_eq!(told(code), "", "{code}");
        }
    }
}
