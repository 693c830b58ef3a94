//! The analyst: reads a topic with a Kafka client that knows nothing of Tidelog. That is kcat where it is installed,
//! else librdkafka, used plainly.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::process::Command;

/// How long reading a topic may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A record as it stands on the topic.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) partition: i64,
    pub(crate) offset: i64,
    pub(crate) key: String,
    /// In the order sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) value: String,
}

impl Record {
    /// A header's value; empty where it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value)
    }
}

/// All records of a topic, and with what they were read.
pub(crate) async fn read(brokers: &str, topic: &str) -> Result<(Vec<Record>, String)> {
    match by_kcat(brokers, topic).await? {
        Some(records) => Ok((records, format!("kcat -b {brokers} -t {topic} -C -e -J -q"))),
        None => {
            let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
            let records = tokio::task::spawn_blocking(move || by_librdkafka(&brokers, &topic)).await??;
            Ok((records, "librdkafka (kcat is not installed)".to_owned()))
        }
    }
}

/// None where there is no kcat.
async fn by_kcat(brokers: &str, topic: &str) -> Result<Option<Vec<Record>>> {
    let mut kcat = Command::new("kcat");
    kcat.args(["-b", brokers, "-t", topic, "-C", "-e", "-J", "-q"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, kcat.output()).await {
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return Ok(None),
        output => output
            .context("kcat has not reached the end of the topic in time")?
            .context("cannot run kcat")?,
    };
    if !output.status.success() {
        bail!(
            "kcat failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let lines = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty());
    lines.map(of_kcat).collect::<Result<_>>().map(Some)
}

/// A line of `kcat -J`: names and values of headers alternate in one list.
fn of_kcat(line: &[u8]) -> Result<Record> {
    let record: Value = serde_json::from_slice(line).context("kcat printed a line that is no JSON")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let headers: Vec<String> = record["headers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    Ok(Record {
        partition: record["partition"]
            .as_i64()
            .context("kcat printed no partition")?,
        offset: record["offset"].as_i64().context("kcat printed no offset")?,
        key: text(&record["key"]),
        headers: headers
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect(),
        value: text(&record["payload"]),
    })
}

fn by_librdkafka(brokers: &str, topic: &str) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "analyst")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata.topics().first().context("the topic is not there")?;
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in found.partitions() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE)?;
        left += high - low;
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + PATIENCE;
    let mut records = Vec::new();
    while left > 0 {
        if Instant::now() > deadline {
            bail!("the end of the topic was not reached in time: {left} records are missing");
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message?;
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        records.push(Record {
            partition: message.partition().into(),
            offset: message.offset(),
            key: text(message.key()),
            headers: headers
                .map(|header| (header.key.to_owned(), text(header.value)))
                .collect(),
            value: text(message.payload()),
        });
        left -= 1;
    }
    Ok(records)
}
