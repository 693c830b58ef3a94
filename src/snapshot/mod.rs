//! `tidelog snapshot`: what the projection holds of a topic at one moment, as files: rows, feed, outcomes, conflicts, hits, dead letters and
//! positions. A rebuild begins with it where the log has lost its beginning. `folder` is where it lies, `manifest` what it says of
//! itself, `packed` a file, `loading` the way back; what is read is the projector's to know.

mod folder;
pub(crate) mod loading;
mod manifest;
mod packed;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tidelog_projector::fold::FOLD_VERSION;
use tidelog_projector::shadow::{Held, Shadow, Standing, StoredTable};
use tokio::sync::{mpsc, watch};

use crate::audit::Audit;
use crate::domains::{self, named};
use crate::guard_rails::OperatorArgs;
use crate::output::{OutputArgs, worded};
use crate::progress::{during, grouped};
use crate::refold::{Ground, Purpose, names};
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings};
use crate::shutdown::{stopped, until_signal};

pub(crate) use folder::Found;
use folder::{Unfinished, cannot_write};
use manifest::{Manifest, Stored, VERSION, definitions};

/// How long a run may go on after Ctrl-C.
const LEAVE: Duration = Duration::from_secs(10);
/// What is handed over to be packed at once, and how much of it waits.
const PART: usize = 256 << 10;
const WAITING: usize = 8;

/// Writes what the tables hold of a topic as files that a rebuild can begin with
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Writes what the projection holds of a topic, at one moment and with the positions of that moment, into a new folder \
                  DIR/TOPIC/YYYYMMDDTHHMMSSZ: a packed file a table, and a manifest with their sums. Where a topic does not keep its log \
                  for ever, or Postgres is lost, `tidelog rebuild --snapshot DIR` begins with the latest of them and folds only what came \
                  afterwards; the log has to reach back to it, so take one more often than the log is shortened.\n\nSafe while the \
                  service is up: it reads in one long transaction and locks nothing that the service wants. Such a transaction \
                  holds back Postgres' clean-up for as long as it runs, and a rebuild's swap waits for it.\n\nA snapshot is a copy of \
                  people's data: keep it as the database is kept. Values that are sealed in the tables are sealed in it, and the keys are \
                  not in it (they are in the log, sync.keys.v1), so what `tidelog erase` has destroyed cannot be opened in an old snapshot \
                  either. Without seal_secret it holds everything in plain text.",
    after_help = "Examples:\n  tidelog snapshot --to /backup/tidelog\n  tidelog snapshot --domain helpdesk --to /backup/tidelog\n  \
                  tidelog snapshot --to /backup/tidelog --output json | jq -r '.[].folder'\n\nExit codes:\n  \
                  0  taken; it says where\n  \
                  1  failed, or stopped on the way: what was finished stays, and of the rest nothing is left\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct SnapshotArgs {
    /// This domain's topic alone; all of them by default
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// The folder under which it is made
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Tables that are read at once; by default as many as there are processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
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

/// A topic, written.
#[derive(Debug, Serialize)]
struct Taken {
    topic: String,
    domains: Vec<String>,
    dry_run: bool,
    /// Where it lies; none of a trial.
    folder: Option<PathBuf>,
    taken_at: String,
    positions: Vec<Standing>,
    /// In all files; of a trial about.
    rows: u64,
    bytes: u64,
    seconds: f64,
}

/// Runs the command.
pub(crate) async fn run(args: SnapshotArgs) -> Result<ExitCode> {
    let registry = domains::registry(&args.domains)?;
    let topics = match &args.domain {
        Some(name) => vec![named(&registry, name)?.topic.clone()],
        None => registry.topics().into_iter().map(str::to_owned).collect(),
    };
    let ground = Ground::new(args.jobs, &args.kafka, &args.database, &args.domains);
    // Says what is wrong with Postgres before anything is noted.
    ground.connect("snapshot", &registry).await?;
    let arguments = json!({"domain": args.domain, "to": args.to});
    let audit = Audit::begin(&args.database, &args.operator, "snapshot", &arguments).await?;
    let mut taken = Vec::new();
    let mut ended = Err(anyhow!("stopped: nothing was taken"));
    until_signal(LEAVE, async |stop| {
        ended = all(&args, &ground, &registry, &topics, &stop, &mut taken).await;
        Ok(())
    })
    .await?;
    let folders: Vec<&PathBuf> = taken.iter().filter_map(|taken| taken.folder.as_ref()).collect();
    audit.end(&ended, json!({"folders": folders})).await;
    if ended.is_err() {
        // What was finished stays, so it is told.
        eprint!("{}", text(&taken));
    }
    ended?;
    args.output.output.print(&taken, |taken| text(taken))?;
    Ok(ExitCode::SUCCESS)
}

async fn all(
    args: &SnapshotArgs,
    ground: &Ground,
    registry: &Arc<Registry>,
    topics: &[String],
    stop: &watch::Receiver<bool>,
    taken: &mut Vec<Taken>,
) -> Result<()> {
    for topic in topics {
        let shadow = ground.shadow(registry, topic, Purpose::Scratch("snapshot"), None)?;
        tokio::select! {
            done = take(args, ground, registry, &shadow) => taken.push(done?),
            () = stopped(stop.clone()) => bail!("stopped: of {} nothing is left behind", shadow.topic()),
        }
    }
    Ok(())
}

async fn take(args: &SnapshotArgs, ground: &Ground, registry: &Registry, shadow: &Shadow) -> Result<Taken> {
    let began = Instant::now();
    let client = ground.connect("snapshot", registry).await?;
    let held = shadow.hold(&client).await?;
    if held.fold_version > FOLD_VERSION {
        bail!(
            "{} is folded by a newer tidelog (fold {}; this is {FOLD_VERSION}): take the snapshot with that one",
            shadow.topic(),
            held.fold_version
        );
    }
    let (mut manifest, mut folder) = (manifest(shadow, &held), None);
    let mut rows = held.tables.iter().map(|table| table.about).sum();
    if !args.operator.dry_run {
        let unfinished = Unfinished::begin(&args.to, &manifest.name, held.at)?;
        let written = AtomicU64::new(0);
        let each = held
            .tables
            .iter()
            .map(|table| write_table(shadow, &held, table, &unfinished, &written));
        let writing = stream::iter(each).buffer_unordered(ground.jobs()).try_collect();
        let what = format!("reading the rows of {}", shadow.topic());
        manifest.files = during(&what, rows, || written.load(Ordering::Relaxed), writing).await?;
        rows = manifest.rows();
        folder = Some(unfinished.finish(&manifest)?);
    }
    Ok(Taken {
        topic: shadow.topic(),
        domains: names(shadow),
        dry_run: args.operator.dry_run,
        folder,
        taken_at: held.at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        rows,
        bytes: manifest.bytes(),
        positions: held.standing,
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn manifest(shadow: &Shadow, held: &Held) -> Manifest {
    Manifest {
        version: VERSION,
        topic: shadow.topic(),
        name: shadow.domains()[0].topic.clone(),
        domains: names(shadow),
        fold_version: held.fold_version,
        definitions: definitions(shadow),
        tidelog: env!("CARGO_PKG_VERSION").into(),
        taken_at: held.at,
        positions: held.standing.clone(),
        files: Vec::new(),
    }
}

async fn write_table(
    shadow: &Shadow,
    held: &Held,
    table: &StoredTable,
    unfinished: &Unfinished,
    written: &AtomicU64,
) -> Result<Stored> {
    let file = format!("{}.copy.zst", table.table);
    let path = unfinished.file(&file);
    let client = shadow.connect().await?;
    shadow.share(&client, held).await?;
    let mut copy = std::pin::pin!(shadow.rows_of(&client, table).await?);
    let (parts, receiver) = mpsc::channel(WAITING);
    let packing = tokio::task::spawn_blocking({
        let path = path.clone();
        move || packed::pack(&path, receiver)
    });
    let (mut rows, mut part) = (0, BytesMut::new());
    while let Some(row) = copy.next().await {
        let row = row.map_err(crate::database::plain)?;
        let count = loading::rows_in(&row);
        rows += count;
        written.fetch_add(count, Ordering::Relaxed);
        part.extend_from_slice(&row);
        // Where packing failed, that is why nobody takes any more.
        if part.len() >= PART && parts.send(part.split().freeze()).await.is_err() {
            break;
        }
    }
    let _ = parts.send(part.freeze()).await;
    drop(parts);
    let packed = packing.await?.with_context(|| cannot_write(&path))?;
    drill::reached("snapshot.written");
    Ok(Stored {
        table: table.table.clone(),
        file,
        columns: table.columns.clone(),
        rows,
        bytes: packed.bytes,
        sha256: packed.sha256,
    })
}

fn text(taken: &[Taken]) -> String {
    let line = |taken: &Taken| {
        let topic = &taken.topic;
        let rows = format!(
            "{} {}",
            grouped(taken.rows as f64),
            worded(&taken.rows, "row", "rows")
        );
        match &taken.folder {
            None => format!("{topic}: about {rows} would be written\n"),
            Some(folder) => format!(
                "{topic}: {rows} as of {} in {}, {} bytes, {:.1} s\n",
                taken.taken_at,
                folder.display(),
                grouped(taken.bytes as f64),
                taken.seconds
            ),
        }
    };
    taken.iter().map(line).collect()
}
