//! The read side: changes, snapshots, records, receipts.
