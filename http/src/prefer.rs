//! How long a caller would wait for a final answer: `Prefer: wait=N` (RFC 7240, section 4.3).
//!
//! Reads headers and nothing else: must not know what is waited for. A preference is never an error, so what
//! cannot be read counts as not sent.

use std::convert::Infallible;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use warp::Filter;

/// The header that says which preference was honoured.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The header that carries preferences.
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Seconds to wait for who doesn't say.
pub const DEFAULT_WAIT: u64 = 2;

/// The most seconds that anyone waits; who asks for more gets this.
pub const MAX_WAIT: u64 = 30;

/// How long to wait for a final answer, and whether the caller asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    seconds: u64,
    asked: bool,
}

impl Wait {
    /// The first `wait` with a number among all `Prefer` headers.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let asked = headers
            .get_all(PREFER)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|line| split(line, b','))
            .find_map(wait_of);
        match asked {
            Some(seconds) => Wait {
                seconds: seconds.min(MAX_WAIT),
                asked: true,
            },
            None => Wait {
                seconds: DEFAULT_WAIT,
                asked: false,
            },
        }
    }

    /// How long to wait; zero for not at all.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The value for `Preference-Applied`, as clamped; none where the caller had no wish.
    pub fn applied(self) -> Option<HeaderValue> {
        let text = format!("wait={}", self.seconds);
        // Letters, `=` and digits are always a header value.
        self.asked.then(|| HeaderValue::from_str(&text).ok()).flatten()
    }
}

/// Extracts the request's [`Wait`]; never rejects.
pub fn wait() -> impl Filter<Extract = (Wait,), Error = Infallible> + Copy {
    warp::header::headers_cloned().map(|headers: HeaderMap| Wait::from_headers(&headers))
}

/// The seconds of `wait=N`, if that is what the preference says. Parameters after `;` mean nothing to us.
fn wait_of(preference: &str) -> Option<u64> {
    let (name, value) = split(preference, b';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    let value = value.trim();
    let digits = value
        .strip_prefix('"')
        .map_or(Some(value), |rest| rest.strip_suffix('"'))?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // More digits than a u64 holds is still a number, and more than the most.
    Some(digits.parse().unwrap_or(u64::MAX))
}

/// The parts of `text` between separators that do not stand inside a quoted string.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        let inside = quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        !inside && c == char::from(separator)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(lines: &[&str]) -> (u64, Option<String>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, HeaderValue::from_str(line).unwrap());
        }
        let wait = Wait::from_headers(&headers);
        (
            wait.duration().as_secs(),
            wait.applied().map(|v| v.to_str().unwrap().to_owned()),
        )
    }

    fn asked(seconds: u64) -> (u64, Option<String>) {
        (seconds, Some(format!("wait={seconds}")))
    }

    #[test]
    fn who_says_nothing_waits_two_seconds_and_is_told_nothing() {
        assert_eq!(wait(&[]), (2, None));
        assert_eq!(wait(&["respond-async"]), (2, None));
    }

    #[test]
    fn a_number_is_taken_zero_too_and_more_than_thirty_is_thirty() {
        assert_eq!(wait(&["wait=0"]), asked(0));
        assert_eq!(wait(&["wait=10"]), asked(10));
        assert_eq!(wait(&["wait=31"]), asked(30));
        assert_eq!(wait(&["wait=99999999999999999999999"]), asked(30));
    }

    #[test]
    fn rfc_7240_spells_it_in_many_ways() {
        assert_eq!(wait(&["WAIT = \"5\""]), asked(5));
        assert_eq!(wait(&["respond-async, wait=5; foo=bar"]), asked(5));
        assert_eq!(wait(&["return=minimal", "wait=5"]), asked(5));
        assert_eq!(wait(&["foo=\"a, wait=9 \\\" , wait=8\", wait=5"]), asked(5));
        assert_eq!(wait(&["wait=5, wait=9"]), asked(5));
    }

    #[test]
    fn garbage_counts_as_not_sent() {
        for line in [
            "wait",
            "wait=",
            "wait=\"\"",
            "wait=-1",
            "wait=1.5",
            "wait=\"5",
            "wait=x",
            ";;,=,\"",
            "waits=5",
        ] {
            assert_eq!(wait(&[line]), (2, None), "{line}");
        }
        assert_eq!(wait(&["wait=x", "wait=4"]), asked(4));
    }
}
