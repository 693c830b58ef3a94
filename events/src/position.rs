//! Places in the log, and how far the projection has come. A position is the next offset that a partition's fold will
//! take; whatever lies before it is in Postgres.

use std::collections::BTreeMap;

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic, with a deployment's prefix.
    pub topic: String,
    /// The partition.
    pub partition: i32,
}

/// One record of the log within its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// How far each partition has been applied: the next offset that its fold will take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<TopicPartition, i64>);

impl Positions {
    /// The next offset of a partition; 0 where nothing was applied yet.
    pub fn next_offset(&self, at: &TopicPartition) -> i64 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// Notes a position.
    pub fn set(&mut self, at: TopicPartition, next_offset: i64) {
        self.0.insert(at, next_offset);
    }

    /// Whether every record of a batch has been applied.
    pub fn cover(&self, appended: &Appended) -> bool {
        appended.0.iter().all(|(at, last)| self.next_offset(at) > *last)
    }
}

impl FromIterator<(TopicPartition, i64)> for Positions {
    fn from_iter<I: IntoIterator<Item = (TopicPartition, i64)>>(iter: I) -> Self {
        Positions(iter.into_iter().collect())
    }
}

/// Where a batch's records came to lie: the last offset in each partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Appended(BTreeMap<TopicPartition, i64>);

impl Appended {
    /// Notes one record.
    pub fn note(&mut self, at: TopicPartition, offset: i64) {
        let last = self.0.entry(at).or_insert(offset);
        *last = offset.max(*last);
    }

    /// Each partition with its last offset.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicPartition, i64)> {
        self.0.iter().map(|(at, last)| (at, *last))
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_covers_what_lies_before_it() {
        let at = |partition| TopicPartition {
            topic: "t".into(),
            partition,
        };
        let mut appended = Appended::default();
        appended.note(at(0), 4);
        appended.note(at(0), 3);
        appended.note(at(1), 9);
        let mut positions = Positions::default();
        positions.set(at(0), 5);
        assert!(!positions.cover(&appended));
        positions.set(at(1), 9);
        assert!(!positions.cover(&appended));
        positions.set(at(1), 10);
        assert!(positions.cover(&appended));
    }
}
