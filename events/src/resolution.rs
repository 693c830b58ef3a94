//! A conflict's resolution: what a person decided, as an event on the record's topic holds it. The decision goes through
//! the log like every other change, so a rebuild decides the same. Pure data; what it does to a record is the fold's.
//!
//! The value of the event (`ce_type` `tidelog.<table>.resolve`, `ce_subject` the record, `ce_baseversion` the version that
//! was decided upon):
//!
//! ```json
//! {"conflict_id": "…", "strategy": "manual", "data": {"priority": "HIGH"}}
//! ```

use crate::domain::Policy;
use crate::ids::{Role, TenantId, UserId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// How a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The device's item is applied after all.
    ClientWins,
    /// The record stays as it is.
    ServerWins,
    /// Field by field, as the policy of that name does.
    Merge,
    /// What the person gives: a patch of the record as it is (RFC 7396).
    Manual,
}

impl Strategy {
    /// The name in requests, answers and tables.
    pub fn as_str(self) -> &'static str {
        self.policy().as_str()
    }

    /// The strategy of that name.
    pub fn parse(text: &str) -> Option<Strategy> {
        use Strategy::*;
        [ClientWins, ServerWins, Merge, Manual]
            .into_iter()
            .find(|strategy| strategy.as_str() == text)
    }

    /// The policy of the same name, for the event's `ce_policy`.
    pub fn policy(self) -> Policy {
        match self {
            Strategy::ClientWins => Policy::ClientWins,
            Strategy::ServerWins => Policy::ServerWins,
            Strategy::Merge => Policy::Merge,
            Strategy::Manual => Policy::Manual,
        }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolution {
    /// Of which conflict.
    pub conflict_id: Uuid,
    /// How.
    pub strategy: Strategy,
    /// What the person gives, with [`Strategy::Manual`]; else empty.
    pub data: Map<String, Value>,
}

impl Resolution {
    /// The event's value. `parent` is the member that names the record's parent, where its domain has one.
    pub fn to_json(&self, parent: Option<(&str, Uuid)>) -> String {
        let mut value = Map::new();
        value.insert("conflict_id".into(), self.conflict_id.to_string().into());
        value.insert("strategy".into(), self.strategy.as_str().into());
        if self.strategy == Strategy::Manual {
            value.insert("data".into(), Value::Object(self.data.clone()));
        }
        if let Some((field, id)) = parent {
            value.insert(field.to_owned(), id.to_string().into());
        }
        Value::Object(value).to_string()
    }

    /// Reads an event's value; an error names the member that is not what it has to be.
    pub fn read(value: &Map<String, Value>) -> Result<Resolution, &'static str> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let conflict_id = text("conflict_id").and_then(|id| Uuid::try_parse(id).ok());
        let strategy = text("strategy").and_then(Strategy::parse);
        let data = match (strategy, value.get("data")) {
            (Some(Strategy::Manual), Some(Value::Object(data))) => Some(data.clone()),
            (Some(Strategy::Manual), _) => None,
            _ => Some(Map::new()),
        };
        Ok(Resolution {
            conflict_id: conflict_id.ok_or("conflict_id")?,
            strategy: strategy.ok_or("strategy")?,
            data: data.ok_or("data")?,
        })
    }
}

/// A conflict as a gateway has to know it to take a resolution of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownConflict {
    /// The domain's name.
    pub domain: String,
    /// The record.
    pub mobile_id: Uuid,
    /// The record that it hangs on, in domains that have one.
    pub parent: Option<Uuid>,
    /// Whose item it was.
    pub user: UserId,
    /// The record's version when the item met it: what a decision is upon, unless it says otherwise.
    pub server_version: i64,
    /// How it was decided, if it was.
    pub decided: Option<Decided>,
}

/// A decision that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The policy or the strategy.
    pub by: String,
    /// Who, where it was a person.
    pub user: Option<String>,
    /// When, by the log.
    pub at: DateTime<Utc>,
}

/// Conflicts, found by whoever can read them: the gateway's write side asks through this and knows no tables.
pub trait FindConflict: Send + Sync + 'static {
    /// One that the caller may see; none where there is none for them.
    fn conflict(
        &self,
        tenant: &TenantId,
        user: &UserId,
        role: Role,
        id: Uuid,
    ) -> impl Future<Output = Result<Option<KnownConflict>, ConflictsUnavailable>> + Send;
}

/// The store of conflicts cannot be read now; later it can.
#[derive(Debug, Clone, thiserror::Error)]
#[error("conflicts cannot be read now: {0}")]
pub struct ConflictsUnavailable(pub String);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &str) -> Result<Resolution, &'static str> {
        let value: Value = serde_json::from_str(value).expect("JSON");
        Resolution::read(value.as_object().expect("an object"))
    }

    #[test]
    fn a_decision_reads_back_as_it_was_written() {
        let decision = Resolution {
            conflict_id: Uuid::from_u128(7),
            strategy: Strategy::Manual,
            data: json!({"a": {"b": null}}).as_object().expect("an object").clone(),
        };
        let text = decision.to_json(Some(("journal_entry", Uuid::from_u128(9))));
        assert!(text.contains(r#""journal_entry":"00000000-"#), "{text}");
        assert_eq!(read(&text), Ok(decision));
    }

    #[test]
    fn what_is_no_decision_is_told_by_its_member() {
        let id = Uuid::from_u128(7);
        for (value, wrong) in [
            (json!({"strategy": "merge"}), "conflict_id"),
            (
                json!({"conflict_id": id, "strategy": "most_recent_wins"}),
                "strategy",
            ),
            (json!({"conflict_id": id, "strategy": "manual"}), "data"),
            (
                json!({"conflict_id": id, "strategy": "manual", "data": []}),
                "data",
            ),
        ] {
            assert_eq!(read(&value.to_string()), Err(wrong), "{value}");
        }
    }
}
