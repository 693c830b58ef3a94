//! A body as a batch of one device of one user: whose it is, what it is known by. Judges no item and touches no store.

use crate::error::IngestError;
use crate::resolution::{Contested, DESK, Wanted};
use crate::terms::Terms;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::batch::{Batch, BatchError, BatchId, Endpoint, Fingerprint};
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::drill;
use tidelog_events::ids::{DeviceId, TenantId, UserId};
use tidelog_events::item::Entry;
use tidelog_events::target::Target;
use tidelog_http::auth::Caller;
use tidelog_http::idempotency_key::IdempotencyKey;
use uuid::Uuid;

/// What a request posts to.
#[derive(Debug, Clone)]
pub enum To {
    /// One domain.
    Domain(Arc<Domain>),
    /// All domains that take mixed batches.
    Mixed,
    /// A conflict, to decide it.
    Conflict(Box<Contested>),
}

impl To {
    /// As it is kept.
    pub(crate) fn target(&self) -> Target {
        match self {
            To::Domain(domain) => Target::Domain(domain.clone()),
            To::Mixed => Target::Mixed,
            To::Conflict(_) => Target::Resolution,
        }
    }
}

/// A request to take a batch.
#[derive(Debug, Clone)]
pub struct Post {
    /// Posted to.
    pub to: To,
    /// By whom.
    pub caller: Caller,
    /// Under which key, where the client chose one in the header.
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
    pub(crate) items: Items<'a>,
}

/// What a body holds, by what it was posted to.
#[derive(Debug)]
pub(crate) enum Items<'a> {
    /// Of one domain.
    Of(Arc<Domain>, Vec<Entry<'a>>),
    /// Each of whatever domain it names.
    Mixed(Vec<Entry<'a>>),
    /// One decision.
    Decision(Box<Contested>, Wanted<'a>),
}

impl Items<'_> {
    /// Whether they may hold what is personal, by their domains.
    pub(crate) fn has_personal(&self, registry: &Registry) -> bool {
        match self {
            Items::Of(domain, _) => domain.has_personal(),
            Items::Mixed(_) => registry.iter().any(|domain| domain.has_personal()),
            Items::Decision(contested, _) => contested.domain.has_personal(),
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        match self {
            Items::Of(_, entries) | Items::Mixed(entries) => entries.len(),
            Items::Decision(..) => 1,
        }
    }
}

impl<'a> Incoming<'a> {
    /// Reads a post.
    pub(crate) fn of(post: &'a Post, terms: &Terms) -> Result<Incoming<'a>, IngestError> {
        // The route's body filter has checked this once; it costs little beside the parsing.
        let body = std::str::from_utf8(&post.body).map_err(|_| IngestError::Internal)?;
        let header = post.key.as_ref().map(|key| key.as_str().to_owned());
        match &post.to {
            To::Domain(domain) => {
                let (batch, entries) = parted(Batch::parse(body)?);
                few_enough(&entries, "entries", terms)?;
                let key = |print: &Fingerprint| header.unwrap_or_else(|| print.as_key());
                let identity = identify(
                    post,
                    terms,
                    device(&batch, &post.caller)?,
                    Endpoint::Domain(&domain.name),
                    &entries,
                    key,
                );
                Ok(batch.incoming(identity, Items::Of(domain.clone(), entries)))
            }
            To::Mixed => {
                let (batch, entries) = parted(Batch::parse_mixed(body)?);
                few_enough(&entries, "items", terms)?;
                let key = required_key(header, batch.key.as_deref())?;
                let device = device(&batch, &post.caller)?;
                let identity = identify(post, terms, device, Endpoint::Mixed, &entries, |_| key);
                Ok(batch.incoming(identity, Items::Mixed(entries)))
            }
            To::Conflict(contested) => {
                let wanted = Wanted::read(body)?;
                let (batch, _) = parted(Batch::parse_envelope(body)?);
                let device = match device(&batch, &post.caller) {
                    Err(IngestError::NoDevice) => DeviceId::parse(DESK).map_err(|_| IngestError::Internal)?,
                    device => device?,
                };
                let endpoint = Endpoint::Conflict(contested.id);
                // Without a key of the caller's, deciding twice is two decisions, of which the second is told so.
                let key = |_: &Fingerprint| header.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
                let entries = std::slice::from_ref(&wanted.entry);
                let identity = identify(post, terms, device, endpoint, entries, key);
                Ok(batch.incoming(identity, Items::Decision(contested.clone(), wanted)))
            }
        }
    }
}

/// What a body says beside its items.
struct Envelope {
    client_id: Option<DeviceId>,
    sent_at: Option<DateTime<Utc>>,
    device_type: Option<String>,
    key: Option<String>,
}

impl Envelope {
    fn incoming<'a>(self, identity: Identity, items: Items<'a>) -> Incoming<'a> {
        Incoming {
            identity,
            sent_at: self.sent_at,
            device_type: self.device_type,
            items,
        }
    }
}

fn parted(batch: Batch<'_>) -> (Envelope, Vec<Entry<'_>>) {
    let Batch {
        client_id,
        sent_at,
        device_type,
        idempotency_key,
        entries,
    } = batch;
    let envelope = Envelope {
        client_id,
        sent_at,
        device_type,
        key: idempotency_key,
    };
    (envelope, entries)
}

fn few_enough(entries: &[Entry<'_>], field: &'static str, terms: &Terms) -> Result<(), IngestError> {
    let (count, limit) = (entries.len(), terms.settings.batch_items());
    match count > limit {
        true => Err(BatchError::TooMany { field, count, limit }.into()),
        false => Ok(()),
    }
}

fn identify(
    post: &Post,
    terms: &Terms,
    device: DeviceId,
    endpoint: Endpoint<'_>,
    entries: &[Entry<'_>],
    key: impl FnOnce(&Fingerprint) -> String,
) -> Identity {
    let caller = &post.caller;
    let fingerprint = Fingerprint::of(endpoint, &caller.tenant, &caller.user, &device, entries);
    let key = key(&fingerprint);
    Identity {
        tenant: caller.tenant.clone(),
        user: caller.user.clone(),
        batch: match drill::guarded("ids") {
            true => BatchId::of(&key, &fingerprint),
            false => BatchId(Uuid::new_v4()),
        },
        device,
        key,
        fingerprint,
        key_ttl: terms.key_ttl,
    }
}

/// A mixed batch has to have a key; where both places name one, they agree.
fn required_key(header: Option<String>, body: Option<&str>) -> Result<String, IngestError> {
    let body = body
        .map(IdempotencyKey::new)
        .transpose()
        .map_err(IngestError::BadKey)?;
    match (header, body) {
        (Some(header), Some(body)) if header != body.as_str() => Err(IngestError::TwoKeys),
        (Some(header), _) => Ok(header),
        (None, Some(body)) => Ok(body.as_str().to_owned()),
        (None, None) => Err(IngestError::NoKey),
    }
}

fn device(batch: &Envelope, caller: &Caller) -> Result<DeviceId, IngestError> {
    match (&batch.client_id, &caller.device) {
        (Some(body), Some(token)) if body != token => Err(IngestError::OtherDevice),
        (Some(device), _) | (None, Some(device)) => Ok(device.clone()),
        (None, None) => Err(IngestError::NoDevice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_events::ids::Role;

    fn post(device: Option<&str>, key: Option<&str>, body: &str) -> Post {
        Post {
            to: To::Domain(Registry::shipped().by_name("helpdesk").expect("a domain").clone()),
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
            partitions: Default::default(),
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
