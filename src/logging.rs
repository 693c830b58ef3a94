//! What the process says of itself, on stderr: lines of text, or of JSON for machines.
//!
//! A log line names tenant, device, batch, topic and offset where it can; it never holds a token, a secret, an item's
//! fields or SQL with values in it. Results go to stdout and are [`crate::output`]'s.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::settings::LogFormat;

/// Libraries that say every step at `info`. A filter of the user's own can turn each up again.
const QUIETER: [&str; 3] = ["refinery_core=warn", "tokio_postgres=warn", "tracing::span=warn"];

/// Whether a filter can be read.
pub(crate) fn check_filter(text: &str) -> Result<String, String> {
    EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}; give a level (error, warn, info, debug, trace), or MODULE=LEVEL, separated by commas"))
}

/// Starts logging; called once, at the boot.
pub(crate) fn start(filter: &str, format: LogFormat) {
    let mut directives = QUIETER.join(",");
    directives.push(',');
    directives.push_str(filter);
    let filter = EnvFilter::builder().parse_lossy(directives);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused() {
        assert!(check_filter("info,librdkafka=debug").is_ok());
        assert!(check_filter("info,librdkafka=loud").is_err());
    }
}
