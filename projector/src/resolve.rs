//! A person's decision of a conflict that its policy left open. It is an event like any other, so it is judged in the
//! order of the log: the first one stands, and one that was made upon an older version of the record is told so. Pure.

use crate::document::judge;
use crate::event::Arrived;
use crate::fold::{Folded, ParentOf, Step, refused, remembers, since, step};
use crate::merge::Kept;
use crate::policy::{Attempt, Decision, Side, Verdict, decide, out_of_sight, standing};
use crate::seals::{adopted, unified};
use crate::state::{Doc, KeptAttempt, Record, Standing, State};
use std::sync::Arc;
use tidelog_events::domain::Policy;
use tidelog_events::error::{ErrorCode, ItemError};
use tidelog_events::ids::Role;
use tidelog_events::outcome::{Outcome, Winner};
use tidelog_events::resolution::{Resolution, Strategy};
use uuid::Uuid;

/// A conflict, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Which.
    pub conflict_id: Uuid,
    /// How.
    pub strategy: Strategy,
    /// Whose state stands.
    pub winner: Winner,
    /// The record's version afterwards.
    pub version: i64,
    /// Which values came from whom, where parts of both stand.
    pub kept: Kept,
}

impl Resolved {
    /// What whoever decided is told.
    pub fn outcome(&self) -> Outcome {
        Outcome::Resolved {
            conflict_id: self.conflict_id,
            strategy: self.strategy,
            winner: self.winner,
            version: self.version,
        }
    }
}

/// Folds a resolution into its record.
pub(crate) fn resolve(
    record: &Record,
    parent: ParentOf<'_>,
    arrived: &Arrived,
    resolution: &Resolution,
) -> Folded {
    let horizon = arrived.horizon();
    let kept = record.conflicts.get(&resolution.conflict_id);
    let Some(kept) = kept.filter(|kept| !kept.is_forgotten(horizon)) else {
        return cannot(ErrorCode::NoConflict, "the record has no such conflict");
    };
    match kept.standing {
        Standing::Open => {}
        Standing::Resolved(by) if by == arrived.key() => return Folded::Repeat,
        Standing::Resolved(_) => {
            return cannot(
                ErrorCode::AlreadyResolved,
                "somebody resolved this conflict before",
            );
        }
        Standing::Decided => {
            return cannot(
                ErrorCode::AlreadyResolved,
                "the policy decided this conflict when it arose",
            );
        }
    }
    let event = &arrived.event;
    if event.role == Role::User && event.user.as_str() != kept.user {
        return refused(ItemError::forbidden());
    }
    let Some(state) = record.state_since(horizon) else {
        return of_nothing(resolution);
    };
    // That the record stays as it is can be said of whatever it has become.
    if resolution.strategy != Strategy::ServerWins && event.base != state.version {
        let message = format!(
            "the record is at version {} now, and this was decided upon version {}",
            state.version, event.base
        );
        return cannot(ErrorCode::RecordMoved, message);
    }
    let decision = decision(record, state, kept, arrived, resolution);
    let step = match decision.verdict {
        Verdict::Stay => None,
        Verdict::Delete => Some(step(Some(state), parent, arrived, Doc::new(), true)),
        Verdict::Replace(doc) => {
            let since = unified(&arrived.domain, state, since(record, arrived, kept.base));
            match judge(&arrived.domain, standing(state, &since), &doc) {
                Ok(()) => Some(step(Some(state), parent, arrived, doc, false)),
                Err(error) => return refused(error),
            }
        }
    };
    let version = step.as_ref().map_or(state.version, |step| step.state.version);
    resolved(version, step, resolution, decision.winner, decision.kept)
}

/// What the strategy makes of the record. By `manual` it is the person's own patch, which stands for the item.
fn decision(
    record: &Record,
    state: &State,
    kept: &KeptAttempt,
    arrived: &Arrived,
    resolution: &Resolution,
) -> Decision {
    let manual = resolution.strategy == Strategy::Manual;
    let policy = if manual {
        Policy::ClientWins
    } else {
        resolution.strategy.policy()
    };
    // A record may have been made anew since the attempt, when the old one was forgotten.
    let in_sight = kept.at >= state.created_at && remembers(record, state, arrived, kept.base);
    let since = unified(&arrived.domain, state, since(record, arrived, kept.base));
    let patch = match manual {
        true => resolution.data.clone().into(),
        false => kept.patch.clone(),
    };
    let patch = adopted(&arrived.domain, patch, state, &since);
    let attempt = Attempt {
        // What the device knew is forgotten: then all that the record says counts as changed since.
        base: if in_sight { kept.base } else { 0 },
        deletes: kept.deletes && !manual,
        patch: &patch,
        side: Side {
            user: &kept.user,
            device: &kept.device,
            device_type: kept.device_type.as_ref(),
            time: kept.item_time,
        },
    };
    if attempt.deletes && policy == Policy::Merge && !in_sight {
        return out_of_sight(Policy::ServerWins, state, &attempt);
    }
    let decision = decide(&arrived.domain, policy, state, &since, &attempt);
    match manual {
        true => Decision {
            winner: Winner::Merged,
            ..decision
        },
        false => decision,
    }
}

/// Of a record that was deleted so long ago that this is forgotten, a conflict can still be closed.
fn of_nothing(resolution: &Resolution) -> Folded {
    match resolution.strategy {
        Strategy::ServerWins => resolved(0, None, resolution, Winner::Server, Kept::new()),
        _ => cannot(
            ErrorCode::RecordMoved,
            "the record was deleted longer ago than its domain remembers: only server_wins is left",
        ),
    }
}

fn resolved(version: i64, step: Option<Step>, resolution: &Resolution, winner: Winner, kept: Kept) -> Folded {
    let resolved = Resolved {
        conflict_id: resolution.conflict_id,
        strategy: resolution.strategy,
        winner,
        version,
        kept,
    };
    Folded::Resolved {
        step: step.map(Arc::new),
        resolved: Box::new(resolved),
    }
}

fn cannot(code: ErrorCode, message: impl Into<String>) -> Folded {
    refused(ItemError::resolution(code, message))
}
