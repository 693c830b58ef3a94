//! One look at a deployment: what the log holds by Kafka, what of it has been applied by Postgres, and what follows. A
//! looker that looks again and again keeps its connections, tells rates between two looks, and goes on with what it saw last
//! of a side that is away. Knows nothing of how it is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use tidelog_events::domain::Registry;
use tidelog_events::position::TopicPartition;
use tidelog_events::topic_name;
use tokio_postgres::Client;

use super::projection::{self, Applied, Keys, Projection};
use super::{Partition, Status, Withheld};
use crate::kafka::Cluster;
use crate::look::{places, time};
use crate::migrate::connected;
use crate::settings::{DatabaseSettings, KafkaSettings};

/// How long Kafka may take to show the oldest records that are not applied.
const OLDEST_PATIENCE: Duration = Duration::from_secs(3);
/// How long Postgres may take to answer, where another look follows.
const PATIENCE: Duration = Duration::from_secs(5);
/// Keys are a whole table: they are counted again after this many times as long as the last count took.
const KEYS_REST: u32 = 20;

/// What the log holds.
#[derive(Clone, Default)]
struct Ends {
    begins: BTreeMap<TopicPartition, i64>,
    ends: BTreeMap<TopicPartition, i64>,
    missing_topics: Vec<String>,
}

/// What an earlier look left.
struct Before {
    at: Instant,
    next_offsets: BTreeMap<TopicPartition, i64>,
}

/// Looks at a deployment.
pub(crate) struct Looker {
    kafka: KafkaSettings,
    database: DatabaseSettings,
    registry: Arc<Registry>,
    cluster: Option<Cluster>,
    client: Option<Client>,
    ends: Ends,
    projection: Option<Projection>,
    keys: Option<(Keys, Instant)>,
    before: Option<Before>,
    /// The log time of each partition's oldest record that is not applied, with its offset.
    oldest: BTreeMap<TopicPartition, (i64, DateTime<Utc>)>,
}

impl Looker {
    pub(crate) fn new(
        kafka: &KafkaSettings,
        database: &DatabaseSettings,
        registry: &Arc<Registry>,
    ) -> Looker {
        Looker {
            kafka: kafka.clone(),
            database: database.clone(),
            registry: registry.clone(),
            cluster: None,
            client: None,
            ends: Ends::default(),
            projection: None,
            keys: None,
            before: None,
            oldest: BTreeMap::new(),
        }
    }

    /// How far the projection is, and no more: for who asks often and waits for it.
    pub(crate) async fn glance(&mut self) -> Result<Status> {
        let (log, projection) = tokio::join!(
            ends(&mut self.cluster, &self.kafka, &self.registry),
            projected(&mut self.client, &self.database, &self.registry),
        );
        match (log, projection) {
            (Ok(ends), Ok(projection)) => {
                self.ends = ends;
                self.projection = Some(projection);
                Ok(self.status(Vec::new()))
            }
            (Err(log), Err(projection)) => bail!("{log:#}\nerror: {projection:#}"),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Everything. Fails where a side is away.
    pub(crate) async fn look(&mut self) -> Result<Status> {
        self.glance().await?;
        self.keys().await?;
        self.find_oldest().await?;
        Ok(self.status(Vec::new()))
    }

    /// Everything, with what was seen last of a side that is away; `away` says so.
    pub(crate) async fn look_on(&mut self) -> Status {
        let (log, projection) = tokio::join!(
            ends(&mut self.cluster, &self.kafka, &self.registry),
            bounded(projected(&mut self.client, &self.database, &self.registry)),
        );
        let mut away = Vec::new();
        let kafka_is_here = log.is_ok();
        match log {
            Ok(ends) => self.ends = ends,
            Err(error) => {
                self.cluster = None;
                away.push(format!("{error:#}"));
            }
        }
        let projection = match projection {
            Ok(projection) => {
                self.projection = Some(projection);
                bounded(self.keys()).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = projection {
            self.client = None;
            away.push(format!("{error:#}"));
        }
        if kafka_is_here && let Err(error) = self.find_oldest().await {
            away.push(format!("{error:#}"));
        }
        let mut status = self.status(away);
        self.note_rates(&mut status);
        status
    }

    /// Counts the keys, where the last count is old enough.
    async fn keys(&mut self) -> Result<()> {
        if self.keys.as_ref().is_some_and(|(_, next)| Instant::now() < *next) {
            return Ok(());
        }
        let Some(client) = &self.client else { return Ok(()) };
        let since = Instant::now();
        let keys = projection::keys(client).await?;
        self.keys = Some((keys, Instant::now() + since.elapsed() * KEYS_REST));
        Ok(())
    }

    /// Reads the oldest record that is not applied of each partition that has one, unless it is the one of the last look.
    async fn find_oldest(&mut self) -> Result<()> {
        let Some(projection) = &self.projection else {
            return Ok(());
        };
        let next = |at: &TopicPartition| {
            projection
                .positions
                .get(at)
                .map_or(0, |applied| applied.next_offset)
        };
        let behind = self.ends.ends.iter().filter(|(at, end)| next(at) < **end);
        let behind: BTreeMap<TopicPartition, i64> = behind.map(|(at, _)| (at.clone(), next(at))).collect();
        self.oldest
            .retain(|at, (offset, _)| behind.get(at) == Some(offset));
        let unknown = behind.into_iter().filter(|(at, _)| !self.oldest.contains_key(at));
        let wanted: places::Wanted = unknown.map(|(at, offset)| (at, [offset].into())).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let records = places::read(&self.kafka, wanted, OLDEST_PATIENCE).await?;
        for ((at, offset), record) in records.found {
            self.oldest.insert(at, (offset, record.log_time()));
        }
        Ok(())
    }

    /// Tells how many events a second were applied since the last look.
    fn note_rates(&mut self, status: &mut Status) {
        let Some(projection) = &self.projection else {
            return;
        };
        let next_offsets: BTreeMap<TopicPartition, i64> = projection
            .positions
            .iter()
            .map(|(at, applied)| (at.clone(), applied.next_offset))
            .collect();
        let now = Instant::now();
        if let Some(before) = &self.before {
            let seconds = now.duration_since(before.at).as_secs_f64().max(0.001);
            for partition in &mut status.partitions {
                let at = partition.at();
                let was = before.next_offsets.get(&at).copied().unwrap_or(0);
                let is = next_offsets.get(&at).copied().unwrap_or(0);
                partition.rate = Some(tenths((is - was).max(0) as f64 / seconds));
            }
            status.rate = Some(tenths(status.partitions.iter().filter_map(|p| p.rate).sum()));
        }
        self.before = Some(Before {
            at: now,
            next_offsets,
        });
    }

    fn status(&self, away: Vec<String>) -> Status {
        let none = BTreeMap::new();
        let positions = self
            .projection
            .as_ref()
            .map_or(&none, |projection| &projection.positions);
        let places = self.ends.ends.keys().chain(positions.keys());
        let places: std::collections::BTreeSet<&TopicPartition> = places.collect();
        let now = Utc::now();
        let partitions: Vec<Partition> = match self.projection {
            // Without any position it cannot be told what is behind.
            None => Vec::new(),
            Some(_) => places
                .into_iter()
                .filter_map(|at| self.partition(at, positions.get(at), now))
                .collect(),
        };
        let keys = self.keys.as_ref().map(|(keys, _)| keys);
        Status {
            looked_at: time(now),
            lag: partitions.iter().map(|partition| partition.lag).sum(),
            lag_seconds: partitions.iter().filter_map(|p| p.lag_seconds).reduce(f64::max),
            applied: partitions.iter().map(|partition| partition.next_offset).sum(),
            rate: None,
            dead_letters: self
                .projection
                .as_ref()
                .map_or(0, |projection| projection.letters.values().sum()),
            idempotency_hits_24h: keys.map(|keys| keys.hits),
            in_flight: keys.map(|keys| keys.in_flight.clone()),
            missing_topics: self.ends.missing_topics.clone(),
            away,
            partitions,
        }
    }

    fn partition(
        &self,
        at: &TopicPartition,
        applied: Option<&Applied>,
        now: DateTime<Utc>,
    ) -> Option<Partition> {
        // A topic of another prefix or of a domain that is gone is not this deployment's.
        let domains = self
            .registry
            .on_topic(at.topic.strip_prefix(&self.kafka.topic_prefix)?);
        if domains.is_empty() {
            return None;
        }
        let begin_offset = self.ends.begins.get(at).copied();
        let end_offset = self.ends.ends.get(at).copied();
        let next_offset = applied.map_or(0, |applied| applied.next_offset);
        let behind = end_offset.map_or(0, |end| end - next_offset);
        let through = applied.and_then(|applied| applied.applied_through);
        let seconds = |since: DateTime<Utc>| tenths((now - since).as_seconds_f64().max(0.0));
        let lag_seconds = match behind > 0 {
            true => self.oldest.get(at).map(|(_, logged)| seconds(*logged)),
            false => end_offset.map(|_| 0.0),
        };
        let letters = self
            .projection
            .as_ref()
            .and_then(|projection| projection.letters.get(at));
        Some(Partition {
            topic: at.topic.clone(),
            domains: domains.iter().map(|domain| domain.name.clone()).collect(),
            partition: at.partition,
            next_offset,
            begin_offset,
            end_offset,
            lag: behind.max(0),
            lag_seconds,
            rate: None,
            dead_letters: letters.copied().unwrap_or(0),
            owner: applied.and_then(|applied| applied.owner.clone()),
            owner_seen_seconds: applied
                .and_then(|applied| applied.owner.as_ref().map(|_| seconds(applied.updated_at))),
            fold_version: applied.map(|applied| applied.fold_version),
            applied_through: through.map(time),
            behind_seconds: through.map(seconds),
            withheld: Withheld::of(next_offset, begin_offset, end_offset),
            beyond_end: behind < 0,
        })
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => bail!("Postgres does not answer within {} s", PATIENCE.as_secs()),
    }
}

/// Where the log begins and ends, and the topics that are not there.
async fn ends(cluster: &mut Option<Cluster>, kafka: &KafkaSettings, registry: &Registry) -> Result<Ends> {
    let cluster = match cluster {
        Some(cluster) => cluster,
        None => cluster.insert(Cluster::new(kafka, "status")?),
    };
    let metadata = cluster.metadata().await?;
    let (mut wanted, mut missing_topics) = (Vec::new(), Vec::new());
    for topic in registry.topics() {
        let topic = topic_name(&kafka.topic_prefix, topic);
        match metadata.topics.get(&topic) {
            None => missing_topics.push(topic),
            Some(found) => wanted.extend(found.replicas.keys().map(|&partition| TopicPartition {
                topic: topic.clone(),
                partition,
            })),
        }
    }
    let (begins, ends) = tokio::join!(cluster.begin_offsets(wanted.clone()), cluster.end_offsets(wanted));
    Ok(Ends {
        begins: begins?,
        ends: ends?,
        missing_topics,
    })
}

async fn projected(
    client: &mut Option<Client>,
    database: &DatabaseSettings,
    registry: &Registry,
) -> Result<Projection> {
    let client = match client {
        Some(client) if !client.is_closed() => client,
        other => other.insert(connected(database, registry, "status", &[]).await?),
    };
    projection::read(client).await
}
