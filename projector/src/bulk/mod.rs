//! Filling tables of one's own from the log (`fill`), and what may be taken for granted there: a key that never came before has
//! nothing in them to look up, and what the service had for a dead letter stays one.

mod feed_keys;
mod fill;
mod spill;

pub(crate) use feed_keys::{FeedKeys, Leave};
pub(crate) use fill::{Filler, FillerParts};

use crate::event::Arrived;
use crate::state::RecordKey;
use fastbloom::BloomFilter;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Records of a chunk, and bytes of its values: larger than where somebody waits for each.
pub(crate) const CHUNK_RECORDS: usize = 2000;
pub(crate) const CHUNK_BYTES: usize = 8 << 20;

/// One key in so many is looked up for nothing.
const FALSE_POSITIVES: f64 = 0.01;
/// What a filter is made for at most: 64 MB. Beyond that more is looked up than need be, and nothing is missed.
const MOST_KEYS: u64 = 50_000_000;

/// Some records.
pub(crate) type RecordKeys = HashSet<RecordKey, foldhash::fast::RandomState>;

/// Keys of the log that have come by.
pub(crate) struct Seen(BloomFilter);

impl Seen {
    /// For about so many keys.
    pub(crate) fn new(keys: u64) -> Seen {
        let keys = usize::try_from(keys.clamp(1000, MOST_KEYS)).unwrap_or(usize::MAX);
        Seen(BloomFilter::with_false_pos(FALSE_POSITIVES).expected_items(keys))
    }

    /// Parts a chunk's events into those whose key has never come before and the others, and notes them all.
    pub(crate) fn part(&mut self, events: &[Arc<Arrived>]) -> (Vec<Arc<Arrived>>, Vec<Arc<Arrived>>) {
        let mut known: HashMap<&str, bool> = HashMap::with_capacity(events.len());
        let mut parts = (Vec::with_capacity(events.len()), Vec::new());
        for arrived in events {
            let key = arrived.topic_key();
            let new = *known.entry(key).or_insert_with(|| !self.0.insert(key));
            if new { &mut parts.0 } else { &mut parts.1 }.push(arrived.clone());
        }
        parts
    }
}

/// A record that the service could not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownLetter {
    /// Why.
    pub(crate) reason: String,
    /// Its sender was told so: it could be read, and not stored.
    pub(crate) tenant: Option<String>,
}

/// The service's dead letters of a topic, by partition and offset. They stay what they are when the log is folded again: a
/// build that can read one would otherwise give every later version of its record another number, under phones that hold it.
pub(crate) type Letters = Arc<BTreeMap<(i32, i64), KnownLetter>>;
