//! One statement, one round trip, on a connection of the pool. A connection that turns out to be dead is replaced
//! once: everything here reads, so asking again is harmless. Must not know what is asked.

use deadpool_postgres::Pool;
use futures_util::StreamExt;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::FeedError;

/// Settings that this crate's statements rely on, for the options of the pool's connections.
///
/// The statements are prepared once a connection and may be prepared while the tables are still empty. Each of them
/// has one good plan whatever the tables hold: index scans in key order, and nested loops from a bounded set. So the
/// plan is made once, for any parameters, and the kinds of plan that only look cheap on an empty table are ruled out.
pub const SESSION_SETTINGS: [(&str, &str); 6] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

/// A value for a statement.
pub(crate) type Parameter<'a> = &'a (dyn ToSql + Sync);

/// Where rows are read from.
#[derive(Clone)]
pub(crate) struct Store {
    pool: Pool,
}

impl Store {
    pub(crate) fn new(pool: Pool) -> Store {
        Store { pool }
    }

    /// Runs one statement, prepared once a connection.
    pub(crate) async fn query(&self, sql: &str, values: &[Parameter<'_>]) -> Result<Vec<Row>, FeedError> {
        self.gather(sql, values, |rows: &mut Vec<Row>, row| {
            rows.push(row);
            Ok(())
        })
        .await
    }

    /// The same, taking in each row as it comes: what is made of one is made while Postgres looks for the next.
    pub(crate) async fn gather<C: Default>(
        &self,
        sql: &str,
        values: &[Parameter<'_>],
        take: impl Fn(&mut C, Row) -> Result<(), FeedError>,
    ) -> Result<C, FeedError> {
        match self.attempt(sql, values, &take).await {
            Err(Failure::Closed) => self.attempt(sql, values, &take).await,
            other => other,
        }
        .map_err(|failure| match failure {
            Failure::Closed => FeedError::Unavailable,
            Failure::Told(error) => error,
        })
    }

    async fn attempt<C: Default>(
        &self,
        sql: &str,
        values: &[Parameter<'_>],
        take: impl Fn(&mut C, Row) -> Result<(), FeedError>,
    ) -> Result<C, Failure> {
        let client = self
            .pool
            .get()
            .await
            .map_err(|error| Failure::Told(error.into()))?;
        let failed = |error: tokio_postgres::Error| match error.is_closed() {
            true => Failure::Closed,
            false => Failure::Told(error.into()),
        };
        let statement = client.prepare_cached(sql).await.map_err(failed)?;
        let rows = client
            .query_raw(&statement, values.iter().copied())
            .await
            .map_err(failed)?;
        let mut rows = std::pin::pin!(rows);
        let mut gathered = C::default();
        while let Some(row) = rows.next().await {
            take(&mut gathered, row.map_err(failed)?).map_err(Failure::Told)?;
        }
        Ok(gathered)
    }
}

enum Failure {
    /// The connection had ended, as after a restart of the server.
    Closed,
    Told(FeedError),
}
