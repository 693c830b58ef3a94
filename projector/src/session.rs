//! One connection to Postgres with its prepared statements, held by one worker. Plans are pinned when the session
//! starts: a statement prepared while a table was empty would otherwise keep scanning it when it is full.

use crate::ProjectorError;
use std::collections::HashMap;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

/// Settings under which the projector's statements have stable plans: every one of them reads by key.
const PINNED: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; \
                      SET enable_mergejoin = off; SET jit = off";

/// A connection.
pub(crate) struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
}

impl Session {
    /// Connects; the search path comes with the configuration.
    pub(crate) async fn connect(config: &Config) -> Result<Session, ProjectorError> {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a projector's connection ended");
            }
        });
        client.batch_execute(PINNED).await?;
        Ok(Session {
            client,
            statements: HashMap::new(),
        })
    }

    /// The connection itself, for what needs no preparation.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Prepares a statement once.
    pub(crate) async fn prepare(&mut self, sql: &str) -> Result<Statement, ProjectorError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Prepares and runs a query.
    pub(crate) async fn query(
        &mut self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ProjectorError> {
        let statement = self.prepare(sql).await?;
        Ok(self.client.query(&statement, parameters).await?)
    }
}
