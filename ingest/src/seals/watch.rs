//! Follows the topic of keys, for two things. It tells how this process stands to what the deployment seals with, which is known
//! once the topic has been read to where somebody says it, or to its end. And it hears of keys that are destroyed, so that a user
//! who posts after his erasure gets a new key, and new words live; of that, what was before the start is passed over, since it
//! is no key of this process. No key is made before both. With Kafka away nothing is appended either.

use super::Seals;
use crate::listener::{self, Quiet};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::seal::{Accord, KEYS_TOPIC, SealSecret, Witness, record};
use tidelog_events::topic_name;
use tokio::sync::watch;

/// Between two attempts to listen, and between two where there is no such topic and nobody here who would seal.
const PAUSE: Duration = Duration::from_secs(1);
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// How long the cluster may take to say where the topic ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the topic is, and what this process has.
pub struct Watching {
    /// Kafka's bootstrap servers.
    pub brokers: String,
    /// What stands before every topic's name.
    pub topic_prefix: String,
    /// What personal values are sealed with here; none where they are not.
    pub secret: Option<Arc<SealSecret>>,
}

/// Follows for as long as it is polled. `seals` is what forgets keys, where there is a secret.
pub async fn follow(watching: Watching, seals: Option<Arc<Seals>>, publish: watch::Sender<Accord>) {
    let mut follower = Follower {
        topic: topic_name(&watching.topic_prefix, KEYS_TOPIC),
        witness: Witness::new(watching.secret.clone()),
        secret: watching.secret,
        seals,
        next: None,
        publish,
    };
    loop {
        let mut pause = PAUSE;
        match listener::consumer(&watching.brokers, "tidelog-keys", true) {
            Ok(consumer) => {
                let (consumer, topic) = (Arc::new(consumer), follower.topic.clone());
                tokio::select! {
                    ended = follower.read(&consumer) => match ended {
                        // Where nothing is sealed there may be no such topic: before `tidelog topics` of this release ran.
                        Err(error) if follower.secret.is_none() && is_absent(&error) => {
                            follower.tell(Accord::Unused);
                            pause = LONG_PAUSE;
                        }
                        Err(error) => tracing::warn!(
                            %error, topic, "the topic of keys does not answer; `tidelog topics` makes it where it is missing"
                        ),
                        Ok(()) => {}
                    },
                    () = listener::stay(&consumer, &watching.brokers, &topic) => {}
                }
            }
            Err(error) => tracing::error!(%error, "the topic of keys cannot be followed"),
        }
        tokio::time::sleep(pause).await;
    }
}

struct Follower {
    topic: String,
    secret: Option<Arc<SealSecret>>,
    seals: Option<Arc<Seals>>,
    witness: Witness,
    /// What is to be read next, once the topic has told how this process stands.
    next: Option<i64>,
    publish: watch::Sender<Accord>,
}

impl Follower {
    async fn read(&mut self, consumer: &Arc<StreamConsumer<Quiet>>) -> Result<(), KafkaError> {
        let mut end = 0;
        match self.next {
            Some(next) => assign(consumer, &self.topic, Offset::Offset(next))?,
            None => {
                end = self.end(consumer).await?;
                self.witness = Witness::new(self.secret.clone());
                assign(consumer, &self.topic, Offset::Beginning)?;
            }
        }
        let mut failing = false;
        loop {
            match consumer.recv().await {
                Ok(message) => {
                    failing = false;
                    let (key, value) = (message.key().unwrap_or_default(), message.payload());
                    self.witness.note(key, value);
                    let after = message.offset() + 1;
                    if self.next.is_some() {
                        self.next = Some(after);
                        self.forget(key, value);
                    } else if self.witness.accord() != Accord::Unread {
                        // The rest of what was there at the start is of no interest.
                        let next = end.max(after);
                        assign(consumer, &self.topic, Offset::Offset(next))?;
                        self.next = Some(next);
                    }
                }
                Err(KafkaError::PartitionEOF(_)) => {
                    failing = false;
                    self.witness.at_end();
                    self.next = self.next.or(Some(end));
                }
                // librdkafka goes on by itself; what it says again and again is told once.
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the topic of keys cannot be read");
                    }
                }
            }
            self.tell(self.witness.accord());
        }
    }

    fn forget(&self, key: &[u8], value: Option<&[u8]>) {
        if let Some(seals) = &self.seals
            && let Ok((name, None)) = record::read(key, value)
        {
            seals.forget(&name);
        }
    }

    fn tell(&self, now: Accord) {
        if self
            .publish
            .send_if_modified(|before| std::mem::replace(before, now) != now)
            && let Some(wrong) = now.wrong()
        {
            tracing::error!("{wrong}: nothing with personal fields is taken or shown here");
        }
    }

    async fn end(&self, consumer: &Arc<StreamConsumer<Quiet>>) -> Result<i64, KafkaError> {
        let (asked, name) = (consumer.clone(), self.topic.clone());
        let found = tokio::task::spawn_blocking(move || asked.fetch_watermarks(&name, 0, PATIENCE)).await;
        // It does not panic, and nobody cancels it.
        found.map_or(Err(KafkaError::Canceled), |found| Ok(found?.1))
    }
}

fn assign(consumer: &StreamConsumer<Quiet>, topic: &str, from: Offset) -> Result<(), KafkaError> {
    let mut whole = TopicPartitionList::new();
    whole.add_partition_offset(topic, 0, from)?;
    consumer.assign(&whole)
}

fn is_absent(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| matches!(code, UnknownPartition | UnknownTopic | UnknownTopicOrPartition))
}
