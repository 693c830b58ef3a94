//! What lies in the log, and what the fold makes of it: three items, two records, two phones. Mirrors
//! `projector::fold` and the tables that `projector::write` keeps, as far as repeats and conflicts go: documents,
//! times and policies are the property tests' of `projector`. Must not know who appends or who folds.

use crate::guards::{Guard, Guards};

/// Which record; also its place in [`Tables::versions`].
pub(crate) type RecordKey = usize;

/// What the phones did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Item {
    /// The first phone's new record.
    CreateA,
    /// The second phone's change of it, by one who never saw it: refused before [`Item::CreateA`] (it is no whole
    /// document), a conflict that `client_wins` applies after it. So what becomes of it depends on the log's order.
    PatchA,
    /// Another new record of the first phone's.
    CreateB,
}

impl Item {
    pub(crate) fn record(self) -> RecordKey {
        match self {
            Item::CreateA | Item::PatchA => 0,
            Item::CreateB => 1,
        }
    }
}

/// A key, and the body that always comes under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Batch {
    /// The first phone's two records.
    First,
    /// The second phone's change.
    Other,
    /// The items of [`Batch::First`], sent again under another key.
    Again,
}

impl Batch {
    pub(crate) const ALL: [Batch; 3] = [Batch::First, Batch::Other, Batch::Again];

    pub(crate) fn items(self) -> &'static [Item] {
        match self {
            Batch::First | Batch::Again => &[Item::CreateA, Item::CreateB],
            Batch::Other => &[Item::PatchA],
        }
    }

    /// Its events. `sending` is 0 where ids follow from the batch alone, as they should.
    pub(crate) fn events(self, sending: u8) -> Vec<Event> {
        let numbered = (0..).zip(self.items());
        let event = |(index, item): (u8, &Item)| Event {
            key: EventKey {
                batch: self,
                sending,
                index,
            },
            item: *item,
        };
        numbered.map(event).collect()
    }
}

/// One item of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EventKey {
    pub(crate) batch: Batch,
    pub(crate) sending: u8,
    pub(crate) index: u8,
}

/// A record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Event {
    pub(crate) key: EventKey,
    pub(crate) item: Item,
}

/// What became of an item; versions as the record's afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Outcome {
    Applied { version: u8 },
    Conflict { version: u8 },
    Duplicate { version: u8 },
    Refused,
}

/// A row of a feed or of `outcomes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    pub(crate) offset: u8,
    pub(crate) event: Event,
    pub(crate) outcome: Outcome,
}

/// What the projection keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tables {
    /// The rows; 0 where there is none.
    pub(crate) versions: [u8; 2],
    /// What changed a record.
    pub(crate) feed: Vec<Entry>,
    /// What did not.
    pub(crate) outcomes: Vec<Entry>,
}

/// What a chunk leaves behind: rows as they end, and what is added.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Results {
    pub(crate) versions: [Option<u8>; 2],
    pub(crate) feed: Vec<Entry>,
    pub(crate) outcomes: Vec<Entry>,
}

impl Tables {
    /// The tables after `log`, folded from nothing.
    pub(crate) fn of(log: &[Event], guards: Guards) -> Tables {
        let mut tables = Tables::default();
        let results = fold_chunk(&tables, log, 0, guards);
        tables.write(&results);
        tables
    }

    /// Takes a chunk in. Rows are written as the chunk ends them; `outcomes` keeps what it has.
    pub(crate) fn write(&mut self, results: &Results) {
        for (version, written) in self.versions.iter_mut().zip(results.versions) {
            *version = written.unwrap_or(*version);
        }
        self.feed.extend(&results.feed);
        for entry in &results.outcomes {
            if !self.outcomes.iter().any(|kept| kept.event.key == entry.event.key) {
                self.outcomes.push(*entry);
            }
        }
    }

    /// Whether the feed has a row at a place of the chunk already: its primary key forbids another.
    pub(crate) fn collides(&self, results: &Results) -> bool {
        let taken = |row: &Entry| self.feed.iter().any(|kept| kept.offset == row.offset);
        results.feed.iter().any(taken)
    }

    /// Everything that is told of items, applied or not.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.feed.iter().chain(&self.outcomes)
    }

    /// What became of a batch, by index, as `feed::outcomes` finds it: what applied comes before what did not.
    pub(crate) fn of_batch(&self, batch: Batch, sending: u8) -> Vec<Outcome> {
        let events = batch.events(sending).into_iter();
        let found = |event: Event| self.entries().find(|entry| entry.event.key == event.key);
        events.filter_map(found).map(|entry| entry.outcome).collect()
    }
}

/// Folds events that begin at `from`, on a copy of what was loaded.
pub(crate) fn fold_chunk(loaded: &Tables, events: &[Event], from: u8, guards: Guards) -> Results {
    let mut world = loaded.clone();
    let mut results = Results::default();
    for (offset, event) in (from..).zip(events) {
        let Some(outcome) = fold(&world, event, guards) else {
            continue;
        };
        let entry = Entry {
            offset,
            event: *event,
            outcome,
        };
        match outcome {
            Outcome::Applied { version } | Outcome::Conflict { version } => {
                world.versions[event.item.record()] = version;
                world.feed.push(entry);
                results.versions[event.item.record()] = Some(version);
                results.feed.push(entry);
            }
            Outcome::Duplicate { .. } | Outcome::Refused => {
                world.outcomes.push(entry);
                results.outcomes.push(entry);
            }
        }
    }
    results
}

/// What an event does to its record; none if it was folded before.
fn fold(world: &Tables, event: &Event, guards: Guards) -> Option<Outcome> {
    if guards.has(Guard::Repeat) && world.entries().any(|past| past.event.key == event.key) {
        return None;
    }
    let same_item = world.feed.iter().find(|past| past.event.item == event.item);
    if guards.has(Guard::SameItem)
        && let Some(Outcome::Applied { version } | Outcome::Conflict { version }) =
            same_item.map(|first| first.outcome)
    {
        return Some(Outcome::Duplicate { version });
    }
    let version = world.versions[event.item.record()];
    Some(match event.item {
        Item::PatchA if version == 0 => Outcome::Refused,
        Item::PatchA => Outcome::Conflict { version: version + 1 },
        Item::CreateA | Item::CreateB => Outcome::Applied { version: version + 1 },
    })
}
