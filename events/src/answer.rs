//! The answer to a batch, from what the gateway refused and what became of the rest. A pure function of both, so that
//! an answer made again, by another process or after a crash, has the same bytes.

use crate::domain::Registry;
use crate::error::ItemError;
use crate::mixed::inside_data;
use crate::outcome::{Change, ItemOutcome, Outcome};
use crate::target::Target;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// An item that the gateway refused, as kept with its batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedItem {
    /// Its index in the batch.
    pub index: u32,
    /// Its identity as far as it could be read.
    pub subject: Option<String>,
    /// In a mixed batch, what kind of record, as far as it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity_type: Option<String>,
    /// Why.
    pub error: ItemError,
}

/// Everything that an answer says.
#[derive(Debug)]
pub struct Answer<'a> {
    /// What it was posted to, which decides the form.
    pub target: &'a Target,
    /// The domains here.
    pub registry: &'a Registry,
    /// The batch.
    pub batch_id: String,
    /// The sealed receipt.
    pub receipt: String,
    /// When the batch arrived; the answer's time where no item reached the log.
    pub received_at: DateTime<Utc>,
    /// What the gateway refused.
    pub refused: &'a [RefusedItem],
    /// What became of the others, as far as known.
    pub outcomes: &'a [ItemOutcome],
    /// Whether more outcomes are to come.
    pub pending: bool,
}

impl Answer<'_> {
    /// The body, in JSON.
    pub fn to_json(&self) -> String {
        let mut body = match self.target {
            Target::Domain(domain) if domain.is_entity() => self.entity_lists(),
            Target::Domain(_) => self.telemetry_counts(),
            Target::Mixed => self.results(),
            Target::Resolution => self.resolution(),
        };
        let logged = self.outcomes.iter().map(|item| item.logged_at).max();
        let time = logged.unwrap_or(self.received_at);
        body.insert(
            "timestamp".into(),
            time.to_rfc3339_opts(SecondsFormat::Micros, true).into(),
        );
        // A resolution has one outcome, which is its status.
        body.entry("status")
            .or_insert_with(|| if self.pending { "accepted" } else { "complete" }.into());
        body.insert("batch_id".into(), self.batch_id.clone().into());
        body.insert("receipt".into(), self.receipt.clone().into());
        Value::Object(body).to_string()
    }

    fn entity_lists(&self) -> Map<String, Value> {
        let (mut synced, mut conflicts) = (Vec::new(), Vec::new());
        let mut errors: Vec<(u32, Value)> = self
            .refused
            .iter()
            .map(|item| {
                (
                    item.index,
                    error_entry(item.index, item.subject.as_deref(), &item.error),
                )
            })
            .collect();
        for item in self.outcomes {
            match &item.outcome {
                Outcome::Refused { error } => {
                    errors.push((item.index, error_entry(item.index, Some(&item.subject), error)))
                }
                outcome if is_conflict(outcome) => conflicts.push((item.index, item_entry(item))),
                _ => synced.push((item.index, item_entry(item))),
            }
        }
        let mut body = Map::new();
        for (name, mut entries) in [
            ("synced_items", synced),
            ("conflicts", conflicts),
            ("errors", errors),
        ] {
            entries.sort_by_key(|(index, _)| *index);
            body.insert(name.into(), entries.into_iter().map(|(_, entry)| entry).collect());
        }
        body
    }

    /// Of a mixed batch: an entry an item, in the order sent.
    fn results(&self) -> Map<String, Value> {
        let refused = self.refused.iter().map(|item| {
            let entry = error_entry(item.index, item.subject.as_deref(), &item.error);
            (item.index, with_entity_type(entry, item.entity_type.as_deref()))
        });
        let judged = self
            .outcomes
            .iter()
            .map(|item| (item.index, mixed_entry(self.registry, item)));
        let mut results: Vec<(u32, Value)> = refused.chain(judged).collect();
        results.sort_by_key(|(index, _)| *index);
        let results = results.into_iter().map(|(_, entry)| entry).collect();
        Map::from_iter([("results".to_owned(), Value::Array(results))])
    }

    /// Of a conflict's resolution: the one item's entry.
    fn resolution(&self) -> Map<String, Value> {
        let refused = self
            .refused
            .first()
            .map(|item| error_entry(item.index, item.subject.as_deref(), &item.error));
        let entry = refused.or_else(|| {
            let item = self.outcomes.first()?;
            Some(match &item.outcome {
                Outcome::Refused { error } => error_entry(item.index, Some(&item.subject), error),
                _ => item_entry(item),
            })
        });
        match entry {
            Some(Value::Object(mut entry)) => {
                entry.remove("index");
                entry
            }
            _ => Map::new(),
        }
    }

    fn telemetry_counts(&self) -> Map<String, Value> {
        let mut synced = 0;
        let mut errors: Vec<(u32, Value)> = self
            .refused
            .iter()
            .map(|item| {
                (
                    item.index,
                    telemetry_error(item.index, item.subject.as_deref(), &item.error),
                )
            })
            .collect();
        for item in self.outcomes {
            match &item.outcome {
                Outcome::Refused { error } => errors.push((
                    item.index,
                    telemetry_error(item.index, Some(&item.subject), error),
                )),
                _ => synced += 1,
            }
        }
        errors.sort_by_key(|(index, _)| *index);
        let mut body = Map::new();
        body.insert("synced_items".into(), synced.into());
        body.insert("failed_items".into(), errors.len().into());
        body.insert(
            "errors".into(),
            errors.into_iter().map(|(_, entry)| entry).collect(),
        );
        body
    }
}

fn is_conflict(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Conflict { .. } => true,
        Outcome::Duplicate { first } => is_conflict(first),
        _ => false,
    }
}

/// One entry of `synced_items` or `conflicts`: a duplicate tells its first outcome under its own status.
pub fn item_entry(item: &ItemOutcome) -> Value {
    let (duplicate, first) = match &item.outcome {
        Outcome::Duplicate { first } => (true, first.as_ref()),
        outcome => (false, outcome),
    };
    let mut entry = json!({ "index": item.index, "mobile_id": item.subject });
    let status = match first {
        Outcome::Applied { change, version } => {
            entry["server_version"] = (*version).into();
            if *change == Change::Created {
                "created"
            } else {
                "updated"
            }
        }
        Outcome::NoEffect { version } => {
            entry["server_version"] = (*version).into();
            "updated"
        }
        Outcome::Conflict {
            conflict_id,
            policy,
            winner,
            server_version,
            client_version,
        } => {
            entry["server_version"] = (*server_version).into();
            entry["client_version"] = (*client_version).into();
            entry["resolution"] = policy.as_str().into();
            entry["winner"] = winner.as_str().into();
            entry["conflict_id"] = conflict_id.to_string().into();
            "conflict"
        }
        Outcome::Resolved {
            conflict_id,
            strategy,
            winner,
            version,
        } => {
            entry["server_version"] = (*version).into();
            entry["resolution"] = strategy.as_str().into();
            entry["winner"] = winner.as_str().into();
            entry["conflict_id"] = conflict_id.to_string().into();
            "resolved"
        }
        // A duplicate of a duplicate is stored with the first outcome itself, and a refusal is no entry here.
        Outcome::Duplicate { .. } | Outcome::Refused { .. } => "error",
    };
    entry["status"] = if duplicate { "duplicate" } else { status }.into();
    entry
}

/// One entry of a mixed batch's `results`.
pub fn mixed_entry(registry: &Registry, item: &ItemOutcome) -> Value {
    let entry = match &item.outcome {
        // The fold judges the document, which is what the data is a patch of.
        Outcome::Refused { error } if error.field.is_some() => {
            error_entry(item.index, Some(&item.subject), &inside_data(error.clone()))
        }
        Outcome::Refused { error } => error_entry(item.index, Some(&item.subject), error),
        _ => item_entry(item),
    };
    let domain = registry.by_name(&item.domain);
    with_entity_type(entry, domain.and_then(|domain| domain.entity_type.as_deref()))
}

fn error_entry(index: u32, subject: Option<&str>, error: &ItemError) -> Value {
    let mut entry = Map::new();
    entry.insert("index".into(), index.into());
    entry.insert("mobile_id".into(), subject.into());
    entry.insert("status".into(), "error".into());
    // An `ItemError` is a plain struct of texts: it always becomes an object.
    if let Ok(Value::Object(fields)) = serde_json::to_value(error) {
        entry.extend(fields);
    }
    Value::Object(entry)
}

fn with_entity_type(mut entry: Value, entity_type: Option<&str>) -> Value {
    entry["entity_type"] = entity_type.into();
    entry
}

fn telemetry_error(index: u32, subject: Option<&str>, error: &ItemError) -> Value {
    let mut entry = error_entry(index, None, error);
    if let Value::Object(entry) = &mut entry {
        entry.remove("mobile_id");
        entry.remove("status");
        entry.insert("item_id".into(), subject.into());
        entry.insert("error".into(), error.error_message.clone().into());
    }
    entry
}
