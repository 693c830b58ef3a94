//! `GET /api/v1/sync/idempotency/{key}`: what is known of a key, and how often it was sent again. Lives on the write
//! side, whose table it reads: who claims keys knows what their rows mean. Of items it knows the rows' columns and not
//! how they came to be: those are the fold's. Answers nobody from an expired key.

use crate::error::IngestError;
use crate::service::Ingest;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::time::Duration;
use tidelog_events::answer::{item_entry, mixed_entry};
use tidelog_events::batch::BatchId;
use tidelog_events::ids::{Role, TenantId};
use tidelog_events::outcome::{FindOutcomes, Outcome};
use tidelog_events::receipt::Receipt;
use tidelog_events::target::Target;
use tidelog_http::auth::Caller;
use tidelog_http::idempotency_key::IdempotencyKey;
use tokio_postgres::Row;
use uuid::Uuid;

/// Most records of an answer; a key has one for each scope, user and device that used it.
pub const MAX_RECORDS: usize = 20;

/// Most repeated items told of one batch.
pub const MAX_ITEMS: usize = 100;

/// How long reading a batch's outcomes may take.
const READING: Duration = Duration::from_secs(2);

/// What is known of a key.
#[derive(Debug, Serialize)]
pub struct Known {
    /// At least one, batches first.
    pub records: Vec<KeyRecord>,
    /// Whether there are more than [`MAX_RECORDS`].
    pub has_more: bool,
}

/// What a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// A batch: the key is the client's, or the body's fingerprint.
    Batch,
    /// An item that came again: the key is its content hash, 32 hexadecimal digits.
    Item,
}

/// How far what a key stands for has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// Somebody is appending the batch.
    InFlight,
    /// Its attempt failed or broke off before the log had all of it: sending it again goes on.
    Released,
    /// It is in the log and not yet applied.
    Pending,
    /// Its outcomes are final.
    Complete,
}

/// One key of one device of one user.
#[derive(Debug, Serialize)]
pub struct KeyRecord {
    /// The key.
    pub key: String,
    /// What it stands for.
    pub scope: Scope,
    /// How far that has come.
    pub status: KeyStatus,
    /// How often it was sent again.
    pub hit_count: i64,
    /// When it was first seen; of an item, its first repeat that is still counted.
    #[serde(serialize_with = "micros")]
    pub created_at: DateTime<Utc>,
    /// When it was last sent again.
    #[serde(serialize_with = "optional_micros")]
    pub last_hit_at: Option<DateTime<Utc>>,
    /// Until when it is kept.
    #[serde(serialize_with = "micros")]
    pub expires_at: DateTime<Utc>,
    /// The batch; of an item, that of its last repeat.
    pub batch_id: Uuid,
    /// Who sent it.
    pub user_id: String,
    /// From which device; of an item, the one that sent it again.
    pub device_id: String,
    /// The domain, once it is recorded; none of what is of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Of a batch that is in the log: where to ask for its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// Of an item: the record that it is about, where its domain's records have a `mobile_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mobile_id: Option<String>,
    /// Of an item: its identity, where the domain is telemetry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_id: Option<String>,
    /// Of a batch: those of its items that were repeats.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeats>,
}

/// The items of a batch that had been sent before.
#[derive(Debug, Serialize)]
pub struct Repeats {
    /// How many.
    pub repeated_items: usize,
    /// The first [`MAX_ITEMS`] of them by index, as the batch's answer tells them.
    pub items: Vec<Value>,
}

/// In the order of the primary key, which begins with tenant and key: few rows, whatever the table holds.
const KNOWN: &str = "
SELECT k.scope, k.user_id, k.device_id, k.batch_id, coalesce(k.lease_until > now(), false), k.receipt,
    k.answer IS NOT NULL, k.hit_count, k.created_at, k.last_hit_at, k.expires_at, coalesce(k.domain, b.domain),
    k.subject
FROM idempotency_records k
LEFT JOIN batches b ON k.scope = 'batch' AND b.tenant_id = k.tenant_id AND b.batch_id = k.batch_id
WHERE k.tenant_id = $1 AND k.key = $2 AND k.expires_at > now()
    AND ($3::text IS NULL OR k.user_id = $3) AND ($4::text IS NULL OR k.device_id = $4)
ORDER BY k.scope, k.user_id, k.device_id LIMIT $5";

impl<F: FindOutcomes> Ingest<F> {
    /// What is known of a key: to a user of their own devices, to a token's device of that device, to an operator all
    /// of the tenant.
    pub async fn known(&self, caller: &Caller, key: &IdempotencyKey) -> Result<Known, IngestError> {
        let all = caller.role == Role::Operator;
        let user = (!all).then(|| caller.user.as_str());
        let device = caller
            .device
            .as_ref()
            .filter(|_| !all)
            .map(|device| device.as_str());
        let tenant = caller.tenant.as_str();
        let limit = MAX_RECORDS as i64 + 1;
        let rows = self
            .ledger
            .query(KNOWN, &[&tenant, &key.as_str(), &user, &device, &limit])
            .await
            .map_err(|_| IngestError::KeysUnreadable)?;
        if rows.is_empty() {
            return Err(IngestError::UnknownKey);
        }
        let mut records = Vec::with_capacity(rows.len());
        for row in rows.iter().take(MAX_RECORDS) {
            let mut record = self.record_of(&caller.tenant, key, row);
            if let Some(receipt) = &record.receipt {
                let repeats = self.repeats(&caller.tenant, record.batch_id, receipt).await?;
                record.repeats = Some(repeats);
            }
            records.push(record);
        }
        Ok(Known {
            records,
            has_more: rows.len() > MAX_RECORDS,
        })
    }

    fn record_of(&self, tenant: &TenantId, key: &IdempotencyKey, row: &Row) -> KeyRecord {
        let scope = match row.get::<_, &str>(0) {
            "item" => Scope::Item,
            _ => Scope::Batch,
        };
        let (leased, receipt, answered): (bool, Option<String>, bool) = (row.get(4), row.get(5), row.get(6));
        let status = match (scope, &receipt) {
            // Counted when it was decided.
            (Scope::Item, _) => KeyStatus::Complete,
            (_, Some(receipt)) if answered || self.is_applied(tenant, receipt) => KeyStatus::Complete,
            (_, Some(_)) => KeyStatus::Pending,
            (_, None) if leased => KeyStatus::InFlight,
            (_, None) => KeyStatus::Released,
        };
        // A mixed batch and a decision are noted by names that are no domains.
        let posted_to: Option<String> = row.get(11);
        let known = posted_to.and_then(|name| self.registry().by_name(&name));
        let telemetry = known.is_some_and(|domain| !domain.is_entity());
        let (item_id, mobile_id) = row.get::<_, Option<String>>(12).map_or((None, None), |subject| {
            if telemetry {
                (Some(subject), None)
            } else {
                (None, Some(subject))
            }
        });
        KeyRecord {
            key: key.as_str().to_owned(),
            scope,
            status,
            hit_count: row.get(7),
            created_at: row.get(8),
            last_hit_at: row.get(9),
            expires_at: row.get(10),
            batch_id: row.get(3),
            user_id: row.get(1),
            device_id: row.get(2),
            domain: known.map(|domain| domain.name.clone()),
            receipt,
            mobile_id,
            item_id,
            repeats: None,
        }
    }

    /// Whether the projection has passed the batch, although nobody has asked for its final answer yet.
    fn is_applied(&self, tenant: &TenantId, receipt: &str) -> bool {
        let positions = self.answers.positions.borrow();
        Receipt::open(receipt, tenant).is_ok_and(|receipt| positions.cover(&receipt.appended))
    }

    async fn repeats(&self, tenant: &TenantId, batch: Uuid, receipt: &str) -> Result<Repeats, IngestError> {
        let reading = self.answers.outcomes.of_batch(tenant, BatchId(batch));
        let outcomes = match tokio::time::timeout(READING, reading).await {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(_)) | Err(_) => return Err(IngestError::KeysUnreadable),
        };
        let mut repeated: Vec<_> = outcomes
            .iter()
            .filter(|item| matches!(item.outcome, Outcome::Duplicate { .. }))
            .collect();
        repeated.sort_by_key(|item| item.index);
        let target = Receipt::open(receipt, tenant)
            .ok()
            .and_then(|receipt| receipt.target);
        let mixed = target.as_deref() == Some(Target::Mixed.name());
        let entry = |item| {
            if mixed {
                return mixed_entry(self.registry(), item);
            }
            let mut entry = item_entry(item);
            let telemetry = self
                .registry()
                .by_name(&item.domain)
                .is_some_and(|domain| !domain.is_entity());
            if telemetry && let Some(entry) = entry.as_object_mut() {
                let identity = entry.remove("mobile_id").unwrap_or_default();
                entry.insert("item_id".into(), identity);
            }
            entry
        };
        Ok(Repeats {
            repeated_items: repeated.len(),
            items: repeated.into_iter().take(MAX_ITEMS).map(entry).collect(),
        })
    }
}

fn micros<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

fn optional_micros<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => micros(time, serializer),
        None => serializer.serialize_none(),
    }
}
