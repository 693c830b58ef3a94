//! Personal values on their way into the log: sealed under a key of the user who sends them. A key is made at a user's first
//! batch and lies in the log, wrapped, before anything that is under it; so taking a batch needs the log alone. Each process
//! makes keys of its own, and a fold knows equal values under different ones by their tags. Where the deployment seals with
//! another secret, nothing is taken.
//!
//! - here: keys, as many as are in use, and how one is made
//! - [`watch`]: which secret the deployment seals with; keys that were destroyed are forgotten
//! - `close`: the items of a batch, sealed
//! - [`Destroyer`]: destroying keys
//!
//! What a sealed value is, [`tidelog_events::seal`] says. Must not know who reads.

mod close;
mod destroy;
pub mod watch;

pub use destroy::Destroyer;

pub(crate) use close::close;

use crate::error::IngestError;
use crate::producer::{Producer, Sending};
use chrono::Utc;
use deadpool_postgres::Pool;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidelog_events::ids::{TenantId, UserId};
use tidelog_events::seal::record::{self, KeyName};
use tidelog_events::seal::secret::RANDOM_BYTES;
use tidelog_events::seal::{Accord, DataKey, KEYS_TOPIC, STORE_KEYS, SealSecret, accord};
use tidelog_events::topic_name;
use tokio::sync::{OnceCell, watch as signal};
use uuid::Uuid;

/// The users whose keys are held at once. For one more, the longest unused is forgotten, and that user gets a new one.
const MOST_KEYS: NonZeroUsize = match NonZeroUsize::new(20_000) {
    Some(keys) => keys,
    None => NonZeroUsize::MIN,
};

/// How long a batch waits until this process knows which secret it is, and can learn of destroyed keys.
const READY: Duration = Duration::from_secs(5);

type Slot = Arc<OnceCell<Arc<DataKey>>>;

/// What seals.
pub struct Seals {
    pub(crate) secret: Arc<SealSecret>,
    producer: Arc<Producer>,
    pool: Pool,
    topic: String,
    keys: Mutex<LruCache<(TenantId, UserId), Slot>>,
    accord: signal::Receiver<Accord>,
    said: OnceCell<()>,
}

impl Seals {
    /// `pool` is the one of the write side; `accord` is from [`watch::follow`].
    pub fn new(
        secret: Arc<SealSecret>,
        producer: Arc<Producer>,
        pool: Pool,
        topic_prefix: &str,
        accord: signal::Receiver<Accord>,
    ) -> Arc<Seals> {
        Arc::new(Seals {
            secret,
            producer,
            pool,
            topic: topic_name(topic_prefix, KEYS_TOPIC),
            keys: Mutex::new(LruCache::new(MOST_KEYS)),
            accord,
            said: OnceCell::new(),
        })
    }

    /// The key of a user, made if this process has none. It is in the log then.
    pub(crate) async fn key(&self, tenant: &TenantId, user: &UserId) -> Result<Arc<DataKey>, IngestError> {
        if settled(&self.accord).await? == Accord::Unused {
            self.say().await?;
        }
        let slot = self
            .keys()
            .get_or_insert((tenant.clone(), user.clone()), Slot::default)
            .clone();
        // Batches of one user that come together wait for one key.
        slot.get_or_try_init(|| self.make(tenant, user)).await.cloned()
    }

    /// Says with which secret the deployment seals from now on; fails if somebody was faster with another.
    async fn say(&self) -> Result<(), IngestError> {
        self.said.get_or_try_init(|| self.append_said()).await?;
        let known = |accord: Accord| !matches!(accord, Accord::Unread | Accord::Unused);
        once(&self.accord, known).await.map(drop)
    }

    async fn append_said(&self) -> Result<(), IngestError> {
        let (key, value) = accord::said(&self.secret, Uuid::new_v4().simple());
        let headers = [("ce_specversion", "1.0"), ("ce_type", "tidelog.secret.create")];
        let sending = self.producer.begin()?;
        sending.send(&self.topic, None, &key, &value, headers.into_iter())?;
        sending.delivered().await?;
        tracing::info!("the first here who seals: the log has it with which secret");
        Ok(())
    }

    async fn make(&self, tenant: &TenantId, user: &UserId) -> Result<Arc<DataKey>, IngestError> {
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(|error| {
            tracing::error!(%error, "the system gives no random bytes");
            IngestError::Internal
        })?;
        let key = self.secret.make_key(tenant.as_str(), &random);
        let wrapped = self.secret.wrap(tenant.as_str(), &key);
        let name = KeyName {
            tenant: tenant.clone(),
            user: user.clone(),
            key_id: key.id().as_str().to_owned(),
        };
        let sending = self.producer.begin()?;
        send(&sending, &self.topic, &name, Some(&wrapped))?;
        sending.delivered().await?;
        tracing::debug!(key = name.key_id, "made a key");
        self.note_later(name, wrapped);
        Ok(Arc::new(key))
    }

    /// Readers find the key in Postgres a little sooner than the projectors bring it there. If Postgres is away, they do.
    fn note_later(&self, name: KeyName, wrapped: Vec<u8>) {
        let pool = self.pool.clone();
        tokio::spawn(async move {
            let noted = async {
                let client = pool.get().await.ok()?;
                let statement = client.prepare_cached(STORE_KEYS).await.ok()?;
                let (tenants, users) = ([name.tenant.as_str()], [name.user.as_str()]);
                let (ids, wrapped, times) = ([name.key_id.as_str()], [Some(wrapped)], [Utc::now()]);
                let row: [&(dyn tokio_postgres::types::ToSql + Sync); 5] = [
                    &tenants.as_slice(),
                    &ids.as_slice(),
                    &users.as_slice(),
                    &wrapped.as_slice(),
                    &times.as_slice(),
                ];
                client.execute(&statement, &row).await.ok()
            };
            if noted.await.is_none() {
                tracing::debug!(key = name.key_id, "a new key was not noted; the projectors will");
            }
        });
    }

    /// Forgets a key that was destroyed: the user's next batch is under a new one.
    fn forget(&self, name: &KeyName) {
        let mut keys = self.keys();
        let user = (name.tenant.clone(), name.user.clone());
        let held = keys.peek(&user).and_then(|slot| slot.get());
        if held.is_some_and(|key| key.id().as_str() == name.key_id) {
            keys.pop(&user);
            tracing::info!(key = name.key_id, "a key was destroyed");
        }
    }

    fn keys(&self) -> MutexGuard<'_, LruCache<(TenantId, UserId), Slot>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How this process stands to the deployment's secret, as soon as that is known. An error where it cannot take part.
pub(crate) async fn settled(accord: &signal::Receiver<Accord>) -> Result<Accord, IngestError> {
    once(accord, |accord| accord != Accord::Unread).await
}

async fn once(
    accord: &signal::Receiver<Accord>,
    known: impl Fn(Accord) -> bool,
) -> Result<Accord, IngestError> {
    let mut accord = accord.clone();
    let waiting = accord.wait_for(|accord| known(*accord));
    // What it answers holds a lock, and must not outlive this.
    match tokio::time::timeout(READY, waiting).await {
        Ok(Ok(accord)) if accord.is_wrong() => Err(IngestError::OtherSecret),
        Ok(Ok(accord)) => Ok(*accord),
        _ => Err(IngestError::SealsUnready),
    }
}

/// Hands over one record of the topic of keys.
fn send(
    sending: &Sending<'_>,
    topic: &str,
    name: &KeyName,
    wrapped: Option<&[u8]>,
) -> Result<(), IngestError> {
    let type_of = match wrapped {
        Some(_) => "tidelog.key.create",
        None => "tidelog.key.delete",
    };
    let headers = [("ce_specversion", "1.0"), ("ce_type", type_of)];
    sending.send(
        topic,
        None,
        &name.to_text(),
        &record::value(wrapped),
        headers.into_iter(),
    )
}
