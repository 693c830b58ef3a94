//! Topics as an analyst reads them, with a client that is not ours: kcat. And where a Java client would put a key.

use std::io::Write;
use std::process::{Command, Stdio};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

/// A record as kcat shows it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: String,
    /// In the order sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) value: String,
    /// The log's time, in milliseconds since 1970.
    pub(crate) logged_at: i64,
}

impl Record {
    /// The value of a header that is there once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let (_, value) = values
            .next()
            .unwrap_or_else(|| panic!("no header {name}: {self:?}"));
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    pub(crate) fn header_names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// All records of a topic, by partition and offset.
pub(crate) fn read_topic(brokers: &str, topic: &str) -> Vec<Record> {
    let output = Command::new("kcat")
        .args([
            "-C",
            "-b",
            brokers,
            "-t",
            topic,
            "-o",
            "beginning",
            "-e",
            "-q",
            "-J",
        ])
        .output()
        .expect("kcat is installed: deploy/install.sh test does it");
    assert!(
        output.status.success(),
        "kcat: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("kcat prints UTF-8");
    let mut records: Vec<Record> = text.lines().map(record).collect();
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

fn record(line: &str) -> Record {
    let shown: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let text = |name: &str| {
        shown[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name}: {line}"))
            .to_owned()
    };
    let headers: Vec<String> = shown["headers"].as_array().map_or(Vec::new(), |list| {
        list.iter()
            .map(|part| part.as_str().unwrap_or_default().to_owned())
            .collect()
    });
    Record {
        partition: shown["partition"].as_i64().expect("a partition") as i32,
        offset: shown["offset"].as_i64().expect("an offset"),
        key: text("key"),
        headers: headers
            .chunks(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect(),
        logged_at: shown["ts"].as_i64().expect("a time"),
        // A tombstone has none.
        value: shown["payload"].as_str().unwrap_or_default().to_owned(),
    }
}

/// Appends one record as anybody with access to the cluster might.
pub(crate) fn produce(brokers: &str, topic: &str, key: &str, headers: &[(&str, &str)], value: &str) {
    let mut kcat = Command::new("kcat");
    kcat.args(["-P", "-b", brokers, "-t", topic, "-k", key]);
    for (name, value) in headers {
        kcat.args(["-H", &format!("{name}={value}")]);
    }
    let mut running = kcat
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is installed: deploy/install.sh test does it");
    let mut input = running.stdin.take().expect("a pipe");
    input.write_all(value.as_bytes()).expect("kcat takes it");
    drop(input);
    assert!(running.wait().expect("a child can be waited for").success());
}

/// Where a partition's log ends, for each partition of a topic.
pub(crate) fn end_offsets(brokers: &str, topic: &str, partitions: i32) -> Vec<i64> {
    let mut kcat = Command::new("kcat");
    kcat.args(["-Q", "-b", brokers]);
    for partition in 0..partitions {
        kcat.args(["-t", &format!("{topic}:{partition}:-1")]);
    }
    let output = kcat
        .output()
        .expect("kcat is installed: deploy/install.sh test does it");
    assert!(
        output.status.success(),
        "kcat: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut ends: Vec<(i32, i64)> = text
        .lines()
        .filter_map(|line| {
            // `topic [0] offset 12`
            let (_, rest) = line.rsplit_once('[')?;
            let (partition, offset) = rest.split_once("] offset ")?;
            Some((partition.parse().ok()?, offset.trim().parse().ok()?))
        })
        .collect();
    ends.sort_unstable();
    assert_eq!(ends.len(), partitions as usize, "{text}");
    ends.into_iter().map(|(_, end)| end).collect()
}

/// A record as a gateway would append it, at a time of the test's choosing.
pub(crate) struct Stamped {
    pub(crate) partition: i32,
    /// The log's time, in milliseconds since 1970.
    pub(crate) logged_at: i64,
    pub(crate) key: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) value: String,
}

/// Appends records in their order, at their times: the topic takes these from then on.
pub(crate) async fn produce_stamped(brokers: &str, topic: &str, records: &[Stamped]) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a client");
    let stamped = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("message.timestamp.type", "CreateTime")
        .set("retention.ms", "-1");
    let altered = admin.alter_configs([&stamped], &AdminOptions::new()).await;
    altered
        .expect("an answer")
        .into_iter()
        .for_each(|topic| assert!(topic.is_ok(), "{topic:?}"));
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let mut sent = Vec::new();
    for record in records {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &record.headers {
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        let to_send = FutureRecord::to(topic)
            .partition(record.partition)
            .timestamp(record.logged_at)
            .key(&record.key)
            .headers(headers)
            .payload(&record.value);
        sent.push(
            producer
                .send_result(to_send)
                .map_err(|(error, _)| error)
                .expect("room for it"),
        );
    }
    for delivery in sent {
        delivery.await.expect("a producer").expect("it is in the log");
    }
}

/// Deletes what a topic has before these offsets, as a retention does.
pub(crate) async fn delete_before(brokers: &str, topic: &str, offsets: &[(i32, i64)]) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a client");
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets.iter().filter(|(_, offset)| *offset > 0) {
        let added = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
        added.expect("a partition is listed once");
    }
    if list.count() == 0 {
        return;
    }
    let deleted = admin.delete_records(&list, &AdminOptions::new()).await;
    for element in deleted.expect("an answer").elements() {
        assert!(element.error().is_ok(), "{element:?}");
    }
}
