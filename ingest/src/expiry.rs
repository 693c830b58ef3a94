//! Removes keys whose time is over, of batches and of items, in bites so that nothing waits for it. Nobody is answered
//! from an expired key, so it may be late, and any number of gateways may do it at once: each takes what no other has.
//! Whoever uses a key at that moment either holds the row, and it stays, or finds none, and begins anew as with an
//! expired one. Must not know what a key was for.

use crate::ledger::Ledger;
use std::time::Duration;

/// Most rows at a time: a millisecond or two of Postgres.
const BITE: i64 = 500;

/// Between two bites.
const PAUSE: Duration = Duration::from_millis(100);

/// A batch's key stays while its claim is held, whatever its age. Removed by place in the table, so that there is no plan
/// to get wrong; a row that was changed in between has another place, and waits for the next bite.
const REMOVE_BATCHES: &str = "
WITH removed AS (
    DELETE FROM idempotency_records WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency_records
        WHERE scope = 'batch' AND expires_at <= now() AND coalesce(lease_until <= now(), true)
        LIMIT $1
        FOR UPDATE SKIP LOCKED))
    RETURNING 1
) SELECT count(*), set_config('synchronous_commit', 'off', true) FROM removed";

/// An item's count expires by the log's time, so it stays until the log has been applied beyond that moment: hits that
/// are still to be applied may have come before it.
const REMOVE_ITEMS: &str = "
WITH removed AS (
    DELETE FROM idempotency_records WHERE ctid = ANY (ARRAY(
        SELECT item.ctid FROM log_applied
        JOIN idempotency_records item USING (topic, partition)
        WHERE item.scope = 'item' AND item.expires_at <= least(now(), log_applied.through)
        LIMIT $1
        FOR UPDATE OF item SKIP LOCKED))
    RETURNING 1
) SELECT count(*), set_config('synchronous_commit', 'off', true) FROM removed";

impl Ledger {
    /// For ever: removes what has expired, and rests.
    pub(crate) async fn expire_keys(&self) {
        loop {
            tokio::time::sleep(self.expiry_every).await;
            let batches = self.remove(REMOVE_BATCHES).await;
            let items = self.remove(REMOVE_ITEMS).await;
            if batches + items > 0 {
                tracing::debug!(batches, items, "expired keys are gone");
            }
        }
    }

    /// Bite by bite until there is no whole one left; answers how many rows went.
    async fn remove(&self, sql: &str) -> i64 {
        let mut removed = 0;
        loop {
            // Where Postgres is away, which has been said, there will be another time.
            let Ok(row) = self.query_opt(sql, &[&BITE]).await else {
                return removed;
            };
            let bite: i64 = row.map_or(0, |row| row.get(0));
            removed += bite;
            if bite < BITE {
                return removed;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
