//! A moment as operators write it: a time, or how long ago. Knows no command.

use chrono::{DateTime, Utc};

use crate::settings::duration;

/// What is told of another spelling.
pub(crate) const RULE: &str = "give a time like 2026-03-01T08:00:00Z, or how long ago: 15m, 24h, 7d";

/// RFC 3339, or how long ago.
pub(crate) fn moment(text: &str) -> Result<DateTime<Utc>, &'static str> {
    match duration(text) {
        Ok(ago) => chrono::Duration::from_std(ago)
            .ok()
            .and_then(|ago| Utc::now().checked_sub_signed(ago))
            .ok_or(RULE),
        Err(_) => DateTime::parse_from_rfc3339(text)
            .map(|time| time.to_utc())
            .map_err(|_| RULE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        let ago = Utc::now() - moment("24h").expect("an age");
        assert!((86_390..86_410).contains(&ago.num_seconds()), "{ago}");
        let time = moment("2026-03-01T12:00:00+02:00").expect("a time");
        assert_eq!(time.to_rfc3339(), "2026-03-01T10:00:00+00:00");
        for bad in ["", "yesterday", "24", "0s", "2026-03-01"] {
            assert_eq!(moment(bad), Err(RULE), "{bad}");
        }
    }
}
