//! A topic's log folded again, into a schema beside the live one: the same lanes, fed by the log from its beginning instead of by
//! the group, over tables that nobody reads. What comes of it is compared with the live tables (`compare`), put in their place
//! row by row (`mend`) or as a whole (`swap`). Knows no command, and nothing of how progress is shown.

mod compare;
mod mend;
mod pump;
mod rate;
mod restore;
mod select;
mod stored;
mod swap;
mod tables;

pub use compare::{Candidates, Difference, Differs, PartitionSum, TableSum};
pub use mend::Mended;
pub use pump::Passed;
pub use rate::Rate;
pub use select::Selection;
pub use stored::{Held, Standing, StoredTable, offsets};
pub use swap::Swapped;
pub use tables::ShadowState;

use crate::ProjectorError;
use crate::bulk::{KnownLetter, Letters};
use crate::log::Log;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::topic_name;
use tokio_postgres::{Client, Config, NoTls};

/// Which topic is folded again, and where.
#[derive(Debug, Clone)]
pub struct ShadowConfig {
    /// `host:port,…` of Kafka.
    pub brokers: String,
    /// What stands before every topic's name.
    pub topic_prefix: String,
    /// The domains.
    pub registry: Arc<Registry>,
    /// Postgres, with the search path set to the live schema.
    pub database: Config,
    /// The live schema.
    pub live: String,
    /// The schema to fold into.
    pub schema: String,
    /// The topic, without the prefix.
    pub topic: String,
    /// What this process is called in `positions.owner`.
    pub instance: String,
    /// These partitions alone; none for all.
    pub partitions: Option<BTreeSet<i32>>,
    /// How many workers fold at once.
    pub jobs: usize,
    /// Bytes of states that they hold in memory, all together and about, before they write them.
    pub memory: usize,
    /// The tables are gone after a crash of Postgres, and cost half: for what is only compared.
    pub scratch: bool,
}

/// Where each partition stands: its next offset.
pub type Offsets = BTreeMap<i32, i64>;

/// A topic folded again.
pub struct Shadow {
    config: ShadowConfig,
    domains: Vec<Arc<Domain>>,
    /// Up to where this process has read each partition; what is selected of it is in the tables.
    read_to: Mutex<Offsets>,
    /// The log's clock of each partition, as far as it was read: it never runs back, whatever is passed over.
    clocks: pump::Clocks,
}

impl Shadow {
    /// Nothing is made yet.
    pub fn new(config: ShadowConfig) -> Shadow {
        let domains = config.registry.on_topic(&config.topic);
        Shadow {
            config,
            domains,
            read_to: Mutex::default(),
            clocks: pump::Clocks::default(),
        }
    }

    /// The topic's name in the log.
    pub fn topic(&self) -> String {
        topic_name(&self.config.topic_prefix, &self.config.topic)
    }

    /// The domains that live on it.
    pub fn domains(&self) -> &[Arc<Domain>] {
        &self.domains
    }

    /// The topic's log.
    pub fn log(&self) -> Log {
        Log::new(&self.config.brokers, &self.topic())
    }

    /// A connection whose unqualified names are the shadow's, and then the live ones (functions).
    pub async fn connect(&self) -> Result<Client, ProjectorError> {
        let (client, connection) = self.database().connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to Postgres ended");
            }
        });
        Ok(client)
    }

    fn database(&self) -> Config {
        let mut config = self.config.database.clone();
        let options = config.get_options().unwrap_or_default().to_owned();
        config.options(format!(
            "{options} -c search_path={},{} -c synchronous_commit=off -c statement_timeout=0 -c lock_timeout=0",
            self.config.schema, self.config.live
        ));
        config
    }

    /// Up to where the service has applied each of the partitions.
    pub async fn live_positions(&self, client: &Client) -> Result<Offsets, ProjectorError> {
        let sql = self.positions_of(&self.config.live);
        let rows = client.query(&sql, &[&self.topic(), &self.numbers()]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// A statement for the positions in a schema, of a topic ($1) and, unless null, of these partitions ($2).
    fn positions_of(&self, schema: &str) -> String {
        format!(
            "SELECT partition, next_offset FROM \"{schema}\".positions \
             WHERE topic = $1 AND ($2::int[] IS NULL OR partition = ANY($2)) ORDER BY partition"
        )
    }

    fn numbers(&self) -> Option<Vec<i32>> {
        let partitions = self.config.partitions.as_ref()?;
        Some(partitions.iter().copied().collect())
    }

    /// What the service had for dead letters, of the whole topic.
    async fn letters(&self, client: &Client) -> Result<Letters, ProjectorError> {
        let sql = format!(
            "SELECT partition, \"offset\", reason, tenant_id FROM \"{}\".dead_letters WHERE topic = $1",
            self.config.live
        );
        let rows = client.query(&sql, &[&self.topic()]).await?;
        let letter = |row: &tokio_postgres::Row| {
            let known = KnownLetter {
                reason: row.get(2),
                tenant: row.get(3),
            };
            ((row.get(0), row.get(1)), known)
        };
        Ok(Arc::new(rows.iter().map(letter).collect()))
    }

    fn note_read(&self, to: &Offsets) {
        let mut read = self.read_to.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, offset) in to {
            let at = read.entry(*partition).or_default();
            *at = (*at).max(*offset);
        }
    }

    fn read_to(&self) -> Offsets {
        self.read_to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
