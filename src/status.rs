//! `tidelog status`: how far the projection is behind the log, partition by partition.
//!
//! What is in the log is asked of Kafka, what has been applied of Postgres, and the difference is the lag. Group
//! offsets are not looked at: Postgres' positions are the truth. With `--idempotency` it shows who repeats themselves
//! instead, which is `hits`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde::Serialize;
use tidelog_events::domain::Registry;
use tidelog_events::position::TopicPartition;
use tidelog_events::topic_name;
use tokio_postgres::Client;

use crate::database::{self, plain};
use crate::domains;
use crate::hits::{self, HitsArgs};
use crate::kafka::Cluster;
use crate::migrate::check_migrated;
use crate::output::{OutputArgs, table};
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings};

/// Shows how far the projection is behind the log
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Shows how far the projection is behind the log: a line a topic, or a partition with --all. As JSON, \
                  always every partition. With --idempotency it shows the devices that sent batches or items again \
                  in the last 24 hours instead, the most restless first.",
    after_help = "Examples:\n  tidelog status\n  tidelog status --output json | jq .lag\n  \
                  tidelog status --idempotency --tenant acme --limit 5\n\nExit codes:\n  \
                  0  shown, whatever the lag\n  \
                  1  Kafka or Postgres is away, or the schema is not migrated; it says which\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct StatusArgs {
    /// Show every partition
    #[arg(long)]
    all: bool,
    /// Show who sends the same batches and items again
    #[arg(long, conflicts_with = "all")]
    idempotency: bool,
    #[command(flatten)]
    hits: HitsArgs,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// All partitions.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Records that are in the log and not yet applied.
    pub(crate) lag: i64,
    /// Records applied.
    pub(crate) applied: i64,
    /// Records that the fold could not read and nobody has dealt with.
    pub(crate) dead_letters: i64,
    /// Topics that are not there.
    pub(crate) missing_topics: Vec<String>,
    /// By topic and number.
    pub(crate) partitions: Vec<Partition>,
}

impl Status {
    /// Whether every partition that is there is this projector's.
    pub(crate) fn owned_by(&self, instance: &str) -> bool {
        self.missing_topics.is_empty()
            && self
                .partitions
                .iter()
                .all(|p| p.owner.as_deref() == Some(instance))
    }
}

/// One partition.
#[derive(Debug, Serialize)]
pub(crate) struct Partition {
    /// The topic, with the deployment's prefix.
    pub(crate) topic: String,
    /// The domains on it.
    pub(crate) domains: Vec<String>,
    /// Its number.
    pub(crate) partition: i32,
    /// What the fold takes next.
    pub(crate) next_offset: i64,
    /// After the last record of the log; absent where the topic is not there.
    pub(crate) end_offset: Option<i64>,
    /// The difference.
    pub(crate) lag: i64,
    /// The projector that has it, or had it last.
    pub(crate) owner: Option<String>,
    /// Whatever the log had by then has been applied.
    pub(crate) applied_through: Option<String>,
    /// The position lies after the log's end: the topic was made anew, or this is another cluster.
    pub(crate) beyond_end: bool,
}

/// What Postgres says of a partition.
struct Applied {
    next_offset: i64,
    owner: Option<String>,
    applied_through: Option<DateTime<Utc>>,
}

/// Runs the command.
pub(crate) async fn run(args: StatusArgs) -> Result<()> {
    let registry = domains::registry(&args.domains)?;
    if args.idempotency {
        let hits = hits::hits(&args.database, &registry, &args.hits).await?;
        return args.output.output.print(&hits, hits::text);
    }
    let status = status(&args.kafka, &args.database, &registry).await?;
    for topic in &status.missing_topics {
        eprintln!("warning: the topic {topic} is not there: `tidelog topics` makes it");
    }
    for partition in status.partitions.iter().filter(|partition| partition.beyond_end) {
        eprintln!(
            "warning: {} partition {} has been applied up to {}, beyond the log's end: was the topic made anew?",
            partition.topic, partition.partition, partition.next_offset
        );
    }
    args.output.output.print(&status, |status| text(status, args.all))
}

/// Asks both sides at once.
pub(crate) async fn status(
    kafka: &KafkaSettings,
    database: &DatabaseSettings,
    registry: &Registry,
) -> Result<Status> {
    let (log, projection) = tokio::join!(ends(kafka, registry), applied(database, registry));
    let ((ends, missing_topics), (applied, dead_letters)) = match (log, projection) {
        (Ok(log), Ok(projection)) => (log, projection),
        (Err(log), Err(projection)) => bail!("{log:#}\nerror: {projection:#}"),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let places: BTreeSet<&TopicPartition> = ends.keys().chain(applied.keys()).collect();
    let partitions: Vec<Partition> = places
        .into_iter()
        .filter_map(|at| partition(at, &ends, &applied, kafka, registry))
        .collect();
    Ok(Status {
        lag: partitions.iter().map(|partition| partition.lag).sum(),
        applied: partitions.iter().map(|partition| partition.next_offset).sum(),
        dead_letters,
        missing_topics,
        partitions,
    })
}

fn partition(
    at: &TopicPartition,
    ends: &BTreeMap<TopicPartition, i64>,
    applied: &BTreeMap<TopicPartition, Applied>,
    kafka: &KafkaSettings,
    registry: &Registry,
) -> Option<Partition> {
    // A topic of another prefix or of a domain that is gone is not this deployment's.
    let domains = registry.on_topic(at.topic.strip_prefix(&kafka.topic_prefix)?);
    if domains.is_empty() {
        return None;
    }
    let (end_offset, applied) = (ends.get(at).copied(), applied.get(at));
    let next_offset = applied.map_or(0, |applied| applied.next_offset);
    let behind = end_offset.map_or(0, |end| end - next_offset);
    Some(Partition {
        topic: at.topic.clone(),
        domains: domains.iter().map(|domain| domain.name.clone()).collect(),
        partition: at.partition,
        next_offset,
        end_offset,
        lag: behind.max(0),
        owner: applied.and_then(|applied| applied.owner.clone()),
        applied_through: applied
            .and_then(|applied| applied.applied_through)
            .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        beyond_end: behind < 0,
    })
}

/// The log's ends, and the topics that are not there.
async fn ends(
    kafka: &KafkaSettings,
    registry: &Registry,
) -> Result<(BTreeMap<TopicPartition, i64>, Vec<String>)> {
    let cluster = Cluster::new(kafka, "status")?;
    let metadata = cluster.metadata().await?;
    let (mut wanted, mut missing) = (Vec::new(), Vec::new());
    for topic in registry.topics() {
        let topic = topic_name(&kafka.topic_prefix, topic);
        match metadata.topics.get(&topic) {
            None => missing.push(topic),
            Some(found) => wanted.extend(found.replicas.keys().map(|&partition| TopicPartition {
                topic: topic.clone(),
                partition,
            })),
        }
    }
    Ok((cluster.end_offsets(wanted).await?, missing))
}

/// A connection to a schema of this build.
pub(crate) async fn connected(database: &DatabaseSettings, registry: &Registry) -> Result<Client> {
    let client = database::connect(&database::config(database, "status", &[])?).await?;
    check_migrated(&client, &database.schema, registry).await?;
    Ok(client)
}

/// The positions, and how many dead letters are open.
async fn applied(
    database: &DatabaseSettings,
    registry: &Registry,
) -> Result<(BTreeMap<TopicPartition, Applied>, i64)> {
    let client = connected(database, registry).await?;
    let rows = client
        .query(
            "SELECT topic, partition, next_offset, owner, nullif(applied_through, '1970-01-01T00:00:00Z')
             FROM positions",
            &[],
        )
        .await
        .map_err(plain)?;
    let positions = rows
        .iter()
        .map(|row| {
            let at = TopicPartition {
                topic: row.get(0),
                partition: row.get(1),
            };
            let applied = Applied {
                next_offset: row.get(2),
                owner: row.get(3),
                applied_through: row.get(4),
            };
            (at, applied)
        })
        .collect();
    let letters = client
        .query_one("SELECT count(*) FROM dead_letters WHERE status = 'open'", &[])
        .await
        .map_err(plain)?;
    Ok((positions, letters.get(0)))
}

fn text(status: &Status, all: bool) -> String {
    let heading = if all {
        [
            "topic",
            "partition",
            "applied",
            "in the log",
            "lag",
            "applied through",
            "owner",
        ]
    } else {
        [
            "topic",
            "partitions",
            "applied",
            "in the log",
            "lag",
            "applied through",
            "owners",
        ]
    };
    let topics = status.partitions.chunk_by(|a, b| !all && a.topic == b.topic);
    let rows: Vec<[String; 7]> = topics.map(|partitions| row(partitions, all)).collect();
    format!(
        "{}\n{} records applied, lag {}, {} dead letters\n",
        table(heading, [false, true, true, true, true, false, false], &rows),
        status.applied,
        status.lag,
        status.dead_letters
    )
}

/// The line of one partition, or of all of a topic.
fn row(partitions: &[Partition], all: bool) -> [String; 7] {
    let sum = |number: fn(&Partition) -> i64| partitions.iter().map(number).sum::<i64>().to_string();
    let owners: BTreeSet<&str> = partitions.iter().filter_map(|p| p.owner.as_deref()).collect();
    // A topic is applied through what its last partition is applied through.
    let through = partitions
        .iter()
        .map(|p| p.applied_through.as_deref())
        .min()
        .flatten();
    let owner = match owners.len() {
        0 => "-".to_owned(),
        _ if all => owners.into_iter().collect(),
        number => number.to_string(),
    };
    [
        partitions[0].topic.clone(),
        if all {
            partitions[0].partition
        } else {
            partitions.len() as i32
        }
        .to_string(),
        sum(|p| p.next_offset),
        sum(|p| p.end_offset.unwrap_or(0)),
        sum(|p| p.lag),
        through.unwrap_or("-").to_owned(),
        owner,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(
        topic: &str,
        partition: i32,
        next_offset: i64,
        end: i64,
        through: Option<&str>,
    ) -> Partition {
        Partition {
            topic: topic.into(),
            domains: vec![],
            partition,
            next_offset,
            end_offset: Some(end),
            lag: end - next_offset,
            owner: Some("host-1".into()),
            applied_through: through.map(str::to_owned),
            beyond_end: false,
        }
    }

    #[test]
    fn a_topic_is_one_line_unless_all_are_asked_for() {
        let status = Status {
            lag: 2,
            applied: 12,
            dead_letters: 0,
            missing_topics: vec![],
            partitions: vec![
                partition("a", 0, 5, 7, Some("2026-01-02T00:00:00.000Z")),
                partition("a", 1, 3, 3, Some("2026-01-01T00:00:00.000Z")),
                partition("b", 0, 4, 4, None),
            ],
        };
        let (short, long) = (text(&status, false), text(&status, true));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let short: Vec<String> = short.lines().map(words).collect();
        assert_eq!(short[1], "a 2 8 10 2 2026-01-01T00:00:00.000Z 1");
        assert_eq!(short[2], "b 1 4 4 0 - 1");
        assert_eq!(short[4], "12 records applied, lag 2, 0 dead letters");
        let long: Vec<String> = long.lines().map(words).collect();
        assert_eq!(long[1], "a 0 5 7 2 2026-01-02T00:00:00.000Z host-1");
        assert_eq!(long.len(), 6);
    }
}
