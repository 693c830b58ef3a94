//! The shadow's tables in the place of the live ones, in one short transaction: the partitions stand still, the shadow is brought to
//! exactly where they stand, rows of the tables that all topics share are exchanged where they differ, and a domain's own tables
//! change their schemas. What was live goes to the shadow's schema and can be swapped back in the same way. Positions do not
//! change, so projectors, cursors and receipts go on as if nothing had been.

use super::compare::Candidates;
use super::mend::{copy_rows, in_the_way};
use super::tables::quoted;
use super::{Selection, Shadow};
use crate::ProjectorError;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::Client;

/// How often a swap is tried that somebody's long statement is in the way of.
const ATTEMPTS: u32 = 10;
const BETWEEN: Duration = Duration::from_secs(2);

/// How a swap went.
#[derive(Debug, Clone)]
pub struct Swapped {
    /// Rows of shared tables that were exchanged.
    pub exchanged: u64,
    /// How long the topic's partitions stood still.
    pub stood_still: Duration,
    /// Views that look at the new tables now.
    pub views: Vec<String>,
}

/// A view of somebody's on a table that is swapped.
struct View {
    name: String,
    definition: String,
}

impl Shadow {
    /// Swaps; none where it was told to stop. `shared` are the rows of shared tables that may differ.
    pub async fn swap(
        &self,
        client: &Client,
        shared: &[Candidates],
        stop: &watch::Receiver<bool>,
    ) -> Result<Option<Swapped>, ProjectorError> {
        if let Some(too_many) = shared
            .iter()
            .find(|candidates| candidates.table.shared && candidates.more)
        {
            return Err(ProjectorError::Busy(format!(
                "more rows of {} differ than can be exchanged at once",
                too_many.table.table
            )));
        }
        let mut attempt = 1;
        loop {
            match self.attempt(client, shared, stop).await {
                Err(ProjectorError::Postgres(error)) if attempt < ATTEMPTS && in_the_way(&error) => {
                    tracing::warn!(topic = %self.topic(), "somebody holds a table for long: the swap is tried again");
                    attempt += 1;
                    tokio::time::sleep(BETWEEN).await;
                }
                other => return other,
            }
        }
    }

    async fn attempt(
        &self,
        client: &Client,
        shared: &[Candidates],
        stop: &watch::Receiver<bool>,
    ) -> Result<Option<Swapped>, ProjectorError> {
        self.check_triggers(client).await?;
        let everything = Arc::new(Selection::All);
        let Some(still) = self.freeze(client, &everything, stop).await? else {
            return Ok(None);
        };
        let taken_over = match self.behind(client).await?.is_empty() {
            true => 0,
            false => self.take_over(client).await?,
        };
        let (exchanged, views) = self.exchange_all(client, shared).await?;
        let since = still.since;
        still.end("COMMIT").await?;
        Ok(Some(Swapped {
            exchanged: exchanged + taken_over,
            stood_still: since.elapsed(),
            views: views.into_iter().map(|view| view.name).collect(),
        }))
    }

    /// What the transaction of a swap does once the partitions stand still.
    async fn exchange_all(
        &self,
        still: &Client,
        shared: &[Candidates],
    ) -> Result<(u64, Vec<View>), ProjectorError> {
        let views = self.views(still).await?;
        let names = self.live_names().join(", ");
        still
            .batch_execute(&format!(
                "SET LOCAL lock_timeout = '2s'; LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"
            ))
            .await?;
        let mut exchanged = 0;
        for candidates in shared.iter().filter(|candidates| candidates.table.shared) {
            exchanged += self.exchange(still, candidates).await?;
        }
        let mut rights = Vec::new();
        for table in self.tables() {
            rights.extend(self.rights(still, &table).await?);
        }
        still.batch_execute(&self.moving()).await?;
        for statement in rights {
            still.batch_execute(&statement).await?;
        }
        for View { name, definition } in &views {
            still
                .batch_execute(&format!("CREATE OR REPLACE VIEW {name} AS {definition}"))
                .await?;
        }
        let note = format!(
            "UPDATE \"{}\".shadows SET state = 'retired', updated_at = now(), swapped_at = now() WHERE topic = $1",
            self.config.live
        );
        still.execute(&note, &[&self.topic()]).await?;
        Ok((exchanged, views))
    }

    /// The same with their schema.
    fn live_names(&self) -> Vec<String> {
        let tables = self.tables();
        tables.iter().map(|t| quoted(&self.config.live, t)).collect()
    }

    /// The tables that are swapped as a whole.
    pub(super) fn tables(&self) -> Vec<String> {
        let each =
            |domain: &Arc<tidelog_events::domain::Domain>| [domain.table.to_string(), domain.changes_table()];
        self.domains.iter().flat_map(each).collect()
    }

    /// Three moves a table, since neither schema has room for two of a name.
    fn moving(&self) -> String {
        let (live, shadow) = (&self.config.live, &self.config.schema);
        let hand = format!("{shadow}_hand");
        let moves: String = self
            .tables()
            .iter()
            .map(|table| {
                format!(
                    "ALTER TABLE \"{live}\".{table} SET SCHEMA \"{hand}\"; ALTER TABLE \"{shadow}\".{table} SET SCHEMA \"{live}\"; \
                     ALTER TABLE \"{hand}\".{table} SET SCHEMA \"{shadow}\";"
                )
            })
            .collect();
        format!("CREATE SCHEMA \"{hand}\"; {moves} DROP SCHEMA \"{hand}\"")
    }

    /// Rows of a shared table that differ change sides.
    async fn exchange(&self, still: &Client, candidates: &Candidates) -> Result<u64, ProjectorError> {
        let table = &candidates.table;
        let wrong = self.wrong(still, table, &candidates.keys).await?;
        if wrong.is_empty() {
            return Ok(0);
        }
        let live = quoted(&self.config.live, &table.table);
        let keys = Value::Array(wrong.iter().map(|difference| difference.key.clone()).collect());
        still
            .batch_execute(&format!(
                "CREATE TEMP TABLE {} (LIKE {live}) ON COMMIT DROP",
                table.table
            ))
            .await?;
        let keep = format!(
            "INSERT INTO pg_temp.{} SELECT l.* FROM jsonb_array_elements($1::jsonb) k \
             CROSS JOIN LATERAL jsonb_populate_record(NULL::{live}, k.value) w JOIN {live} l ON {}",
            table.table,
            table.same_key("l", "w")
        );
        still.execute(&keep, &[&keys]).await?;
        let exchanged = self.put_right(still, table, &wrong).await?;
        copy_rows(still, table, &wrong, "pg_temp", &self.config.schema).await?;
        Ok(exchanged)
    }

    /// Statements that give the new table the owner and the grants of the live one.
    async fn rights(&self, still: &Client, table: &str) -> Result<Vec<String>, ProjectorError> {
        const SQL: &str = "SELECT format('ALTER TABLE %s OWNER TO %I', $2::text, pg_get_userbyid(c.relowner)) \
                           FROM pg_class c WHERE c.oid = ($1::text)::regclass AND pg_get_userbyid(c.relowner) <> current_user \
                           UNION ALL \
                           SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, $2::text, \
                                         CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(a.grantee)) END, \
                                         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
                           FROM pg_class c, aclexplode(c.relacl) a \
                           WHERE c.oid = ($1::text)::regclass AND a.grantee <> c.relowner";
        let name = quoted(&self.config.live, table);
        // Under the same name, since the statements run after the move.
        let rows = still.query(SQL, &[&name, &name]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Views that others have made on the tables: they hold on to a table and not to its name, and are bound anew.
    async fn views(&self, still: &Client) -> Result<Vec<View>, ProjectorError> {
        const SQL: &str = "SELECT DISTINCT v.oid::regclass::text, v.relkind::text, rtrim(pg_get_viewdef(v.oid), ';') \
                           FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class \
                           WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass \
                                 AND d.refobjid = ANY(SELECT (n::text)::regclass::oid FROM unnest($1::text[]) n)";
        let names = self.live_names();
        // Names come qualified where nothing is searched.
        let path: String = still
            .query_one("SELECT current_setting('search_path')", &[])
            .await?
            .get(0);
        still.batch_execute("SET LOCAL search_path = ''").await?;
        let rows = still.query(SQL, &[&names]).await?;
        still
            .batch_execute(&format!("SET LOCAL search_path = {path}"))
            .await?;
        let mut views = Vec::new();
        for row in rows {
            let (name, kind): (String, String) = (row.get(0), row.get(1));
            if kind != "v" {
                return Err(ProjectorError::Busy(format!(
                    "{name} is a materialized view of a table that is to be swapped: drop it, and make it again afterwards"
                )));
            }
            views.push(View {
                name,
                definition: row.get(2),
            });
        }
        Ok(views)
    }

    /// What somebody has hung on a table, and would be lost with it.
    async fn check_triggers(&self, client: &Client) -> Result<(), ProjectorError> {
        const SQL: &str = "SELECT format('the trigger %s of %s', t.tgname, t.tgrelid::regclass) FROM pg_trigger t \
                           WHERE NOT t.tgisinternal AND t.tgrelid = ANY(SELECT (n::text)::regclass::oid FROM unnest($1::text[]) n) \
                           UNION ALL \
                           SELECT format('the publication %s of %s', p.pubname, r.prrelid::regclass) \
                           FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
                           WHERE r.prrelid = ANY(SELECT (n::text)::regclass::oid FROM unnest($1::text[]) n)";
        let names = self.live_names();
        match client.query(SQL, &[&names]).await?.first() {
            None => Ok(()),
            Some(row) => Err(ProjectorError::Busy(format!(
                "{} would stay with the old table: drop it, and make it again after the swap",
                row.get::<_, String>(0)
            ))),
        }
    }
}
