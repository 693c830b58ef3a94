//! `tidelog dead-letters show`: one letter with everything that it holds, whether this build can read it, and, once it could,
//! what came of it. Changes nothing.

use std::time::Duration;

use anyhow::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tidelog_events::domain::Registry;
use tidelog_events::outcome::Outcome;
use tidelog_feed::{OutcomeStore, SESSION_SETTINGS};
use tidelog_projector::event::Arrived;

use super::Bench;
use super::letter::{Header, Letter, LetterPlace, Standing, time_text};
use crate::database;
use crate::output::{counted, printable};

/// Most bytes of a value that are shown to people.
const SHOWN_BYTES: usize = 4096;
/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows one dead letter: why, its headers and bytes, and whether this build can read it
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  tidelog dead-letters show sync.helpdesk.v1/2/17\n  \
                  tidelog dead-letters show sync.helpdesk.v1/2/17 --output json | jq .readable\n\nExit codes:\n  \
                  0  shown\n  1  there is no such letter, Postgres is away, or the schema is not migrated\n  \
                  2  wrong command line or setting"
)]
pub(super) struct ShowArgs {
    /// Its place, topic/partition/offset
    #[arg(value_name = "PLACE")]
    place: LetterPlace,
    #[command(flatten)]
    bench: Bench,
}

#[derive(Serialize)]
struct Shown {
    place: LetterPlace,
    #[serde(flatten)]
    standing: Standing,
    tenant: Option<String>,
    /// RFC 3339.
    logged_at: String,
    /// Why it could not be read.
    reason: String,
    /// Whether this build, with these domains, can read it.
    readable: bool,
    /// Why not, if it cannot.
    unreadable: Option<String>,
    /// What became of its event, where it can be read and something did.
    outcome: Option<Outcome>,
    key: Option<String>,
    key_base64: Option<String>,
    /// Name and value; a value that is no text in base64.
    headers: Vec<(String, Option<String>)>,
    bytes: usize,
    /// The value, where it is JSON.
    value: Option<Value>,
    value_base64: Option<String>,
    #[serde(skip)]
    raw: Option<Vec<u8>>,
}

/// Runs the command.
pub(super) async fn run(args: ShowArgs) -> Result<()> {
    let (registry, client) = args.bench.open().await?;
    let Some(letter) = Letter::load(&client, &args.place, false).await? else {
        bail!(
            "there is no dead letter at {}: `tidelog dead-letters list --status all` shows those that there are",
            args.place
        )
    };
    let read = letter.read(&registry, &args.bench.kafka.topic_prefix);
    let outcome = match &read {
        Ok(arrived) => outcome(&args.bench, &registry, arrived).await?,
        Err(_) => None,
    };
    args.bench
        .output
        .output
        .print(&shown(letter, read, outcome), text)
}

/// What is known of the event, by its batch and index: the answer that its sender would be given.
async fn outcome(bench: &Bench, registry: &Registry, arrived: &Arrived) -> Result<Option<Outcome>> {
    let config = database::config(&bench.database, "dead-letters", &SESSION_SETTINGS)?;
    let outcomes = OutcomeStore::new(database::pool(config, 1, PATIENCE)?, registry);
    let (batch, index) = arrived.key();
    let found = outcomes.find(&arrived.event.tenant, batch).await?;
    Ok(found
        .into_iter()
        .find(|item| item.index == index)
        .map(|item| item.outcome))
}

fn shown(letter: Letter, read: Result<Arrived, String>, outcome: Option<Outcome>) -> Shown {
    let value = letter.value.as_deref();
    Shown {
        place: letter.place,
        standing: letter.standing,
        tenant: letter.tenant,
        logged_at: time_text(letter.logged_at),
        reason: letter.reason,
        readable: read.is_ok(),
        unreadable: read.err(),
        outcome,
        key: letter.key.clone().and_then(|key| String::from_utf8(key).ok()),
        key_base64: letter.key.map(|key| STANDARD.encode(key)),
        headers: letter.headers.into_iter().map(header).collect(),
        bytes: value.unwrap_or_default().len(),
        value: value.and_then(|value| serde_json::from_slice(value).ok()),
        value_base64: value.map(|value| STANDARD.encode(value)),
        raw: letter.value,
    }
}

fn header((name, value): Header) -> (String, Option<String>) {
    let value = value
        .map(|value| String::from_utf8(value).unwrap_or_else(|bytes| STANDARD.encode(bytes.into_bytes())));
    (name, value)
}

fn text(shown: &Shown) -> String {
    let mut text = format!("{}, {}\n", shown.place, printable(&shown.standing.told()));
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<12} {}\n", printable(value)));
    line("logged at", &shown.logged_at);
    line("tenant", shown.tenant.as_deref().unwrap_or("-"));
    line("reason", &shown.reason);
    match &shown.unreadable {
        None => line("readable now", "yes"),
        Some(why) => line("readable now", &format!("no: {why}")),
    }
    if let Some(outcome) = &shown.outcome {
        // An outcome always serialises.
        line("outcome", &serde_json::to_string(outcome).unwrap_or_default());
    }
    let key = shown.key.as_ref().or(shown.key_base64.as_ref());
    line("key", key.map_or("-", String::as_str));
    for (name, value) in &shown.headers {
        line("header", &format!("{name}: {}", value.as_deref().unwrap_or("-")));
    }
    line("value", &counted(shown.bytes, "byte", "bytes"));
    text.push_str(&value_text(shown));
    text
}

/// JSON as it is read best, anything else as bytes; of much, the beginning.
fn value_text(shown: &Shown) -> String {
    let Some(raw) = &shown.raw else {
        return "(none)\n".into();
    };
    let pretty = shown
        .value
        .as_ref()
        .and_then(|value| serde_json::to_string_pretty(value).ok());
    let (shown, cut) = match pretty {
        Some(pretty) => {
            let end = (0..=SHOWN_BYTES.min(pretty.len()))
                .rfind(|&end| pretty.is_char_boundary(end))
                .unwrap_or(0);
            (
                pretty[..end]
                    .lines()
                    .map(printable)
                    .collect::<Vec<_>>()
                    .join("\n"),
                end < pretty.len(),
            )
        }
        None => (
            hex_dump(&raw[..raw.len().min(SHOWN_BYTES)]),
            raw.len() > SHOWN_BYTES,
        ),
    };
    let more = if cut {
        "\n… the whole of it is in --output json"
    } else {
        ""
    };
    format!("{shown}{more}\n")
}

/// Sixteen bytes a line: where, the bytes, and those of them that are printable.
fn hex_dump(bytes: &[u8]) -> String {
    let line = |(number, line): (usize, &[u8])| {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let seen = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        };
        let seen: String = line.iter().map(seen).collect();
        format!("{:08x}  {:<47}  {seen}", number * 16, hex.join(" "))
    };
    let lines: Vec<String> = bytes.chunks(16).enumerate().map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_sixteen_a_line() {
        assert_eq!(
            hex_dump(b"not JSON\x00\xffabcdefgh"),
            "00000000  6e 6f 74 20 4a 53 4f 4e 00 ff 61 62 63 64 65 66  not JSON..abcdef\n\
             00000010  67 68                                            gh"
        );
        assert_eq!(hex_dump(b""), "");
    }
}
