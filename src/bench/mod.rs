//! `tidelog bench`: how fast, and how much memory, each figure beside what it is to be judged by, in one run.
//!
//! Everything runs on a Kafka and a Postgres of its own ([`ground`]), and what is measured are the shipped commands
//! (`tidelog ingest`, `tidelog project`) as processes of their own, asked over HTTP as phones ask ([`phone`]). What
//! stands beside a figure is made from the same records and the same rows, read back from what Tidelog wrote ([`log`],
//! [`tables`]). A file a measurement: [`accept`], [`project`], [`round_trip`], [`pull`], [`rebuild`]; memory is noted by all of them.

mod accept;
mod child;
mod fill;
mod floor;
mod ground;
mod log;
mod phone;

mod project;
mod pull;
mod rebuild;
mod report;
mod round_trip;
mod stats;
mod tables;
mod tickets;
mod warm_up;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::output::OutputArgs;
use crate::stack::Stack;
use crate::stack::files::Lock;

use ground::Ground;
use report::{Machine, Report};

/// Where the table of a full run goes.
const DEFAULT_FILE: &str = "BENCHMARKS.md";

/// Measures speed and memory, side by side
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Measures speed and memory, each figure beside what it is to be judged by, on a Kafka and a Postgres \
                  of its own: (a) items accepted, (b) items projected, (c) a batch from POST to its outcomes, (d) \
                  changes pulled, (f) events rebuilt, and the memory of each process. Leave the machine alone meanwhile. Ctrl-C stops \
                  all of it.",
    after_help = "Examples:\n  make bench\n  cargo run --release -- bench --only c --quick\n\nExit codes:\n  \
                  0  measured, whatever came out\n  1  failed or interrupted\n  2  wrong command line or setting"
)]
pub(crate) struct BenchArgs {
    /// Measure only these, separated by commas
    #[arg(long, value_name = "a,b,c,d,f", value_delimiter = ',')]
    only: Vec<Part>,
    /// A tenth of the work, once: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Put the table in this Markdown file too [default: BENCHMARKS.md, for a full run]
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Folder for Kafka and Postgres, kept between runs
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum Part {
    /// Items accepted by the gateway, beside a bare producer
    A,
    /// Items projected, beside Postgres alone
    B,
    /// A batch from POST to final outcomes, beside the floor
    C,
    /// Changes pulled, as rows and tenants grow
    D,
    /// Events rebuilt, beside COPY by Postgres alone
    F,
}

impl Part {
    const ALL: [Part; 5] = [Part::A, Part::B, Part::C, Part::D, Part::F];

    /// How long it takes on a small machine, in seconds: the share of the whole that is left is told by these.
    fn expected_seconds(self) -> u64 {
        match self {
            Part::A => 60,
            Part::B => 180,
            Part::C => 110,
            Part::D => 130,
            Part::F => 120,
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// How often each figure is taken; the median counts.
    rounds: usize,
    /// Batches of 100 accepted in one round.
    accepted_batches: usize,
    /// Batches of 100 projected in one round, as creates and again as updates.
    projected_batches: usize,
    /// Batches that one phone posts in one round, and that sixteen post together.
    one_phone_batches: usize,
    sixteen_phones_batches: usize,
    /// Rows and tenants of the two fillings that are pulled from.
    small_fill: (usize, usize),
    large_fill: (usize, usize),
    /// Pulls of each kind.
    pulls: usize,
}

impl Size {
    const FULL: Size = Size {
        rounds: 3,
        accepted_batches: 1000,
        projected_batches: 1500,
        one_phone_batches: 300,
        sixteen_phones_batches: 1600,
        small_fill: (100_000, 100),
        large_fill: (1_000_000, 1000),
        pulls: 300,
    };
    const QUICK: Size = Size {
        rounds: 1,
        accepted_batches: 200,
        projected_batches: 150,
        one_phone_batches: 50,
        sixteen_phones_batches: 320,
        small_fill: (20_000, 20),
        large_fill: (100_000, 100),
        pulls: 60,
    };
}

/// Runs the command.
pub(crate) async fn run(args: BenchArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build, many times slower: run `make bench`");
    }
    // From here on a signal is a wish that we hear, not the end.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut stop = std::pin::pin!(async {
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
    });
    let (dir, _lock) = folder(&args.data_dir)?;
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut report = Report::new(Machine::here(), args.quick);

    eprintln!("Starting Kafka and Postgres in {}", args.data_dir.display());
    let started = tokio::select! {
        started = Stack::start(&dir, &exe, None) => started,
        () = &mut stop => {
            Stack::settled(&dir).await?;
            bail!("interrupted")
        }
    };
    let mut stack = started?;
    let ground = Ground::new(&dir, &exe, &stack)?;
    // What `measure` has started stops when it is dropped.
    let measured = tokio::select! {
        measured = measure(&ground, &args, &mut report) => measured,
        why = stack.wait_for_death() => Err(why),
        () = &mut stop => Err(anyhow::anyhow!("interrupted")),
    };
    eprintln!("Stopping Kafka and Postgres");
    let stopped = stack.stop().await;
    if !report.is_empty() {
        args.output.output.print(&report, Report::text)?;
    }
    measured.and(stopped)?;
    if let Some(file) = output_file(&args) {
        report.write(&file)?;
        eprintln!("The table is in {}", file.display());
    }
    Ok(())
}

/// A look at some of it does not replace the table of a full run, unless it is told to.
fn output_file(args: &BenchArgs) -> Option<PathBuf> {
    let full = args.only.is_empty() && !args.quick;
    args.output_file
        .clone()
        .or_else(|| full.then(|| DEFAULT_FILE.into()))
}

/// The data folder, ours alone while the lock lives.
fn folder(given: &Path) -> Result<(PathBuf, Lock)> {
    std::fs::create_dir_all(given).with_context(|| format!("cannot make the folder {}", given.display()))?;
    let dir = given.canonicalize()?;
    match Lock::try_take(&dir.join("lock"))? {
        Some(lock) => Ok((dir, lock)),
        None => bail!(
            "another `tidelog bench` runs in {}: choose another --data-dir",
            given.display()
        ),
    }
}

async fn measure(ground: &Ground, args: &BenchArgs, report: &mut Report) -> Result<()> {
    let size = if args.quick { Size::QUICK } else { Size::FULL };
    let parts: Vec<Part> = Part::ALL
        .into_iter()
        .filter(|part| args.only.is_empty() || args.only.contains(part))
        .collect();
    ground.clear().await?;
    report.note_stack(ground).await?;
    warm_up::run(ground).await?;
    let began = Instant::now();
    let (mut expected, mut spent) = (0, 0.0);
    for (at, part) in parts.iter().enumerate() {
        let left: u64 = parts[at..].iter().map(|part| part.expected_seconds()).sum();
        // By how this machine did so far.
        let pace = if expected > 0 {
            spent / expected as f64
        } else {
            1.0
        };
        let minutes = (left as f64 * pace / 60.0 / if args.quick { 5.0 } else { 1.0 }).ceil();
        eprintln!(
            "({part:?}) {} of {}, about {minutes} min left in all",
            at + 1,
            parts.len()
        );
        match part {
            Part::A => accept::measure(ground, size, report).await,
            Part::B => project::measure(ground, size, report).await,
            Part::C => round_trip::measure(ground, size, report).await,
            Part::D => pull::measure(ground, size, report).await,
            Part::F => rebuild::measure(ground, size, report).await,
        }
        .with_context(|| format!("measuring ({part:?})"))?;
        expected += part.expected_seconds();
        spent = began.elapsed().as_secs_f64() * if args.quick { 5.0 } else { 1.0 };
    }
    Ok(())
}
