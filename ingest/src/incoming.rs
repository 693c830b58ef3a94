//! A body as a batch of one device of one user: whose it is, what it is known by. Judges no item and touches no store.

use crate::error::IngestError;
use crate::terms::Terms;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::batch::{Batch, BatchError, BatchId, Fingerprint};
use tidelog_events::domain::Domain;
use tidelog_events::ids::{DeviceId, TenantId, UserId};
use tidelog_events::item::Entry;
use tidelog_http::auth::Caller;
use tidelog_http::idempotency_key::IdempotencyKey;

/// A request to take a batch to one domain.
#[derive(Debug, Clone)]
pub struct Post {
    /// Posted to.
    pub domain: Arc<Domain>,
    /// By whom.
    pub caller: Caller,
    /// Under which key, where the client chose one.
    pub key: Option<IdempotencyKey>,
    /// The body, UTF-8.
    pub body: Bytes,
}

/// What a batch is known by, for ever: the same for every retry.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) tenant: TenantId,
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    /// The client's, or the fingerprint.
    pub(crate) key: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) batch: BatchId,
    /// For how long the key is kept.
    pub(crate) key_ttl: Duration,
}

/// A batch whose items are not looked at yet.
#[derive(Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) identity: Identity,
    pub(crate) sent_at: Option<DateTime<Utc>>,
    /// What kind of device posts, where the body says so.
    pub(crate) device_type: Option<String>,
    pub(crate) entries: Vec<Entry<'a>>,
}

impl<'a> Incoming<'a> {
    /// Reads a post.
    pub(crate) fn of(post: &'a Post, terms: &Terms) -> Result<Incoming<'a>, IngestError> {
        // The route's body filter has checked this once; it costs little beside the parsing.
        let body = std::str::from_utf8(&post.body).map_err(|_| IngestError::Internal)?;
        let Batch {
            client_id,
            sent_at,
            entries,
            device_type,
        } = Batch::parse(body)?;
        let (count, limit) = (entries.len(), terms.settings.batch_items());
        if count > limit {
            let field = "entries";
            return Err(BatchError::TooMany { field, count, limit }.into());
        }
        let caller = &post.caller;
        let device = device(client_id, caller.device.as_ref())?;
        let operation = format!("POST /api/v1/{}/sync", post.domain.name);
        let fingerprint = Fingerprint::of(&operation, &caller.tenant, &caller.user, &device, &entries);
        let key = match &post.key {
            Some(key) => key.as_str().to_owned(),
            None => fingerprint.as_key(),
        };
        let identity = Identity {
            tenant: caller.tenant.clone(),
            user: caller.user.clone(),
            batch: BatchId::of(&key, &fingerprint),
            device,
            key,
            fingerprint,
            key_ttl: terms.key_ttl,
        };
        Ok(Incoming {
            identity,
            sent_at,
            device_type,
            entries,
        })
    }
}

fn device(in_body: Option<DeviceId>, in_token: Option<&DeviceId>) -> Result<DeviceId, IngestError> {
    match (in_body, in_token) {
        (Some(body), Some(token)) if body != *token => Err(IngestError::OtherDevice),
        (Some(device), _) => Ok(device),
        (None, Some(device)) => Ok(device.clone()),
        (None, None) => Err(IngestError::NoDevice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_events::domain::Registry;
    use tidelog_events::ids::Role;

    fn post(device: Option<&str>, key: Option<&str>, body: &str) -> Post {
        Post {
            domain: Registry::shipped().by_name("helpdesk").expect("a domain").clone(),
            caller: Caller {
                tenant: TenantId::parse("acme").expect("tenant"),
                user: UserId::parse("anna").expect("user"),
                device: device.map(|id| DeviceId::parse(id).expect("device")),
                role: Role::User,
            },
            key: key.map(|key| IdempotencyKey::new(key).expect("a key")),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    fn terms() -> Terms {
        Terms {
            settings: Default::default(),
            key_ttl: Duration::from_secs(3600),
        }
    }

    #[test]
    fn the_device_is_the_bodys_or_the_tokens_and_both_agree() {
        let named = r#"{"client_id":"phone-1","entries":[{}]}"#;
        let nameless = r#"{"entries":[{}]}"#;
        let device = |token, body| {
            Incoming::of(&post(token, None, body), &terms())
                .map(|incoming| incoming.identity.device.to_string())
        };
        assert_eq!(device(None, named), Ok("phone-1".into()));
        assert_eq!(device(Some("phone-1"), named), Ok("phone-1".into()));
        assert_eq!(device(Some("phone-2"), nameless), Ok("phone-2".into()));
        assert_eq!(device(Some("phone-2"), named), Err(IngestError::OtherDevice));
        assert_eq!(device(None, nameless), Err(IngestError::NoDevice));
    }

    #[test]
    fn a_retry_is_the_same_batch_and_another_key_is_another() {
        let id = |key, body| {
            Incoming::of(&post(Some("phone-1"), key, body), &terms())
                .expect("a batch")
                .identity
        };
        let first = id(None, r#"{"entries":[{"a":1}]}"#);
        let again = id(None, r#"{"sent_at":"2026-01-01T00:00:00Z","entries":[{"a": 1}]}"#);
        assert_eq!((&first.key, first.batch), (&again.key, again.batch));
        assert_eq!(first.key.len(), 64);
        let keyed = id(Some("0123456789abcdef"), r#"{"entries":[{"a":1}]}"#);
        assert_eq!(keyed.fingerprint, first.fingerprint);
        assert_ne!(keyed.batch, first.batch);
    }
}
