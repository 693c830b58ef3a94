//! Words of a user that were never sealed, counted in the log, the one place that has all of them: events of before
//! seal_secret was set, or of before a field was called personal. Reads every topic whole, and writes nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tidelog_events::domain::Registry;
use tidelog_events::envelope::Event;
use tidelog_events::ids::{TenantId, UserId};
use tidelog_events::item::Operation;
use tidelog_events::seal::holds_plain;
use tidelog_events::topic_name;
use tidelog_projector::log::Log;
use tidelog_projector::record::LogRecord;

use crate::kafka::Cluster;
use crate::settings::KafkaSettings;

/// Events with personal values that are not sealed, by domain; a domain without any is left out.
pub(super) async fn count(
    kafka: &KafkaSettings,
    registry: &Registry,
    tenant: &TenantId,
    user: &UserId,
) -> Result<BTreeMap<String, u64>> {
    let there = Cluster::new(kafka, "erase")?.metadata().await?;
    let mut counts = BTreeMap::new();
    for topic in registry.topics() {
        let topic = topic_name(&kafka.topic_prefix, topic);
        if !there.topics.contains_key(&topic) {
            continue;
        }
        let log = Log::new(&kafka.kafka_brokers, &topic);
        let cannot = || format!("the topic {topic} cannot be read");
        let mut parcels = log.read_all(false).await.with_context(cannot)?;
        while let Some(parcel) = parcels.recv().await {
            for record in parcel.with_context(cannot)?.records {
                if let Some(domain) = plain(&record, registry, tenant, user) {
                    *counts.entry(domain).or_default() += 1;
                }
            }
        }
    }
    Ok(counts)
}

/// The domain of an event of that user that holds something personal in plain.
fn plain(record: &LogRecord, registry: &Registry, tenant: &TenantId, user: &UserId) -> Option<String> {
    let event = Event::from_headers(record.headers(), registry).ok()?;
    if (&event.tenant, &event.user) != (tenant, user) {
        return None;
    }
    let domain = registry.by_table(&event.table)?;
    let value = serde_json::from_slice(record.payload()?).ok()?;
    let resolves = event.operation == Operation::Resolve;
    holds_plain(domain, resolves, &value).then(|| domain.name.clone())
}
