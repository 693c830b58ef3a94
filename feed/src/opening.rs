//! Opens what is sealed in documents on their way out. Keys are looked up in Postgres, where an erasure destroys them, and
//! held for a minute at most: so long may a gateway still show what was erased since. A key that is not there yet, because
//! nobody has brought it from the log, is no erased one: the read has to be tried again. Also for operators' tools. Must not
//! know what a document is for.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use lru::LruCache;
use serde_json::{Map, Value};
use tidelog_events::domain::Domain;
use tidelog_events::drill;
use tidelog_events::seal::form::mentions;
use tidelog_events::seal::{Found, KeyId, KeySource, Opened, Scope, SealSecret, open, wanted};

use crate::error::FeedError;
use crate::store::{Parameter, Store};

/// How long a key is used without being looked up again, in milliseconds.
const KEY_LIFE_MS: u32 = 60_000;

/// The keys held at once.
const MOST_KEYS: NonZeroUsize = match NonZeroUsize::new(50_000) {
    Some(keys) => keys,
    None => NonZeroUsize::MIN,
};

/// `wrapped` is null where the key was destroyed. By the primary key.
const KEYS: &str = "SELECT k.key_id, k.wrapped FROM unnest($2::text[]) AS w(id) JOIN seal_keys k ON k.tenant_id = $1 AND k.key_id = w.id";

/// A document as text, to be opened in place.
#[derive(Debug)]
pub struct Closed<'a> {
    /// Its domain.
    pub domain: &'a Domain,
    /// The record's identity.
    pub subject: String,
    /// A JSON object.
    pub json: &'a mut String,
}

/// Opens documents.
pub struct Opener {
    secret: Arc<SealSecret>,
    store: Store,
    held: Mutex<LruCache<(String, KeyId), (Found, Instant)>>,
}

/// The keys of one read.
struct Keys(HashMap<KeyId, Found>);

impl KeySource for Keys {
    fn key(&self, id: &KeyId) -> Found {
        self.0.get(id).cloned().unwrap_or(Found::Unknown)
    }
}

impl Opener {
    /// The pool's connections have the search path set and [`SESSION_SETTINGS`](crate::SESSION_SETTINGS).
    pub fn new(secret: Arc<SealSecret>, pool: Pool) -> Opener {
        Opener {
            secret,
            store: Store::new(pool),
            held: Mutex::new(LruCache::new(MOST_KEYS)),
        }
    }

    /// Opens documents of one tenant. Where it fails, none is changed.
    pub async fn open(&self, tenant: &str, closed: Vec<Closed<'_>>) -> Result<Opened, FeedError> {
        let mut docs = Vec::new();
        let mut ids = BTreeSet::new();
        for closed in closed
            .into_iter()
            .filter(|closed| closed.domain.has_personal() && mentions(closed.json.as_str()))
        {
            let doc: Map<String, Value> = serde_json::from_str(closed.json.as_str()).map_err(|error| {
                tracing::error!(%error, "a sealed document cannot be read");
                FeedError::Statement
            })?;
            wanted(&self.secret, closed.domain, tenant, &doc, &mut ids);
            docs.push((closed, doc));
        }
        let keys = self.keys(tenant, ids).await?;
        let mut all = Opened::default();
        for (closed, doc) in &mut docs {
            let scope = Scope {
                tenant,
                domain: &closed.domain.name,
                subject: &closed.subject,
            };
            let opened = open(&self.secret, closed.domain, scope, doc, &keys).map_err(|_| {
                tracing::warn!(
                    tenant,
                    domain = closed.domain.name,
                    "a document is under a key that is not known here yet"
                );
                FeedError::KeyUnknown
            })?;
            if opened.unreadable > 0 {
                tracing::error!(
                    tenant,
                    domain = closed.domain.name,
                    record = closed.subject,
                    values = opened.unreadable,
                    "values are not what was sealed"
                );
            }
            all.opened += opened.opened;
            all.erased += opened.erased;
            all.unreadable += opened.unreadable;
        }
        for (closed, doc) in docs {
            *closed.json = Value::Object(doc).to_string();
        }
        Ok(all)
    }

    /// The keys of those ids as far as they are known.
    async fn keys(&self, tenant: &str, ids: BTreeSet<KeyId>) -> Result<Keys, FeedError> {
        let mut found = HashMap::with_capacity(ids.len());
        let mut asked = Vec::new();
        for id in ids {
            match self.held(tenant, &id) {
                Some(held) => {
                    found.insert(id, held);
                }
                None => asked.push(id),
            }
        }
        if asked.is_empty() {
            return Ok(Keys(found));
        }
        let texts: Vec<&str> = asked.iter().map(KeyId::as_str).collect();
        let values: [Parameter<'_>; 2] = [&tenant, &texts];
        for row in self.store.query(KEYS, &values).await? {
            let (id, wrapped): (&str, Option<&[u8]>) = (row.try_get(0)?, row.try_get(1)?);
            let Some(id) = asked.iter().find(|asked| asked.as_str() == id) else {
                continue;
            };
            let key = match wrapped {
                None => Found::Erased,
                Some(wrapped) => match self.secret.unwrap_key(tenant, id, wrapped) {
                    Some(key) => Found::Key(Arc::new(key)),
                    None => {
                        tracing::error!(tenant, key = id.as_str(), "a stored key is not what was wrapped");
                        Found::Unknown
                    }
                },
            };
            self.hold(tenant, id, &key);
            found.insert(id.clone(), key);
        }
        Ok(Keys(found))
    }

    fn held(&self, tenant: &str, id: &KeyId) -> Option<Found> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, since) = held.get(&(tenant.to_owned(), id.clone()))?;
        let life = Duration::from_millis(drill::number("key_life_ms", KEY_LIFE_MS).into());
        (since.elapsed() < life).then(|| found.clone())
    }

    /// What is not known is not held: it may be known in a moment.
    fn hold(&self, tenant: &str, id: &KeyId, found: &Found) {
        if !matches!(found, Found::Unknown) {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.put((tenant.to_owned(), id.clone()), (found.clone(), Instant::now()));
        }
    }
}
