//! What became of an item. One per item, for ever: the fold decides it, the projector stores it, every answer about
//! the item repeats it.

use crate::domain::Policy;
use crate::error::ItemError;
use crate::resolution::Strategy;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What an applied item did to its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The record is new, or back after a deletion.
    Created,
    /// It was changed.
    Updated,
    /// It was deleted.
    Deleted,
}

/// Whose state stands after a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    /// The device's item was applied.
    Client,
    /// The server's state stayed.
    Server,
    /// Parts of both.
    Merged,
    /// Nobody's yet: a person decides.
    None,
}

impl Winner {
    /// The name in answers and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Winner::Client => "client",
            Winner::Server => "server",
            Winner::Merged => "merged",
            Winner::None => "none",
        }
    }

    /// The winner with a name.
    pub fn parse(name: &str) -> Option<Winner> {
        [Winner::Client, Winner::Server, Winner::Merged, Winner::None]
            .into_iter()
            .find(|winner| winner.as_str() == name)
    }
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Applied; the record has this version since.
    Applied {
        /// What it did.
        change: Change,
        /// The version that it made.
        version: i64,
    },
    /// There was nothing to do: a deletion of what is not there. `version` is the deletion's, where there was one.
    NoEffect {
        /// The record's version, if it ever existed.
        version: Option<i64>,
    },
    /// Its base was behind the record.
    Conflict {
        /// The kept attempt.
        conflict_id: Uuid,
        /// How it was decided.
        policy: Policy,
        /// Whose state stands.
        winner: Winner,
        /// The record's version afterwards.
        server_version: i64,
        /// The base that the device had.
        client_version: i64,
    },
    /// The same item was seen before.
    Duplicate {
        /// What became of it then.
        first: Box<Outcome>,
    },
    /// It decided a conflict that waited for a person.
    Resolved {
        /// Which.
        conflict_id: Uuid,
        /// How.
        strategy: Strategy,
        /// Whose state stands.
        winner: Winner,
        /// The record's version afterwards.
        version: i64,
    },
    /// Not taken.
    Refused {
        /// Why.
        error: ItemError,
    },
}

/// An item of a batch and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemOutcome {
    /// The item's index in its batch.
    pub index: u32,
    /// The domain's name.
    pub domain: String,
    /// The record's identity.
    pub subject: String,
    /// Who posted it.
    pub user: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The log's time of the event.
    pub logged_at: DateTime<Utc>,
}

/// The outcomes of a batch's items, found by whoever can read them: the gateway's write side asks through this and
/// knows no tables.
pub trait FindOutcomes: Send + Sync + 'static {
    /// All outcomes of a batch known so far, by index.
    fn of_batch(
        &self,
        tenant: &crate::ids::TenantId,
        batch: crate::batch::BatchId,
    ) -> impl Future<Output = Result<Vec<ItemOutcome>, OutcomesUnavailable>> + Send;
}

/// The store of outcomes cannot be read now; later it can.
#[derive(Debug, Clone, thiserror::Error)]
#[error("outcomes cannot be read now: {0}")]
pub struct OutcomesUnavailable(pub String);
