//! The meaning of the system: what an event does to a record. Pure: no clock, no I/O, no randomness; time is the
//! log's, the policy is the event's. Which rules it follows is DOMAINS ("What every sync item carries", "Settled
//! questions"); how states are stored and batched is not its business, so any batching gives the same.

use crate::document::{Touched, judge, touched, with_defaults};
use crate::event::Arrived;
use crate::merge::Kept;
use crate::policy::{Attempt, Side, Verdict, decide, out_of_sight, standing};
use crate::resolve::{Resolved, resolve};
use crate::seals::{patch_against, unified};
use crate::state::{Doc, PastChange, Record, State};
use std::borrow::Cow;
use std::sync::Arc;
use tidelog_events::domain::{Audience, Kind, Reader, Visibility};
use tidelog_events::drill;
use tidelog_events::error::ItemError;
use tidelog_events::item::Operation;
use tidelog_events::outcome::{Change, Outcome, Winner};
use tidelog_events::position::Place;

/// The number of this fold. To be raised by whatever gives any event another meaning, or writes a state that the fold before
/// would not read: an older worker then claims no partition that a newer one has had (`ownership`).
pub const FOLD_VERSION: u32 = 2;

/// What an event does.
#[derive(Debug, Clone, PartialEq)]
pub enum Folded {
    /// The same event was folded before: nothing at all.
    Repeat,
    /// The record's state changes.
    Applied {
        /// How.
        step: Arc<Step>,
        /// The two sides, where the item was behind and its policy let it change the record.
        conflict: Option<Box<Conflict>>,
    },
    /// It decided a conflict that waited for a person.
    Resolved {
        /// How the record's state changes, where it does.
        step: Option<Arc<Step>>,
        /// What was decided.
        resolved: Box<Resolved>,
    },
    /// It does not; the outcome is kept.
    NotApplied {
        /// What became of the item.
        outcome: Outcome,
        /// The two sides, where it was behind and the record stays as it is.
        conflict: Option<Box<Conflict>>,
    },
}

/// A change of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The record afterwards.
    pub state: Arc<State>,
    /// What it did.
    pub change: Change,
    /// Which members of the document it touched, and what they were before.
    pub touched: Arc<Touched>,
    /// Who saw the record before, where the domain stores that.
    pub audience_before: Option<Audience>,
    /// The place of the record's change before this one.
    pub previous_offset: Option<i64>,
}

/// An item that was behind its record, and the record as it met it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// The item's document: what the device wanted to change.
    pub client_doc: Doc,
    /// The record's document; none if it was deleted.
    pub server_doc: Option<Doc>,
    /// The record's version when the item met it.
    pub server_version: i64,
    /// The time of the record's last change.
    pub server_time: chrono::DateTime<chrono::Utc>,
    /// Whose state stands.
    pub winner: Winner,
    /// The record's version afterwards.
    pub result_version: i64,
    /// Which values came from whom, where parts of both stand.
    pub kept: Kept,
}

impl Conflict {
    /// What the item's sender is told.
    pub fn outcome(&self, arrived: &Arrived) -> Outcome {
        let (batch, index) = arrived.key();
        Outcome::Conflict {
            conflict_id: batch.conflict_id(index),
            policy: arrived.event.policy,
            winner: self.winner,
            server_version: self.result_version,
            client_version: arrived.event.base,
        }
    }
}

/// The record that another one hangs on, with its domain's rule of who may see and write it.
pub(crate) type ParentOf<'a> = Option<(&'a State, &'a Visibility)>;

/// Folds one event into its record. `parent` is the record that it hangs on, where the domain has one and it exists. What is
/// older than the domain's horizon before the event counts as if it had never been: the store may have removed it by now, or
/// not yet, and the log folded again later has to say the same.
pub fn fold(record: &Record, parent: ParentOf<'_>, arrived: &Arrived) -> Folded {
    let horizon = arrived.horizon();
    if record.past.of_event(arrived.key(), horizon).is_some() && drill::guarded("repeat") {
        return Folded::Repeat;
    }
    if let Some(resolution) = &arrived.resolution {
        return resolve(record, parent, arrived, resolution);
    }
    if let Some(first) = record.past.of_content(arrived.content, horizon) {
        return not_applied(Outcome::Duplicate {
            first: Box::new(first.clone()),
        });
    }
    match arrived.domain.kind {
        Kind::Telemetry { replace } => fold_telemetry(record, arrived, replace),
        Kind::Entity => fold_entity(record, parent, arrived),
    }
}

fn fold_telemetry(record: &Record, arrived: &Arrived, replace: bool) -> Folded {
    match &record.state {
        Some(state) if !replace || may_be_forgotten(state, arrived) => {
            let first = Outcome::Applied {
                change: Change::Created,
                version: state.version,
            };
            not_applied(Outcome::Duplicate {
                first: Box::new(first),
            })
        }
        state => {
            let patch = patch_against(arrived, state.as_deref(), &[]);
            let doc = with_defaults(&arrived.domain.initial, &patch);
            apply(state.as_deref(), None, arrived, doc, false)
        }
    }
}

/// A copy that its device made before the horizon, and before the one that is here. Whether it was here before is forgotten;
/// so the later one stands.
fn may_be_forgotten(state: &State, arrived: &Arrived) -> bool {
    let time = arrived.item_time();
    time < arrived.horizon() && time <= state.item_time
}

fn fold_entity(record: &Record, parent: ParentOf<'_>, arrived: &Arrived) -> Folded {
    let state = record.state_since(arrived.horizon());
    if !may_write(state, parent, arrived) {
        return refused(ItemError::forbidden());
    }
    let gone = state.is_none_or(|state| state.deleted);
    if arrived.event.operation == Operation::Delete && gone {
        return not_applied(Outcome::NoEffect {
            version: state.map(|state| state.version),
        });
    }
    if let Some(state) = state.filter(|state| is_behind(record, state, arrived)) {
        return conflict(record, state, parent, arrived);
    }
    if arrived.event.operation == Operation::Delete {
        return apply(state, parent, arrived, Doc::new(), true);
    }
    let old = state.filter(|state| !state.deleted);
    let patch = patch_against(arrived, old, &[]);
    let doc = match old {
        Some(old) => old.doc.patched(&patch),
        None => with_defaults(&initial(arrived), &Doc::new().patched(&patch)),
    };
    match judge(&arrived.domain, old.map(|state| &state.doc), &doc) {
        Ok(()) => apply(state, parent, arrived, doc, false),
        Err(error) => refused(error),
    }
}

/// Behind: the record has versions after the item's base, and not all of them are this user's and device's own. Where some
/// of these are forgotten, so is whether the item made one of them; its own time then tells that it came after.
fn is_behind(record: &Record, state: &State, arrived: &Arrived) -> bool {
    let told = arrived.item_time() >= arrived.horizon() || in_sight(record, state, arrived);
    let own_run = told
        && *state.user == *arrived.event.user.as_str()
        && *state.device == *arrived.event.device.as_str()
        && arrived.event.base >= state.run_from;
    arrived.event.base < state.version && !own_run
}

/// Whether the changes that made the versions after the item's base are all remembered.
fn in_sight(record: &Record, state: &State, arrived: &Arrived) -> bool {
    remembers(record, state, arrived, arrived.event.base)
}

/// Whether the changes that made the record's versions after `base` are all within the event's horizon.
pub(crate) fn remembers(record: &Record, state: &State, arrived: &Arrived, base: i64) -> bool {
    arrived.domain.history.is_none()
        || base >= state.version
        || since(record, arrived, base)
            .first()
            .is_some_and(|change| change.version == base + 1)
}

/// The changes that made the versions after `base`, as far as the event looks back.
pub(crate) fn since<'a>(record: &'a Record, arrived: &Arrived, base: i64) -> &'a [PastChange] {
    record.past.changes_after(base, arrived.horizon())
}

fn may_write(state: Option<&State>, parent: ParentOf<'_>, arrived: &Arrived) -> bool {
    let reader = Reader {
        user: &arrived.event.user,
        role: arrived.event.role,
    };
    let own = state.is_some_and(|state| *state.owner == *arrived.event.user.as_str());
    match parent {
        // A child is written by its owner and by whoever writes its parent.
        Some((parent, rule)) => own || rule.may_write(&reader, &parent.owner, &parent.doc),
        None => state.is_none_or(|state| {
            arrived
                .domain
                .visibility
                .may_write(&reader, &state.owner, &state.doc)
        }),
    }
}

/// The policy decides first; what it would make of the record is then judged like any document, and a refusal is the
/// item's outcome. Otherwise the attempt is kept, whoever won.
fn conflict(record: &Record, state: &State, parent: ParentOf<'_>, arrived: &Arrived) -> Folded {
    let event = &arrived.event;
    let changes = unified(&arrived.domain, state, since(record, arrived, event.base));
    let since = &*changes;
    let patch = patch_against(arrived, Some(state), since);
    let attempt = Attempt {
        base: event.base,
        deletes: event.operation == Operation::Delete,
        patch: &patch,
        side: Side {
            user: event.user.as_str(),
            device: event.device.as_str(),
            device_type: event.device_type.as_ref(),
            time: arrived.item_time(),
        },
    };
    let decision = match in_sight(record, state, arrived) {
        true => decide(&arrived.domain, event.policy, state, since, &attempt),
        false => out_of_sight(event.policy, state, &attempt),
    };
    let step = match decision.verdict {
        Verdict::Stay => None,
        Verdict::Delete => Some(step(Some(state), parent, arrived, Doc::new(), true)),
        // An update that undoes a deletion goes on from what that removed, so its transition is judged from there too.
        Verdict::Replace(doc) => match judge(&arrived.domain, standing(state, since), &doc) {
            Ok(()) => Some(step(Some(state), parent, arrived, doc, false)),
            Err(error) => return refused(error),
        },
    };
    let conflict = Box::new(Conflict {
        client_doc: patch,
        server_doc: (!state.deleted).then(|| state.doc.clone()),
        server_version: state.version,
        server_time: state.item_time,
        winner: decision.winner,
        result_version: step.as_ref().map_or(state.version, |step| step.state.version),
        kept: decision.kept,
    });
    match step {
        Some(step) => Folded::Applied {
            step: Arc::new(step),
            conflict: Some(conflict),
        },
        None => Folded::NotApplied {
            outcome: conflict.outcome(arrived),
            conflict: Some(conflict),
        },
    }
}

/// What a new record gets: the domain's defaults and the server's number, the place of the event that made it, so that a rebuild
/// gives the same. No patch has a value for it: its field is read-only.
fn initial(arrived: &Arrived) -> Cow<'_, Doc> {
    let defaults = &arrived.domain.initial;
    match &arrived.domain.numbering {
        Some(numbering) => {
            let Place { offset, partition } = arrived.place;
            let number = format!("{}-{offset}-{partition}", numbering.prefix);
            Cow::Owned(defaults.with(&numbering.field, &number.into()))
        }
        None => Cow::Borrowed(defaults),
    }
}

fn apply(state: Option<&State>, parent: ParentOf<'_>, arrived: &Arrived, doc: Doc, deleted: bool) -> Folded {
    Folded::Applied {
        step: Arc::new(step(state, parent, arrived, doc, deleted)),
        conflict: None,
    }
}

pub(crate) fn step(
    state: Option<&State>,
    parent: ParentOf<'_>,
    arrived: &Arrived,
    doc: Doc,
    deleted: bool,
) -> Step {
    let before = state.map_or(0, |state| state.version);
    let event = &arrived.event;
    let same_run =
        state.filter(|state| *state.user == *event.user.as_str() && *state.device == *event.device.as_str());
    let owner = state.map_or_else(|| event.user.shared(), |state| state.owner.clone());
    let audience = audience(arrived, parent, &owner, &doc, deleted);
    let next = State {
        version: before + 1,
        deleted,
        audience,
        owner,
        created_at: state.map_or(arrived.log_time, |state| state.created_at),
        user: event.user.shared(),
        device: event.device.shared(),
        device_type: event.device_type.clone(),
        item_time: arrived.item_time(),
        changed_at: arrived.log_time,
        run_from: same_run.map_or(before, |state| state.run_from),
        ahead_base: state
            .map_or(0, |state| state.ahead_base)
            .max(if event.base > before { event.base } else { 0 }),
        place: arrived.place,
        doc,
    };
    let nothing = Doc::new();
    let touched = touched(state.map_or(&nothing, |state| &state.doc), &next.doc);
    let change = match (deleted, state.is_none_or(|state| state.deleted)) {
        (true, _) => Change::Deleted,
        (false, true) => Change::Created,
        (false, false) => Change::Updated,
    };
    Step {
        state: Arc::new(next),
        change,
        touched: Arc::new(touched),
        audience_before: state.and_then(|state| state.audience.clone()),
        previous_offset: state.map(|state| state.place.offset),
    }
}

fn audience(
    arrived: &Arrived,
    parent: ParentOf<'_>,
    owner: &str,
    doc: &Doc,
    deleted: bool,
) -> Option<Audience> {
    if !arrived.domain.visibility.stores_audience() {
        return None;
    }
    if deleted {
        return Some(Audience::default());
    }
    match (&arrived.domain.parent, parent) {
        (Some(_), parent) => Some(child_audience(owner, parent)),
        (None, _) => arrived.domain.visibility.audience(owner, doc),
    }
}

/// A child is seen by whoever sees its parent; before that one arrives, by its owner alone.
fn child_audience(owner: &str, parent: ParentOf<'_>) -> Audience {
    match parent {
        Some((parent, _)) if parent.deleted => Audience::default(),
        Some((parent, rule)) => rule.audience_of_children(&parent.owner, parent.audience.as_ref()),
        None => Audience(vec![format!("user:{owner}")]),
    }
}

/// What a change of the parent does to a child: the same version, another audience. None where nothing changes.
pub fn follow_parent(child: &State, parent: &State, arrived: &Arrived) -> Option<Step> {
    let audience = if child.deleted {
        Audience::default()
    } else {
        child_audience(&child.owner, Some((parent, &arrived.domain.visibility)))
    };
    if child.audience.as_ref() == Some(&audience) {
        return None;
    }
    let state = State {
        audience: Some(audience),
        place: arrived.place,
        changed_at: arrived.log_time,
        ..child.clone()
    };
    Some(Step {
        state: Arc::new(state),
        change: Change::Updated,
        touched: Arc::default(),
        audience_before: child.audience.clone(),
        previous_offset: Some(child.place.offset),
    })
}

fn not_applied(outcome: Outcome) -> Folded {
    Folded::NotApplied {
        outcome,
        conflict: None,
    }
}

pub(crate) fn refused(error: ItemError) -> Folded {
    not_applied(Outcome::Refused { error })
}
