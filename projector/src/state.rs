//! What the fold knows of a record: its state, and as much of its past as the events at hand can ask for. Plain data;
//! where it is stored is the store's.

use crate::document::Touched;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use tidelog_events::batch::BatchId;
use tidelog_events::domain::Audience;
use tidelog_events::ids::DeviceType;
use tidelog_events::outcome::{Change, Outcome};
use tidelog_events::position::Place;
use uuid::Uuid;

/// A record's document.
pub type Doc = Map<String, Value>;

/// Which record: a domain's table, the tenant, the identity, and the parent that it hangs on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// The domain's table.
    pub table: Arc<str>,
    /// The tenant.
    pub tenant: Arc<str>,
    /// `mobile_id` or `item_id`.
    pub subject: Arc<str>,
    /// The parent's `mobile_id`, for domains that have one.
    pub parent: Option<Uuid>,
}

/// A record as its last applied event left it.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Rises by one with every applied event, from 1.
    pub version: i64,
    /// A tombstone: the document is empty.
    pub deleted: bool,
    /// The document, without the members that every item carries.
    pub doc: Doc,
    /// Who made it; no edit changes that.
    pub owner: Arc<str>,
    /// The log's time of its first event.
    pub created_at: DateTime<Utc>,
    /// Who changed it last.
    pub user: Arc<str>,
    /// From which device.
    pub device: Arc<str>,
    /// What kind of device that is, with its priority, where the tenant had device priority on.
    pub device_type: Option<DeviceType>,
    /// When the device did that, corrected for skew, never later than the log's time.
    pub item_time: DateTime<Utc>,
    /// The log's time of that.
    pub changed_at: DateTime<Utc>,
    /// The version at which the last user's and device's run of changes began: all later versions are theirs.
    pub run_from: i64,
    /// The highest base that was ever ahead of the record when it was applied.
    pub ahead_base: i64,
    /// Who sees it, where the domain stores that.
    pub audience: Option<Audience>,
    /// Where its last feed row is.
    pub place: Place,
}

impl State {
    /// A tombstone from before the horizon, which is as if there were nothing, and may be gone from the store.
    pub fn is_forgotten(&self, horizon: DateTime<Utc>) -> bool {
        self.deleted && self.changed_at < horizon
    }
}

/// One item's identity as an event.
pub type EventKey = (BatchId, u32);

/// One applied change in a record's past, as its feed row tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct PastChange {
    /// The version that it made.
    pub version: i64,
    /// What it did.
    pub change: Change,
    /// Which members of the document it touched, and what they were before.
    pub touched: Arc<Touched>,
    /// Who made it.
    pub user: Arc<str>,
    /// From which device.
    pub device: Arc<str>,
    /// What kind of device, where that was told.
    pub device_type: Option<DeviceType>,
    /// When the device did it.
    pub item_time: DateTime<Utc>,
    /// The log's time of that.
    pub log_time: DateTime<Utc>,
}

/// An attempt that was behind, as a resolution of it has to know it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptAttempt {
    /// The version that the device last saw.
    pub base: i64,
    /// It was a deletion.
    pub deletes: bool,
    /// What it wanted to change.
    pub patch: Doc,
    /// Who.
    pub user: String,
    /// From which device.
    pub device: String,
    /// What kind of device, where that was told.
    pub device_type: Option<DeviceType>,
    /// When the device did it.
    pub item_time: DateTime<Utc>,
    /// Whether it still waits.
    pub standing: Standing,
    /// The log's time of the attempt, or of the decision.
    pub at: DateTime<Utc>,
}

impl KeptAttempt {
    /// Settled before the horizon, and maybe gone from the store. What waits for a person is kept for ever.
    pub fn is_forgotten(&self, horizon: DateTime<Utc>) -> bool {
        self.standing != Standing::Open && self.at < horizon
    }
}

/// Where a conflict stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits for a person.
    Open,
    /// Its policy decided it.
    Decided,
    /// This event decided it.
    Resolved(EventKey),
}

/// The past of a record, as far as it was loaded: events by identity and by content, with what became of them, and the
/// changes that made its latest versions. Whoever looks says how far back: what was loaded may be older.
#[derive(Debug, Clone, Default)]
pub struct Past {
    noted: Vec<Noted>,
    /// Where in `noted`, once there is too much of it to look through.
    index: Option<Box<Index>>,
    changes: Vec<PastChange>,
}

/// What became of an event.
#[derive(Debug, Clone)]
struct Noted {
    event: EventKey,
    /// Given where a repeat of the same item is to find it.
    content: Option<Uuid>,
    /// The log's time.
    at: DateTime<Utc>,
    outcome: Outcome,
}

#[derive(Debug, Clone, Default)]
struct Index {
    events: HashMap<EventKey, Vec<usize>>,
    contents: HashMap<Uuid, Vec<usize>>,
}

impl Index {
    fn add(&mut self, at: usize, noted: &Noted) {
        self.events.entry(noted.event).or_default().push(at);
        if let Some(content) = noted.content {
            self.contents.entry(content).or_default().push(at);
        }
    }
}

/// Most records of a chunk have one event or two: so many are looked through.
const FEW: usize = 16;

impl Past {
    /// Notes what became of an event of that log time. `content` is given where a repeat of the same item is to find it.
    pub fn note(&mut self, event: EventKey, content: Option<Uuid>, at: DateTime<Utc>, outcome: Outcome) {
        let noted = Noted {
            event,
            content,
            at,
            outcome,
        };
        if let Some(index) = &mut self.index {
            index.add(self.noted.len(), &noted);
        }
        self.noted.push(noted);
        if self.index.is_none() && self.noted.len() > FEW {
            let mut index = Box::<Index>::default();
            for (at, noted) in self.noted.iter().enumerate() {
                index.add(at, noted);
            }
            self.index = Some(index);
        }
    }

    /// Notes an applied change; they come in the order of their versions, and one that is known is not noted twice.
    pub fn note_change(&mut self, change: PastChange) {
        if self
            .changes
            .last()
            .is_none_or(|last| last.version < change.version)
        {
            self.changes.push(change);
        }
    }

    /// The record begins with the next change: what there was of it before is forgotten.
    pub fn begin(&mut self) {
        self.changes.clear();
    }

    /// The changes that made the versions after `base`, oldest first, as far as they were loaded and are no older than
    /// the horizon.
    pub fn changes_after(&self, base: i64, horizon: DateTime<Utc>) -> &[PastChange] {
        let old = |change: &PastChange| change.version <= base || change.log_time < horizon;
        let from = self.changes.partition_point(old);
        &self.changes[from..]
    }

    /// What became of the same event, read before. Where it had an effect twice, since the first was forgotten, the later one.
    pub fn of_event(&self, event: EventKey, horizon: DateTime<Utc>) -> Option<&Outcome> {
        let same = self.looked_through(
            |index| index.events.get(&event),
            |noted| noted.event == event && noted.at >= horizon,
        );
        // Of what is noted twice at one time, the first.
        let latest = same.reduce(|one, next| if next.at > one.at { next } else { one })?;
        Some(&latest.outcome)
    }

    /// What became of the same item, under whatever batch: the first outcome is the one that repeats are answered with.
    pub fn of_content(&self, content: Uuid, horizon: DateTime<Utc>) -> Option<&Outcome> {
        let same = self.looked_through(
            |index| index.contents.get(&content),
            |noted| noted.content == Some(content) && noted.at >= horizon,
        );
        Some(&same.min_by_key(|noted| noted.at)?.outcome)
    }

    fn looked_through<'a>(
        &'a self,
        indexed: impl FnOnce(&'a Index) -> Option<&'a Vec<usize>>,
        wanted: impl Fn(&Noted) -> bool,
    ) -> impl Iterator<Item = &'a Noted> {
        let (all, some): (&[Noted], &[usize]) = match &self.index {
            None => (&self.noted, &[]),
            Some(index) => (&[], indexed(index).map_or(&[], Vec::as_slice)),
        };
        let some = some.iter().map(|at| &self.noted[*at]);
        all.iter().chain(some).filter(move |noted| wanted(noted))
    }
}

/// A record while a chunk is folded.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Its state; none if it never existed.
    pub state: Option<Arc<State>>,
    /// What is known of its past.
    pub past: Past,
    /// The conflicts that a resolution at hand may be about: those that it names, and those that the chunk makes.
    pub conflicts: HashMap<Uuid, KeptAttempt>,
}

impl Record {
    /// Its state; none if it never existed, or was deleted before the horizon.
    pub fn state_since(&self, horizon: DateTime<Utc>) -> Option<&State> {
        self.state.as_deref().filter(|state| !state.is_forgotten(horizon))
    }
}
