//! `GET /api/v1/sync/batches/{id}`: the answer to a batch, weeks later too. Made anew from what the gateway noted of
//! the batch and what became of its items, by the same function as the first answer, so a final one has the same
//! bytes. Resolves by the receipt alone where the gateway could note nothing.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog_events::answer::{Answer, RefusedItem};
use tidelog_events::batch::BatchId;
use tidelog_events::domain::Registry;
use tidelog_events::ids::{Role, TenantId};
use tidelog_events::outcome::ItemOutcome;
use tidelog_events::position::{Appended, TopicPartition};
use tidelog_events::receipt::Receipt;
use tidelog_events::target::Target;
use tidelog_http::auth::Caller;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::FeedError;
use crate::outcomes::OutcomeStore;
use crate::store::Store;

const BATCH: &str = "SELECT domain, user_id, received_at, appended_items, appended, refused
  FROM batches
 WHERE tenant_id = $1 AND batch_id = $2";

const STANDS: &str = "SELECT p.next_offset > k.last, p.feed_floor
  FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS k (topic, partition, last)
  LEFT JOIN positions p ON p.topic = k.topic AND p.partition = k.partition";

const UNKNOWN: FeedError = FeedError::NotFound("there is no such batch of yours");

/// What receipts are resolved with.
pub(crate) struct Receipts<'a> {
    pub(crate) store: &'a Store,
    pub(crate) outcomes: &'a OutcomeStore,
    pub(crate) registry: &'a Registry,
    pub(crate) topic_prefix: &'a str,
}

/// A batch as its gateway noted it.
struct Noted {
    domain: String,
    user: String,
    received_at: DateTime<Utc>,
    appended_items: u32,
    appended: Appended,
    refused: Vec<RefusedItem>,
}

impl Receipts<'_> {
    /// The answer's body. `id` is a batch's id or a sealed receipt.
    pub(crate) async fn resolve(&self, caller: &Caller, id: &str) -> Result<String, FeedError> {
        let (batch, receipt) = match Uuid::try_parse(id) {
            Ok(id) => (BatchId(id), None),
            Err(_) => {
                let receipt = Receipt::open(id, &caller.tenant).map_err(|_| UNKNOWN)?;
                (receipt.batch, Some(receipt))
            }
        };
        let (noted, outcomes) = tokio::try_join!(
            self.noted(&caller.tenant, batch),
            self.outcomes.find(&caller.tenant, batch)
        )?;
        let sender = noted
            .as_ref()
            .map(|noted| noted.user.as_str())
            .or(outcomes.first().map(|o| o.user.as_str()));
        match sender {
            Some(user) if user == caller.user.as_str() || caller.role == Role::Operator => {}
            // Nobody knows yet who sent it, and nothing is told but what the receipt itself says.
            None if receipt.is_some() => {}
            _ => return Err(UNKNOWN),
        }
        let outcomes = self
            .complete(&caller.tenant, batch, noted.as_ref(), receipt.as_ref(), outcomes)
            .await?;
        self.answer(&caller.tenant, batch, noted, receipt, &outcomes)
            .ok_or(UNKNOWN)
    }

    /// Where outcomes are missing although everything is applied, they are so long ago that they are kept no longer. They are
    /// looked for once more after the positions, since they may have come between.
    async fn complete(
        &self,
        tenant: &TenantId,
        batch: BatchId,
        noted: Option<&Noted>,
        receipt: Option<&Receipt>,
        outcomes: Vec<ItemOutcome>,
    ) -> Result<Vec<ItemOutcome>, FeedError> {
        let told = noted
            .map(|noted| (noted.appended_items, &noted.appended))
            .or(receipt.map(|receipt| (receipt.appended_items, &receipt.appended)));
        let Some((items, appended)) = told.filter(|(items, _)| outcomes.len() < *items as usize) else {
            return Ok(outcomes);
        };
        let topics: Vec<&str> = appended.iter().map(|(at, _)| at.topic.as_str()).collect();
        let partitions: Vec<i32> = appended.iter().map(|(at, _)| at.partition).collect();
        let last: Vec<i64> = appended.iter().map(|(_, last)| last).collect();
        let (mut applied, mut forgets) = (true, false);
        for row in self.store.query(STANDS, &[&topics, &partitions, &last]).await? {
            applied &= row.try_get::<_, Option<bool>>(0)?.unwrap_or(false);
            forgets |= row.try_get::<_, Option<i64>>(1)?.unwrap_or(0) > 0;
        }
        if !(applied && forgets) {
            return Ok(outcomes);
        }
        let outcomes = self.outcomes.find(tenant, batch).await?;
        match outcomes.len() < items as usize {
            true => Err(FeedError::GoneBatch),
            false => Ok(outcomes),
        }
    }

    async fn noted(&self, tenant: &TenantId, batch: BatchId) -> Result<Option<Noted>, FeedError> {
        let rows = self.store.query(BATCH, &[&tenant.as_str(), &batch.0]).await?;
        rows.first().map(noted).transpose()
    }

    /// Every item that reached the log has one outcome in the end, so it is final when there are as many.
    fn answer(
        &self,
        tenant: &TenantId,
        batch: BatchId,
        noted: Option<Noted>,
        receipt: Option<Receipt>,
        outcomes: &[ItemOutcome],
    ) -> Option<String> {
        let target = self.target(noted.as_ref(), receipt.as_ref(), outcomes)?;
        let (received_at, refused, receipt) = match noted {
            Some(Noted {
                received_at,
                appended_items,
                appended,
                refused,
                ..
            }) => (
                received_at,
                refused,
                Some(Receipt {
                    batch,
                    appended_items,
                    appended,
                    target: target.in_receipt(appended_items),
                }),
            ),
            None => (Utc::now(), Vec::new(), receipt),
        };
        let items = receipt.as_ref().map(|receipt| receipt.appended_items as usize);
        let answer = Answer {
            target: &target,
            registry: self.registry,
            batch_id: batch.to_string(),
            // Without a note nor a receipt at hand, the batch's own id is what this path takes too.
            receipt: receipt.map_or_else(|| batch.to_string(), |receipt| receipt.seal(tenant)),
            received_at,
            refused: &refused,
            outcomes,
            pending: items.is_none_or(|items| outcomes.len() < items),
        };
        Some(answer.to_json())
    }

    fn target(
        &self,
        noted: Option<&Noted>,
        receipt: Option<&Receipt>,
        outcomes: &[ItemOutcome],
    ) -> Option<Target> {
        let named = noted
            .map(|noted| noted.domain.as_str())
            .or(receipt.and_then(|receipt| receipt.target.as_deref()))
            .or(outcomes.first().map(|item| item.domain.as_str()));
        // By its id alone, a batch that nobody noted is told by what became of it; one of several domains was mixed.
        let known = noted.is_some() || receipt.is_some();
        if !known && outcomes.windows(2).any(|pair| pair[0].domain != pair[1].domain) {
            return Some(Target::Mixed);
        }
        if let Some(target) = named.and_then(|name| Target::named(name, self.registry)) {
            return Some(target);
        }
        let (place, _) = receipt?.appended.iter().next()?;
        let topic = place.topic.strip_prefix(self.topic_prefix)?;
        self.registry
            .iter()
            .find(|domain| domain.topic == topic)
            .cloned()
            .map(Target::Domain)
    }
}

fn noted(row: &Row) -> Result<Noted, FeedError> {
    let (appended, refused): (Value, Value) = (row.try_get(4)?, row.try_get(5)?);
    let unreadable = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a batch's note cannot be read");
        FeedError::Statement
    };
    let places: Vec<(String, i32, i64)> =
        serde_json::from_value(appended).map_err(|error| unreadable(&error))?;
    let mut appended = Appended::default();
    for (topic, partition, last) in places {
        appended.note(TopicPartition { topic, partition }, last);
    }
    Ok(Noted {
        domain: row.try_get(0)?,
        user: row.try_get(1)?,
        received_at: row.try_get(2)?,
        appended_items: u32::try_from(row.try_get::<_, i32>(3)?).map_err(|error| unreadable(&error))?,
        appended,
        refused: serde_json::from_value(refused).map_err(|error| unreadable(&error))?,
    })
}
