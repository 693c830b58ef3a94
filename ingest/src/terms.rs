//! The terms on which a batch is taken: what its tenant had set when it came, held on to until it is in the log, so that
//! all of it is stamped alike. Must not know where settings are kept.

use crate::error::IngestError;
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::ids::TenantId;
use tidelog_events::settings::{Partitions, Settings, TenantSettings};

/// What is in force for a batch.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The tenant's settings.
    pub(crate) settings: TenantSettings,
    /// How many partitions each topic was made with.
    pub(crate) partitions: Arc<Partitions>,
    /// For how long its key is kept.
    pub(crate) key_ttl: Duration,
}

impl Terms {
    /// Those of a tenant. `key_ttl` is the service's own. Before all settings are known nobody can say which policy an
    /// event is to bear, and a wrong one would be history.
    pub(crate) fn of(
        settings: &Settings,
        tenant: &TenantId,
        key_ttl: Duration,
    ) -> Result<Terms, IngestError> {
        if !settings.complete {
            return Err(IngestError::SettingsUnread);
        }
        let partitions = settings.partitions().clone();
        let settings = settings
            .of(tenant)
            .map(|in_force| in_force.settings.clone())
            .unwrap_or_default();
        let hours = settings.key_hours().map(u64::from);
        Ok(Terms {
            key_ttl: hours.map_or(key_ttl, |hours| Duration::from_secs(hours * 3600)),
            settings,
            partitions,
        })
    }
}
