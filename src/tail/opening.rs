//! Opens the items that are shown, where the command has the deployment's secret. What cannot be opened now, because
//! Postgres is away or a key is still on its way, is shown as it lies in the log.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tidelog_events::item::Operation;
use tidelog_events::seal::{Accord, KEYS_TOPIC, SealSecret, Witness};
use tidelog_events::topic_name;
use tidelog_feed::{Closed, Opener, SESSION_SETTINGS};
use tidelog_projector::log::Log;

use crate::database;
use crate::look::seen::Seen;
use crate::settings::{DatabaseSettings, KafkaSettings, SealSettings};

/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The member of a resolution that holds a patch.
const DATA: &str = "data";

/// Opens what is shown; none where there is no secret. Warns where it is not the one that was sealed with.
pub(super) async fn opener(
    kafka: &KafkaSettings,
    database: &DatabaseSettings,
    seal: &SealSettings,
) -> Result<Option<Opener>> {
    let Some(secret) = seal.secret() else {
        return Ok(None);
    };
    match accord(kafka, secret.clone()).await {
        Ok(accord) => {
            if let Some(wrong) = accord.wrong() {
                eprintln!("warning: {wrong}: what is sealed is shown as it lies in the log");
            }
        }
        Err(error) => tracing::debug!("the topic of keys cannot be read: {error:#}"),
    }
    let config = database::config(database, "tail-keys", &SESSION_SETTINGS)?;
    Ok(Some(Opener::new(secret, database::pool(config, 1, PATIENCE)?)))
}

/// How the secret stands to what was sealed with.
async fn accord(kafka: &KafkaSettings, secret: Arc<SealSecret>) -> Result<Accord> {
    let log = Log::new(&kafka.kafka_brokers, &topic_name(&kafka.topic_prefix, KEYS_TOPIC));
    let (mut parcels, mut witness) = (log.read_all(false).await?, Witness::new(Some(secret)));
    while let Some(parcel) = parcels.recv().await {
        for message in parcel?.records {
            witness.note(message.key().unwrap_or_default(), message.payload());
        }
        if witness.accord() != Accord::Unread {
            return Ok(witness.accord());
        }
    }
    witness.at_end();
    Ok(witness.accord())
}

/// Opens one.
pub(super) async fn open(opener: &Opener, seen: &mut Seen) {
    let (Ok((event, domain)), Some(payload)) = (&seen.event, &seen.payload) else {
        return;
    };
    let Ok(mut whole) = String::from_utf8(payload.clone()) else {
        return;
    };
    let resolution = match event.operation {
        Operation::Resolve => serde_json::from_str::<Value>(&whole).ok(),
        _ => None,
    };
    let mut data = resolution
        .as_ref()
        .and_then(|value| Some(value.get(DATA)?.to_string()));
    let closed = Closed {
        domain,
        subject: event.subject.to_string(),
        json: data.as_mut().unwrap_or(&mut whole),
    };
    if opener.open(event.tenant.as_str(), vec![closed]).await.is_err() {
        return;
    }
    let opened = data.and_then(|data| serde_json::from_str::<Value>(&data).ok());
    if let Some((mut value, data)) = resolution.zip(opened) {
        value[DATA] = data;
        whole = value.to_string();
    }
    seen.payload = Some(whole.into_bytes());
}
