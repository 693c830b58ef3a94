//! What the fold knows of a record: its state, and as much of its past as the events at hand can ask for. Plain data;
//! where it is stored is the store's.

use crate::document::Touched;
use chrono::{DateTime, Utc};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use tidelog_events::batch::BatchId;
use tidelog_events::domain::Audience;
use tidelog_events::ids::DeviceType;
use tidelog_events::outcome::{Change, Outcome};
use tidelog_events::position::Place;
use uuid::Uuid;

pub use tidelog_events::doc::Doc;

/// Which record, as maps go by it. A fold looks each record up several times and hands its key on as often, so the key is in
/// memory once and knows its hash.
#[derive(Clone)]
pub struct RecordKey {
    hash: u64,
    identity: Arc<Identity>,
}

/// A domain's table, the tenant, the identity, and the parent that it hangs on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The domain's table.
    pub table: Arc<str>,
    /// The tenant.
    pub tenant: Arc<str>,
    /// `mobile_id` or `item_id`.
    pub subject: Arc<str>,
    /// The parent's `mobile_id`, for domains that have one.
    pub parent: Option<Uuid>,
}

/// Whoever sends items chooses identities; what they hash to he cannot know.
static SEED: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

impl RecordKey {
    /// The key of that record.
    pub fn new(identity: Identity) -> RecordKey {
        RecordKey {
            hash: SEED.hash_one(&identity),
            identity: Arc::new(identity),
        }
    }
}

impl Deref for RecordKey {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.identity
    }
}

impl PartialEq for RecordKey {
    fn eq(&self, other: &RecordKey) -> bool {
        self.hash == other.hash && self.identity == other.identity
    }
}

impl Eq for RecordKey {}

impl Hash for RecordKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

impl PartialOrd for RecordKey {
    fn partial_cmp(&self, other: &RecordKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RecordKey {
    fn cmp(&self, other: &RecordKey) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
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
pub struct Past(Option<Box<Remembered>>);

#[derive(Debug, Clone, Default)]
struct Remembered {
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
        let past = self.0.get_or_insert_default();
        if let Some(index) = &mut past.index {
            index.add(past.noted.len(), &noted);
        }
        past.noted.push(noted);
        if past.index.is_none() && past.noted.len() > FEW {
            let mut index = Box::<Index>::default();
            for (at, noted) in past.noted.iter().enumerate() {
                index.add(at, noted);
            }
            past.index = Some(index);
        }
    }

    /// Notes an applied change; they come in the order of their versions, and one that is known is not noted twice.
    pub fn note_change(&mut self, change: PastChange) {
        let changes = &mut self.0.get_or_insert_default().changes;
        if changes.last().is_none_or(|last| last.version < change.version) {
            changes.push(change);
        }
    }

    /// The record begins with the next change: what there was of it before is forgotten.
    pub fn begin(&mut self) {
        if let Some(past) = &mut self.0 {
            past.changes.clear();
        }
    }

    /// The changes that made the versions after `base`, oldest first, as far as they were loaded and are no older than
    /// the horizon.
    pub fn changes_after(&self, base: i64, horizon: DateTime<Utc>) -> &[PastChange] {
        let old = |change: &PastChange| change.version <= base || change.log_time < horizon;
        let changes = self.0.as_ref().map_or(&[][..], |past| &past.changes);
        &changes[changes.partition_point(old)..]
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
        let noted = self.0.as_ref().map_or(&[][..], |past| &past.noted);
        let index = self.0.as_ref().and_then(|past| past.index.as_ref());
        let (all, some): (&[Noted], &[usize]) = match index {
            None => (noted, &[]),
            Some(index) => (&[], indexed(index).map_or(&[], Vec::as_slice)),
        };
        let some = some.iter().map(|at| &noted[*at]);
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
    pub conflicts: BTreeMap<Uuid, KeptAttempt>,
}

impl Record {
    /// Its state; none if it never existed, or was deleted before the horizon.
    pub fn state_since(&self, horizon: DateTime<Utc>) -> Option<&State> {
        self.state.as_deref().filter(|state| !state.is_forgotten(horizon))
    }
}
