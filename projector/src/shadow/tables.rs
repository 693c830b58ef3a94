//! The schema of a shadow: made with the tables that the projector writes, filled by others, indexed when it is full, and dropped.
//! The live schema's table `shadows` notes those that outlive a run. Functions are the live schema's, so that a table that moves
//! there hangs on nothing that is dropped.

use super::Shadow;
use crate::ProjectorError;
use crate::fold::FOLD_VERSION;
use crate::history::{Floor, Removal, Removed, floors, lock_name};
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use tidelog_events::domain::{create_bare_tables, create_indexes};
use tidelog_events::item::decode_part;
use tokio_postgres::Client;

/// The tables of all domains, as the projector writes them; each of a domain's own comes from its definition.
pub(super) const SHARED: [&str; 5] = [
    "positions",
    "outcomes",
    "conflicts",
    "dead_letters",
    "idempotency_records",
];

/// What has become of a shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShadowState {
    /// A snapshot is being loaded; cut off, it is loaded anew.
    Restoring,
    /// Folding has begun, and may go on.
    Loading,
    /// All is folded and indexed.
    Ready,
    /// It holds the tables that were live before it.
    Retired,
}

impl ShadowState {
    fn as_str(self) -> &'static str {
        match self {
            ShadowState::Restoring => "restoring",
            ShadowState::Loading => "loading",
            ShadowState::Ready => "ready",
            ShadowState::Retired => "retired",
        }
    }

    fn parse(text: &str) -> Option<ShadowState> {
        use ShadowState::{Loading, Ready, Restoring, Retired};
        [Restoring, Loading, Ready, Retired]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

impl Shadow {
    /// Takes the schema for this process alone, as long as `client` is connected.
    pub async fn lock(&self, client: &Client) -> Result<(), ProjectorError> {
        let name = format!("tidelog shadow {}", self.config.schema);
        let taken = client
            .query_one("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", &[&name])
            .await?;
        match taken.get(0) {
            true => self.keep_history(client).await,
            false => Err(ProjectorError::Busy(format!(
                "another run of this command is at work on {}: wait for it, or stop it",
                self.topic()
            ))),
        }
    }

    /// From now on nothing is removed from the topic's live tables, as long as `client` is connected. Waits for a bite.
    async fn keep_history(&self, client: &Client) -> Result<(), ProjectorError> {
        const SQL: &str = "SELECT pg_advisory_lock_shared(hashtextextended($1, 0))";
        client
            .query_one(SQL, &[&lock_name(&self.config.live, &self.topic())])
            .await?;
        Ok(())
    }

    /// Where the live feed begins, of each partition that has forgotten something.
    pub(super) async fn floors(&self, client: &Client) -> Result<Vec<Floor>, ProjectorError> {
        let positions = format!("\"{}\".positions", self.config.live);
        floors(client, &positions, &self.topic()).await
    }

    /// Removes what the live tables have forgotten. The shadow stands where these do, or further on than when they did, so its
    /// fold asks for none of it any more.
    async fn forget(&self, client: &Client) -> Result<(), ProjectorError> {
        let removal = Removal {
            client,
            topic: &self.topic(),
            domains: &self.domains,
            floors: self.floors(client).await?,
            lock: None,
        };
        let mut removed = Removed::default();
        removal.run(&mut removed).await?;
        tracing::debug!(topic = %self.topic(), ?removed, "what the live tables have forgotten is gone");
        Ok(())
    }

    /// What has become of an earlier run, if it left anything, and whether it was made by today's fold and definitions.
    pub async fn state(&self, client: &Client) -> Result<Option<(ShadowState, bool)>, ProjectorError> {
        let sql = format!(
            "SELECT state, fold_version, definitions FROM \"{}\".shadows WHERE topic = $1",
            self.config.live
        );
        let Some(row) = client.query_opt(&sql, &[&self.topic()]).await? else {
            return Ok(None);
        };
        let text: &str = row.get(0);
        let state = ShadowState::parse(text)
            .ok_or_else(|| ProjectorError::Stored(format!("the state {text:?} of a shadow")))?;
        let same =
            row.get::<_, i32>(1) == FOLD_VERSION.cast_signed() && row.get::<_, &str>(2) == self.definitions();
        Ok(Some((state, same)))
    }

    /// Makes the schema and its tables, empty, to fold the log into from its beginning.
    pub async fn make(&self, client: &mut Client) -> Result<(), ProjectorError> {
        self.make_as(client, ShadowState::Loading).await
    }

    /// Makes them as the first step to that state.
    pub async fn make_as(&self, client: &mut Client, state: ShadowState) -> Result<(), ProjectorError> {
        let (schema, live) = (&self.config.schema, &self.config.live);
        let kind = if self.config.scratch { "UNLOGGED " } else { "" };
        let mut sql = format!("CREATE SCHEMA \"{schema}\";\n");
        for table in SHARED {
            // A String takes whatever is written to it.
            let _ = writeln!(
                sql,
                "CREATE {kind}TABLE \"{schema}\".{table} (LIKE \"{live}\".{table} INCLUDING ALL);"
            );
        }
        let _ = writeln!(
            sql,
            "CREATE {kind}TABLE \"{schema}\".selected (tenant_id text, identity text, PRIMARY KEY (tenant_id, identity));"
        );
        for domain in &self.domains {
            let tables = create_bare_tables(domain);
            sql.push_str(&tables.replace("CREATE TABLE ", &format!("CREATE {kind}TABLE ")));
            sql.push('\n');
        }
        let transaction = client.transaction().await?;
        transaction.batch_execute(&sql).await?;
        if !self.config.scratch {
            let note = format!(
                "INSERT INTO \"{live}\".shadows (topic, schema_name, state, fold_version, definitions) VALUES ($1, $2, $3, $4, $5)"
            );
            let version = FOLD_VERSION.cast_signed();
            transaction
                .execute(
                    &note,
                    &[
                        &self.topic(),
                        schema,
                        &state.as_str(),
                        &version,
                        &self.definitions(),
                    ],
                )
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Notes which keys were selected, for the comparison.
    pub async fn note_selected(
        &self,
        client: &Client,
        selection: &super::Selection,
    ) -> Result<(), ProjectorError> {
        let super::Selection::Keys(keys) = selection else {
            return Ok(());
        };
        let parts = keys.iter().filter_map(|key| {
            let (tenant, identity) = std::str::from_utf8(key).ok()?.split_once('/')?;
            Some((decode_part(tenant)?.into_owned(), identity.to_owned()))
        });
        let (tenants, identities): (Vec<String>, Vec<String>) = parts.unzip();
        let sql = format!(
            "INSERT INTO \"{}\".selected SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING",
            self.config.schema
        );
        client.execute(&sql, &[&tenants, &identities]).await?;
        Ok(())
    }

    /// Removes what is forgotten, and makes what only readers need. To be called when it has come to where the live tables are.
    pub async fn index(&self, client: &Client) -> Result<(), ProjectorError> {
        self.forget(client).await?;
        self.side_by_side(self.domains.iter().map(|domain| create_indexes(domain)))
            .await
    }

    /// Tells Postgres how much there is in the tables and of what kind, so that it has good plans for whoever reads them.
    pub async fn analyze(&self) -> Result<(), ProjectorError> {
        let tables = self
            .domains
            .iter()
            .flat_map(|domain| [domain.table.to_string(), domain.changes_table()]);
        self.side_by_side(tables.map(|table| format!("ANALYZE {};", quoted(&self.config.schema, &table))))
            .await
    }

    /// Tables side by side; of each, every statement for itself: an index that was made stays made.
    async fn side_by_side(&self, of_tables: impl Iterator<Item = String>) -> Result<(), ProjectorError> {
        let making = of_tables.map(|sql| async move {
            let client = self.connect().await?;
            for statement in sql.split_inclusive(';').filter(|text| text.contains(';')) {
                client.batch_execute(statement).await?;
            }
            Ok(())
        });
        stream::iter(making)
            .buffer_unordered(self.config.jobs)
            .try_collect()
            .await
    }

    /// Notes how far it has come.
    pub async fn note_state(&self, client: &Client, state: ShadowState) -> Result<(), ProjectorError> {
        let sql = format!(
            "UPDATE \"{}\".shadows SET state = $2, updated_at = now() WHERE topic = $1",
            self.config.live
        );
        client.execute(&sql, &[&self.topic(), &state.as_str()]).await?;
        Ok(())
    }

    /// Drops the schema with all that is in it, if it is there.
    pub async fn discard(&self, client: &mut Client) -> Result<(), ProjectorError> {
        let transaction = client.transaction().await?;
        let drop = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.config.schema);
        transaction.batch_execute(&drop).await?;
        if !self.config.scratch {
            let forget = format!("DELETE FROM \"{}\".shadows WHERE topic = $1", self.config.live);
            transaction.execute(&forget, &[&self.topic()]).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// A hash of how the tables are made, and of what for.
    fn definitions(&self) -> String {
        let mut hash = Sha256::new();
        if let Some(partitions) = &self.config.partitions {
            hash.update(format!("{partitions:?}"));
        }
        for domain in &self.domains {
            hash.update(create_bare_tables(domain));
            // How far back the fold looks decides as well what comes of it.
            if let Some(history) = domain.history {
                hash.update(format!("{} {}", domain.name, history.num_seconds()));
            }
        }
        let digest = hash.finalize();
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Names come from settings and definitions, whose rules leave nothing to escape.
pub(super) fn quoted(schema: &str, table: &str) -> String {
    format!("\"{schema}\".{table}")
}
