//! Removes keys whose time is over, of batches and of items, in bites so that nothing waits for it. Nobody is answered
//! from an expired key, so it may be late, and any number of gateways may do it at once: each takes what no other has.
//! Whoever uses a key at that moment either holds the row, and it stays, or finds none, and begins anew as with an
//! expired one. Must not know what a key was for.

use crate::ledger::{Failure, Ledger};
use std::time::Duration;

/// Most rows at a time: a millisecond or two of Postgres.
const BITE: i64 = 500;

/// Between two bites.
const PAUSE: Duration = Duration::from_millis(100);

/// A batch's key stays while its claim is held, whatever its age. An item's expires by the log's time, so it stays until
/// the log has passed that moment: hits that are still to be applied may have come before it. By place in the table, so
/// that there is no plan to get wrong; a row that was changed in between has another place, and waits for the next bite.
const REMOVE: &str = "
WITH removed AS (
    DELETE FROM idempotency_records WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency_records
        WHERE expires_at <= now() AND coalesce(lease_until <= now(), true)
            AND (scope <> 'item' OR log_has_passed(topic, partition, expires_at))
        ORDER BY expires_at LIMIT $1
        FOR UPDATE SKIP LOCKED))
    RETURNING 1
) SELECT count(*), set_config('synchronous_commit', 'off', true) FROM removed";

impl Ledger {
    /// For ever: removes what has expired, and rests.
    pub(crate) async fn expire_keys(&self) {
        loop {
            tokio::time::sleep(self.expiry_every).await;
            let removed = self.remove_expired().await;
            if removed > 0 {
                tracing::debug!(removed, "expired keys are gone");
            }
        }
    }

    /// Bite by bite until there is no whole one left; answers how many rows went.
    async fn remove_expired(&self) -> i64 {
        let mut removed = 0;
        loop {
            match self.remove_a_bite().await {
                Ok(bite) => {
                    removed += bite;
                    if bite < BITE {
                        return removed;
                    }
                }
                // There will be another time; that Postgres is away has been said.
                Err(_) => return removed,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn remove_a_bite(&self) -> Result<i64, Failure> {
        let row = self.query_opt(REMOVE, &[&BITE]).await?;
        Ok(row.map_or(0, |row| row.get(0)))
    }
}
