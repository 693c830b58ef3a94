//! Opens the items that are shown, where the command has the deployment's secret. What cannot be opened now, because
//! Postgres is away or a key is still on its way, is shown as it lies in the log.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tidelog_events::item::Operation;
use tidelog_feed::{Closed, Opener, SESSION_SETTINGS};

use crate::database;
use crate::look::seen::Seen;
use crate::settings::{DatabaseSettings, SealSettings};

/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The member of a resolution that holds a patch.
const DATA: &str = "data";

/// Opens what is shown; none where there is no secret.
pub(super) fn opener(database: &DatabaseSettings, seal: &SealSettings) -> Result<Option<Opener>> {
    let Some(secret) = seal.secret() else {
        return Ok(None);
    };
    let config = database::config(database, "tail-keys", &SESSION_SETTINGS)?;
    Ok(Some(Opener::new(secret, database::pool(config, 1, PATIENCE)?)))
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
