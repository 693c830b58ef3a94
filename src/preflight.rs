//! What a service looks at before it starts: that topics and tables are there. What is missing stops it, since it
//! would not come by itself. What is away does not: a gateway needs only the log, and both come back.

use anyhow::{Result, bail};
use tidelog_events::domain::Registry;
use tidelog_events::seal::KEYS_TOPIC;
use tidelog_events::settings::SETTINGS_TOPIC;
use tidelog_events::{DEAD_LETTER_TOPIC, topic_name};

use crate::database;
use crate::kafka::Cluster;
use crate::migrate::check_migrated;
use crate::settings::{DatabaseSettings, KafkaSettings, SealSettings};

/// Refuses what cannot work; warns of what does not answer now.
pub(crate) async fn preflight(
    kafka: &KafkaSettings,
    database: &DatabaseSettings,
    seal: &SealSettings,
    registry: &Registry,
) -> Result<()> {
    let (topics, tables) = tokio::join!(topics(kafka, seal, registry), tables(database, registry));
    topics.and(tables)
}

async fn topics(kafka: &KafkaSettings, seal: &SealSettings, registry: &Registry) -> Result<()> {
    let metadata = match Cluster::new(kafka, "preflight")?.metadata().await {
        Ok(metadata) => metadata,
        Err(error) => {
            tracing::warn!("{error:#}");
            return Ok(());
        }
    };
    let missing: Vec<String> = registry
        .topics()
        .into_iter()
        .chain([DEAD_LETTER_TOPIC, SETTINGS_TOPIC])
        .chain(seal.seal_secret.is_some().then_some(KEYS_TOPIC))
        .map(|topic| topic_name(&kafka.topic_prefix, topic))
        .filter(|topic| !metadata.topics.contains_key(topic))
        .collect();
    if !missing.is_empty() {
        bail!(
            "Kafka has no topic {}: run `tidelog topics` first",
            missing.join(", ")
        );
    }
    Ok(())
}

async fn tables(database: &DatabaseSettings, registry: &Registry) -> Result<()> {
    match database::connect(&database::config(database, "preflight", &[])?).await {
        Ok(client) => check_migrated(&client, &database.schema, registry).await,
        Err(error) => {
            tracing::warn!("{error:#}");
            Ok(())
        }
    }
}
