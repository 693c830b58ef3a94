//! Keys of sealed values, from their topic into the table that readers look them up in. Reads the whole topic at its start,
//! so that a database restored from a backup forgets again what was erased since; then follows it. What a destroyed key
//! leaves is a row that says so, whatever came first. Any number of processes may do it at once. Cannot open a key.

use crate::ProjectorError;
use crate::log::{Log, Parcel};
use crate::retry::waits;
use crate::session::Session;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use tidelog_events::seal::accord::is_said;
use tidelog_events::seal::record::{self, KeyName};
use tidelog_events::seal::{KEYS_TOPIC, STORE_KEYS};
use tidelog_events::topic_name;
use tokio::sync::watch;
use tokio_postgres::Config;

/// Runs until shutdown; waits for Kafka and Postgres where they are away.
pub async fn follow(
    brokers: &str,
    topic_prefix: &str,
    database: &Config,
    mut shutdown: watch::Receiver<bool>,
) {
    let log = Log::new(brokers, &topic_name(topic_prefix, KEYS_TOPIC));
    let mut pause = waits();
    loop {
        let ended = tokio::select! {
            ended = read(&log, database) => ended,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "keys of sealed values cannot be taken over; `tidelog topics` makes their topic where it is missing");
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next().unwrap_or_default()) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

async fn read(log: &Log, database: &Config) -> Result<(), ProjectorError> {
    let mut session = Session::connect(database).await?;
    let mut parcels = log.read_all(true).await?;
    while let Some(parcel) = parcels.recv().await {
        store(&mut session, &parcel?).await?;
    }
    Ok(())
}

async fn store(session: &mut Session, parcel: &Parcel) -> Result<(), ProjectorError> {
    // A key that comes twice is written once, and its end wins.
    let mut keys: BTreeMap<KeyName, (Option<Vec<u8>>, DateTime<Utc>)> = BTreeMap::new();
    for message in &parcel.records {
        let at = message.log_time();
        match record::read(message.key().unwrap_or_default(), message.payload()) {
            Ok((name, wrapped)) => {
                let kept = keys.entry(name).or_insert((wrapped.clone(), at));
                if wrapped.is_none() {
                    *kept = (None, at);
                }
            }
            // Which secret it is says something to gateways.
            Err(_) if is_said(message.key().unwrap_or_default()) => {}
            Err(error) => {
                tracing::warn!(offset = message.offset(), %error, "a record of the topic of keys is passed over");
            }
        }
    }
    if keys.is_empty() {
        return Ok(());
    }
    let text = |of: fn(&KeyName) -> &str| keys.keys().map(|name| of(name).to_owned()).collect::<Vec<_>>();
    let tenants = text(|name| name.tenant.as_str());
    let ids = text(|name| name.key_id.as_str());
    let users = text(|name| name.user.as_str());
    let (wrapped, times): (Vec<_>, Vec<_>) = keys.values().cloned().unzip();
    session
        .query(STORE_KEYS, &[&tenants, &ids, &users, &wrapped, &times])
        .await?;
    Ok(())
}
