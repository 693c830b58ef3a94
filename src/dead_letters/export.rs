//! `tidelog dead-letters export`: letters as JSON lines, bytes in base64, for whoever looks into them elsewhere. One letter is
//! in memory at a time.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};
use tidelog_events::domain::Registry;
use tokio_postgres::Client;

use super::Bench;
use super::choice::{Filters, Status, place};
use super::letter::{Letter, LetterPlace, time_text};
use crate::audit::Audit;
use crate::guard_rails::OperatorArgs;
use crate::output::counted;

/// How many places are asked for at once.
const PAGE: i64 = 1000;

/// Writes dead letters as JSON lines, to a file or stdout
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Writes dead letters as JSON lines, to a file or stdout: place, reason, headers, and key and value in base64. Without places and \
                  filters, all that are open. A file that is there already is not written over.",
    after_help = "Examples:\n  tidelog dead-letters export --to letters.jsonl\n  \
                  tidelog dead-letters export --domain helpdesk --status all --since 7d | jq -r .reason | sort | uniq -c\n\nExit codes:\n  \
                  0  written\n  1  failed; it says why\n  2  wrong command line or setting"
)]
pub(super) struct ExportArgs {
    /// Letters by their places, topic/partition/offset
    #[arg(value_name = "PLACE", conflicts_with_all = ["topic", "domain", "tenant", "since", "status"])]
    places: Vec<LetterPlace>,
    #[command(flatten)]
    filters: Filters,
    /// What became of them
    #[arg(long, default_value = "open")]
    status: Status,
    /// Most letters to write
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    limit: i64,
    /// The file to make; without it, stdout
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    bench: Bench,
}

/// Runs the command.
pub(super) async fn run(args: ExportArgs) -> Result<()> {
    let (registry, client) = args.bench.open().await?;
    let arguments =
        json!({"places": args.places, "filters": args.filters, "limit": args.limit, "to": args.to});
    let audit = Audit::begin(
        &args.bench.database,
        &args.operator,
        "dead-letters export",
        &arguments,
    )
    .await?;
    let written = export(&args, &registry, &client).await;
    let letters = written.as_ref().map(|(written, _)| *written).ok();
    audit.end(&written, json!({"letters": letters})).await;
    let (written, more) = written?;
    let verb = match args.operator.dry_run {
        true => "would be written",
        false => "written",
    };
    eprintln!("{} {verb}", counted(written, "letter", "letters"));
    if more {
        eprintln!("warning: there are more than {}: see --limit", args.limit);
    }
    Ok(())
}

/// Answers how many were written, and whether there are more.
async fn export(args: &ExportArgs, registry: &Registry, client: &Client) -> Result<(i64, bool)> {
    let mut out = match (&args.to, args.operator.dry_run) {
        (_, true) => Sink::Nothing,
        (None, false) => Sink::Stdout(std::io::stdout()),
        (Some(path), false) => Sink::made(path)?,
    };
    let (mut written, mut after) = (0, None);
    loop {
        let limit = PAGE.min(args.limit - written);
        let (places, more) = page(args, registry, client, after.as_ref(), (written, limit)).await?;
        for place in &places {
            match Letter::load(client, place, false).await? {
                Some(letter) if !out.write(&line(&letter))? => return Ok((written, false)),
                Some(_) => written += 1,
                None => bail!("there is no dead letter at {place}"),
            }
        }
        after = places.last().cloned();
        if !more || written >= args.limit || after.is_none() {
            out.finish()?;
            return Ok((written, more));
        }
    }
}

/// The next places, at most as many as `limit`, and whether there are more.
async fn page(
    args: &ExportArgs,
    registry: &Registry,
    client: &Client,
    after: Option<&LetterPlace>,
    (written, limit): (i64, i64),
) -> Result<(Vec<LetterPlace>, bool)> {
    // Neither is more than a million.
    let (written, size) = (written as usize, limit as usize);
    let mut places: Vec<LetterPlace> = if args.places.is_empty() {
        let which = (registry, args.bench.kafka.topic_prefix.as_str());
        let rows = args
            .filters
            .page(client, which, args.status, after, ("", limit))
            .await?;
        rows.iter().map(place).collect()
    } else {
        args.places.iter().skip(written).cloned().collect()
    };
    let more = places.len() > size;
    places.truncate(size);
    Ok((places, more))
}

fn line(letter: &Letter) -> Value {
    let base64 = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| STANDARD.encode(bytes));
    let headers: Vec<Value> = letter
        .headers
        .iter()
        .map(|(name, value)| match value.as_deref().map(std::str::from_utf8) {
            Some(Ok(text)) => json!({"name": name, "value": text}),
            Some(Err(_)) => json!({"name": name, "value_base64": base64(value)}),
            None => json!({"name": name, "value": null}),
        })
        .collect();
    json!({
        "topic": letter.place.topic,
        "partition": letter.place.partition,
        "offset": letter.place.offset,
        "logged_at": time_text(letter.logged_at),
        "tenant": letter.tenant,
        "reason": letter.reason,
        "status": letter.standing.status,
        "retried_offset": letter.standing.retried_offset,
        "headers": headers,
        "key_base64": base64(&letter.key),
        "value_base64": base64(&letter.value),
    })
}

/// Where the lines go.
enum Sink {
    Nothing,
    Stdout(std::io::Stdout),
    File(BufWriter<File>, PathBuf),
}

impl Sink {
    fn made(path: &Path) -> Result<Sink> {
        match File::options().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Sink::File(BufWriter::new(file), path.to_owned())),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "the file {} is there already, and is not written over: give another one with --to, or move it away",
                path.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot make the file {}", path.display())),
        }
    }

    /// Answers whether somebody still takes more: a reader that has gone (`| head`) is no error.
    fn write(&mut self, line: &Value) -> Result<bool> {
        match self {
            Sink::Nothing => Ok(true),
            Sink::File(file, path) => {
                writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
                Ok(true)
            }
            Sink::Stdout(out) => match writeln!(out, "{line}") {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
                written => written.map(|()| true).context("cannot write to stdout"),
            },
        }
    }

    fn finish(&mut self) -> Result<()> {
        if let Sink::File(file, path) = self {
            let done = file.flush().and_then(|()| file.get_ref().sync_all());
            done.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
