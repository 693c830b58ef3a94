//! Named steps at which a test may have the process end or wait, and guards that a test may take out. What the product
//! promises has to hold wherever it is interrupted, and a check that no missing guard makes fail would show nothing.
//! Release builds have none of it: both functions are empty there.
//!
//! - `TIDELOG_DRILL_STOP=step@3:kill,step:wait=500`: the third time, the process is gone without a warning; the first time,
//!   the step takes 500 ms
//! - `TIDELOG_DRILL_WITHOUT=guard,guard`

/// The process has come to a step.
#[inline(always)]
pub fn reached(step: &'static str) {
    #[cfg(debug_assertions)]
    in_tests::reached(step);
    #[cfg(not(debug_assertions))]
    let _ = step;
}

/// Whether a guard is in its place.
#[inline(always)]
pub fn guarded(guard: &'static str) -> bool {
    #[cfg(debug_assertions)]
    return in_tests::guarded(guard);
    #[cfg(not(debug_assertions))]
    {
        let _ = guard;
        true
    }
}

#[cfg(debug_assertions)]
mod in_tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[derive(Debug)]
    struct Stop {
        step: String,
        /// Which time it counts, from 1.
        at: u64,
        what: What,
        reached: AtomicU64,
    }

    #[derive(Debug, PartialEq)]
    enum What {
        Kill,
        Wait(Duration),
    }

    pub(super) fn reached(step: &str) {
        static STOPS: OnceLock<Vec<Stop>> = OnceLock::new();
        let stops = STOPS.get_or_init(|| {
            let text = std::env::var("TIDELOG_DRILL_STOP").unwrap_or_default();
            text.split(',')
                .filter(|one| !one.is_empty())
                .filter_map(stop)
                .collect()
        });
        for stop in stops.iter().filter(|stop| stop.step == step) {
            let times = stop.reached.fetch_add(1, Ordering::SeqCst) + 1;
            match &stop.what {
                What::Kill if times == stop.at => {
                    eprintln!("drill: killed at {step}, time {times}");
                    // Nothing is unwound, flushed or finished, as with kill -9.
                    std::process::abort();
                }
                What::Wait(time) if times == stop.at => {
                    eprintln!("drill: waits at {step}, time {times}");
                    std::thread::sleep(*time);
                }
                _ => {}
            }
        }
    }

    fn stop(text: &str) -> Option<Stop> {
        let (place, what) = text.split_once(':')?;
        let (step, at) = place.split_once('@').unwrap_or((place, "1"));
        let what = match what.split_once('=') {
            None if what == "kill" => What::Kill,
            Some(("wait", millis)) => What::Wait(Duration::from_millis(millis.parse().ok()?)),
            _ => return None,
        };
        Some(Stop {
            step: step.to_owned(),
            at: at.parse().ok()?,
            what,
            reached: AtomicU64::new(0),
        })
    }

    pub(super) fn guarded(guard: &str) -> bool {
        static WITHOUT: OnceLock<Vec<String>> = OnceLock::new();
        let without = WITHOUT.get_or_init(|| {
            let text = std::env::var("TIDELOG_DRILL_WITHOUT").unwrap_or_default();
            text.split(',').map(str::to_owned).collect()
        });
        !without.iter().any(|known| known == guard)
    }

    #[test]
    fn a_stop_says_where_when_and_what() {
        let read = |text| stop(text).map(|stop| (stop.step, stop.at, stop.what));
        assert_eq!(read("a.b@3:kill"), Some(("a.b".into(), 3, What::Kill)));
        assert_eq!(
            read("a:wait=5"),
            Some(("a".into(), 1, What::Wait(Duration::from_millis(5))))
        );
        assert_eq!((read("a"), read("a:dance"), read("a@x:kill")), (None, None, None));
    }
}
