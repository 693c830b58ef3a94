//! Hears of keys that are destroyed, so that a user who posts after his erasure gets a new key, and new words live. Begins
//! where the topic ends at the start: what was destroyed before is no key of this process. No key is made before it
//! listens. With Kafka away nothing is appended either.

use super::Seals;
use crate::listener::{self, Quiet};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::seal::{KEYS_TOPIC, record};
use tidelog_events::topic_name;
use tokio::sync::watch;

/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the cluster may take to say where the topic ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens for as long as it is polled. `ready` is told when it hears everything that comes from then on.
pub async fn follow(seals: Arc<Seals>, brokers: &str, topic_prefix: &str, ready: watch::Sender<bool>) {
    let topic = topic_name(topic_prefix, KEYS_TOPIC);
    let mut next = None;
    loop {
        match listener::consumer(brokers, "tidelog-keys", false) {
            Ok(consumer) => {
                let consumer = Arc::new(consumer);
                tokio::select! {
                    () = listen(&seals, &consumer, &topic, &mut next, &ready) => {}
                    () = listener::stay(&consumer, brokers, &topic) => {}
                }
            }
            Err(error) => tracing::error!(%error, "destroyed keys cannot be heard of"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// From `next` on, or from the end where that is none yet.
async fn listen(
    seals: &Seals,
    consumer: &Arc<StreamConsumer<Quiet>>,
    topic: &str,
    next: &mut Option<i64>,
    ready: &watch::Sender<bool>,
) {
    let from = match *next {
        Some(next) => next,
        None => match end(consumer, topic).await {
            Some(end) => end,
            None => return,
        },
    };
    *next = Some(from);
    let mut whole = TopicPartitionList::new();
    let assigned = whole
        .add_partition_offset(topic, 0, Offset::Offset(from))
        .and_then(|()| consumer.assign(&whole));
    if let Err(error) = assigned {
        tracing::error!(%error, "destroyed keys cannot be heard of");
        return;
    }
    ready.send_replace(true);
    let mut failing = false;
    loop {
        match consumer.recv().await {
            Ok(message) => {
                failing = false;
                *next = Some(message.offset() + 1);
                let read = record::read(message.key().unwrap_or_default(), message.payload());
                if let Ok((name, None)) = read {
                    seals.forget(&name);
                }
            }
            // librdkafka goes on by itself; what it says again and again is told once.
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "the topic of keys cannot be read");
                }
            }
        }
    }
}

async fn end(consumer: &Arc<StreamConsumer<Quiet>>, topic: &str) -> Option<i64> {
    let (asked, name) = (consumer.clone(), topic.to_owned());
    let found = tokio::task::spawn_blocking(move || asked.fetch_watermarks(&name, 0, PATIENCE)).await;
    match found {
        Ok(Ok((_, end))) => Some(end),
        Ok(Err(error)) => {
            tracing::warn!(%error, topic, "the topic of keys does not answer; `tidelog topics` makes it where it is missing");
            None
        }
        Err(_) => None,
    }
}
