//! `tidelog topics`: makes the topics that are missing, and compares the others with what they should be.
//!
//! What exists is never altered: more partitions would part a record from its history, and a setting that someone
//! chose by hand was chosen for a reason. It says what differs and how to change it.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use serde::Serialize;
use tidelog_events::domain::Registry;
use tidelog_events::position::TopicPartition;
use tidelog_events::seal::KEYS_TOPIC;
use tidelog_events::settings::{Partitions, SETTINGS_TOPIC};
use tidelog_events::{DEAD_LETTER_TOPIC, topic_name};
use tidelog_ingest::settings::{FollowConfig, follow, write_partitions};
use tidelog_ingest::{Producer, ProducerConfig};

use crate::domains;
use crate::kafka::{Cluster, Metadata, client_config};
use crate::output::{OutputArgs, counted};
use crate::settings::{DomainSettings, KafkaSettings, TopicSettings};

/// How long the controller may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The exit code when topics are not as they should be.
const EXIT_DIFFERS: u8 = 3;

/// Makes the topics that are missing and reports differences of the others
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Makes the topics that are missing: one a domain and one for dead letters, kept for ever, with the \
                  broker's time; and two compacted ones, for tenants' settings and for the keys of sealed values. Writes down how many partitions each topic has when \
                  it is made: gateways keep to that number. Reports where existing ones differ; alters nothing.",
    after_help = "Examples:\n  tidelog topics --partitions 12\n  tidelog topics --check --output json\n\nExit codes:\n  \
                  0  every topic is as it should be\n  \
                  1  failed, for example because Kafka is away\n  \
                  2  wrong command line or setting\n  \
                  3  existing topics differ, or, with --check, some are missing"
)]
pub(crate) struct TopicsArgs {
    /// Make nothing, only report
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    topics: TopicSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// What became of the topics.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Made.
    pub(crate) created: Vec<String>,
    /// Not there, and with `--check` not made.
    pub(crate) missing: Vec<String>,
    /// There and as it should be.
    pub(crate) unchanged: Vec<String>,
    /// There and different.
    pub(crate) differences: Vec<Difference>,
}

/// A topic that is not as it should be.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// The topic.
    pub(crate) topic: String,
    /// What of it: `partitions`, `replication_factor`, or a topic configuration.
    pub(crate) property: String,
    /// What it is.
    pub(crate) found: String,
    /// What it should be.
    pub(crate) expected: String,
    /// The number of partitions that gateways keep to, where that is not what is found.
    #[serde(skip)]
    kept_to: Option<i32>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            topic,
            property,
            found,
            expected,
            kept_to,
        } = self;
        write!(f, "{topic}: {property} is {found}, not {expected}")?;
        match (property.as_str(), kept_to) {
            ("partitions", Some(made)) => write!(
                f,
                " (it was made with {made}, and gateways keep to these: a record's history is one partition)"
            ),
            ("partitions", None) => write!(
                f,
                " (changing it would part records from their history: set partitions = {found})"
            ),
            ("replication_factor", _) => write!(f, " (kafka-reassign-partitions.sh changes it)"),
            _ => write!(
                f,
                " (kafka-configs.sh --alter --topic {topic} --add-config {property}={expected})"
            ),
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: TopicsArgs) -> Result<ExitCode> {
    let registry = domains::registry(&args.domains)?;
    let report = ensure(&args.kafka, &args.topics, &registry, !args.check).await?;
    args.output.output.print(&report, |report| {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(report.created.iter().map(|topic| format!("created    {topic}")));
        lines.extend(report.unchanged.iter().map(|topic| format!("unchanged  {topic}")));
        lines.extend(report.missing.iter().map(|topic| format!("missing    {topic}")));
        lines.extend(
            report
                .differences
                .iter()
                .map(|difference| format!("differs    {difference}")),
        );
        lines.join("\n")
    })?;
    let right = report.missing.is_empty() && report.differences.is_empty();
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_DIFFERS)
    })
}

/// Makes the missing topics if `create`, waits until they can be used, and compares the others.
pub(crate) async fn ensure(
    kafka: &KafkaSettings,
    settings: &TopicSettings,
    registry: &Registry,
    create: bool,
) -> Result<Report> {
    let cluster = Cluster::new(kafka, "topics")?;
    let metadata = cluster.metadata().await?;
    let copies = copies(settings, metadata.brokers)?;
    let (existing, missing): (Vec<_>, Vec<_>) = wanted(registry, kafka, settings.partitions)
        .into_iter()
        .partition(|topic| metadata.topics.contains_key(&topic.name));

    let admin: AdminClient<DefaultClientContext> = client_config(kafka, "topics")
        .create()
        .context("cannot make a Kafka client")?;
    let mut report = Report::default();
    if create {
        make(&admin, &missing, copies).await?;
        wait_until_led(&cluster, &missing).await?;
        report.created = names(missing);
    } else {
        report.missing = names(missing);
    }
    let made = made_with(kafka, registry, &cluster, &report.created, create).await?;
    report.differences = differences(&admin, &metadata, &existing, copies, &made).await?;
    report.unchanged = names(existing)
        .into_iter()
        .filter(|topic| {
            !report
                .differences
                .iter()
                .any(|difference| difference.topic == *topic)
        })
        .collect();
    Ok(report)
}

/// How many partitions each topic of the log was made with, by its name. What is not written down yet is, if `write`: that many it has
/// now, since nobody knows better.
async fn made_with(
    kafka: &KafkaSettings,
    registry: &Registry,
    cluster: &Cluster,
    created: &[String],
    write: bool,
) -> Result<BTreeMap<String, i32>> {
    let name = |topic: &str| topic_name(&kafka.topic_prefix, topic);
    let metadata = cluster.metadata().await?;
    // Of a topic that was just made there is nothing to read.
    let fresh =
        created.contains(&name(SETTINGS_TOPIC)) || !metadata.topics.contains_key(&name(SETTINGS_TOPIC));
    let mut made = match fresh {
        true => Partitions::default(),
        false => written_down(kafka).await?,
    };
    let mut news = Partitions::new();
    for topic in registry.topics().into_iter().chain([DEAD_LETTER_TOPIC]) {
        let Some(found) = metadata.topics.get(&name(topic)) else {
            continue;
        };
        let count = i32::try_from(found.replicas.len()).unwrap_or(i32::MAX);
        let anew = created.contains(&name(topic));
        // One with fewer than it was made with was made anew by somebody else.
        if anew || made.get(topic).is_none_or(|made| *made > count) {
            news.insert(topic.to_owned(), count);
        }
    }
    if write {
        let producer = Producer::new(ProducerConfig::new(&kafka.kafka_brokers))?;
        write_partitions(&producer, &kafka.topic_prefix, &news)
            .await
            .context("cannot write down how many partitions the topics have")?;
        made.extend(news);
    }
    Ok(made
        .into_iter()
        .map(|(topic, made)| (name(&topic), made))
        .collect())
}

/// What the settings topic says.
async fn written_down(kafka: &KafkaSettings) -> Result<Partitions> {
    let (mut settings, following) = follow(FollowConfig {
        brokers: kafka.kafka_brokers.clone(),
        topic_prefix: kafka.topic_prefix.clone(),
    });
    let read = async {
        let settings = settings.wait_for(|settings| settings.complete).await;
        settings.map(|settings| Partitions::clone(settings.partitions()))
    };
    tokio::select! {
        read = tokio::time::timeout(TIMEOUT, read) => {
            let read = read.with_context(|| format!("the settings topic was not read within {} s: are all brokers up?", TIMEOUT.as_secs()))?;
            read.context("the settings topic cannot be read")
        }
        () = following => bail!("the settings topic cannot be read"),
    }
}

/// A topic as it should be.
struct Wanted {
    name: String,
    partitions: i32,
    cleanup: &'static str,
    /// Milliseconds after which a record that was replaced is compacted away at the latest.
    most_lag: Option<&'static str>,
}

/// One a domain and one for dead letters, in which nothing expires; one for settings, of which the last of each tenant is
/// kept; and one for the keys of sealed values, likewise. Those are few, and one partition has one order.
fn wanted(registry: &Registry, kafka: &KafkaSettings, partitions: i32) -> Vec<Wanted> {
    let log = registry.topics().into_iter().chain([DEAD_LETTER_TOPIC]);
    let log = log.map(|topic| (topic, partitions, "delete"));
    log.chain([(SETTINGS_TOPIC, 1, "compact"), (KEYS_TOPIC, 1, "compact")])
        .map(|(topic, partitions, cleanup)| Wanted {
            name: topic_name(&kafka.topic_prefix, topic),
            partitions,
            cleanup,
            // A key that was destroyed is to leave the brokers' disks soon, also where nothing else is written.
            most_lag: (topic == KEYS_TOPIC).then_some("3600000"),
        })
        .collect()
}

fn names(topics: Vec<Wanted>) -> Vec<String> {
    topics.into_iter().map(|topic| topic.name).collect()
}

/// Three copies, of which two must have a record before it counts, survive the loss of a broker without a pause.
fn copies(settings: &TopicSettings, brokers: usize) -> Result<i32> {
    let brokers = i32::try_from(brokers).unwrap_or(i32::MAX).max(1);
    let copies = settings.replication_factor.unwrap_or(brokers.min(3));
    if copies > brokers {
        bail!(
            "replication_factor is {copies}, but the cluster has {}: lower it or add brokers",
            counted(brokers, "broker", "brokers")
        );
    }
    Ok(copies)
}

/// The configuration of a topic. The log is the truth: nothing expires, and the time is the log's own.
fn configuration(topic: &Wanted, copies: i32) -> Vec<(&'static str, &'static str)> {
    let lag = topic.most_lag.map(|lag| ("max.compaction.lag.ms", lag));
    let all = [
        ("message.timestamp.type", "LogAppendTime"),
        ("retention.ms", "-1"),
        ("cleanup.policy", topic.cleanup),
        ("min.insync.replicas", if copies >= 3 { "2" } else { "1" }),
    ];
    all.into_iter().chain(lag).collect()
}

async fn make(admin: &AdminClient<DefaultClientContext>, topics: &[Wanted], copies: i32) -> Result<()> {
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| {
            configuration(topic, copies).iter().fold(
                NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(copies)),
                |new, (name, value)| new.set(name, value),
            )
        })
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let made = admin
        .create_topics(&new, &options())
        .await
        .context("cannot make topics")?;
    for topic in made {
        match topic {
            // Another run was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                bail!(
                    "cannot make the topic {topic}: {code}. May this user create topics, and is there room?"
                )
            }
        }
    }
    Ok(())
}

/// A topic that was just made is not known to every broker at once, and one that is to lead a partition may not know it yet
/// although others name it: so each is asked for its end besides, as whoever comes next will.
async fn wait_until_led(cluster: &Cluster, topics: &[Wanted]) -> Result<()> {
    if topics.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let metadata = cluster.metadata().await?;
        let usable = |topic: &&Wanted| {
            let found = metadata.topics.get(&topic.name);
            found.is_some_and(|found| {
                found.led && found.replicas.len() >= usize::try_from(topic.partitions).unwrap_or(0)
            })
        };
        match topics.iter().find(|topic| !usable(topic)) {
            None => break,
            Some(topic) if Instant::now() > deadline => bail!(
                "the topic {} was made, but not all of its partitions have a leader after {} s: are all brokers up?",
                topic.name,
                TIMEOUT.as_secs()
            ),
            Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    let partitions = topics.iter().flat_map(|topic| {
        (0..topic.partitions).map(|partition| TopicPartition {
            topic: topic.name.clone(),
            partition,
        })
    });
    let partitions: Vec<TopicPartition> = partitions.collect();
    loop {
        let Err(error) = cluster.end_offsets(partitions.clone()).await else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(error.context(format!(
                "the topics were made, but not all of their partitions can be read after {} s",
                TIMEOUT.as_secs()
            )));
        }
    }
}

async fn differences(
    admin: &AdminClient<DefaultClientContext>,
    metadata: &Metadata,
    topics: &[Wanted],
    copies: i32,
    made: &BTreeMap<String, i32>,
) -> Result<Vec<Difference>> {
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    let resources: Vec<ResourceSpecifier<'_>> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(&topic.name))
        .collect();
    let described = admin
        .describe_configs(&resources, &options())
        .await
        .context("cannot read the topics' configuration")?;
    let mut differences = Vec::new();
    for (topic, described) in topics.iter().zip(described) {
        let name = &topic.name;
        let described = described
            .map_err(|code| anyhow::anyhow!("cannot read the configuration of the topic {name}: {code}"))?;
        let found: BTreeMap<&str, String> = described
            .entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry.value.clone().unwrap_or_default()))
            .collect();
        let shape = &metadata.topics[name].replicas;
        let least = shape.values().min().copied().unwrap_or(0);
        let count = i32::try_from(shape.len()).unwrap_or(i32::MAX);
        let kept_to = made.get(name).copied().filter(|made| *made < count);
        let mut compare = |property: &str, found: String, expected: String| {
            if found != expected {
                differences.push(Difference {
                    topic: name.clone(),
                    property: property.to_owned(),
                    found,
                    expected,
                    kept_to: kept_to.filter(|_| property == "partitions"),
                });
            }
        };
        compare(
            "partitions",
            shape.len().to_string(),
            topic.partitions.to_string(),
        );
        compare("replication_factor", least.to_string(), copies.to_string());
        for (property, expected) in configuration(topic, copies) {
            compare(
                property,
                found.get(property).cloned().unwrap_or_default(),
                expected.to_owned(),
            );
        }
    }
    Ok(differences)
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(replication_factor: Option<i32>) -> TopicSettings {
        TopicSettings {
            partitions: 6,
            replication_factor,
        }
    }

    #[test]
    fn as_many_copies_as_the_cluster_can_hold_up_to_three() {
        for (brokers, expected) in [(1, 1), (2, 2), (3, 3), (9, 3)] {
            assert_eq!(
                copies(&settings(None), brokers).expect("a number of copies"),
                expected
            );
        }
        assert_eq!(copies(&settings(Some(1)), 3).expect("a number of copies"), 1);
        let error = copies(&settings(Some(3)), 1).expect_err("too many").to_string();
        assert!(error.contains("the cluster has 1 broker:"), "{error}");
    }

    #[test]
    fn a_difference_says_how_to_live_with_it() {
        let difference = |kept_to: Option<i32>| {
            let difference = Difference {
                topic: "sync.helpdesk.v1".into(),
                property: "partitions".into(),
                found: "12".into(),
                expected: "6".into(),
                kept_to,
            };
            difference.to_string()
        };
        let text = difference(Some(6));
        assert!(
            text.contains("was made with 6, and gateways keep to these"),
            "{text}"
        );
        let text = difference(None);
        assert!(text.contains("set partitions = 12"), "{text}");
    }
}
