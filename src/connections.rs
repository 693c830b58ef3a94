//! How many connections of clients this process can hold: what is set, as far as its file handles reach. Without a handle
//! the next client cannot even be told that there is no place, so the limit has to be met first.

use rustix::process::{Resource, getrlimit, setrlimit};
use tidelog_http::Limits;

use crate::settings::ConnectionSettings;

/// File handles for everything that is no client: Kafka, Postgres, and clients that are being refused.
const OTHERS: u64 = 256;

/// The limits of a gateway's clients. Raises the process's soft limit of file handles where that is needed and allowed.
pub(crate) fn limits(settings: ConnectionSettings) -> Limits {
    let wanted = u64::from(settings.max_connections);
    let allowed = allowed(wanted, file_handles(wanted + OTHERS));
    if allowed < wanted {
        tracing::warn!(
            max_connections = allowed,
            set = wanted,
            "the limit of file handles (ulimit -Hn) allows for fewer connections than are set"
        );
    }
    let max_connections = usize::try_from(allowed).unwrap_or(usize::MAX);
    Limits {
        max_connections,
        max_connections_per_address: settings
            .max_connections_per_address
            .map_or(usize::MAX, |most| most as usize),
        ..Limits::default()
    }
}

/// How many connections that many file handles allow for.
fn allowed(wanted: u64, handles: u64) -> u64 {
    // With very few, half are better than none.
    wanted.min(handles.saturating_sub(OTHERS).max(handles / 2)).max(1)
}

/// The soft limit of file handles, raised to `needed` if it was lower, as far as the hard limit lets it.
fn file_handles(needed: u64) -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let soft = limit.current.unwrap_or(u64::MAX);
    if soft >= needed {
        return soft;
    }
    limit.current = Some(needed.min(hard));
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => needed.min(hard),
        Err(_) => soft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_file_handles_for_the_rest() {
        assert_eq!(allowed(4096, 20_000), 4096);
        assert_eq!(allowed(4096, 1024), 768);
        assert_eq!(allowed(4096, 256), 128);
        assert_eq!(allowed(100, u64::MAX), 100);
        assert_eq!(allowed(4096, 1), 1);
    }
}
