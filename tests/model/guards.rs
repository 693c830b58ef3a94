//! What keeps the promises: each guard of the code that the model mirrors can be taken out of it, to see that the
//! checker finds what goes wrong without. Must not know what a guard does.

/// One check or order of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// `projector::write`: a position moves only under the epoch of its latest claim.
    Epoch,
    /// `projector::write`: and only from where the worker believes that it stands.
    Offset,
    /// `projector::flight`: what a chunk in flight touches is loaded when that has landed.
    Touched,
    /// `projector::fold`: an event that was folded before does nothing.
    Repeat,
    /// `projector::fold`: an item that was applied before, under whatever batch, is a duplicate.
    SameItem,
    /// `events::batch`: event ids follow from key and fingerprint, so that a batch appended again has the same.
    DerivedIds,
    /// `ingest::claim`: the claim comes before the append, and tells what is known of the key.
    ClaimFirst,
    /// `ingest::delivery`: nothing is acknowledged before every record of the batch is.
    Delivered,
    /// `ingest::record`: where two gateways appended a batch, both tell of the record that came first.
    FirstRecord,
    /// `ingest::record`: the first answer stays under its key.
    FirstAnswer,
}

/// All guards but one, or all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Guards {
    pub(crate) without: Option<Guard>,
}

impl Guards {
    pub(crate) fn has(self, guard: Guard) -> bool {
        self.without != Some(guard)
    }
}
