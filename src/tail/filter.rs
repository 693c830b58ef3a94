//! Which events are shown. A record whose headers cannot be read is nobody's: only who asks for everything sees it.

use tidelog_events::ids::{DeviceId, TenantId};
use uuid::Uuid;

use crate::look::seen::Seen;

/// What an event has to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// Of one of these domains, if there are any.
    pub(super) domains: Vec<String>,
    /// Of this tenant.
    pub(super) tenant: Option<TenantId>,
    /// From this device.
    pub(super) device: Option<DeviceId>,
    /// About this record.
    pub(super) record: Option<String>,
    /// Whether the items are kept.
    pub(super) payload: bool,
}

impl Filter {
    pub(super) fn passes(&self, seen: &Seen) -> bool {
        match &seen.event {
            Ok((event, domain)) => {
                (self.domains.is_empty() || self.domains.contains(&domain.name))
                    && self.tenant.as_ref().is_none_or(|tenant| *tenant == event.tenant)
                    && self.device.as_ref().is_none_or(|device| *device == event.device)
                    && self
                        .record
                        .as_ref()
                        .is_none_or(|record| **record == *event.subject)
            }
            Err(_) => self.tenant.is_none() && self.device.is_none() && self.record.is_none(),
        }
    }
}

/// A record's identity as events have it: a UUID in its usual spelling.
pub(crate) fn identity(text: &str) -> String {
    Uuid::try_parse(text).map_or_else(|_| text.to_owned(), |id| id.to_string())
}
