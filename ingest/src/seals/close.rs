//! The items of a batch, sealed after each was judged on what it says. One that is too large only when it is sealed is refused
//! alone. Pure.

use crate::judge::{Accepted, Judged};
use std::borrow::Cow;
use tidelog_events::answer::RefusedItem;
use tidelog_events::error::ItemError;
use tidelog_events::ids::TenantId;
use tidelog_events::seal::form::Tagger;
use tidelog_events::seal::{DataKey, MAX_SEALED_BYTES, Scope, Sealing};

/// Seals what is personal in the items that go to the log. `mixed` where a refusal is to name the kind of its record.
pub(crate) fn close(judged: &mut Judged<'_>, tenant: &TenantId, tagger: &Tagger, key: &DataKey, mixed: bool) {
    let Judged { accepted, refused } = judged;
    let before = refused.len();
    accepted.retain_mut(|accepted| match sealed(accepted, tenant, tagger, key) {
        None => true,
        Some(text) if text.len() <= MAX_SEALED_BYTES => {
            accepted.item.raw = Cow::Owned(text);
            true
        }
        Some(text) => {
            let entity_type = accepted.domain.entity_type.clone().filter(|_| mixed);
            refused.push(RefusedItem {
                index: accepted.index,
                subject: Some(accepted.item.subject.clone()),
                entity_type,
                error: ItemError::too_large(None, text.len(), MAX_SEALED_BYTES),
            });
            false
        }
    });
    if refused.len() > before {
        refused.sort_by_key(|refused| refused.index);
    }
}

fn sealed(accepted: &Accepted<'_>, tenant: &TenantId, tagger: &Tagger, key: &DataKey) -> Option<String> {
    let scope = Scope {
        tenant: tenant.as_str(),
        domain: &accepted.domain.name,
        subject: &accepted.item.subject,
    };
    let sealing = Sealing { key, tagger, scope };
    sealing.item(accepted.domain, accepted.item.operation, &accepted.item.raw)
}
