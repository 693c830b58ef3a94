//! Everything that the model remembers between two steps: the log, Postgres, the processes, and what phones were told.
//! Plain data, and small, since each state of it is kept. Must not know who may do what when.

use crate::fold::{Batch, Event, Outcome, Results, Tables};

/// A moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// One partition of one topic.
    pub(crate) log: Vec<Event>,
    pub(crate) postgres: Postgres,
    /// In order of their states: which one is which makes no difference.
    pub(crate) gateways: Vec<Gateway>,
    /// Likewise.
    pub(crate) lanes: Vec<Lane>,
    /// Transactions that nobody waits for any more and Postgres still has; likewise.
    pub(crate) orphans: Vec<Folded>,
    /// What was told under each key.
    pub(crate) told: [Told; 3],
    /// How often each batch may still be posted.
    pub(crate) posts: [u8; 3],
    /// How much may still go wrong.
    pub(crate) trouble: u8,
    pub(crate) seen: Seen,
}

impl World {
    /// The same with like processes in order: states that differ only in who is who become one.
    pub(crate) fn in_order(mut self) -> World {
        self.gateways.sort_unstable();
        self.lanes.sort_unstable();
        self.orphans.sort_unstable();
        self
    }
}

/// What Postgres has committed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Postgres {
    /// `positions`. The epoch is 0 before the first claim.
    pub(crate) position: Owned,
    pub(crate) tables: Tables,
    /// `idempotency_records`, and `batches` with it: both are written by one statement.
    pub(crate) keys: [Option<Key>; 3],
}

/// A row of `idempotency_records`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Somebody's lease has not ended. Whose is noted where it is held: see [`Claim`].
    pub(crate) leased: bool,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) answer: Option<Answer>,
}

/// Where a batch lies: the offset of its last item, and under which ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Receipt {
    pub(crate) sending: u8,
    pub(crate) last: u8,
}

/// A final answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Answer {
    /// By index.
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) receipt: Receipt,
    /// The release that composed it.
    pub(crate) release: u8,
}

/// A process that takes batches, one at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Gateway {
    pub(crate) work: Work,
    /// What was handed to the producer and is not in the log yet, in order. Outlives the process.
    pub(crate) wire: Vec<Event>,
    /// An answer that was told, on its way into the store.
    pub(crate) keeping: Option<(Batch, Answer)>,
    /// A record that waits for Postgres.
    pub(crate) later: Option<(Batch, Receipt)>,
}

/// How far a gateway has come with its batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Work {
    #[default]
    Idle,
    /// Handed over, and not all of it reported.
    Appending {
        batch: Batch,
        sending: u8,
        release: u8,
        claim: Claim,
        /// The last report.
        last: Option<u8>,
    },
    /// In the log and recorded: waits for outcomes.
    Open {
        batch: Batch,
        receipt: Receipt,
        release: u8,
        /// It was taken by an earlier request, or another's.
        replayed: bool,
    },
}

/// What a gateway holds of the key that it works under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Claim {
    /// Nothing: Postgres was away.
    Skipped,
    /// The lease.
    Held,
    /// A lease that has ended: it slept for too long.
    Ended,
}

/// A partition's epoch and position, in the table or as a lane believes them to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owned {
    pub(crate) epoch: u8,
    pub(crate) next_offset: u8,
}

/// A process's worker for the partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lane {
    /// Where the partition stands once everything that was begun has landed.
    pub(crate) owned: Option<Owned>,
    /// A chunk that was made ready.
    pub(crate) prepared: Option<Folded>,
    pub(crate) flight: Option<Flight>,
    /// It was fenced off, and reads the position before anything else.
    pub(crate) unsure: bool,
}

/// A chunk that was read, loaded and folded, and the move that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Folded {
    pub(crate) epoch: u8,
    pub(crate) from: u8,
    pub(crate) to: u8,
    pub(crate) results: Results,
}

/// A chunk whose transaction was sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Flight {
    pub(crate) folded: Folded,
    /// Where the partition stood before.
    pub(crate) before: Owned,
    /// What Postgres made of it, once it did and before the lane has heard.
    pub(crate) written: Option<Written>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Written {
    Committed,
    Fenced,
}

/// What was told under a key, whoever heard it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    /// 202 or 200.
    pub(crate) acknowledged: bool,
    /// The first final answer.
    pub(crate) answer: Option<Answer>,
    /// Another one, after that.
    pub(crate) another: Option<Answer>,
}

/// What a moment alone does not show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    /// A position moved back.
    pub(crate) moved_back: bool,
    /// Somebody wrote under an epoch that was not the latest.
    pub(crate) zombie_wrote: bool,
    /// A kept answer gave way to another.
    pub(crate) replaced: bool,
}
