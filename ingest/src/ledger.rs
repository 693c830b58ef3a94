//! Postgres as the write side sees it: one statement at a time, each with a deadline, and left alone for a moment
//! after it failed. Ingest needs only the log, so everything here may fail and a batch goes on. Knows connections and
//! failures, and no statement: these are in `claim`, `record`, `lookup` and `expiry`.

use crate::backlog::Backlog;
use crate::breaker::Breaker;
use crate::config::IngestConfig;
use deadpool_postgres::{Client, Pool};
use std::fmt::Display;
use std::time::{Duration, Instant};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// For how long Postgres is left alone after a failure.
const COOLDOWN: Duration = Duration::from_secs(1);

/// Claims and records of batches.
pub(crate) struct Ledger {
    pool: Pool,
    breaker: Breaker,
    patience: Duration,
    /// For how long a claim holds.
    pub(crate) lease: Duration,
    /// How often expired keys are removed.
    pub(crate) expiry_every: Duration,
    /// Records that wait for Postgres.
    pub(crate) backlog: Backlog,
}

/// Why a statement has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Postgres is away, or too slow to wait for.
    Away,
    /// Postgres is there and cannot hold what it was given (SQLSTATE classes 22, 23 and 54): no retry helps.
    Refused,
}

impl Ledger {
    pub(crate) fn new(pool: Pool, config: &IngestConfig) -> Ledger {
        Ledger {
            pool,
            breaker: Breaker::new(COOLDOWN),
            patience: config.claim_timeout,
            lease: config.lease,
            expiry_every: config.expiry_every,
            backlog: Backlog::new(config.backlog_bytes),
        }
    }

    /// Runs one statement that answers at most one row.
    pub(crate) async fn query_opt(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Failure> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Runs one statement. While records wait for Postgres, those who write them find out whether it is back: a batch
    /// would wait for it in its turn, which others could make use of.
    pub(crate) async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        let admitted = match self.backlog.is_being_written() {
            true => self.breaker.is_closed(),
            false => self.breaker.admits(Instant::now()),
        };
        match admitted {
            true => self.attempt(sql, params).await,
            false => Err(Failure::Away),
        }
    }

    /// Whether Postgres is there; asks it where it was not, which may take a while.
    pub(crate) async fn is_there(&self) -> bool {
        self.breaker.is_closed() || self.attempt("SELECT", &[]).await.is_ok()
    }

    async fn attempt(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        let deadline = tokio::time::Instant::now() + self.patience;
        let client = match tokio::time::timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(self.away(&error)),
            Err(_) => return Err(self.away(&"no connection in time")),
        };
        let work = async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, params).await
        };
        match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(rows)) => {
                if self.breaker.worked() {
                    tracing::info!("Postgres is back");
                }
                Ok(rows)
            }
            Ok(Err(error)) => match error.code() {
                Some(state) if matches!(state.code().get(..2), Some("22" | "23" | "54")) => {
                    tracing::error!(%error, detail = ?error.as_db_error(), "Postgres refuses a value");
                    Err(Failure::Refused)
                }
                _ => Err(self.away(&error)),
            },
            Err(_) => {
                // Whoever got this connection next would wait behind the statement that hangs.
                drop(Client::take(client));
                Err(self.away(&"no result in time"))
            }
        }
    }

    fn away(&self, error: &dyn Display) -> Failure {
        if self.breaker.failed(Instant::now()) {
            tracing::warn!(%error, "Postgres is away: batches are taken without it");
        }
        Failure::Away
    }
}
