//! A chunk of a topic's log, folded in memory: which records its events need, and everything that they leave behind.
//! The records are given by the store and the results taken by it; nothing here knows how. Folding a history in one
//! chunk or in many gives the same rows, feed and outcomes.

use crate::event::Arrived;
use crate::fold::{Conflict, Folded, Step, fold, follow_parent};
use crate::resolve::Resolved;
use crate::state::{KeptAttempt, Past, PastChange, Record, RecordKey, Standing, State};
use chrono::{DateTime, Utc};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::item::Operation;
use tidelog_events::outcome::{Change, Outcome, Winner};
use uuid::Uuid;

/// The records that a chunk touches.
#[derive(Debug, Default)]
pub struct World {
    /// By key; a record that never existed has no state.
    pub records: HashMap<RecordKey, Record, foldhash::fast::RandomState>,
    /// From a parent to its children's keys.
    pub children: HashMap<RecordKey, BTreeSet<RecordKey>>,
}

impl World {
    /// Adds the records of another part of the same chunk; no record is in both.
    pub(crate) fn absorb(&mut self, other: World) {
        self.records.extend(other.records);
        for (parent, children) in other.children {
            self.children.entry(parent).or_default().extend(children);
        }
    }

    fn record(&mut self, key: &RecordKey) -> &mut Record {
        self.records.entry(key.clone()).or_default()
    }

    fn forget_past(&mut self, key: &RecordKey) {
        if let Some(Record { past, conflicts, .. }) = self.records.get_mut(key) {
            *past = Past::default();
            conflicts.clear();
        }
    }
}

/// One row of a feed.
#[derive(Debug, Clone)]
pub struct FeedRow {
    /// The record.
    pub record: RecordKey,
    /// `create`, `update`, `delete`, or `audience` where only who sees it changed.
    pub operation: &'static str,
    /// What happened.
    pub step: Arc<Step>,
    /// The event's item: batch, index, base, content.
    pub batch_id: Uuid,
    /// Its index in the batch.
    pub batch_index: i32,
    /// The base version that the device had.
    pub base_version: i64,
    /// The item's content, nil where the row is no item's.
    pub item_hash: Uuid,
    /// The conflict that this change decided, where it did.
    pub conflict_id: Option<Uuid>,
}

/// One row of `outcomes`.
#[derive(Debug, Clone)]
pub struct OutcomeRow {
    /// The event.
    pub arrived: Arc<Arrived>,
    /// What became of it.
    pub outcome: Outcome,
}

/// One row of `conflicts`.
#[derive(Debug, Clone)]
pub struct ConflictRow {
    /// The conflict's id.
    pub conflict_id: Uuid,
    /// The event.
    pub arrived: Arc<Arrived>,
    /// The two sides.
    pub conflict: Box<Conflict>,
}

/// What a resolution makes of its row of `conflicts`.
#[derive(Debug, Clone)]
pub struct ResolvedRow {
    /// The event.
    pub arrived: Arc<Arrived>,
    /// What was decided.
    pub resolved: Box<Resolved>,
}

/// Everything that a chunk leaves behind.
#[derive(Debug, Default)]
pub struct Results {
    /// Feed rows in the order of the log.
    pub feed: Vec<FeedRow>,
    /// What did not apply.
    pub outcomes: Vec<OutcomeRow>,
    /// Conflicts.
    pub conflicts: Vec<ConflictRow>,
    /// Resolutions of conflicts, of this chunk or of earlier ones.
    pub resolved: Vec<ResolvedRow>,
}

impl Results {
    /// The records that changed, each once: whatever changes one leaves a row in its feed.
    pub fn changed(&self) -> BTreeSet<&RecordKey> {
        self.feed.iter().map(|row| &row.record).collect()
    }
}

/// What is needed of a past where no change is: only what became of the same items.
pub const OUTCOMES_ALONE: i64 = i64::MAX;

/// Which pasts a chunk needs beside the states, and for each the version after which it is needed.
pub fn needed_pasts(events: &[Arc<Arrived>], world: &World) -> HashMap<RecordKey, i64> {
    let mut needed: HashMap<RecordKey, i64> = HashMap::new();
    for arrived in events {
        let key = arrived.record();
        let record = world.records.get(key);
        let state = record.and_then(|record| record.state.as_deref());
        let after = match &arrived.resolution {
            None => past_needed_after(state, arrived),
            // What the record became since the attempt's base; an attempt of this chunk asks for that itself.
            Some(resolution) => record
                .and_then(|record| record.conflicts.get(&resolution.conflict_id))
                .map(|kept| kept.base),
        };
        // A record that was forgotten begins again at its first version, so a version no longer tells that an item is new.
        let remembers = arrived.domain.history.is_some() && arrived.domain.is_entity();
        if let Some(after) = after.or(remembers.then_some(OUTCOMES_ALONE)) {
            let least = needed.entry(key.clone()).or_insert(after);
            *least = after.min(*least);
        }
    }
    needed
}

/// Whether an event may be a repeat of one that the record's past tells of, or a conflict that is decided by what the
/// past changed, and how far back that may be. On the normal path it is neither: an event whose base is the record's
/// version was not applied before, or the record would have moved on. Only a base that was ahead, or a deletion
/// without effect, leaves a version where a repeat would meet it again. A conflict needs every change after its base:
/// those that are stored when the chunk begins are after the base too, and those that the chunk makes are noted as it
/// is folded.
fn past_needed_after(state: Option<&State>, arrived: &Arrived) -> Option<i64> {
    let event = &arrived.event;
    let Some(state) = state else {
        return (event.operation == Operation::Delete).then_some(0);
    };
    if !arrived.domain.is_entity() || event.base <= state.ahead_base && state.ahead_base > 0 {
        return Some(0);
    }
    (event.base < state.version || event.operation == Operation::Delete).then_some(event.base)
}

/// Folds events in the order of the log. Of a record's past the world has nothing any more afterwards: what else is to be known
/// of it, the store knows.
pub fn fold_chunk(registry: &Registry, world: &mut World, events: &[Arc<Arrived>]) -> Results {
    let mut folding = Folding {
        registry,
        world,
        to_come: events_of_each(events),
        results: Results::default(),
    };
    for arrived in events {
        folding.event(arrived);
    }
    folding.results
}

/// How many events of a chunk are of each record.
fn events_of_each(events: &[Arc<Arrived>]) -> ToCome<'_> {
    let mut counts = ToCome::with_capacity_and_hasher(events.len(), Default::default());
    for arrived in events {
        *counts.entry(arrived.record()).or_default() += 1;
    }
    counts
}

/// Whether a repeat of the same item under another batch is answered with this outcome: a refusal is judged anew, and
/// a duplicate leads to the first anyway.
pub fn repeatable(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Conflict { .. } | Outcome::NoEffect { .. } | Outcome::Applied { .. }
    )
}

/// Events of each record that are not folded yet.
type ToCome<'a> = HashMap<&'a RecordKey, u32, foldhash::fast::RandomState>;

/// A chunk being folded.
struct Folding<'a> {
    registry: &'a Registry,
    world: &'a mut World,
    to_come: ToCome<'a>,
    results: Results,
}

impl Folding<'_> {
    fn event(&mut self, arrived: &Arc<Arrived>) {
        let more = self.take_off(arrived);
        match self.folded(arrived) {
            Folded::Repeat => {}
            Folded::NotApplied { outcome, conflict } => self.not_applied(arrived, more, outcome, conflict),
            Folded::Resolved { step: None, resolved } => {
                self.note_resolved(arrived, &resolved);
                self.not_applied(arrived, more, resolved.outcome(), None);
            }
            Folded::Resolved {
                step: Some(step),
                resolved,
            } => {
                self.note_resolved(arrived, &resolved);
                self.applied(
                    arrived,
                    more,
                    step,
                    resolved.outcome(),
                    Some(resolved.conflict_id),
                );
            }
            Folded::Applied { step, conflict } => {
                let outcome = match &conflict {
                    Some(conflict) => conflict.outcome(arrived),
                    None => Outcome::Applied {
                        change: step.change,
                        version: step.state.version,
                    },
                };
                let conflict_id = self.keep_attempt(arrived, conflict);
                self.applied(arrived, more, step, outcome, conflict_id);
                if let Some(parent) = arrived.parent_record() {
                    let children = self.world.children.entry(parent.clone()).or_default();
                    children.insert(arrived.record().clone());
                }
            }
        }
        if !more {
            self.world.forget_past(arrived.record());
        }
    }

    fn folded(&self, arrived: &Arrived) -> Folded {
        let parent_domain = arrived
            .domain
            .parent
            .as_ref()
            .and_then(|parent| self.registry.by_name(&parent.domain));
        let parent_state = arrived
            .parent_record()
            .and_then(|key| self.world.records.get(key))
            .and_then(|record| {
                let horizon = parent_domain?.horizon(arrived.log_time);
                record.state_since(horizon)
            });
        let parent = parent_state.zip(parent_domain.map(|domain| &domain.visibility));
        let nothing = Record::default();
        let record = self.world.records.get(arrived.record());
        fold(record.unwrap_or(&nothing), parent, arrived)
    }

    /// Takes an event off those of its record that are to come. Answers whether one further on in the chunk is: it may be a repeat of
    /// this one, or behind it, which no store knows yet.
    fn take_off(&mut self, arrived: &Arrived) -> bool {
        let to_come = self.to_come.get_mut(arrived.record());
        to_come.is_some_and(|to_come| {
            *to_come -= 1;
            *to_come > 0
        })
    }

    fn not_applied(
        &mut self,
        arrived: &Arc<Arrived>,
        more: bool,
        outcome: Outcome,
        conflict: Option<Box<Conflict>>,
    ) {
        if more {
            let content = repeatable(&outcome).then_some(arrived.content);
            let past = &mut self.world.record(arrived.record()).past;
            past.note(arrived.key(), content, arrived.log_time, outcome.clone());
        }
        self.keep_attempt(arrived, conflict);
        self.results.outcomes.push(OutcomeRow {
            arrived: arrived.clone(),
            outcome,
        });
    }

    /// Both sides of a conflict go to the store, whoever won; a resolution further on in the chunk may be about it. Answers
    /// the conflict's id.
    fn keep_attempt(&mut self, arrived: &Arc<Arrived>, conflict: Option<Box<Conflict>>) -> Option<Uuid> {
        let conflict = conflict?;
        let (batch, index) = arrived.key();
        let conflict_id = batch.conflict_id(index);
        let event = &arrived.event;
        let kept = KeptAttempt {
            base: event.base,
            deletes: event.operation == Operation::Delete,
            patch: conflict.client_doc.clone(),
            user: event.user.as_str().to_owned(),
            device: event.device.as_str().to_owned(),
            device_type: event.device_type.clone(),
            item_time: arrived.item_time(),
            standing: match conflict.winner {
                Winner::None => Standing::Open,
                _ => Standing::Decided,
            },
            at: arrived.log_time,
        };
        let record = self.world.record(arrived.record());
        record.conflicts.insert(conflict_id, kept);
        // The same event again, its first effect forgotten: the conflict begins anew.
        self.results
            .resolved
            .retain(|row| row.resolved.conflict_id != conflict_id);
        self.results.conflicts.push(ConflictRow {
            conflict_id,
            arrived: arrived.clone(),
            conflict,
        });
        Some(conflict_id)
    }

    fn note_resolved(&mut self, arrived: &Arc<Arrived>, resolved: &Resolved) {
        let record = self.world.record(arrived.record());
        if let Some(kept) = record.conflicts.get_mut(&resolved.conflict_id) {
            kept.standing = Standing::Resolved(arrived.key());
            kept.at = arrived.log_time;
        }
        self.results.resolved.push(ResolvedRow {
            arrived: arrived.clone(),
            resolved: Box::new(resolved.clone()),
        });
    }

    fn applied(
        &mut self,
        arrived: &Arc<Arrived>,
        more: bool,
        step: Arc<Step>,
        outcome: Outcome,
        conflict_id: Option<Uuid>,
    ) {
        let record = self.world.record(arrived.record());
        if more {
            let (event, content) = (arrived.key(), Some(arrived.content));
            record.past.note(event, content, arrived.log_time, outcome);
            if step.previous_offset.is_none() {
                record.past.begin();
            }
            if arrived.domain.is_entity() {
                record.past.note_change(past_change(&step));
            }
        }
        record.state = Some(step.state.clone());
        self.results.feed.push(FeedRow {
            record: arrived.record().clone(),
            operation: operation_name(step.change),
            step,
            batch_id: arrived.event.batch.0,
            batch_index: arrived.event.index as i32,
            base_version: arrived.event.base,
            item_hash: arrived.content,
            conflict_id,
        });
        self.move_children(arrived);
    }

    /// A record's change reaches those that hang on it: who sees them follows from it.
    fn move_children(&mut self, arrived: &Arc<Arrived>) {
        let World { records, children } = &mut *self.world;
        let Some(children) = children.get(arrived.record()) else {
            return;
        };
        let parent = records
            .get(arrived.record())
            .and_then(|record| record.state.clone());
        let Some(parent) = parent else {
            return;
        };
        for child in children {
            let Some(record) = records.get_mut(child) else {
                continue;
            };
            let Some(step) = record
                .state
                .as_ref()
                .and_then(|state| follow_parent(state, &parent, arrived))
            else {
                continue;
            };
            record.state = Some(step.state.clone());
            self.results.feed.push(FeedRow {
                record: child.clone(),
                operation: "audience",
                step: Arc::new(step),
                batch_id: arrived.event.batch.0,
                batch_index: arrived.event.index as i32,
                base_version: 0,
                item_hash: Uuid::nil(),
                conflict_id: None,
            });
        }
    }
}

fn past_change(step: &Step) -> PastChange {
    let state = &step.state;
    PastChange {
        version: state.version,
        change: step.change,
        touched: step.touched.clone(),
        user: state.user.clone(),
        device: state.device.clone(),
        device_type: state.device_type.clone(),
        item_time: state.item_time,
        log_time: state.changed_at,
    }
}

fn operation_name(change: Change) -> &'static str {
    match change {
        Change::Created => "create",
        Change::Updated => "update",
        Change::Deleted => "delete",
    }
}

/// Where the fold of a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The next offset to take.
    pub next_offset: i64,
    /// The highest log time taken.
    pub log_time: DateTime<Utc>,
}

/// The children of a parent hang in another table of the same topic.
pub fn child_domains<'a>(registry: &'a Registry, parent: &Domain) -> impl Iterator<Item = &'a Arc<Domain>> {
    let name = parent.name.clone();
    registry
        .iter()
        .filter(move |domain| domain.parent.as_ref().is_some_and(|found| found.domain == name))
}
