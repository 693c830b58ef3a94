//! A trace's view of the log: whether an item lies where the store says, and what lies beyond the positions. Another
//! tenant's records that come by are passed over.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::envelope::Event;
use tidelog_events::ids::TenantId;
use tidelog_events::position::{Positions, TopicPartition};
use tidelog_events::topic_name;
use tidelog_projector::log::Log;

use super::entry::{Batch, InLog, Item};
use crate::kafka::Cluster;
use crate::look::became::{Became, Undecided};
use crate::look::places;
use crate::look::seen::Seen;
use crate::settings::KafkaSettings;

/// Most records of a partition that are looked through for what is not applied yet.
const PENDING: i64 = 20_000;
/// How long the log is read for.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where to look for what is not applied yet: the first offset of each partition, and the one after the last.
pub(super) type Ranges = BTreeMap<TopicPartition, (i64, i64)>;

/// Where batches lie beyond the positions.
pub(super) fn behind(batches: &[Batch], positions: &Positions) -> Ranges {
    let mut ranges = Ranges::new();
    for (topic, partition, last) in batches.iter().flat_map(|batch| &batch.appended) {
        let at = TopicPartition {
            topic: topic.clone(),
            partition: *partition,
        };
        let next = positions.next_offset(&at);
        if next <= *last {
            let range = ranges.entry(at).or_insert((next, last + 1));
            range.1 = range.1.max(last + 1);
        }
    }
    ranges
}

/// Everything of a domain's topic that is not applied.
pub(super) async fn not_applied(
    kafka: &KafkaSettings,
    domain: &Domain,
    positions: &Positions,
) -> Result<Ranges> {
    let topic = topic_name(&kafka.topic_prefix, &domain.topic);
    let cluster = Cluster::new(kafka, "trace")?;
    let there = cluster.metadata().await?.topics.remove(&topic);
    let there = there.with_context(|| format!("the topic {topic} is not there"))?;
    let partitions = there.replicas.into_keys().map(|partition| TopicPartition {
        topic: topic.clone(),
        partition,
    });
    let ends = cluster.end_offsets(partitions.collect()).await?;
    let ranges = ends.into_iter().map(|(at, end)| {
        let next = positions.next_offset(&at);
        (at, (next, end))
    });
    Ok(ranges.filter(|(_, (next, end))| next < end).collect())
}

/// The items of these ranges that are asked for, and whether all could be looked through.
pub(super) async fn pending(
    kafka: &KafkaSettings,
    registry: &Registry,
    tenant: &TenantId,
    ranges: Ranges,
    is_one: &dyn Fn(&Item) -> bool,
) -> Result<(Vec<Item>, bool)> {
    let mut complete = true;
    let mut topics: BTreeMap<String, BTreeMap<i32, (i64, Option<i64>)>> = BTreeMap::new();
    for (at, (from, to)) in ranges {
        complete &= to - from <= PENDING;
        let range = (from, Some(to.min(from + PENDING)));
        topics.entry(at.topic).or_default().insert(at.partition, range);
    }
    let mut items = Vec::new();
    let until = tokio::time::Instant::now() + PATIENCE;
    for (topic, ranges) in topics {
        let mut parcels = Log::new(&kafka.kafka_brokers, &topic).read(&ranges);
        loop {
            let parcel = tokio::time::timeout_at(until, parcels.recv()).await;
            let Some(parcel) = parcel.context("Kafka does not show it in time")? else {
                break;
            };
            for record in &parcel?.records {
                let item = of_record(&Seen::of(record, registry, false), tenant);
                items.extend(item.filter(|item| is_one(item)));
            }
        }
    }
    Ok((items, complete))
}

/// An item that was read in the log; none where it is another tenant's, or no event.
fn of_record(seen: &Seen, tenant: &TenantId) -> Option<Item> {
    let (event, domain) = seen
        .event
        .as_ref()
        .ok()
        .filter(|(event, _)| event.tenant == *tenant)?;
    Some(Item {
        log_time: seen.log_time,
        domain: Some(domain.name.clone()),
        record: Some(event.subject.to_string()),
        user: Some(event.user.as_str().to_owned()),
        device: Some(event.device.as_str().to_owned()),
        batch_id: Some(event.batch.0),
        batch_index: Some(event.index),
        operation: Some(event.operation.as_str().to_owned()),
        base_version: Some(event.base),
        topic: seen.at.topic.clone(),
        partition: seen.at.partition,
        offset: seen.offset,
        in_log: InLog::There,
        outcome: Became::PENDING,
        conflict: None,
    })
}

/// Reads each item again where the store says that it lies. What only the log knows of it is then told too.
pub(super) async fn verify(
    kafka: &KafkaSettings,
    registry: &Registry,
    tenant: &TenantId,
    items: &mut [Item],
) -> Result<()> {
    let mut wanted = places::Wanted::new();
    for item in items.iter().filter(|item| item.in_log == InLog::NotSeen) {
        wanted.entry(at(item)).or_default().insert(item.offset);
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let records = places::read(kafka, wanted, PATIENCE).await?;
    for item in items.iter_mut().filter(|item| item.in_log == InLog::NotSeen) {
        let Some(record) = records.found.get(&(at(item), item.offset)) else {
            item.in_log = if records.complete {
                InLog::Gone
            } else {
                InLog::NotSeen
            };
            continue;
        };
        let seen = Seen::of(record, registry, false);
        item.in_log = match &seen.event {
            Ok((event, _)) if is_its(event, item, tenant) => {
                item.operation = Some(event.operation.as_str().to_owned());
                item.base_version = Some(event.base);
                InLog::There
            }
            // A letter may have headers that nobody can read.
            Err(_) if matches!(item.outcome, Became::Undecided(Undecided::DeadLetter { .. })) => InLog::There,
            _ => InLog::Another,
        };
    }
    ensure!(records.complete, "Kafka does not show them in time");
    Ok(())
}

fn at(item: &Item) -> TopicPartition {
    TopicPartition {
        topic: item.topic.clone(),
        partition: item.partition,
    }
}

fn is_its(event: &Event, item: &Item, tenant: &TenantId) -> bool {
    let batch = item.batch_id.is_none_or(|batch| batch == event.batch.0);
    event.tenant == *tenant && batch && item.batch_index.is_none_or(|index| index == event.index)
}
