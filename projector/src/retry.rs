//! How long to wait before the same is tried again: doubling, with jitter so that many workers do not come back at
//! once, never longer than a few seconds, because what they wait for serves phones.

use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;

/// Waits between attempts, without end.
pub(crate) fn waits() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(3))
        .without_max_times()
        .with_jitter()
        .build()
        .chain(std::iter::repeat(Duration::from_secs(3)))
}
