//! How fast events are taken, by all lanes of a run together: for whoever must not be felt beside a service that is at work.
//! Knows no events and does not wait itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many events a second; by default as many as can be.
#[derive(Debug, Clone, Default)]
pub struct Rate(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    per_second: u32,
    /// When what was taken so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Rate {
    /// No more than these. Clones share them.
    pub fn per_second(events: u32) -> Rate {
        Rate(Some(Arc::new(Bucket {
            per_second: events.max(1),
            paid: Mutex::default(),
        })))
    }

    /// How long to wait before so many events are taken, which are counted as taken then.
    pub(super) fn reserve(&self, events: u64) -> Duration {
        self.0
            .as_ref()
            .map_or(Duration::ZERO, |bucket| bucket.reserve(events, Instant::now()))
    }
}

impl Bucket {
    /// Who has taken nothing for a while has not saved it up.
    fn reserve(&self, events: u64, now: Instant) -> Duration {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = paid.unwrap_or(now).max(now);
        *paid = Some(begins + Duration::from_secs_f64(events as f64 / f64::from(self.per_second)));
        begins - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_waited_for_by_whoever_comes_next() {
        let rate = Rate::per_second(100);
        let (bucket, now) = (rate.0.expect("a bucket"), Instant::now());
        assert_eq!(bucket.reserve(50, now), Duration::ZERO);
        assert_eq!(bucket.reserve(10, now), Duration::from_millis(500));
        assert_eq!(bucket.reserve(1, now), Duration::from_millis(600));
        let later = now + Duration::from_secs(60);
        assert_eq!(bucket.reserve(100, later), Duration::ZERO);
        assert_eq!(bucket.reserve(1, later), Duration::from_secs(1));
        assert_eq!(Rate::default().reserve(u64::MAX), Duration::ZERO);
    }
}
