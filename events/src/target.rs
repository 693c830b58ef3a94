//! What a batch was posted to: a domain, all of them at once, or a conflict. It decides how items are read and in which
//! form the answer comes; its name is kept with the batch, so that a receipt resolves in the same form.

use crate::domain::{Domain, Registry};
use std::sync::Arc;

/// What a batch was posted to.
#[derive(Debug, Clone)]
pub enum Target {
    /// `POST /api/v1/{domain}/sync`.
    Domain(Arc<Domain>),
    /// `POST /api/v1/sync/batch`.
    Mixed,
    /// `POST /api/v1/conflicts/{id}/resolve`.
    Resolution,
}

/// First parts of paths that no domain may be named like, which is why they can stand where a domain's name does.
const MIXED: &str = "sync";
const RESOLUTION: &str = "conflicts";

impl Target {
    /// The name that is kept.
    pub fn name(&self) -> &str {
        match self {
            Target::Domain(domain) => &domain.name,
            Target::Mixed => MIXED,
            Target::Resolution => RESOLUTION,
        }
    }

    /// The target of that name.
    pub fn named(name: &str, registry: &Registry) -> Option<Target> {
        match name {
            MIXED => Some(Target::Mixed),
            RESOLUTION => Some(Target::Resolution),
            name => registry.by_name(name).cloned().map(Target::Domain),
        }
    }

    /// What a receipt says of it. Where its records lie tells a domain, where there are any.
    pub fn in_receipt(&self, appended_items: u32) -> Option<String> {
        match self {
            Target::Domain(_) if appended_items > 0 => None,
            target => Some(target.name().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_found_by_its_name() {
        let registry = Registry::shipped();
        for name in ["helpdesk", "voice", "sync", "conflicts"] {
            assert_eq!(Target::named(name, &registry).expect("a target").name(), name);
        }
        assert!(Target::named("nowhere", &registry).is_none());
    }
}
