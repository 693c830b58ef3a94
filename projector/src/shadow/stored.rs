//! What the projector has written of a topic, read out of the live tables as it stood at one moment. One transaction holds that moment
//! and the tables, other connections share it; nothing stronger than ACCESS SHARE is locked, so the service goes on. Knows nothing
//! of files.

use super::tables::{SHARED, quoted};
use super::{Offsets, Shadow};
use crate::ProjectorError;
use chrono::{DateTime, Utc};
use tokio_postgres::{Client, CopyOutStream};

/// Rows are written as text that any session reads back as the same values.
const SPELLING: &str = "SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL timezone = 'UTC'; \
                        SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1";

/// Where a partition stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// By its number.
    pub partition: i32,
    /// All before this offset is in the tables.
    pub next_offset: i64,
    /// The latest time of the log among it.
    pub last_log_time: DateTime<Utc>,
}

/// A table that holds rows of the topic.
#[derive(Debug, Clone)]
pub struct StoredTable {
    /// Its name.
    pub table: String,
    /// What is stored of it: all but what Postgres makes from other columns.
    pub columns: Vec<String>,
    /// About how many rows there are.
    pub about: u64,
}

/// The moment, held for as long as the client's transaction is open.
#[derive(Debug, Clone)]
pub struct Held {
    /// By which other connections see the same moment.
    snapshot: String,
    /// When it was.
    pub at: DateTime<Utc>,
    /// By which fold the partitions were applied last.
    pub fold_version: u32,
    /// Where they stand.
    pub standing: Vec<Standing>,
    /// The tables.
    pub tables: Vec<StoredTable>,
}

impl Shadow {
    /// Begins a transaction that holds one moment of the topic's live tables.
    pub async fn hold(&self, client: &Client) -> Result<Held, ProjectorError> {
        let names: Vec<String> = self.stored_names();
        let live: Vec<String> = names.iter().map(|name| quoted(&self.config.live, name)).collect();
        // Locked before the moment is taken: a table that were swapped in between would come with rows that are not seen.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '30s'; \
             SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE {} IN ACCESS SHARE MODE",
            live.join(", ")
        );
        client.batch_execute(&begin).await?;
        let row = client
            .query_one("SELECT pg_export_snapshot(), now()", &[])
            .await?;
        let (snapshot, at) = (row.get(0), row.get(1));
        let sql = format!(
            "SELECT partition, next_offset, last_log_time, fold_version FROM \"{}\".positions WHERE topic = $1 ORDER BY partition",
            self.config.live
        );
        let rows = client.query(&sql, &[&self.topic()]).await?;
        let versions = rows.iter().map(|row| row.get::<_, i32>(3).unsigned_abs());
        let fold_version = versions.max().unwrap_or(crate::fold::FOLD_VERSION);
        let standing = rows.iter().map(|row| Standing {
            partition: row.get(0),
            next_offset: row.get(1),
            last_log_time: row.get(2),
        });
        let mut tables = Vec::new();
        for name in &names {
            tables.push(self.stored(client, name).await?);
        }
        Ok(Held {
            snapshot,
            at,
            fold_version,
            standing: standing.collect(),
            tables,
        })
    }

    /// Has another connection see the same moment.
    pub async fn share(&self, client: &Client, held: &Held) -> Result<(), ProjectorError> {
        // Postgres made the name; it holds nothing to escape.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'; {SPELLING}",
            held.snapshot
        );
        Ok(client.batch_execute(&begin).await?)
    }

    /// The topic's rows of a table, on a connection that shares the moment: a line a row, as COPY writes text.
    pub async fn rows_of(
        &self,
        client: &Client,
        table: &StoredTable,
    ) -> Result<CopyOutStream, ProjectorError> {
        let whose = match SHARED.contains(&table.table.as_str()) {
            // The rule of a topic's name leaves nothing to escape.
            true => format!(" WHERE t.topic = '{}'", self.topic()),
            false => String::new(),
        };
        let sql = format!(
            "COPY (SELECT {} FROM {} t{whose}) TO STDOUT (FORMAT text, ENCODING 'UTF8')",
            listed(&table.columns),
            quoted(&self.config.live, &table.table)
        );
        Ok(client.copy_out(&sql).await?)
    }

    /// The tables that hold rows of the topic, the largest first.
    fn stored_names(&self) -> Vec<String> {
        let of_domains = self
            .domains
            .iter()
            .flat_map(|domain| [domain.changes_table(), domain.table.to_string()]);
        of_domains.chain(SHARED.map(str::to_owned)).collect()
    }

    async fn stored(&self, client: &Client, table: &str) -> Result<StoredTable, ProjectorError> {
        const ABOUT: &str =
            "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = ($1::text)::regclass";
        let about = match SHARED.contains(&table) {
            true => 0,
            false => {
                let name = quoted(&self.config.live, table);
                client.query_one(ABOUT, &[&name]).await?.get::<_, i64>(0)
            }
        };
        Ok(StoredTable {
            table: table.to_owned(),
            columns: written_columns(client, &self.config.live, table).await?,
            about: about.unsigned_abs(),
        })
    }
}

/// The columns of a table that are written; not those that Postgres makes from others.
pub(super) async fn written_columns(
    client: &Client,
    schema: &str,
    table: &str,
) -> Result<Vec<String>, ProjectorError> {
    const SQL: &str = "SELECT attname::text FROM pg_attribute WHERE attrelid = ($1::text)::regclass AND attnum > 0 \
                       AND NOT attisdropped AND attgenerated = '' ORDER BY attnum";
    let rows = client.query(SQL, &[&quoted(schema, table)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Columns as a statement lists them. Their names are the catalog's, or were compared with it.
pub(super) fn listed(columns: &[String]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    quoted.join(", ")
}

/// Positions as they are compared.
pub fn offsets(standing: &[Standing]) -> Offsets {
    standing.iter().map(|at| (at.partition, at.next_offset)).collect()
}
