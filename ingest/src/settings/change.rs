//! Changes a tenant's settings: checks what is wanted, appends it, and answers when this process knows it too. Others
//! learn of it from the topic within moments; what they append meanwhile bears what was in force for them.

use super::record;
use crate::error::IngestError;
use crate::producer::Producer;
use chrono::Utc;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::domain::Registry;
use tidelog_events::ids::{TenantId, UserId};
use tidelog_events::json::merge_patch;
use tidelog_events::settings::{InForce, SETTINGS_TOPIC, Settings, SettingsDefect, TenantSettings};
use tidelog_events::topic_name;
use tokio::sync::{Mutex, watch};

/// How long it may take until a change that is in the log is read back.
const READ_BACK: Duration = Duration::from_secs(5);

/// How long a change waits for the settings to be read at all.
const READY: Duration = Duration::from_secs(10);

/// Why settings cannot be shown or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// They are not what settings have to be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Wrong(Vec<SettingsDefect>),
    /// Somebody changed them since.
    #[error("the settings were changed since: they are at revision {current} now")]
    Moved {
        /// The revision in force.
        current: i64,
    },
    /// Not read from the log yet.
    #[error("the settings are not read from the log yet")]
    Unread,
    /// The log did not take the change.
    #[error(transparent)]
    Log(#[from] IngestError),
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Change {
    /// Whose settings.
    pub tenant: TenantId,
    /// Who changes them.
    pub by: UserId,
    /// The settings, or what to change of them.
    pub json: Value,
    /// Whether it is merged into what is set (RFC 7396) or replaces it.
    pub merge: bool,
    /// The revision that it has to go on from, where the caller says so; 0 where nothing was set.
    pub from: Option<i64>,
}

/// Changes settings.
pub struct Changer {
    registry: Arc<Registry>,
    producer: Arc<Producer>,
    settings: watch::Receiver<Arc<Settings>>,
    topic: String,
    /// Two changes of one process go one after the other.
    turn: Mutex<()>,
}

impl Changer {
    /// `settings` are those that [`follow`](super::follow()) keeps.
    pub fn new(
        registry: Arc<Registry>,
        producer: Arc<Producer>,
        settings: watch::Receiver<Arc<Settings>>,
        topic_prefix: &str,
    ) -> Changer {
        Changer {
            registry,
            producer,
            settings,
            topic: topic_name(topic_prefix, SETTINGS_TOPIC),
            turn: Mutex::new(()),
        }
    }

    /// The domains that settings may name.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What is in force for a tenant; none where it has set nothing.
    pub async fn current(&self, tenant: &TenantId) -> Result<Option<Arc<InForce>>, SettingsError> {
        let mut settings = self.settings.clone();
        let read = tokio::time::timeout(READY, settings.wait_for(|settings| settings.complete)).await;
        let settings = read
            .map_err(|_| SettingsError::Unread)?
            .map_err(|_| SettingsError::Unread)?;
        Ok(settings.of(tenant).cloned())
    }

    /// What a change would make of the settings, checked as a change is; makes none.
    pub async fn trial(&self, change: Change) -> Result<TenantSettings, SettingsError> {
        self.wanted(&change).await
    }

    /// Makes a change; answers what is in force then.
    pub async fn change(&self, change: Change) -> Result<Arc<InForce>, SettingsError> {
        let _turn = self.turn.lock().await;
        let settings = self.wanted(&change).await?;
        let offset = self.append(&change.tenant, &change.by, &settings).await?;
        let mut known = self.settings.clone();
        let read_back = known.wait_for(|settings| settings.through >= offset);
        // It is in the log: that it is not read back in time takes nothing of that.
        let read = tokio::time::timeout(READ_BACK, read_back).await;
        let in_force = match read {
            Ok(Ok(settings)) => settings.of(&change.tenant).cloned(),
            _ => None,
        };
        Ok(in_force.unwrap_or_else(|| {
            Arc::new(InForce {
                settings,
                revision: offset + 1,
                updated_by: change.by.as_str().to_owned(),
                updated_at: Utc::now(),
            })
        }))
    }

    async fn wanted(&self, change: &Change) -> Result<TenantSettings, SettingsError> {
        let current = self.current(&change.tenant).await?;
        let revision = current.as_ref().map_or(0, |current| current.revision);
        if change.from.is_some_and(|from| from != revision) {
            return Err(SettingsError::Moved { current: revision });
        }
        let wanted = match (change.merge, &change.json) {
            (true, Value::Object(patch)) => {
                let set = current.as_ref().map(|current| current.settings.to_json());
                let mut merged = set.and_then(|set| set.as_object().cloned()).unwrap_or_default();
                merge_patch(&mut merged, patch.clone());
                Value::Object(merged)
            }
            (_, json) => json.clone(),
        };
        TenantSettings::checked(&wanted, &self.registry).map_err(SettingsError::Wrong)
    }

    async fn append(
        &self,
        tenant: &TenantId,
        by: &UserId,
        settings: &TenantSettings,
    ) -> Result<i64, SettingsError> {
        let headers = record::headers(tenant, by, Utc::now());
        let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
        let sending = self.producer.begin()?;
        sending.send(
            &self.topic,
            None,
            tenant.as_str(),
            &settings.to_json().to_string(),
            headers,
        )?;
        let appended = sending.delivered().await?;
        let offset = appended.iter().map(|(_, last)| last).max();
        Ok(offset.ok_or(IngestError::Undelivered)?)
    }
}
