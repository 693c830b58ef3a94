//! What became of a record of the log, as commands that look tell it: the item's outcome, or why there is none. Knows
//! no table.

use serde::Serialize;
use tidelog_events::outcome::{Change, Outcome, Winner};

use crate::output::printable;

/// What became of a record. As JSON an object whose `outcome` says which.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Became {
    /// The fold decided.
    Decided(Outcome),
    /// There is no decision of the fold.
    Undecided(Undecided),
}

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Undecided {
    /// The projection has not come to it yet.
    Pending,
    /// Postgres is away.
    Unknown,
    /// It was applied and nothing is kept of it.
    NotKept,
    /// The fold could not take it.
    DeadLetter {
        /// Why not.
        reason: String,
        /// `open` until somebody has dealt with it.
        status: String,
    },
}

impl Became {
    /// The projection has yet to come to it.
    pub(crate) const PENDING: Became = Became::Undecided(Undecided::Pending);
    /// Nobody could be asked.
    pub(crate) const UNKNOWN: Became = Became::Undecided(Undecided::Unknown);

    /// In words.
    pub(crate) fn text(&self) -> String {
        match self {
            Became::Decided(outcome) => decided(outcome),
            Became::Undecided(Undecided::Pending) => "pending".into(),
            Became::Undecided(Undecided::Unknown) => "unknown".into(),
            Became::Undecided(Undecided::NotKept) => "applied, nothing is kept of it".into(),
            Became::Undecided(Undecided::DeadLetter { reason, status }) => {
                let state = if status == "open" { "" } else { status.as_str() };
                let space = if state.is_empty() { "" } else { " " };
                format!("dead letter{space}{state}: {}", printable(reason))
            }
        }
    }
}

fn decided(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Applied { change, version } => match change {
            Change::Created => format!("created, version {version}"),
            Change::Updated => format!("version {version}"),
            Change::Deleted => format!("deleted, version {version}"),
        },
        Outcome::NoEffect { .. } => "no effect".into(),
        Outcome::Conflict {
            policy,
            winner,
            server_version,
            ..
        } => format!(
            "conflict, {}: {}, version {server_version}",
            policy.as_str(),
            won(*winner)
        ),
        Outcome::Duplicate { first } => format!("duplicate of: {}", decided(first)),
        Outcome::Resolved {
            strategy,
            winner,
            version,
            ..
        } => format!(
            "resolved, {}: {}, version {version}",
            strategy.as_str(),
            won(*winner)
        ),
        Outcome::Refused { error } => {
            let field = error.field.as_deref().filter(|field| !field.is_empty());
            let field = field.map(|field| format!(" {field}")).unwrap_or_default();
            let rule = error
                .rule
                .as_deref()
                .map(|rule| format!(" ({rule})"))
                .unwrap_or_default();
            printable(&format!("refused {}{field}{rule}", error.error_code.as_str()))
        }
    }
}

/// Whose state stands, in words.
pub(crate) fn won(winner: Winner) -> &'static str {
    match winner {
        Winner::Client => "the device's won",
        Winner::Server => "the server's stayed",
        Winner::Merged => "merged",
        Winner::None => "waits for a person",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tidelog_events::error::ItemError;

    #[test]
    fn every_outcome_has_a_name_in_json_and_words() {
        let first = Outcome::Applied {
            change: Change::Created,
            version: 1,
        };
        let refused = Outcome::Refused {
            error: ItemError::transition("status", "closed", "draft", &[]),
        };
        let letter = Undecided::DeadLetter {
            reason: "no\u{7}".into(),
            status: "open".into(),
        };
        for (became, name, text) in [
            (
                Became::Decided(Outcome::Duplicate {
                    first: Box::new(first.clone()),
                }),
                "duplicate",
                "duplicate of: created, version 1",
            ),
            (Became::Decided(first), "applied", "created, version 1"),
            (
                Became::Decided(refused),
                "refused",
                "refused INVALID_TRANSITION status (transition)",
            ),
            (Became::PENDING, "pending", "pending"),
            (Became::UNKNOWN, "unknown", "unknown"),
            (Became::Undecided(letter), "dead_letter", "dead letter: no\\u{7}"),
        ] {
            assert_eq!(json!(became)["outcome"], name);
            assert_eq!(became.text(), text);
        }
    }
}
