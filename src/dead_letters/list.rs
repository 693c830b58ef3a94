//! `tidelog dead-letters list`: a line a letter, page by page.

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;

use super::Bench;
use super::choice::{self, Filters, Status};
use super::letter::{self, LetterPlace, STANDING, Standing};
use crate::output::{printable, table};

/// Lists dead letters, by topic, partition and offset
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  tidelog dead-letters list\n  tidelog dead-letters list --domain helpdesk --status all --since 7d\n  \
                         tidelog dead-letters list --limit 1 --output json | jq -r .next\n\nExit codes:\n  \
                         0  listed\n  1  Postgres is away, or the schema is not migrated\n  2  wrong command line or setting"
)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filters: Filters,
    /// What became of them
    #[arg(long, default_value = "open")]
    status: Status,
    /// After this place: what the page before told as next
    #[arg(long, value_name = "PLACE")]
    after: Option<LetterPlace>,
    /// Most letters to show
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    #[command(flatten)]
    bench: Bench,
}

/// A page.
#[derive(Serialize)]
struct Page {
    letters: Vec<Line>,
    /// Where the next page begins, if there is one: for `--after`.
    next: Option<LetterPlace>,
}

#[derive(Serialize)]
struct Line {
    place: LetterPlace,
    /// RFC 3339.
    logged_at: String,
    tenant: Option<String>,
    /// `ce_type`, if it has one.
    event: Option<String>,
    /// Bytes of its value.
    bytes: i32,
    reason: String,
    #[serde(flatten)]
    standing: Standing,
}

/// Runs the command.
pub(super) async fn run(args: ListArgs) -> Result<()> {
    let (registry, client) = args.bench.open().await?;
    let columns =
        format!(", logged_at, tenant_id, headers, coalesce(octet_length(value), 0), reason, {STANDING}");
    let rows = args
        .filters
        .page(
            &client,
            (&registry, &args.bench.kafka.topic_prefix),
            args.status,
            args.after.as_ref(),
            (&columns, args.limit),
        )
        .await?;
    // The limit is at most a thousand.
    let limit = args.limit as usize;
    let letters: Vec<Line> = rows.iter().take(limit).map(line).collect::<Result<_>>()?;
    let next = (rows.len() > limit)
        .then(|| letters.last().map(|line| line.place.clone()))
        .flatten();
    args.bench.output.output.print(&Page { letters, next }, text)
}

fn line(row: &Row) -> Result<Line> {
    let headers = letter::headers(&row.get::<_, Value>(5))?;
    let event = headers.iter().find(|(name, _)| name == "ce_type");
    let event = event.and_then(|(_, value)| String::from_utf8(value.clone()?).ok());
    let tenant: Option<String> = row.get(4);
    Ok(Line {
        place: choice::place(row),
        logged_at: letter::time_text(row.get(3)),
        tenant: tenant.or_else(|| letter::claimed_tenant(&headers)),
        event,
        bytes: row.get(6),
        reason: row.get(7),
        standing: letter::standing(row, 8),
    })
}

fn text(page: &Page) -> String {
    if page.letters.is_empty() {
        return "No such dead letters.".into();
    }
    let rows: Vec<[String; 7]> = page
        .letters
        .iter()
        .map(|line| {
            let or_none = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
            [
                line.place.to_string(),
                line.logged_at.clone(),
                or_none(&line.tenant),
                or_none(&line.event),
                line.bytes.to_string(),
                line.standing.status.clone(),
                printable(&line.reason),
            ]
        })
        .collect();
    let heading = [
        "place",
        "logged at",
        "tenant",
        "event",
        "bytes",
        "status",
        "reason",
    ];
    let right = [false, false, false, false, true, false, false];
    let more = match &page.next {
        Some(next) => format!("There are more: --after {next}\n"),
        None => String::new(),
    };
    format!("{}{more}", table(heading, right, &rows))
}
