//! What differs, looked at while the topic's partitions stand still: their positions are locked, the shadow is brought to exactly
//! there, and each candidate is compared once more. What differs even then is wrong, and may be mended in the same transaction:
//! the row becomes what the log says. The service goes on behind the lock, which is held for moments.

use super::compare::{Candidates, Compared, Difference, Differs};
use super::tables::quoted;
use super::{Offsets, Passed, Selection, Shadow};
use crate::ProjectorError;
use crate::retry::waits;
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

/// Rows that are looked at under one lock.
const AT_ONCE: usize = 2000;

/// How often positions are tried to be locked.
const ATTEMPTS: usize = 10;

/// A transaction while which the topic's partitions stand still.
pub(super) struct Still<'a> {
    pub(super) client: &'a Client,
    /// Since when.
    pub(super) since: Instant,
}

impl Still<'_> {
    /// `COMMIT` or `ROLLBACK`.
    pub(super) async fn end(self, how: &str) -> Result<(), ProjectorError> {
        Ok(self.client.batch_execute(how).await?)
    }
}

/// Somebody else holds what is to be locked.
pub(super) fn in_the_way(error: &tokio_postgres::Error) -> bool {
    let code = error.code();
    code == Some(&SqlState::LOCK_NOT_AVAILABLE) || code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
}

/// How candidates turned out.
#[derive(Debug, Default)]
pub struct Mended {
    /// What is wrong, or was.
    pub differences: Vec<Difference>,
    /// Rows that were put right.
    pub mended: u64,
    /// There are more than were looked at: mend, and compare again.
    pub more: bool,
    /// It was stopped on the way.
    pub stopped: bool,
}

impl Shadow {
    /// Looks at candidates again, and puts right what is wrong if `mend`.
    pub async fn settle(
        &self,
        client: &Client,
        candidates: &[Candidates],
        selection: &Arc<Selection>,
        mend: bool,
        stop: &watch::Receiver<bool>,
    ) -> Result<Mended, ProjectorError> {
        let mut settled = Mended::default();
        for Candidates { table, keys, more } in candidates {
            settled.more |= *more;
            for keys in keys.chunks(AT_ONCE) {
                let Some(still) = self.freeze(client, selection, stop).await? else {
                    settled.stopped = true;
                    return Ok(settled);
                };
                let wrong = self.wrong(still.client, table, keys).await?;
                if mend && !wrong.is_empty() {
                    settled.mended += self.put_right(still.client, table, &wrong).await?;
                }
                still.end("COMMIT").await?;
                settled.differences.extend(wrong);
            }
        }
        Ok(settled)
    }

    /// Begins a transaction in which no projector moves the topic's partitions, and brings the shadow to where they stand. None
    /// where it was told to stop.
    pub(super) async fn freeze<'a>(
        &self,
        client: &'a Client,
        selection: &Arc<Selection>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Option<Still<'a>>, ProjectorError> {
        // As near as can be before anybody waits.
        let near = self.live_positions(client).await?;
        if !self.fold_to(&near, selection, &Passed::default(), stop).await? {
            return Ok(None);
        }
        let (stand, since) = self.lock_positions(client).await?;
        let still = Still { client, since };
        let folded = self.fold_to(&stand, selection, &Passed::default(), stop).await?;
        if !folded {
            still.end("ROLLBACK").await?;
            return Ok(None);
        }
        Ok(Some(still))
    }

    /// Locks the positions. A projector locks those of a chunk in whatever order, so the two may wait for each other, and one of
    /// them has to try again.
    async fn lock_positions(&self, client: &Client) -> Result<(Offsets, Instant), ProjectorError> {
        // The first of them ends what an earlier failure may have left open.
        const BEGIN: &str =
            "ROLLBACK; BEGIN; SET LOCAL lock_timeout = '5s'; SET LOCAL synchronous_commit = on";
        let lock = format!("{} FOR UPDATE", self.positions_of(&self.config.live));
        for wait in waits().take(ATTEMPTS) {
            client.batch_execute(BEGIN).await?;
            let since = Instant::now();
            match client.query(&lock, &[&self.topic(), &self.numbers()]).await {
                Ok(rows) => {
                    let stand = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                    return Ok((stand, since));
                }
                Err(error) if in_the_way(&error) => {
                    tracing::debug!(%error, "the positions are locked again");
                    client.batch_execute("ROLLBACK").await?;
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(ProjectorError::Busy(format!(
            "the positions of {} are locked by somebody for long: pg_stat_activity says by whom",
            self.topic()
        )))
    }

    /// Those of the rows that differ.
    pub(super) async fn wrong(
        &self,
        still: &Client,
        table: &Compared,
        keys: &[Value],
    ) -> Result<Vec<Difference>, ProjectorError> {
        let sql = format!(
            "SELECT k.value AS key, l.\"{first}\" IS NOT NULL AS live, s.\"{first}\" IS NOT NULL AS expected, \
                    coalesce(s.partition, l.partition) AS partition, coalesce(s.\"offset\", l.\"offset\") AS \"offset\", \
                    ARRAY(SELECT a.key FROM jsonb_each(to_jsonb(l)) a JOIN jsonb_each(to_jsonb(s)) b USING (key) \
                          WHERE a.value IS DISTINCT FROM b.value AND a.key = ANY($2)) AS columns \
             FROM jsonb_array_elements($1::jsonb) k CROSS JOIN LATERAL jsonb_populate_record(NULL::{live}, k.value) w \
             LEFT JOIN {live} l ON {of_live} LEFT JOIN {shadow} s ON {of_shadow} \
             WHERE {live_row} IS DISTINCT FROM {shadow_row}",
            first = table.key[0],
            live = quoted(&self.config.live, &table.table),
            shadow = quoted(&self.config.schema, &table.table),
            of_live = table.same_key("l", "w"),
            of_shadow = table.same_key("s", "w"),
            live_row = table.row("l"),
            shadow_row = table.row("s"),
        );
        let sql = match table.columns.iter().any(|column| column == "offset") {
            true => sql,
            false => sql.replace("coalesce(s.\"offset\", l.\"offset\")", "NULL::bigint"),
        };
        let rows = still
            .query(&sql, &[&Value::Array(keys.to_vec()), &table.columns])
            .await?;
        Ok(rows.iter().map(|row| difference(table, row)).collect())
    }

    /// Live rows become what the shadow has under their keys.
    pub(super) async fn put_right(
        &self,
        still: &Client,
        table: &Compared,
        wrong: &[Difference],
    ) -> Result<u64, ProjectorError> {
        copy_rows(still, table, wrong, &self.config.schema, &self.config.live).await
    }
}

/// Makes rows of `to` what they are in `from`: those that are there overwritten or added, the others deleted.
pub(super) async fn copy_rows(
    still: &Client,
    table: &Compared,
    wrong: &[Difference],
    from: &str,
    to: &str,
) -> Result<u64, ProjectorError> {
    let names: Vec<String> = table
        .columns
        .iter()
        .map(|column| format!("\"{column}\""))
        .collect();
    let key: Vec<String> = table.key.iter().map(|column| format!("\"{column}\"")).collect();
    let assigned: Vec<String> = names
        .iter()
        .filter(|name| !key.contains(name))
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let (source, target) = (quoted(from, &table.table), quoted(to, &table.table));
    let keys = format!(
        "jsonb_array_elements($1::jsonb) k CROSS JOIN LATERAL jsonb_populate_record(NULL::{target}, k.value) w"
    );
    let delete = format!(
        "DELETE FROM {target} t USING {keys} WHERE {of_target} AND NOT EXISTS (SELECT FROM {source} s WHERE {of_source})",
        of_target = table.same_key("t", "w"),
        of_source = table.same_key("s", "w"),
    );
    let listed = |alias: &str| {
        let listed: Vec<String> = names.iter().map(|name| format!("{alias}.{name}")).collect();
        listed.join(", ")
    };
    let insert = format!(
        "INSERT INTO {target} ({names}) SELECT {selected} FROM {keys} JOIN {source} s ON {of_source} \
         ON CONFLICT ({key}) DO UPDATE SET {assigned}",
        names = names.join(", "),
        selected = listed("s"),
        of_source = table.same_key("s", "w"),
        key = key.join(", "),
        assigned = assigned.join(", "),
    );
    let keys = Value::Array(wrong.iter().map(|difference| difference.key.clone()).collect());
    let deleted = still.execute(&delete, &[&keys]).await?;
    let inserted = still.execute(&insert, &[&keys]).await?;
    Ok(deleted + inserted)
}

fn difference(table: &Compared, row: &Row) -> Difference {
    Difference {
        table: table.table.clone(),
        differs: match (row.get("live"), row.get("expected")) {
            (false, _) => Differs::Missing,
            (true, false) => Differs::Extra,
            (true, true) => Differs::Changed,
        },
        key: row.get("key"),
        partition: row.get("partition"),
        offset: row.get("offset"),
        columns: row.get("columns"),
    }
}
