//! How many batches to work on at once: what keeps the slowest part busy, and little more, since beyond it each batch
//! only waits for the others. Nobody can set that right for every deployment, so it is measured, by Little's law: what
//! is done in a second, times what it takes when nothing is in its way, is how many at once that needs.
//!
//! What a batch takes with nothing in its way is the least that was seen lately, among batches of about its size. So
//! that under steady overload this is seen at all, for a moment every few seconds only half of what is needed is worked on.
//! Knows no clock of its own, and not what a batch is.

use std::time::{Duration, Instant};
use tidelog_http::turns::AtOnce;

/// In an overload, so much more than is needed: no part is idle for want of the next batch, growth shows, and each takes
/// about so many times what the quickest do. Else so much that it hardly limits. At least so many, whatever was
/// measured, and at most far more than one process can make use of.
const OVERLOAD: f64 = 2.5;
const RUSH: f64 = 5.0;
const LEAST: AtOnce = AtOnce {
    rush: 16,
    overload: 4,
};
const MOST: usize = 1024;
/// What is measured is counted up over so long, and then is so much of the running measure: quicker where it rises.
const SLICE: Duration = Duration::from_millis(200);
const RISING: f64 = 0.4;
const FALLING: f64 = 0.1;
/// One slice in so many is lean.
const LEAN: u32 = 32;
/// The least that a batch took is forgotten after one to two of these.
const MEMORY: Duration = Duration::from_secs(10);
/// Sizes are told apart by powers of two from this many bytes.
const LEAST_SIZE: usize = 2048;
const SIZES: usize = 14;

/// The measurements.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Seconds, by size.
    least: [Recent; SIZES],
    /// At once.
    needed: f64,
    slice: Slice,
    remembered: Instant,
}

/// The least of the time since the last [`MEMORY`] began, and of the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Recent {
    now: Option<f64>,
    before: Option<f64>,
}

#[derive(Debug)]
struct Slice {
    began: Instant,
    number: u32,
    /// What its batches would have taken with nothing in their way, in seconds.
    work: f64,
}

impl Recent {
    /// Notes a value; answers the least.
    fn least(&mut self, value: f64) -> f64 {
        let now = self.now.map_or(value, |now| now.min(value));
        self.now = Some(now);
        self.before.map_or(now, |before| before.min(now))
    }

    fn age(&mut self) {
        // What was not seen again is kept: an old measure is better than none.
        self.before = self.now.or(self.before);
        self.now = None;
    }
}

impl Pace {
    /// Before anything is measured.
    pub(crate) const FIRST: AtOnce = LEAST;

    /// Nothing is measured yet.
    pub(crate) fn new(now: Instant) -> Pace {
        Pace {
            least: [Recent::default(); SIZES],
            needed: 0.0,
            slice: Slice {
                began: now,
                number: 0,
                work: 0.0,
            },
            remembered: now,
        }
    }

    /// Notes a batch that is done; answers how many to work on at once from now on.
    pub(crate) fn done(&mut self, bytes: usize, took: Duration, now: Instant) -> AtOnce {
        if now - self.remembered >= MEMORY {
            self.remembered = now;
            self.least.iter_mut().for_each(Recent::age);
        }
        let size = (bytes / LEAST_SIZE + 1).ilog2().min(SIZES as u32 - 1);
        self.slice.work += self.least[size as usize].least(took.as_secs_f64());
        let length = now - self.slice.began;
        if length >= SLICE {
            let change = self.slice.work / length.as_secs_f64() - self.needed;
            self.needed += change * if change > 0.0 { RISING } else { FALLING };
            self.slice = Slice {
                began: now,
                number: self.slice.number.wrapping_add(1),
                work: 0.0,
            };
        }
        self.at_once()
    }

    fn at_once(&self) -> AtOnce {
        let above = |by: f64, least| ((by * self.needed).ceil() as usize).clamp(least, MOST);
        // Less than is believed to be needed, or what was once measured too high would confirm itself.
        let lean = self.slice.number % LEAN == LEAN - 1;
        AtOnce {
            rush: above(RUSH, LEAST.rush),
            overload: match lean {
                true => above(0.5, 1),
                false => above(OVERLOAD, LEAST.overload),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that takes `alone` for a batch and does `width` side by side, asked by more phones than it can serve for
    /// so many seconds: what the pace comes to at last, outside of lean slices.
    fn settles(pace: &mut Pace, clock: &mut Instant, alone: f64, width: f64, seconds: f64) -> usize {
        let mut at_once = LEAST.overload;
        let mut last = at_once;
        let end = *clock + Duration::from_secs_f64(seconds);
        while *clock < end {
            let took = alone * (at_once as f64 / width).max(1.0);
            // One after the other is done, as many in that time as there are at once.
            *clock += Duration::from_secs_f64(took / at_once as f64);
            at_once = pace.done(10_000, Duration::from_secs_f64(took), *clock).overload;
            if pace.slice.number % LEAN != LEAN - 1 {
                last = at_once;
            }
        }
        last
    }

    #[test]
    fn it_finds_what_keeps_the_log_busy_and_stays_there() {
        let mut clock = Instant::now();
        let mut pace = Pace::new(clock);
        for seconds in [30.0, 300.0] {
            let found = settles(&mut pace, &mut clock, 0.02, 40.0, seconds);
            assert!((95..=107).contains(&found), "{found} after {seconds} s");
        }
    }

    #[test]
    fn it_follows_a_log_that_becomes_slower_or_narrower() {
        let mut clock = Instant::now();
        let mut pace = Pace::new(clock);
        settles(&mut pace, &mut clock, 0.002, 20.0, 60.0);
        let slower = settles(&mut pace, &mut clock, 0.1, 40.0, 60.0);
        assert!((90..=110).contains(&slower), "{slower}");
        let narrower = settles(&mut pace, &mut clock, 0.1, 1.0, 120.0);
        assert!(narrower <= LEAST.overload + 1, "{narrower}");
    }

    #[test]
    fn small_batches_say_nothing_about_large_ones() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut at_once = 0;
        // Sixteen large ones side by side, each with a small one beside it, which takes next to nothing.
        for _ in 0..200 {
            now += Duration::from_millis(100);
            for _ in 0..16 {
                pace.done(500, Duration::from_micros(100), now);
                at_once = pace.done(1 << 20, Duration::from_millis(100), now).overload;
            }
        }
        assert!((38..=43).contains(&at_once), "{at_once}");
    }
}
