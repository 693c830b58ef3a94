//! What the gateway keeps of a batch: where its items lie, which were refused, and the answer once it is final.
//! Written after the log has everything, so it may fail: the log is the truth, and the receipt says where.

use crate::claim::Stored;
use crate::incoming::Identity;
use crate::ledger::{Failure, Ledger};
use chrono::{DateTime, Utc};
use tidelog_events::answer::RefusedItem;
use tidelog_events::position::{Appended, TopicPartition};
use tokio_postgres::types::Json;

/// A batch that is in the log, as far as it went there.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) identity: Identity,
    /// What it was posted to, by name.
    pub(crate) target: String,
    pub(crate) received_at: DateTime<Utc>,
    /// How many were posted.
    pub(crate) items: u32,
    /// How many of them were appended.
    pub(crate) appended_items: u32,
    pub(crate) appended: Appended,
    pub(crate) refused: Vec<RefusedItem>,
    /// Sealed.
    pub(crate) receipt: String,
    /// The answer, where it is final already.
    pub(crate) answer: Option<Stored>,
}

impl Record {
    /// About how much memory it takes.
    pub(crate) fn weight(&self) -> usize {
        let refused: usize = self
            .refused
            .iter()
            .map(|item| 256 + item.error.error_message.len())
            .sum();
        1024 + self.receipt.len() + refused + self.answer.as_ref().map_or(0, |answer| answer.body.len())
    }
}

/// Batch and key in one statement. The key may be unknown here (its claim was skipped) or held by somebody else who
/// appended the same batch: the first record stays, for both.
const RECORD: &str = "
WITH kept AS (
    INSERT INTO batches
        (tenant_id, batch_id, domain, user_id, device_id, received_at, items, appended_items, appended, refused)
    VALUES ($1, $6, $7, $2, $3, $8, $9, $10, $11, $12)
    ON CONFLICT (tenant_id, batch_id) DO NOTHING
)
INSERT INTO idempotency_records AS known
    (tenant_id, scope, user_id, device_id, key, fingerprint, batch_id, receipt, answer_status, answer, expires_at)
VALUES
    ($1, 'batch', $2, $3, $4, $5, $6, $13, $14, $15, now() + make_interval(secs => $16))
ON CONFLICT (tenant_id, scope, device_id, user_id, key) DO UPDATE SET
    fingerprint = excluded.fingerprint,
    batch_id = excluded.batch_id,
    lease_owner = NULL,
    lease_until = NULL,
    receipt = coalesce(CASE WHEN known.expires_at > now() THEN known.receipt END, excluded.receipt),
    answer_status = coalesce(CASE WHEN known.expires_at > now() THEN known.answer_status END, excluded.answer_status),
    answer = coalesce(CASE WHEN known.expires_at > now() THEN known.answer END, excluded.answer),
    hit_count = CASE WHEN known.expires_at > now() THEN known.hit_count ELSE 0 END,
    created_at = CASE WHEN known.expires_at > now() THEN known.created_at ELSE now() END,
    last_hit_at = CASE WHEN known.expires_at > now() THEN known.last_hit_at END,
    expires_at = CASE WHEN known.expires_at > now() THEN known.expires_at ELSE excluded.expires_at END
WHERE known.fingerprint = excluded.fingerprint OR known.expires_at <= now()
RETURNING answer_status, answer, receipt, set_config('synchronous_commit', 'off', true)";

const RECALL: &str = "
SELECT received_at, appended_items, appended, refused FROM batches WHERE tenant_id = $1 AND batch_id = $2";

/// The first final answer stays, whoever composed it.
const ANSWER: &str = "
UPDATE idempotency_records SET answer_status = coalesce(answer_status, $6), answer = coalesce(answer, $7)
WHERE tenant_id = $1 AND scope = 'batch' AND user_id = $2 AND device_id = $3 AND key = $4 AND batch_id = $5
RETURNING answer_status, answer, set_config('synchronous_commit', 'off', true)";

/// What was kept of a batch.
#[derive(Debug)]
pub(crate) struct Recalled {
    pub(crate) received_at: DateTime<Utc>,
    pub(crate) appended_items: u32,
    pub(crate) appended: Appended,
    pub(crate) refused: Vec<RefusedItem>,
}

/// What stands under a key once a batch is recorded.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// The final answer, if there is one.
    pub(crate) answer: Option<Stored>,
    /// Whose receipt: two gateways may have appended the batch, and one of them is told of.
    pub(crate) receipt: Option<String>,
}

type Place = (String, i32, i64);

impl Ledger {
    /// Writes a record; answers what stands under its key, which is another's where that came first.
    pub(crate) async fn record(&self, record: &Record) -> Result<Standing, Failure> {
        let Identity {
            tenant,
            user,
            device,
            key,
            fingerprint,
            batch,
            key_ttl,
        } = &record.identity;
        let places: Vec<Place> = record
            .appended
            .iter()
            .map(|(at, last)| (at.topic.clone(), at.partition, last))
            .collect();
        let answer = record.answer.as_ref();
        let row = self
            .query_opt(
                RECORD,
                &[
                    &tenant.as_str(),
                    &user.as_str(),
                    &device.as_str(),
                    key,
                    &&fingerprint.0[..],
                    &batch.0,
                    &record.target,
                    &record.received_at,
                    &(record.items as i32),
                    &(record.appended_items as i32),
                    &Json(places),
                    &Json(&record.refused),
                    &record.receipt,
                    &answer.map(|answer| answer.status as i16),
                    &answer.map(|answer| answer.body.as_str()),
                    &key_ttl.as_secs_f64(),
                ],
            )
            .await?;
        Ok(row.map_or_else(Standing::default, |row| Standing {
            answer: Stored::of(row.get(0), row.get(1)),
            receipt: row.get(2),
        }))
    }

    /// What was recorded of a batch, by this gateway or another.
    pub(crate) async fn recall(&self, identity: &Identity) -> Result<Option<Recalled>, Failure> {
        let row = self
            .query_opt(RECALL, &[&identity.tenant.as_str(), &identity.batch.0])
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (Ok(Json(places)), Ok(Json(refused))) = (
            row.try_get::<_, Json<Vec<Place>>>(2),
            row.try_get::<_, Json<Vec<RefusedItem>>>(3),
        ) else {
            tracing::error!(batch = %identity.batch, "a batch's record cannot be read");
            return Ok(None);
        };
        let mut appended = Appended::default();
        for (topic, partition, last) in places {
            appended.note(TopicPartition { topic, partition }, last);
        }
        Ok(Some(Recalled {
            received_at: row.get(0),
            appended_items: row.get::<_, i32>(1).unsigned_abs(),
            appended,
            refused,
        }))
    }

    /// Keeps the final answer; answers the one that stands, which is another's where that came first.
    pub(crate) async fn keep_answer(
        &self,
        identity: &Identity,
        answer: &Stored,
    ) -> Result<Option<Stored>, Failure> {
        let row = self
            .query_opt(
                ANSWER,
                &[
                    &identity.tenant.as_str(),
                    &identity.user.as_str(),
                    &identity.device.as_str(),
                    &identity.key,
                    &identity.batch.0,
                    &(answer.status as i16),
                    &answer.body,
                ],
            )
            .await?;
        Ok(row.and_then(|row| Stored::of(row.get(0), row.get(1))))
    }
}
