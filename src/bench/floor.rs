//! What (c) stands on: the same records produced, consumed and committed as the same rows, in this process, with nothing
//! in between. One producer for all; each phone has a partition, a consumer and a connection of its own, which is less
//! work than any service has that phones share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::ThreadedProducer;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::ground::Site;
use super::log::quiet;
use super::log::{Counting, Record, producer};
use super::tables::{Chunk, Shape, Writer};

/// Batches before the measuring, for each phone.
const WARM_UP: usize = 5;
/// How long a batch may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Batches, each with the rows that it comes to.
pub(super) type Work = Vec<(Vec<Record>, Chunk)>;

/// Takes all batches from producing to the commit, so many at once, and tells how long each took.
pub(super) async fn measure(
    site: &Site<'_>,
    topic: &str,
    work: Work,
    phones: usize,
) -> Result<Vec<Duration>> {
    let (producer, _) = producer(&site.kafka(), 0)?;
    let producer = Arc::new(producer);
    let mut shares: Vec<Work> = (0..phones).map(|_| Work::new()).collect();
    for (number, batch) in work.into_iter().enumerate() {
        shares[number % phones].push(batch);
    }
    let mut working = JoinSet::new();
    for (number, share) in shares.into_iter().enumerate() {
        let phone = Phone {
            producer: producer.clone(),
            consumer: consumer(site, topic, number as i32)?,
            writer: Writer::new(site.connect().await?, Shape::Insert, &format!("bench-{number}")).await?,
            topic: topic.to_owned(),
            partition: number as i32,
        };
        let runtime = Handle::current();
        working.spawn_blocking(move || phone.run(&share, &runtime));
    }
    let mut latencies = Vec::new();
    while let Some(done) = working.join_next().await {
        latencies.extend(done??);
    }
    Ok(latencies)
}

fn consumer(site: &Site<'_>, topic: &str, partition: i32) -> Result<BaseConsumer> {
    let mut config = quiet(&site.kafka());
    config.set("group.id", "bench").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().context("cannot make a Kafka consumer")?;
    let mut at_end = TopicPartitionList::new();
    let (_, end) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
    at_end.add_partition_offset(topic, partition, Offset::Offset(end))?;
    consumer.assign(&at_end)?;
    Ok(consumer)
}

/// Somebody who does it all alone.
struct Phone {
    producer: Arc<ThreadedProducer<Counting>>,
    consumer: BaseConsumer,
    writer: Writer,
    topic: String,
    partition: i32,
}

impl Phone {
    fn run(&self, work: &Work, runtime: &Handle) -> Result<Vec<Duration>> {
        let mut latencies = Vec::with_capacity(work.len());
        for (records, chunk) in work {
            let began = Instant::now();
            for record in records {
                record.send(&self.producer, &self.topic, Some(self.partition))?;
            }
            for _ in records {
                match self.consumer.poll(PATIENCE) {
                    Some(message) => drop(message?),
                    None => bail!("the log is silent"),
                }
            }
            runtime.block_on(self.writer.write(chunk))?;
            latencies.push(began.elapsed());
        }
        Ok(latencies.split_off(WARM_UP.min(latencies.len() / 2)))
    }
}
