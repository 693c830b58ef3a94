//! `tidelog export`: a domain's events with what became of them, as files for analysts who have no Kafka. Reads the log
//! outside the projectors' group and the outcomes from Postgres, and moves nothing. Each idea has its file: `plan` is from
//! where to where, `reading` which day a record counts to and what became of it, `columns` what a row holds, `payload` how
//! its value becomes text, `sheet` the formats (`parquet`, `lines`), `folder` how far it is, `writing` brings them together.

mod columns;
mod folder;
mod lines;
mod parquet;
mod payload;
mod plan;
mod reading;
mod sheet;
mod writing;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::ids::TenantId;
use tidelog_events::topic_name;
use tidelog_projector::log::Log;
use tokio::sync::{mpsc, watch};

use crate::audit::Audit;
use crate::domains;
use crate::guard_rails::OperatorArgs;
use crate::look::outcomes;
use crate::output::{OutputArgs, counted, worded};
use crate::progress::{during, grouped};
use crate::settings::{self, DatabaseSettings, DomainSettings, KafkaSettings};
use crate::shutdown::{stopped, until_signal};

/// Pages that wait to be written, each of a parcel at the most.
const WAITING: usize = 2;
/// How long a run may go on after Ctrl-C.
const LEAVE: Duration = Duration::from_secs(10);
/// Some of the range is left, since the projection has not come to it.
const EXIT_BEHIND: u8 = 3;

/// Writes a domain's events with their outcomes as files: Parquet, JSON lines or CSV
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Writes a domain's events, a row an event with what became of it and the item as it was sent, for analysts: \
                  DIR/DOMAIN/date=YYYY-MM-DD/partition=NNNN.parquet, which DuckDB and Spark read as one table. Records that \
                  nobody can read are rows too, with the reason.\n\nThe day is the UTC day of the log's time; a time that steps \
                  back within its partition counts as the one before it. So each event is in one file, and the same range gives \
                  the same bytes.\n\nStarted again with the same arguments it goes on where it was, also after kill -9: \
                  DIR/DOMAIN/_export.json says how far each partition is. Days that are not over are left out, unless \
                  --include-today is given. A partition's last file is written again when there is more for its day.\n\nWhat the \
                  projection has not come to within --wait is left for the next run, unless --with-pending is given.",
    after_help = "Examples:\n  tidelog export --domain helpdesk --into /data/events\n  \
                  tidelog export --domain helpdesk --into /data/today --include-today --format csv --tenant acme\n  \
                  tidelog export --domain helpdesk --into /data/march --from 2026-03-01T00:00:00Z --to 2026-04-01T00:00:00Z --dry-run\n  \
                  duckdb -c \"select outcome, count(*) from '/data/events/helpdesk/*/*.parquet' group by 1\"\n\nExit codes:\n  \
                  0  everything up to the end of the range is in files\n  \
                  1  failed or stopped; what is complete stays, and the same command goes on from there\n  \
                  2  wrong command line or setting\n  \
                  3  written, but the projection has not come to some of the range; it says how much"
)]
pub(crate) struct ExportArgs {
    /// The domain whose events are exported
    #[arg(long, value_name = "NAME")]
    domain: String,
    /// The folder, made where it is not there; the same again goes on
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// The files' format
    #[arg(long, value_name = "FORM", default_value = "parquet")]
    format: sheet::Format,
    /// This partition alone; may be given several times
    #[arg(long, value_name = "N")]
    partition: Vec<i32>,
    /// Where a new export begins: `beginning`, an offset of every partition, a time (RFC 3339), or how long ago, like 7d
    /// [default: beginning, or where the folder's export began]
    #[arg(long, value_name = "PLACE", value_parser = plan::from)]
    from: Option<plan::Said>,
    /// Where this run ends: `end`, or before an offset of every partition or a time
    #[arg(long, value_name = "PLACE", default_value = "end", value_parser = plan::to)]
    to: plan::Said,
    /// Only of this tenant
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: Option<TenantId>,
    /// The day that is not over too; its files are written again by the next run
    #[arg(long)]
    include_today: bool,
    /// How long to wait for the projection to come to the end of the range, like 30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = settings::duration)]
    wait: Duration,
    /// Write events that the projection has not come to as `pending`; their files are written again by a later run
    #[arg(long)]
    with_pending: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a run wrote.
#[derive(Debug, Serialize)]
struct Exported {
    domain: String,
    topic: String,
    format: sheet::Format,
    folder: PathBuf,
    dry_run: bool,
    events: u64,
    bytes: u64,
    seconds: f64,
    events_per_second: u64,
    files: Vec<writing::Written>,
    /// What the projection has not come to.
    behind: Vec<plan::Behind>,
    /// Events of the topic that are left out because their day is not over.
    of_today: u64,
}

/// Runs the command.
pub(crate) async fn run(args: ExportArgs) -> Result<ExitCode> {
    let registry = domains::registry(&args.domains)?;
    let domain = domains::named(&registry, &args.domain)?.clone();
    // The schema is of this build, which the audit relies on.
    let client = outcomes::connect(&args.database, &registry, "export").await?;
    let audit = Audit::begin(&args.database, &args.operator, "export", &arguments(&args)).await?;
    let mut exported = None;
    let ended = until_signal(LEAVE, async |stop| {
        exported = Some(export(&args, &registry, &domain, client, stop).await?);
        Ok(())
    })
    .await;
    let counts = exported
        .as_ref()
        .map(|exported| (exported.events, exported.files.len()));
    let (events, files) = counts.unzip();
    audit.end(&ended, json!({"events": events, "files": files})).await;
    ended?;
    let exported = exported.context("the export did not end")?;
    args.output.output.print(&exported, text)?;
    Ok(match exported.behind.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_BEHIND),
    })
}

fn arguments(args: &ExportArgs) -> serde_json::Value {
    json!({
        "domain": args.domain,
        "into": args.into,
        "format": args.format,
        "partition": args.partition,
        "from": args.from.as_ref().map(|from| &from.text),
        "to": args.to.text,
        "tenant": args.tenant,
        "include_today": args.include_today,
        "with_pending": args.with_pending,
    })
}

async fn export(
    args: &ExportArgs,
    registry: &Arc<Registry>,
    domain: &Arc<Domain>,
    client: tokio_postgres::Client,
    stop: watch::Receiver<bool>,
) -> Result<Exported> {
    let began = Instant::now();
    let log = Log::new(
        &args.kafka.kafka_brokers,
        &topic_name(&args.kafka.topic_prefix, &domain.topic),
    );
    let columns = columns::of(domain);
    let trial = args.operator.dry_run;
    let from = args.from.as_ref();
    let about = folder::About {
        domain: domain.name.clone(),
        topic: log.topic().to_owned(),
        format: args.format,
        tenant: args.tenant.as_ref().map(ToString::to_string),
        from: from.map_or("beginning", |from| from.text.as_str()).to_owned(),
        columns: columns.iter().map(|column| column.name.clone()).collect(),
    };
    let folder = folder::Folder::open(&args.into, about, from.map(|from| from.text.as_str()), trial)?;
    let dir = folder.dir().to_owned();
    let asked = plan::Asked {
        partitions: &args.partition,
        from: begins(&folder, from)?,
        to: args.to.place,
        include_today: args.include_today,
        wait: args.wait,
        with_pending: args.with_pending,
    };
    let settling = plan::settle(&asked, &log, &client, folder.progress());
    let plan::Settled {
        spans,
        behind,
        of_today,
    } = unless(&stop, settling).await?;
    let notes = vec![("domain", domain.name.clone()), ("topic", log.topic().to_owned())];
    let writing = writing::Writing::new(folder, args.format, columns, notes, trial);
    let reading = reading::Reading {
        registry: registry.clone(),
        domain: domain.clone(),
        tenant: args.tenant.clone(),
        client: (!trial).then_some(client),
        passed: AtomicI64::new(0),
        log,
    };
    let files = unless(&stop, written(&reading, &spans, writing)).await?;
    let seconds = began.elapsed().as_secs_f64();
    let events = files.iter().map(|file| file.events).sum();
    Ok(Exported {
        domain: domain.name.clone(),
        topic: reading.log.topic().to_owned(),
        format: args.format,
        folder: dir,
        dry_run: trial,
        events,
        bytes: files.iter().filter_map(|file| file.bytes).sum(),
        seconds,
        events_per_second: (events as f64 / seconds.max(0.001)) as u64,
        files,
        behind,
        of_today,
    })
}

/// Where partitions begin that are new to this folder: as it was said now, or when the folder was new.
fn begins(folder: &folder::Folder, from: Option<&plan::Said>) -> Result<plan::Place> {
    match from {
        Some(from) => Ok(from.place),
        None => Ok(plan::from(folder.from()).map_err(anyhow::Error::msg)?.place),
    }
}

/// The work, given up when the process is to end.
async fn unless<T>(stop: &watch::Receiver<bool>, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = stopped(stop.clone()) => bail!("stopped: the files that are there are whole, and the same command goes on from there"),
    }
}

/// Reads, asks and writes at once, with little in between.
async fn written(
    reading: &reading::Reading,
    spans: &[plan::Span],
    writing: writing::Writing,
) -> Result<Vec<writing::Written>> {
    let total: i64 = spans.iter().map(|span| (span.to - span.from).max(0)).sum();
    let (pages, receiver) = mpsc::channel(WAITING);
    let writer = tokio::task::spawn_blocking(move || writing.run(receiver));
    let feeding = async move {
        for span in spans {
            if !reading.read(span, &pages).await? {
                break;
            }
        }
        anyhow::Ok(())
    };
    let what = format!("exporting {}", reading.log.topic());
    let passed = || reading.passed.load(Ordering::Relaxed).unsigned_abs();
    let both = async {
        let fed = feeding.await;
        // Where writing failed, that is why nobody takes any more.
        let files = writer.await.context("the writer ended before its work did")??;
        fed?;
        Ok(files)
    };
    match total {
        0 => both.await,
        total => during(&what, total.unsigned_abs(), passed, both).await,
    }
}

fn text(exported: &Exported) -> String {
    let mut text = String::new();
    if exported.dry_run {
        for file in &exported.files {
            text.push_str(&file.text());
            text.push('\n');
        }
    }
    let events = grouped(exported.events as f64);
    let events = format!("{events} {}", worded(&exported.events, "event", "events"));
    let files = exported.files.len();
    let written = counted(files as u64, "file", "files");
    let folder = exported.folder.display();
    text.push_str(&match (exported.dry_run, files) {
        (_, 0) => format!("{}: nothing new for {folder}\n", exported.domain),
        (true, _) => format!(
            "{}: {events} would be written, in {written} under {folder}\n",
            exported.domain
        ),
        (false, _) => format!(
            "{}: {events} in {written} under {folder}, {} bytes, {:.1} s ({}/s)\n",
            exported.domain,
            grouped(exported.bytes as f64),
            exported.seconds,
            grouped(exported.events_per_second as f64)
        ),
    });
    if exported.of_today > 0 {
        let (number, events) = (grouped(exported.of_today as f64), &exported.of_today);
        text.push_str(&format!(
            "Today is not over (UTC), so what {} has of it is left out, {number} {}: the next run after midnight writes it, and \
             --include-today writes it now.\n",
            exported.topic,
            worded(events, "event", "events")
        ));
    }
    for behind in &exported.behind {
        text.push_str(&format!(
            "The projection has not come to partition {} from offset {} on ({} {}): once it has, start the same command again.\n",
            behind.partition,
            behind.from_offset,
            grouped(behind.events as f64),
            worded(&behind.events, "event", "events")
        ));
    }
    text
}
