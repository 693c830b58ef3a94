//! A shadow that begins with what was stored of a topic at some moment, instead of with nothing: its rows and positions are loaded, and
//! folding goes on from there. Where the live tables stand before that moment (a lost database, an older backup, a log that was
//! cut off before it was applied) there is nothing to compare, and positions are swapped in with the tables.

use super::stored::{listed, written_columns};
use super::tables::{SHARED, quoted};
use super::{Offsets, Shadow};
use crate::ProjectorError;
use bytes::Bytes;
use std::pin::Pin;
use tokio_postgres::{Client, CopyInSink};

/// Columns of a position that are its owner's and not the topic's.
const OWNERS: [&str; 6] = ["topic", "partition", "epoch", "owner", "updated_at", "end_offset"];

impl Shadow {
    /// Takes the rows of a table as [`rows_of`](Self::rows_of) gave them, on a connection of the shadow's.
    pub async fn load_into(
        &self,
        client: &Client,
        table: &str,
        columns: &[String],
    ) -> Result<Pin<Box<CopyInSink<Bytes>>>, ProjectorError> {
        let known = written_columns(client, &self.config.schema, table).await?;
        if let Some(unknown) = columns.iter().find(|column| !known.contains(column)) {
            return Err(ProjectorError::Stored(format!(
                "the snapshot has a column {unknown:?} of {table} that this build's table has not: use the release that took it"
            )));
        }
        let sql = format!(
            "COPY {} ({}) FROM STDIN (FORMAT text, ENCODING 'UTF8')",
            quoted(&self.config.schema, table),
            listed(columns)
        );
        Ok(Box::pin(client.copy_in(&sql).await?))
    }

    /// Up to where there is something to fold: to where the service stands, or to the log's end where the service stands before the
    /// shadow.
    pub async fn goals(&self, client: &Client) -> Result<Offsets, ProjectorError> {
        let mut goals = self.live_positions(client).await?;
        let behind = self.behind(client).await?;
        if behind.is_empty() {
            return Ok(goals);
        }
        let bounds = self.log().bounds().await?;
        let ends = behind
            .keys()
            .filter_map(|partition| Some((*partition, bounds.get(partition)?.end)));
        goals.extend(ends);
        Ok(goals)
    }

    /// The partitions whose live tables stand before the shadow's: where they stand.
    pub async fn behind(&self, client: &Client) -> Result<Offsets, ProjectorError> {
        let sql = format!(
            "SELECT s.partition, coalesce(l.next_offset, 0) FROM \"{}\".positions s LEFT JOIN \"{}\".positions l USING (topic, partition) \
             WHERE s.topic = $1 AND s.next_offset > coalesce(l.next_offset, 0) AND ($2::int[] IS NULL OR partition = ANY($2))",
            self.config.schema, self.config.live
        );
        let rows = client.query(&sql, &[&self.topic(), &self.numbers()]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Whether the topic's own live tables have no row.
    pub async fn nothing_is_live(&self, client: &Client) -> Result<bool, ProjectorError> {
        self.is_empty(client, &self.config.live).await
    }

    /// Whether what the swap took out has no row.
    pub async fn nothing_was_live(&self, client: &Client) -> Result<bool, ProjectorError> {
        self.is_empty(client, &self.config.schema).await
    }

    async fn is_empty(&self, client: &Client, schema: &str) -> Result<bool, ProjectorError> {
        for table in self.tables() {
            let sql = format!("SELECT EXISTS (SELECT FROM {})", quoted(schema, &table));
            if client.query_one(&sql, &[]).await?.get(0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has a row for every position of the shadow's, so that it can be locked.
    pub async fn note_positions(&self, client: &Client) -> Result<(), ProjectorError> {
        let sql = format!(
            "INSERT INTO \"{}\".positions (topic, partition) SELECT topic, partition FROM \"{}\".positions WHERE topic = $1 \
             ON CONFLICT DO NOTHING",
            self.config.live, self.config.schema
        );
        client.execute(&sql, &[&self.topic()]).await?;
        Ok(())
    }

    /// While the partitions stand still and before the tables are swapped: rows of shared tables become the shadow's as a whole, and
    /// where live positions are behind, the two change sides. A worker that holds such a partition finds that it has moved, and goes on
    /// from there.
    pub(super) async fn take_over(&self, still: &Client) -> Result<u64, ProjectorError> {
        let mut moved = 0;
        for table in SHARED.iter().filter(|table| **table != "positions") {
            let (live, shadow) = (
                quoted(&self.config.live, table),
                quoted(&self.config.schema, table),
            );
            // No letter is ever deleted.
            if *table != "dead_letters" {
                let delete = format!("DELETE FROM {live} WHERE topic = $1");
                still.execute(&delete, &[&self.topic()]).await?;
            }
            let columns = listed(&written_columns(still, &self.config.live, table).await?);
            let insert = format!(
                "INSERT INTO {live} ({columns}) SELECT {columns} FROM {shadow} WHERE topic = $1 ON CONFLICT DO NOTHING"
            );
            moved += still.execute(&insert, &[&self.topic()]).await?;
        }
        self.exchange_positions(still).await?;
        Ok(moved)
    }

    async fn exchange_positions(&self, still: &Client) -> Result<(), ProjectorError> {
        let mut columns = written_columns(still, &self.config.live, "positions").await?;
        columns.retain(|column| !OWNERS.contains(&column.as_str()));
        let assigned: Vec<String> = columns
            .iter()
            .map(|column| format!("\"{column}\" = o.\"{column}\""))
            .collect();
        let assigned = assigned.join(", ");
        let (live, shadow) = (
            quoted(&self.config.live, "positions"),
            quoted(&self.config.schema, "positions"),
        );
        let same = "p.topic = $1 AND o.topic = p.topic AND o.partition = p.partition";
        let kept = format!(
            "CREATE TEMP TABLE positions_before ON COMMIT DROP AS SELECT l.* FROM {live} l JOIN {shadow} s USING (topic, partition) \
             WHERE l.topic = '{}' AND l.next_offset < s.next_offset",
            self.topic()
        );
        still.batch_execute(&kept).await?;
        for (table, with, only) in [
            (&live, &shadow, "AND p.next_offset < o.next_offset"),
            (&shadow, &"pg_temp.positions_before".to_owned(), ""),
        ] {
            let sql = format!("UPDATE {table} p SET {assigned} FROM {with} o WHERE {same} {only}");
            still.execute(&sql, &[&self.topic()]).await?;
        }
        Ok(())
    }
}
