//! Items that came again, counted: a row of `idempotency_records` in scope `item` for each item and each device that
//! sent it again, so that a phone that repeats itself is found. A hit is an event whose outcome is a duplicate; the
//! same event read again is none, and so a replay of the log counts nothing twice. All times are the log's, so a
//! rebuild counts the same. Must not know how an item is recognised: that is the fold's.

use crate::chunk::OutcomeRow;
use crate::event::Arrived;
use crate::sheet::Sheet;
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidelog_events::outcome::Outcome;
use uuid::Uuid;

/// How long after its last hit a count is kept; a hit that comes later begins a new one.
pub const KEPT: TimeDelta = TimeDelta::hours(24);

/// Whose hits of what: one row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HitKey {
    /// The tenant.
    pub tenant: String,
    /// The item's content; in hexadecimal, the row's key.
    pub content: Uuid,
    /// Who sent it again.
    pub user: String,
    /// From which device.
    pub device: String,
}

/// The hits of one item by one device.
#[derive(Debug, Clone)]
pub struct Hits {
    /// How many.
    pub count: i64,
    /// The log's time of the first of them.
    pub since: DateTime<Utc>,
    /// The last of them.
    pub last: Arc<Arrived>,
}

impl Hits {
    /// The log's time until which they are kept.
    pub fn expires_at(&self) -> DateTime<Utc> {
        self.last.log_time + KEPT
    }

    /// What is counted once `later` has come too: both, or `later` alone where it came after these had expired.
    pub fn then(&self, later: Hits) -> Hits {
        if self.expires_at() <= later.since {
            return later;
        }
        Hits {
            count: self.count + later.count,
            since: self.since,
            last: later.last,
        }
    }
}

/// The hits among outcomes, which are in the order of the log. One item's events lie in one partition, so their times
/// never go back.
pub fn count(outcomes: &[OutcomeRow]) -> BTreeMap<HitKey, Hits> {
    let mut counted: BTreeMap<HitKey, Hits> = BTreeMap::new();
    let duplicates = outcomes
        .iter()
        .filter(|row| matches!(row.outcome, Outcome::Duplicate { .. }));
    for OutcomeRow { arrived, .. } in duplicates {
        let event = &arrived.event;
        let key = HitKey {
            tenant: event.tenant.as_str().to_owned(),
            content: arrived.content,
            user: event.user.as_str().to_owned(),
            device: event.device.as_str().to_owned(),
        };
        let hit = Hits {
            count: 1,
            since: arrived.log_time,
            last: arrived.clone(),
        };
        let hits = match counted.get(&key) {
            Some(before) => before.then(hit),
            None => hit,
        };
        counted.insert(key, hits);
    }
    counted
}

/// What [`Hits::then`] says, where the earlier hits are the row's. Theirs expired no later than a pause within the chunk
/// began, so comparing with the first that counts is enough.
const ADD: &str = "ON CONFLICT (tenant_id, scope, device_id, user_id, key) DO UPDATE SET \
    batch_id = excluded.batch_id, \
    hit_count = excluded.hit_count + CASE WHEN known.expires_at > excluded.created_at THEN known.hit_count ELSE 0 END, \
    created_at = CASE WHEN known.expires_at > excluded.created_at THEN known.created_at ELSE excluded.created_at END, \
    last_hit_at = excluded.last_hit_at, \
    expires_at = excluded.expires_at";

/// The rows on their way into the table; none where nothing came again.
pub(crate) fn sheet(counted: &BTreeMap<HitKey, Hits>, topic: &str) -> Option<(String, Sheet)> {
    if counted.is_empty() {
        return None;
    }
    let mut sheet = Sheet::default();
    let (keys, hits) = (|| counted.keys(), || counted.values());
    sheet.column("tenant_id", keys().map(|key| key.tenant.clone()));
    sheet.column("scope", keys().map(|_| "item"));
    sheet.column("user_id", keys().map(|key| key.user.clone()));
    sheet.column("device_id", keys().map(|key| key.device.clone()));
    sheet.column("key", keys().map(|key| key.content.simple().to_string()));
    sheet.column(
        "fingerprint",
        keys().map(|key| Some(key.content.as_bytes().to_vec())),
    );
    sheet.column("batch_id", hits().map(|hits| hits.last.event.batch.0));
    sheet.column("domain", hits().map(|hits| hits.last.domain.name.clone()));
    sheet.column("subject", hits().map(|hits| hits.last.event.subject.to_string()));
    sheet.column("topic", hits().map(|_| topic.to_owned()));
    sheet.column("partition", hits().map(|hits| hits.last.place.partition));
    sheet.column("hit_count", hits().map(|hits| hits.count));
    sheet.column("created_at", hits().map(|hits| hits.since));
    sheet.column("last_hit_at", hits().map(|hits| hits.last.log_time));
    sheet.column("expires_at", hits().map(Hits::expires_at));
    Some((sheet.insert("idempotency_records AS known", ADD), sheet))
}
