//! How far a step has come and how long it will still take, on stderr: one line that is rewritten on a terminal, a line
//! now and then where it is piped.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks.
const TICK: Duration = Duration::from_millis(250);
/// Between two lines where they cannot be rewritten.
const PIPED: Duration = Duration::from_secs(5);

/// Does the work and shows how much of it is done; where it fails or is stopped, how far it came.
pub(crate) async fn during<T, E>(
    what: &str,
    total: u64,
    done: impl Fn() -> u64,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(TICK);
    let (began, terminal) = (Instant::now(), std::io::stderr().is_terminal());
    let mut shown = Instant::now();
    loop {
        tokio::select! {
            result = &mut work => {
                let line = match result {
                    Ok(_) => last_line(what, total, began.elapsed()),
                    Err(_) => broken_off(what, total, done(), began.elapsed()),
                };
                say(terminal, &line, true);
                return result;
            }
            _ = ticks.tick() => {
                if terminal || shown.elapsed() > PIPED {
                    shown = Instant::now();
                    say(terminal, &line(what, total, done(), began.elapsed()), false);
                }
            }
        }
    }
}

fn line(what: &str, total: u64, done: u64, elapsed: Duration) -> String {
    let (total_shown, so_far) = (grouped(total as f64), elapsed.as_secs_f64());
    if total == 0 {
        return format!("  {what}: {so_far:.0} s so far");
    }
    if done == 0 {
        return format!("  {what}: {total_shown}, {so_far:.0} s so far");
    }
    let rate = done as f64 / so_far.max(0.001);
    let left = total.saturating_sub(done) as f64 / rate;
    format!(
        "  {what}: {} of {total_shown} ({}/s, {left:.0} s left)",
        grouped(done as f64),
        grouped(rate)
    )
}

fn last_line(what: &str, total: u64, elapsed: Duration) -> String {
    let took = elapsed.as_secs_f64();
    let count = if total == 0 {
        "done".to_owned()
    } else {
        grouped(total as f64)
    };
    format!("  {what}: {count} in {took:.1} s")
}

fn broken_off(what: &str, total: u64, done: u64, elapsed: Duration) -> String {
    let took = elapsed.as_secs_f64();
    match total {
        0 => format!("  {what}: broken off after {took:.1} s"),
        total => format!(
            "  {what}: broken off at {} of {} after {took:.1} s",
            grouped(done.min(total) as f64),
            grouped(total as f64)
        ),
    }
}

fn say(terminal: bool, line: &str, last: bool) {
    let mut out = std::io::stderr().lock();
    // To a closed pipe there is nothing to say.
    let _ = match (terminal, last) {
        (true, false) => write!(out, "\r\x1b[K{line}").and_then(|()| out.flush()),
        (true, true) => writeln!(out, "\r\x1b[K{line}"),
        (false, _) => writeln!(out, "{line}"),
    };
}

/// A whole number with its thousands apart.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(grouped(7.4), "7");
        assert_eq!(grouped(1234567.0), "1,234,567");
        assert_eq!(grouped(123456.0), "123,456");
    }

    #[test]
    fn the_time_left_follows_from_the_rate() {
        let text = line("posting", 1000, 250, Duration::from_secs(1));
        assert_eq!(text, "  posting: 250 of 1,000 (250/s, 3 s left)");
        assert_eq!(
            line("posting", 1000, 0, Duration::from_secs(2)),
            "  posting: 1,000, 2 s so far"
        );
    }

    #[test]
    fn what_is_broken_off_says_how_far_it_came() {
        let took = Duration::from_millis(3_140);
        assert_eq!(
            broken_off("folding", 12_000, 2_500, took),
            "  folding: broken off at 2,500 of 12,000 after 3.1 s"
        );
        assert_eq!(
            broken_off("indexing", 0, 0, took),
            "  indexing: broken off after 3.1 s"
        );
        assert_eq!(last_line("folding", 12_000, took), "  folding: 12,000 in 3.1 s");
    }
}
