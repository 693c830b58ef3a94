//! A circuit breaker for something that may be away: after a failure it is left alone for a while, then one attempt
//! at a time finds out whether it is back. Knows no clock of its own and not what it guards.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Remembers the last failure.
#[derive(Debug)]
pub(crate) struct Breaker {
    cooldown: Duration,
    /// While it is open: when the next attempt may be made.
    next_attempt: Mutex<Option<Instant>>,
}

impl Breaker {
    /// Closed, that is, letting everything through.
    pub(crate) fn new(cooldown: Duration) -> Breaker {
        Breaker {
            cooldown,
            next_attempt: Mutex::new(None),
        }
    }

    /// Whether to try at all. While open, one caller per cooldown is let through to find out.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let mut next = self.lock();
        match *next {
            None => true,
            Some(at) if now < at => false,
            Some(_) => {
                *next = Some(now + self.cooldown);
                true
            }
        }
    }

    /// Whether everything is let through.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_none()
    }

    /// Notes a failure; answers whether the breaker was closed until now.
    pub(crate) fn failed(&self, now: Instant) -> bool {
        self.lock().replace(now + self.cooldown).is_none()
    }

    /// Notes a success; answers whether the breaker was open until now.
    pub(crate) fn worked(&self) -> bool {
        self.lock().take().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // The state is one value, whole whatever panicked beside it.
        self.next_attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_costs_one_attempt_per_cooldown() {
        let breaker = Breaker::new(Duration::from_secs(1));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(breaker.admits(at(0)));
        assert!(breaker.is_closed());
        assert!(breaker.failed(at(500)));
        assert!(!breaker.is_closed());
        assert!(!breaker.admits(at(1499)));
        assert!(breaker.admits(at(1500)));
        assert!(
            !breaker.admits(at(1501)),
            "one attempt finds out, not all of them"
        );
        assert!(!breaker.failed(at(2000)));
        assert!(breaker.admits(at(3000)));
        assert!(breaker.worked());
        assert!(breaker.admits(at(3001)) && breaker.admits(at(3001)));
        assert!(!breaker.worked());
    }
}
