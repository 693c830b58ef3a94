//! A store in memory that loads and keeps exactly what the real one does: states always, pasts only where the fold's own
//! rule asks for them. So a history folded through it in any chunks shows whether that rule asks for enough.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

mod definitions;
pub mod sealed;
pub mod tale;

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidelog_events::batch::{BatchId, Fingerprint};
use tidelog_events::doc::Names;
use tidelog_events::domain::{Policy, Registry};
use tidelog_events::envelope::Stamp;
use tidelog_events::ids::{DeviceId, DeviceType, Role, TenantId, UserId};
use tidelog_events::item::Operation;
use tidelog_events::outcome::{Change, Outcome, Winner};
use tidelog_events::position::Place;
use tidelog_projector::chunk::{
    OUTCOMES_ALONE, Results, World, child_domains, fold_chunk, needed_pasts, repeatable,
};
use tidelog_projector::document::Touched;
use tidelog_projector::event::Arrived;
use tidelog_projector::hits::{self, HitKey};
use tidelog_projector::merge::Kept;
use tidelog_projector::resolve::Resolved;
use tidelog_projector::state::{EventKey, KeptAttempt, PastChange, RecordKey, Standing, State};
use uuid::Uuid;

pub const TICKET: &str = "11111111-1111-4111-8111-111111111111";
pub const ENTRY: &str = "22222222-2222-4222-8222-222222222222";
pub const MEDIA: &str = "33333333-3333-4333-8333-333333333333";

/// Somebody with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phone {
    pub user: &'static str,
    pub device: &'static str,
    pub role: Role,
}

pub const ANNA: Phone = Phone {
    user: "anna",
    device: "phone-anna",
    role: Role::User,
};
pub const ANNAS_TABLET: Phone = Phone {
    user: "anna",
    device: "tablet-anna",
    role: Role::User,
};
pub const BERT: Phone = Phone {
    user: "bert",
    device: "phone-bert",
    role: Role::User,
};

pub const CARL: Phone = Phone {
    user: "carl",
    device: "phone-carl",
    role: Role::User,
};

pub const SUE: Phone = Phone {
    user: "sue",
    device: "desk-sue",
    role: Role::Supervisor,
};

/// An item as a phone would post it, alone in its batch.
#[derive(Debug, Clone)]
pub struct Sent {
    pub domain: &'static str,
    pub phone: Phone,
    pub operation: Operation,
    pub subject: String,
    pub base: i64,
    pub item: Value,
    /// How the event says that a conflict is decided.
    pub policy: Policy,
    /// When the device did it, in minutes after [`start`]; all of these lie before every log time.
    pub minute: Option<i64>,
    /// The device's kind with its priority, where the tenant has device priority on.
    pub device_type: Option<&'static str>,
    /// Tells batches apart: two with the same number are the same batch, retried.
    pub batch: u64,
}

pub fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

impl Sent {
    /// The same of a domain of [`Log::remembering`].
    pub fn in_own_domain(mut self) -> Sent {
        self.domain = match self.domain {
            "helpdesk" => "own-helpdesk",
            "journal" => "own-journal",
            "journal-media" => "own-journal-media",
            _ => "own-sessions",
        };
        self
    }

    /// A ticket's item under the policy that leaves a record as it is, done when it is logged.
    pub fn new(
        domain: &'static str,
        phone: Phone,
        operation: Operation,
        subject: &str,
        base: i64,
        item: Value,
    ) -> Sent {
        Sent {
            domain,
            phone,
            operation,
            subject: subject.into(),
            base,
            item,
            policy: Policy::ServerWins,
            minute: None,
            device_type: None,
            batch: 0,
        }
    }
}

pub fn minute(minute: i64) -> DateTime<Utc> {
    start() + Duration::minutes(minute)
}

pub fn batch_id(batch: u64) -> BatchId {
    BatchId::of(&format!("batch-{batch}"), &Fingerprint([0; 32]))
}

/// A row of the feed, as comparable as it gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Feed {
    pub place: Place,
    pub at: DateTime<Utc>,
    pub record: RecordKey,
    pub version: i64,
    pub operation: &'static str,
    pub fields: Names,
    pub before: Value,
    pub event: EventKey,
    pub content: Uuid,
    pub user: String,
    pub device: String,
    pub device_type: Option<DeviceType>,
    pub item_time: DateTime<Utc>,
    pub conflict_id: Option<Uuid>,
    pub previous: Option<i64>,
    pub audience_before: Option<Vec<String>>,
    pub audience: Option<Vec<String>>,
}

/// The store.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shelf {
    pub states: BTreeMap<RecordKey, State>,
    pub feed: Vec<Feed>,
    pub outcomes: BTreeMap<EventKey, (RecordKey, Uuid, Outcome)>,
    /// The log's time of each outcome.
    pub times: BTreeMap<EventKey, DateTime<Utc>>,
    pub conflicts: BTreeMap<Uuid, Attempted>,
    pub hits: BTreeMap<HitKey, Counted>,
}

/// A row of `idempotency_records`: how many hits, since when, and the last one's event and log time.
pub type Counted = (i64, DateTime<Utc>, EventKey, DateTime<Utc>);

/// A row of `conflicts`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempted {
    pub record: RecordKey,
    /// As a resolution needs it.
    pub attempt: KeptAttempt,
    /// What a person decided.
    pub resolved: Option<Resolved>,
    pub client_doc: Value,
    pub server_doc: Option<Value>,
    pub policy: Policy,
    pub winner: Winner,
    pub client_version: i64,
    pub server_version: i64,
    pub result_version: i64,
    pub kept: Kept,
}

impl Feed {
    fn change(&self) -> Change {
        match self.operation {
            "create" => Change::Created,
            "delete" => Change::Deleted,
            _ => Change::Updated,
        }
    }

    fn past_change(&self) -> PastChange {
        PastChange {
            version: self.version,
            change: self.change(),
            touched: Arc::new(Touched {
                fields: self.fields.clone(),
                before: self.before.as_object().expect("an object").clone().into(),
            }),
            user: self.user.as_str().into(),
            device: self.device.as_str().into(),
            device_type: self.device_type.clone(),
            item_time: self.item_time,
            log_time: self.at,
        }
    }
}

pub struct Log {
    pub registry: Registry,
    pub events: Vec<Arc<Arrived>>,
    /// Seals what is appended.
    pub sealer: Option<sealed::Sealer>,
}

impl Log {
    pub fn new() -> Log {
        Log {
            registry: definitions::shipped().clone(),
            events: Vec::new(),
            sealer: None,
        }
    }

    /// Of domains that remember for so many seconds, under names of their own: see [`Sent::in_own_domain`].
    pub fn remembering(seconds: u32) -> Log {
        Log {
            registry: definitions::remembering(seconds),
            ..Log::new()
        }
    }

    /// Appends an item; its log time is a year after [`start`] and seven hours an offset, so that some pasts are longer
    /// than hits are kept.
    pub fn append(&mut self, sent: &Sent) -> Arc<Arrived> {
        let offset = self.events.len() as i64;
        let log_time = start() + Duration::days(365) + Duration::hours(7 * offset);
        let time = sent.minute.map_or(log_time, minute);
        let domain = self.registry.by_name(sent.domain).expect("a domain").clone();
        let stamp = Stamp::new(
            TenantId::parse("acme").expect("tenant"),
            UserId::parse(sent.phone.user).expect("user"),
            DeviceId::parse(sent.phone.device).expect("device"),
            sent.phone.role,
            sent.device_type.map(str::to_owned),
            batch_id(sent.batch),
        );
        let headers = stamp.headers(
            &domain.table,
            sent.operation,
            &sent.subject,
            0,
            time,
            sent.base,
            sent.policy,
            None,
        );
        let value = match &mut self.sealer {
            Some(sealer) => sealer.close(&self.registry, sent, offset as u64 % 2),
            None => sent.item.to_string(),
        };
        let place = Place { partition: 0, offset };
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_bytes())));
        let arrived = Arrived::read(
            &self.registry,
            &domain.topic,
            headers,
            Some(value.as_bytes()),
            place,
            log_time,
        );
        let arrived = Arc::new(arrived.expect("an event"));
        self.events.push(arrived.clone());
        arrived
    }
}

/// What is gone below an offset, and was settled before a time.
pub fn floor(log: &Log, applied: usize) -> (i64, DateTime<Utc>) {
    let last = &log.events[applied - 1];
    let cut = last.horizon();
    let kept = log
        .events
        .iter()
        .filter(|event| event.log_time >= cut)
        .map(|event| event.place.offset);
    (kept.min().unwrap_or_default(), cut)
}

impl Shelf {
    /// Removes what the store would: all that lies below the floor, but records and conflicts that wait.
    pub fn forget(&mut self, (floor, cut): (i64, DateTime<Utc>)) {
        self.feed.retain(|row| row.place.offset >= floor);
        self.states
            .retain(|_, state| !state.deleted || state.place.offset >= floor);
        self.conflicts
            .retain(|_, kept| kept.attempt.standing == Standing::Open || kept.attempt.at >= cut);
        self.times.retain(|_, at| *at >= cut);
        self.outcomes.retain(|event, _| self.times.contains_key(event));
    }

    /// Folds events in chunks of the given sizes (the last size serves for the rest).
    pub fn fold(&mut self, registry: &Registry, events: &[Arc<Arrived>], sizes: &[usize]) {
        let mut rest = events;
        let mut sizes = sizes.iter().copied();
        let mut size = events.len().max(1);
        while !rest.is_empty() {
            size = sizes.next().unwrap_or(size).clamp(1, rest.len());
            let (chunk, after) = rest.split_at(size);
            let mut world = self.load(registry, chunk);
            let results = fold_chunk(registry, &mut world, chunk);
            self.keep(&world, results);
            rest = after;
        }
    }

    fn load(&self, registry: &Registry, events: &[Arc<Arrived>]) -> World {
        let mut world = World::default();
        for arrived in events {
            for key in [Some(arrived.record()), arrived.parent_record()]
                .into_iter()
                .flatten()
            {
                let state = self.states.get(key).cloned().map(Arc::new);
                world.records.entry(key.clone()).or_default().state = state;
            }
            for child in child_domains(registry, &arrived.domain) {
                let parent = Uuid::try_parse(&arrived.event.subject).ok();
                for (key, state) in self
                    .states
                    .iter()
                    .filter(|(key, _)| *key.table == *child.table && key.parent == parent)
                {
                    world.records.entry(key.clone()).or_default().state = Some(Arc::new(state.clone()));
                    world
                        .children
                        .entry(arrived.record().clone())
                        .or_default()
                        .insert(key.clone());
                }
            }
            if let Some((_, _, outcome)) = self.outcomes.get(&arrived.key()) {
                world
                    .records
                    .entry(arrived.record().clone())
                    .or_default()
                    .past
                    .note(arrived.key(), None, self.times[&arrived.key()], outcome.clone());
            }
        }
        for arrived in events {
            let Some(resolution) = &arrived.resolution else {
                continue;
            };
            let id = resolution.conflict_id;
            if let Some(kept) = self
                .conflicts
                .get(&id)
                .filter(|kept| kept.record == *arrived.record())
            {
                let record = world.records.entry(arrived.record().clone()).or_default();
                record.conflicts.insert(id, kept.attempt.clone());
            }
        }
        let needed = needed_pasts(events, &world);
        for (key, after) in &needed {
            let past = &mut world.records.entry(key.clone()).or_default().past;
            for row in self.chain(key, *after) {
                past.note(row.event, Some(row.content), row.at, self.applied(row));
                past.note_change(row.past_change());
            }
            for (event, (_, content, outcome)) in
                self.outcomes.iter().filter(|(_, (record, ..))| record == key)
            {
                if repeatable(outcome) {
                    past.note(*event, Some(*content), self.times[event], outcome.clone());
                }
            }
        }
        world
    }

    /// A record's feed rows after a version, walked from its last one back, as far as they are there; oldest first.
    fn chain(&self, key: &RecordKey, after: i64) -> Vec<&Feed> {
        let mut at = self
            .states
            .get(key)
            .map(|state| state.place.offset)
            .filter(|_| after < OUTCOMES_ALONE);
        let mut chain = Vec::new();
        while let Some(row) = at.and_then(|at| {
            let rows = self
                .feed
                .iter()
                .filter(|row| row.record == *key && row.version > after);
            rows.rev().find(|row| row.place.offset == at)
        }) {
            at = row.previous;
            chain.push(row);
        }
        chain.retain(|row| row.operation != "audience");
        chain.reverse();
        chain
    }

    fn keep(&mut self, world: &World, results: Results) {
        for (key, hits) in hits::count(&results.outcomes) {
            let (mut count, mut since) = (hits.count, hits.since);
            // As the statement has it, which knows no more of the hits before than their row.
            if let Some((known, first, _, last)) = self.hits.get(&key)
                && *last + hits::KEPT > hits.since
            {
                (count, since) = (known + count, *first);
            }
            self.hits
                .insert(key, (count, since, hits.last.key(), hits.last.log_time));
        }
        for key in results.changed() {
            let state = world
                .records
                .get(key)
                .and_then(|record| record.state.as_deref().cloned())
                .expect("a changed state");
            self.states.insert(key.clone(), state);
        }
        for row in results.feed {
            let step = &row.step;
            self.feed.push(Feed {
                place: step.state.place,
                at: step.state.changed_at,
                record: row.record.clone(),
                version: step.state.version,
                operation: row.operation,
                fields: step.touched.fields.clone(),
                before: Value::Object(step.touched.before.to_map()),
                event: (BatchId(row.batch_id), row.batch_index as u32),
                content: row.item_hash,
                user: step.state.user.to_string(),
                device: step.state.device.to_string(),
                device_type: step.state.device_type.clone(),
                item_time: step.state.item_time,
                conflict_id: row.conflict_id,
                previous: step.previous_offset,
                audience_before: step.audience_before.clone().map(|audience| audience.0),
                audience: step.state.audience.clone().map(|audience| audience.0),
            });
        }
        for row in results.outcomes {
            let domain = &row.arrived.domain;
            let (key, history) = (row.arrived.key(), domain.history);
            self.times.insert(key, row.arrived.log_time);
            let known = self.outcomes.insert(
                row.arrived.key(),
                (row.arrived.record().clone(), row.arrived.content, row.outcome),
            );
            assert!(known.is_none() || history.is_some(), "an item has one outcome");
        }
        for row in results.conflicts {
            let event = &row.arrived.event;
            let sides = Attempted {
                record: row.arrived.record().clone(),
                attempt: KeptAttempt {
                    base: event.base,
                    deletes: event.operation == Operation::Delete,
                    patch: row.conflict.client_doc.clone(),
                    user: event.user.as_str().to_owned(),
                    device: event.device.as_str().to_owned(),
                    device_type: event.device_type.clone(),
                    item_time: row.arrived.item_time(),
                    standing: if row.conflict.winner == Winner::None {
                        Standing::Open
                    } else {
                        Standing::Decided
                    },
                    at: row.arrived.log_time,
                },
                resolved: None,
                client_doc: Value::Object(row.conflict.client_doc.to_map()),
                server_doc: row.conflict.server_doc.map(|doc| Value::Object(doc.to_map())),
                policy: row.arrived.event.policy,
                winner: row.conflict.winner,
                client_version: row.arrived.event.base,
                server_version: row.conflict.server_version,
                result_version: row.conflict.result_version,
                kept: row.conflict.kept,
            };
            let history = row.arrived.domain.history;
            assert!(
                self.conflicts.insert(row.conflict_id, sides).is_none() || history.is_some(),
                "a conflict is kept once"
            );
        }
        for row in results.resolved {
            let kept = self
                .conflicts
                .get_mut(&row.resolved.conflict_id)
                .expect("a conflict");
            assert_eq!(
                kept.attempt.standing,
                Standing::Open,
                "a conflict is resolved once"
            );
            kept.attempt.standing = Standing::Resolved(row.arrived.key());
            kept.attempt.at = row.arrived.log_time;
            kept.winner = row.resolved.winner;
            kept.resolved = Some(*row.resolved);
        }
    }

    /// What became of a batch's only item.
    pub fn outcome(&self, batch: u64) -> Option<Outcome> {
        let key = (batch_id(batch), 0);
        if let Some((_, _, outcome)) = self.outcomes.get(&key) {
            return Some(outcome.clone());
        }
        let row = self
            .feed
            .iter()
            .find(|row| row.event == key && row.operation != "audience")?;
        Some(self.applied(row))
    }

    /// What a feed row says became of its item; of one that was behind, its conflict says the rest.
    fn applied(&self, row: &Feed) -> Outcome {
        let Some(conflict_id) = row.conflict_id else {
            return Outcome::Applied {
                change: row.change(),
                version: row.version,
            };
        };
        // A conflict of an event whose first effect was forgotten is told by its later one.
        let kept = &self.conflicts[&conflict_id];
        if let Some(resolved) = kept
            .resolved
            .as_ref()
            .filter(|_| kept.attempt.standing == Standing::Resolved(row.event))
        {
            return resolved.outcome();
        }
        Outcome::Conflict {
            conflict_id,
            policy: kept.policy,
            winner: kept.winner,
            server_version: kept.result_version,
            client_version: kept.client_version,
        }
    }

    /// Records by subject, for short tests.
    pub fn state(&self, subject: &str) -> &State {
        self.states
            .iter()
            .find(|(key, _)| &*key.subject == subject)
            .map(|(_, state)| state)
            .expect("a state")
    }

    /// Everything holds that a reader or a rebuild relies on.
    pub fn check(&self) {
        let mut last: BTreeMap<&RecordKey, &Feed> = BTreeMap::new();
        for row in &self.feed {
            let before = last.get(&row.record);
            let expected = before.map_or(0, |before| before.version) + i64::from(row.operation != "audience");
            assert_eq!(row.version, expected, "versions rise by one without gap: {row:?}");
            assert_eq!(
                row.previous,
                before.map(|before| before.place.offset),
                "each row names the one before"
            );
            last.insert(&row.record, row);
        }
        assert_eq!(last.len(), self.states.len());
        for (key, state) in &self.states {
            assert_eq!(
                last[key].place, state.place,
                "a row stands where its last change is"
            );
            assert_eq!(last[key].version, state.version);
        }
        let seen: BTreeSet<EventKey> = self
            .feed
            .iter()
            .filter(|row| row.operation != "audience")
            .map(|row| row.event)
            .collect();
        assert!(
            seen.iter().all(|event| !self.outcomes.contains_key(event)),
            "applied, or not, but not both"
        );
    }
}

/// The resolution of the conflict that a batch's item became.
pub fn resolution(of_batch: u64, strategy: &str, data: Option<Value>) -> Value {
    let mut value = json!({ "conflict_id": batch_id(of_batch).conflict_id(0), "strategy": strategy });
    if let Some(data) = data {
        value["data"] = data;
    }
    value
}

pub fn ticket(fields: Value) -> Value {
    let mut item = json!({ "mobile_id": TICKET });
    item.as_object_mut()
        .expect("an object")
        .extend(fields.as_object().expect("an object").clone());
    item
}
