//! What became of a batch's items, found in Postgres: what applied in the domains' feeds, the rest in `outcomes`.
//! One statement for all domains, as a batch may be mixed. Knows nothing of how an answer looks.

use std::collections::BTreeMap;
use std::sync::Arc;

use deadpool_postgres::Pool;
use serde_json::Value;
use tidelog_events::batch::BatchId;
use tidelog_events::domain::{Policy, Registry};
use tidelog_events::ids::TenantId;
use tidelog_events::outcome::{Change, FindOutcomes, ItemOutcome, Outcome, OutcomesUnavailable, Winner};
use tidelog_events::resolution::Strategy;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::FeedError;
use crate::sql::{self, Statements};
use crate::store::Store;

/// Finds outcomes by batch. Cheap to clone.
#[derive(Clone)]
pub struct OutcomeStore {
    store: Store,
    statement: Arc<str>,
}

impl OutcomeStore {
    /// Over all domains of `registry`, whose tables must exist. The pool's connections have the search path set and
    /// [`SESSION_SETTINGS`](crate::SESSION_SETTINGS).
    pub fn new(pool: Pool, registry: &Registry) -> OutcomeStore {
        let each: Vec<Statements> = registry.iter().map(|domain| Statements::of(domain)).collect();
        OutcomeStore {
            store: Store::new(pool),
            statement: sql::all_outcomes(each.iter()).into(),
        }
    }

    /// All outcomes of a batch known so far, by index, each index once.
    pub async fn find(&self, tenant: &TenantId, batch: BatchId) -> Result<Vec<ItemOutcome>, FeedError> {
        let rows = self
            .store
            .query(&self.statement, &[&tenant.as_str(), &batch.0])
            .await?;
        let mut found: BTreeMap<u32, (bool, ItemOutcome)> = BTreeMap::new();
        for row in &rows {
            let applied = row.try_get::<_, Option<Value>>("detail")?.is_none();
            let item = item(row)?;
            // Where an index has both, the item was applied, and its repeat in the log is what the other row tells.
            if applied || !found.contains_key(&item.index) {
                found.insert(item.index, (applied, item));
            }
        }
        Ok(found.into_values().map(|(_, item)| item).collect())
    }
}

impl FindOutcomes for OutcomeStore {
    async fn of_batch(
        &self,
        tenant: &TenantId,
        batch: BatchId,
    ) -> Result<Vec<ItemOutcome>, OutcomesUnavailable> {
        self.find(tenant, batch)
            .await
            .map_err(|error| OutcomesUnavailable(error.to_string()))
    }
}

fn item(row: &Row) -> Result<ItemOutcome, FeedError> {
    let index: i32 = row.try_get("batch_index")?;
    let outcome = match row.try_get::<_, Option<Value>>("detail")? {
        Some(detail) => serde_json::from_value(detail).map_err(|error| unreadable(index, &error))?,
        None => applied(row)?,
    };
    Ok(ItemOutcome {
        index: u32::try_from(index).map_err(|error| unreadable(index, &error))?,
        domain: row.try_get("domain")?,
        subject: row.try_get("subject")?,
        user: row.try_get("user_id")?,
        outcome,
        logged_at: row.try_get("logged_at")?,
    })
}

fn applied(row: &Row) -> Result<Outcome, FeedError> {
    let version: i64 = row.try_get("version")?;
    if let Some(conflict_id) = row.try_get::<_, Option<Uuid>>("conflict_id")? {
        return conflict(row, conflict_id, version);
    }
    let change = match row.try_get("operation")? {
        "create" => Change::Created,
        "delete" => Change::Deleted,
        _ => Change::Updated,
    };
    Ok(Outcome::Applied { change, version })
}

fn conflict(row: &Row, conflict_id: Uuid, version: i64) -> Result<Outcome, FeedError> {
    let index: i32 = row.try_get("batch_index")?;
    let policy = row.try_get::<_, Option<&str>>("policy")?.and_then(Policy::parse);
    let winner = row.try_get::<_, Option<&str>>("winner")?.and_then(Winner::parse);
    if row.try_get("resolves")? {
        let strategy = row
            .try_get::<_, Option<&str>>("strategy")?
            .and_then(Strategy::parse);
        let (Some(strategy), Some(winner)) = (strategy, winner) else {
            return Err(unreadable(
                index,
                &format_args!("its resolution of {conflict_id} is not kept"),
            ));
        };
        return Ok(Outcome::Resolved {
            conflict_id,
            strategy,
            winner,
            version,
        });
    }
    let (Some(policy), Some(winner)) = (policy, winner) else {
        return Err(unreadable(
            index,
            &format_args!("its conflict {conflict_id} is not kept"),
        ));
    };
    Ok(Outcome::Conflict {
        conflict_id,
        policy,
        winner,
        server_version: row
            .try_get::<_, Option<i64>>("result_version")?
            .unwrap_or(version),
        client_version: row.try_get::<_, Option<i64>>("client_version")?.unwrap_or(0),
    })
}

fn unreadable(index: i32, why: &dyn std::fmt::Display) -> FeedError {
    tracing::error!(index, %why, "an outcome cannot be read");
    FeedError::Statement
}
