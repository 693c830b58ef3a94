//! The primary keys of feeds while these are filled from nothing. Rows of a feed come in the order of the log, which is not that
//! of their key, so an index that grows with them costs Postgres almost as much as the rows; made when they are there it costs
//! a third. Nobody looks anything up in a feed meanwhile, until an event's past is asked for: then the keys are made at once, and
//! stay. An index wants its table for itself, so all who fill it end their transactions first.

use crate::ProjectorError;
use crate::session::Session;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedRwLockReadGuard, RwLock, watch};
use tokio_postgres::{Client, Config};

/// Leave to fill feeds in a transaction: while it is held, no key is made.
pub(crate) type Leave = OwnedRwLockReadGuard<bool>;

/// A feed's table, with its schema, and its key as a definition has it.
pub(crate) type Feed = (String, String);

/// The keys of some feeds.
pub(crate) struct FeedKeys {
    database: Config,
    feeds: Vec<Feed>,
    /// Whether they are there.
    made: Arc<RwLock<bool>>,
    wanted: watch::Sender<bool>,
    making: Mutex<()>,
}

impl FeedKeys {
    /// Takes them away where nothing is filled yet, or sees to it that they are there.
    pub(crate) async fn of(
        database: Config,
        feeds: Vec<Feed>,
        empty: bool,
    ) -> Result<Arc<FeedKeys>, ProjectorError> {
        let keys = FeedKeys {
            database,
            feeds,
            made: Arc::new(RwLock::new(!empty)),
            wanted: watch::channel(false).0,
            making: Mutex::default(),
        };
        match empty {
            true => keys.drop_all().await?,
            false => keys.add_missing().await?,
        }
        Ok(Arc::new(keys))
    }

    /// Waits while keys are being made. To be held from the begin of a transaction to its end.
    pub(crate) async fn leave(&self) -> Leave {
        self.made.clone().read_owned().await
    }

    /// Whether all who have leave are asked to give it back.
    pub(crate) fn are_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Waits until they are.
    pub(crate) async fn wanted(&self) {
        // The sender is this one's own.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Makes them, unless they are there, once everybody has given back his leave. Not to be called by who has it.
    pub(crate) async fn make(&self) -> Result<(), ProjectorError> {
        let _one = self.making.lock().await;
        if *self.made.read().await {
            return Ok(());
        }
        self.wanted.send_replace(true);
        let mut made = self.made.write().await;
        let done = self.add_missing().await;
        *made = done.is_ok();
        self.wanted.send_replace(false);
        done
    }

    async fn add_missing(&self) -> Result<(), ProjectorError> {
        let session = Session::connect(&self.database).await?;
        for (feed, key) in &self.feeds {
            if name_of_key(session.client(), feed).await?.is_none() {
                let sql = format!("ALTER TABLE {feed} ADD {key}");
                session.client().batch_execute(&sql).await?;
            }
        }
        Ok(())
    }

    async fn drop_all(&self) -> Result<(), ProjectorError> {
        let session = Session::connect(&self.database).await?;
        for (feed, _) in &self.feeds {
            if let Some(name) = name_of_key(session.client(), feed).await? {
                let sql = format!("ALTER TABLE {feed} DROP CONSTRAINT \"{name}\"");
                session.client().batch_execute(&sql).await?;
            }
        }
        Ok(())
    }
}

async fn name_of_key(client: &Client, table: &str) -> Result<Option<String>, ProjectorError> {
    const SQL: &str =
        "SELECT conname::text FROM pg_constraint WHERE conrelid = ($1::text)::regclass AND contype = 'p'";
    let found = client.query_opt(SQL, &[&table]).await?;
    Ok(found.map(|row| row.get(0)))
}
