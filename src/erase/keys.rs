//! The keys of one user: found in the log and in the table, and destroyed in the table. What the log says of a key goes before
//! what the table says. Knows nothing of what is under a key.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::Utc;
use tidelog_events::ids::{TenantId, UserId};
use tidelog_events::seal::record::{self, KeyName};
use tidelog_events::seal::{KEYS_TOPIC, STORE_KEYS};
use tidelog_events::topic_name;
use tidelog_projector::log::Log;
use tokio_postgres::Client;

use crate::database::plain;
use crate::kafka::Cluster;
use crate::settings::KafkaSettings;

/// How long one try to rewrite the table waits for whoever uses it: they wait behind it.
const LOCK: &str = "SET lock_timeout = '2s'";
/// How often it is tried, and how long is waited between two tries.
const TRIES: u32 = 15;
const PAUSE: Duration = Duration::from_millis(500);

/// What there is of one user.
#[derive(Debug, Default)]
pub(super) struct UserKeys {
    /// Keys that open something.
    pub(super) alive: Vec<KeyName>,
    /// Keys that were destroyed before.
    pub(super) destroyed: Vec<KeyName>,
}

/// Finds the keys of a user.
pub(super) async fn of(
    kafka: &KafkaSettings,
    client: &Client,
    tenant: &TenantId,
    user: &UserId,
) -> Result<UserKeys> {
    let mut keys = in_log(kafka, tenant, user).await?;
    for name in in_table(client, tenant, user).await? {
        // One that the log does not know either belongs to a log that was lost, and goes all the same.
        keys.entry(name).or_insert(true);
    }
    let (alive, destroyed): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(_, alive)| *alive);
    let names = |keys: Vec<(KeyName, bool)>| keys.into_iter().map(|(name, _)| name).collect();
    Ok(UserKeys {
        alive: names(alive),
        destroyed: names(destroyed),
    })
}

/// Each with whether it is alive. A deployment that never sealed anything may have no such topic.
async fn in_log(kafka: &KafkaSettings, tenant: &TenantId, user: &UserId) -> Result<BTreeMap<KeyName, bool>> {
    let topic = topic_name(&kafka.topic_prefix, KEYS_TOPIC);
    let mut keys = BTreeMap::new();
    let there = Cluster::new(kafka, "erase")?.metadata().await?;
    if !there.topics.contains_key(&topic) {
        return Ok(keys);
    }
    let log = Log::new(&kafka.kafka_brokers, &topic);
    let cannot = || format!("the topic {topic} cannot be read");
    let mut parcels = log.read_all(false).await.with_context(cannot)?;
    while let Some(parcel) = parcels.recv().await {
        for message in parcel.with_context(cannot)?.records {
            let read = record::read(message.key().unwrap_or_default(), message.payload());
            if let Ok((name, wrapped)) = read
                && (&name.tenant, &name.user) == (tenant, user)
            {
                // Destroyed is destroyed, whatever came after.
                let alive = keys.entry(name).or_insert(true);
                *alive &= wrapped.is_some();
            }
        }
    }
    Ok(keys)
}

async fn in_table(client: &Client, tenant: &TenantId, user: &UserId) -> Result<Vec<KeyName>> {
    let rows = client
        .query(
            "SELECT key_id FROM seal_keys WHERE tenant_id = $1 AND user_id = $2 AND wrapped IS NOT NULL",
            &[&tenant.as_str(), &user.as_str()],
        )
        .await
        .map_err(plain)
        .context("the keys cannot be looked up")?;
    let name = |row: &tokio_postgres::Row| KeyName {
        tenant: tenant.clone(),
        user: user.clone(),
        key_id: row.get(0),
    };
    Ok(rows.iter().map(name).collect())
}

/// Takes the bytes of keys out of the table, and leaves word that there was one of each.
pub(super) async fn forget(client: &Client, names: &[&KeyName]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let text = |of: fn(&KeyName) -> &str| names.iter().map(|name| of(name)).collect::<Vec<&str>>();
    let tenants = text(|name| name.tenant.as_str());
    let ids = text(|name| name.key_id.as_str());
    let users = text(|name| name.user.as_str());
    let (nothing, now) = (vec![None::<Vec<u8>>; names.len()], vec![Utc::now(); names.len()]);
    client
        .execute(STORE_KEYS, &[&tenants, &ids, &users, &nothing, &now])
        .await
        .map_err(plain)
        .context(
            "the log has it, but Postgres does not yet: the projectors will bring it there, or run it again",
        )?;
    Ok(())
}

/// Writes the table anew, so that no earlier version of a row is left in its file. It is small, and readers wait.
pub(super) async fn rewrite(client: &Client) -> Result<()> {
    client.batch_execute(LOCK).await.map_err(plain)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match client.batch_execute("VACUUM (FULL) seal_keys").await {
            Ok(()) => return Ok(()),
            Err(error) if tries == TRIES => return Err(plain(error)),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
