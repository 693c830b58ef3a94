//! Folds the log into Postgres: rows, feed, outcomes, conflicts, positions.
