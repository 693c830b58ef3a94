//! Who may append a batch under its key. A claim is one statement, and a lease: short, owned, renewed while it is
//! held; the answer kept under the key is another thing. Must not know how a batch is appended or answered.
//!
//! Claims and records commit with `synchronous_commit = off`: a crash of Postgres may lose the last moments of them.
//! A retry then appends the batch again, under the same event ids, which the fold dedupes; and since the answer is a pure
//! function of batch, history and receipt, it says of every item what the first one said. Its receipt is that of the new
//! append. What this saves is a wait for the disk before and after every batch.

use crate::incoming::Identity;
use crate::ledger::Ledger;
use std::sync::Arc;
use uuid::Uuid;

/// What a claim came to.
pub(crate) enum Claiming {
    /// The batch is ours to append.
    Claimed(Claim),
    /// It was answered before.
    Replay(Stored),
    /// It was appended before, under this receipt; its final answer is not there yet.
    Pending {
        /// Sealed.
        receipt: String,
    },
    /// Somebody is appending it.
    InFlight,
    /// The key belongs to another batch.
    OtherBody,
    /// Postgres is away: the batch goes on without a claim, since event ids dedupe what the log cannot.
    Unavailable,
}

/// An answer as it is kept: byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// HTTP status.
    pub(crate) status: u16,
    /// JSON.
    pub(crate) body: String,
}

impl Stored {
    /// From the columns `answer_status` and `answer`.
    pub(crate) fn of(status: Option<i16>, body: Option<String>) -> Option<Stored> {
        Some(Stored {
            status: u16::try_from(status?).ok()?,
            body: body?,
        })
    }
}

/// The right to append a batch. Ends by [`finish`](Self::finish) or [`release`](Self::release); dropped with neither
/// (a panic), it is released in the background, and a crash leaves it to its lease.
pub(crate) struct Claim {
    ledger: Arc<Ledger>,
    identity: Identity,
    owner: Uuid,
    held: bool,
}

/// A key that is known already or just was not, after the statement below. `expires_at <= now()` is as if absent. A
/// claim is taken over once its lease has ended, or was given back. All times are the database's. A key that belongs
/// to another batch answers no row, whatever its state.
const CLAIM: &str = "
INSERT INTO idempotency_records AS known
    (tenant_id, scope, user_id, device_id, key, fingerprint, batch_id, lease_owner, lease_until, expires_at)
VALUES
    ($1, 'batch', $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8), now() + make_interval(secs => $9))
ON CONFLICT (tenant_id, scope, device_id, user_id, key) DO UPDATE SET
    fingerprint = excluded.fingerprint,
    batch_id = excluded.batch_id,
    lease_owner = CASE
        WHEN known.expires_at <= now() THEN excluded.lease_owner
        WHEN known.answer IS NULL AND known.receipt IS NULL AND coalesce(known.lease_until <= now(), true)
            THEN excluded.lease_owner
        ELSE known.lease_owner END,
    lease_until = CASE
        WHEN known.expires_at <= now() THEN excluded.lease_until
        WHEN known.answer IS NULL AND known.receipt IS NULL AND coalesce(known.lease_until <= now(), true)
            THEN excluded.lease_until
        ELSE known.lease_until END,
    receipt = CASE WHEN known.expires_at > now() THEN known.receipt END,
    answer_status = CASE WHEN known.expires_at > now() THEN known.answer_status END,
    answer = CASE WHEN known.expires_at > now() THEN known.answer END,
    hit_count = CASE WHEN known.expires_at > now() THEN known.hit_count + 1 ELSE 0 END,
    created_at = CASE WHEN known.expires_at > now() THEN known.created_at ELSE now() END,
    last_hit_at = CASE WHEN known.expires_at > now() THEN now() END,
    expires_at = CASE WHEN known.expires_at > now() THEN known.expires_at ELSE excluded.expires_at END
WHERE known.fingerprint = excluded.fingerprint OR known.expires_at <= now()
RETURNING coalesce(lease_owner = $7, false), receipt, answer_status, answer,
    set_config('synchronous_commit', 'off', true)";

const RENEW: &str = "
UPDATE idempotency_records SET lease_until = now() + make_interval(secs => $6)
WHERE tenant_id = $1 AND scope = 'batch' AND user_id = $2 AND device_id = $3 AND key = $4 AND lease_owner = $5
RETURNING set_config('synchronous_commit', 'off', true)";

/// The key stays known: its retry goes on, and another body under it stays refused.
const RELEASE: &str = "
UPDATE idempotency_records SET lease_owner = NULL, lease_until = NULL
WHERE tenant_id = $1 AND scope = 'batch' AND user_id = $2 AND device_id = $3 AND key = $4 AND lease_owner = $5
RETURNING set_config('synchronous_commit', 'off', true)";

impl Ledger {
    /// Claims a batch, or says why not. Every repeat of a known batch is counted.
    pub(crate) async fn claim(self: &Arc<Self>, identity: &Identity) -> Claiming {
        let Identity {
            tenant,
            user,
            device,
            key,
            fingerprint,
            batch,
            key_ttl,
        } = identity;
        let owner = Uuid::new_v4();
        let (lease, ttl) = (self.lease.as_secs_f64(), key_ttl.as_secs_f64());
        let claimed = self
            .query_opt(
                CLAIM,
                &[
                    &tenant.as_str(),
                    &user.as_str(),
                    &device.as_str(),
                    key,
                    &&fingerprint.0[..],
                    &batch.0,
                    &owner,
                    &lease,
                    &ttl,
                ],
            )
            .await;
        let row = match claimed {
            Ok(row) => row,
            Err(_) => return Claiming::Unavailable,
        };
        let known = row.map(|row| Known {
            ours: row.get(0),
            receipt: row.get(1),
            answer: Stored::of(row.get(2), row.get(3)),
        });
        decide(known, || Claim {
            ledger: self.clone(),
            identity: identity.clone(),
            owner,
            held: true,
        })
    }

    async fn release(&self, identity: &Identity, owner: Uuid) {
        let Identity {
            tenant,
            user,
            device,
            key,
            ..
        } = identity;
        // If Postgres is away the lease ends by itself.
        let _ = self
            .query_opt(
                RELEASE,
                &[&tenant.as_str(), &user.as_str(), &device.as_str(), key, &owner],
            )
            .await;
    }
}

/// A key of this batch as it stands after the statement.
struct Known {
    ours: bool,
    receipt: Option<String>,
    answer: Option<Stored>,
}

fn decide(known: Option<Known>, claim: impl FnOnce() -> Claim) -> Claiming {
    match known {
        None => Claiming::OtherBody,
        Some(Known { ours: true, .. }) => Claiming::Claimed(claim()),
        Some(Known {
            answer: Some(answer), ..
        }) => Claiming::Replay(answer),
        Some(Known {
            receipt: Some(receipt),
            ..
        }) => Claiming::Pending { receipt },
        Some(_) => Claiming::InFlight,
    }
}

impl Claim {
    /// The batch is recorded (or will be): the record has ended the lease.
    pub(crate) fn finish(mut self) {
        self.held = false;
    }

    /// The batch was not appended: the next attempt may begin at once.
    pub(crate) async fn release(mut self) {
        self.held = false;
        self.ledger.release(&self.identity, self.owner).await;
    }

    /// Does the work while holding the claim, however long it takes.
    pub(crate) async fn hold<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(self.ledger.lease / 3, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.renew().await,
            }
        }
    }

    async fn renew(&self) {
        let Identity {
            tenant,
            user,
            device,
            key,
            ..
        } = &self.identity;
        let lease = self.ledger.lease.as_secs_f64();
        // If this fails somebody may append the batch beside us, which the fold dedupes.
        let _ = self
            .ledger
            .query_opt(
                RENEW,
                &[
                    &tenant.as_str(),
                    &user.as_str(),
                    &device.as_str(),
                    key,
                    &self.owner,
                    &lease,
                ],
            )
            .await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let (ledger, identity, owner) = (self.ledger.clone(), self.identity.clone(), self.owner);
        // Without a runtime the process is ending, and the lease with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { ledger.release(&identity, owner).await });
        }
    }
}
