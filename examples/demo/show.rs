//! What the spectator sees: numbered steps, a few lines each, no colours, so that it reads the same in a pipe. And the
//! checks, each of which compares what came with what was expected.

use std::fmt::Debug;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The demo as it is shown.
pub(crate) struct Show {
    began: Instant,
    steps: usize,
    checks: usize,
}

impl Show {
    pub(crate) fn begin(title: &str) -> Self {
        say(title);
        Self {
            began: Instant::now(),
            steps: 0,
            checks: 0,
        }
    }

    /// Says what is done next.
    pub(crate) fn step(&mut self, text: &str) {
        self.steps += 1;
        say(&format!("\n{:>2}  {text}", self.steps));
    }

    /// Fails unless `got` is what was expected.
    pub(crate) fn check<T: PartialEq<U> + Debug, U: Debug>(
        &mut self,
        what: &str,
        got: T,
        expected: U,
    ) -> Result<()> {
        self.checks += 1;
        if got != expected {
            bail!("{what}\n  expected: {expected:?}\n  came:     {got:?}");
        }
        Ok(())
    }

    pub(crate) fn end(&self) {
        say(&format!(
            "\nAll as expected: {} steps, {} checks, {:.1} s",
            self.steps,
            self.checks,
            self.began.elapsed().as_secs_f64()
        ));
        if cfg!(debug_assertions) {
            say(
                "(Times are those of an unoptimised build on this machine; BENCHMARKS.md has the measured ones.)",
            );
        }
    }
}

/// A line or more under the step.
pub(crate) fn tell(text: &str) {
    for line in text.lines() {
        say(format!("      {line}").trim_end());
    }
}

/// `24.3 ms`.
pub(crate) fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

/// `4100 items/s`.
pub(crate) fn rate(items: usize, took: Duration) -> String {
    format!("{:.0} items/s", items as f64 / took.as_secs_f64())
}

/// Who no longer listens (`| head`) changes nothing of what is checked.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
