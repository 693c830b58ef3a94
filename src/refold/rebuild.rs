//! `tidelog rebuild`: a topic's tables made again from the log, beside those that serve, and put in their place. Folds, follows the
//! service, makes indexes, compares, swaps; goes on where an earlier run was cut off. The swapped-out tables stay for the way back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tidelog_events::domain::Registry;
use tidelog_projector::fold::FOLD_VERSION;
use tidelog_projector::shadow::{Candidates, Selection, Shadow, ShadowState, offsets};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::restoring::{Behind, checked, put_back, restore};
use super::shown::{self, Shown};
use super::{Ground, Pace, Purpose, ahead, existing, fold, names};
use crate::audit::Audit;
use crate::domains::named;
use crate::guard_rails::{ConfirmArgs, Danger, OperatorArgs};
use crate::output::{OutputArgs, counted, worded};
use crate::progress::{during, grouped};
use crate::shutdown::until_signal;

const LEAVE: Duration = Duration::from_secs(60);
/// So near to the service the rest is folded while it waits.
const NEAR: u64 = 500;
/// Rounds of coming near.
const ROUNDS: usize = 50;

/// Makes a domain's tables again from the log, while the old ones serve
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Folds a domain's log from its beginning into tables beside the live ones, as fast as Postgres takes it; follows \
                  the service, makes the indexes, compares, and swaps the new tables in, in one short transaction. Cursors and \
                  receipts that phones hold stay good. Where the definition has a new promoted column, this is how its tables get \
                  it; where the fold has changed, this is how what was folded by the old one is brought up to date. Rows that \
                  differ are listed, and swapped in only with --accept-differences. Domains that share a topic are rebuilt \
                  together. Stopped or killed, it goes on from there when it is run again.\n\nWhere the log has lost its beginning, \
                  --snapshot begins with what `tidelog snapshot` has written and folds what came afterwards. Where the live tables stand \
                  before that, as after the loss of the database and `tidelog migrate`, there is nothing to compare: tables and \
                  positions are put in their place, and projectors go on from there.",
    after_help = "Examples:\n  tidelog rebuild --domain helpdesk --dry-run\n  tidelog rebuild --domain helpdesk\n  \
                  tidelog rebuild --domain helpdesk --partitions 2,5 --accept-differences\n  \
                  tidelog rebuild --domain helpdesk --snapshot /backup/tidelog\n  \
                  tidelog rebuild --domain helpdesk --back\n  tidelog rebuild --domain helpdesk --discard --yes\n\nExit codes:\n  \
                  0  done\n  \
                  1  failed, or stopped on the way: run it again to go on, or with --discard to give up\n  \
                  2  wrong command line or setting, or --discard was not confirmed\n  \
                  3  not swapped, because rows differ; it says which"
)]
pub(crate) struct RebuildArgs {
    /// The domain
    #[arg(long, value_name = "NAME")]
    domain: String,
    /// These partitions alone, separated by commas: their rows are exchanged where they differ, and the tables stay
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "back")]
    partitions: Vec<i32>,
    /// Begin with the latest snapshot of the topic in this folder, or with the one that the folder is, instead of with the log's
    /// beginning; without effect on a rebuild that has begun
    #[arg(long, value_name = "DIR", conflicts_with_all = ["back", "discard"])]
    snapshot: Option<PathBuf>,
    /// Go on only if this build folds by this version of the fold; without it, by whichever it has
    #[arg(long, value_name = "N")]
    schema_version: Option<u32>,
    /// Fold and compare, and leave the swap for another run
    #[arg(long)]
    no_swap: bool,
    /// Swap although rows differ: what the log says is right
    #[arg(long)]
    accept_differences: bool,
    /// Swap the tables back that the last swap has taken out
    #[arg(long, conflicts_with_all = ["discard", "no_swap"])]
    back: bool,
    /// Drop what an unfinished run has made, or what the last swap has taken out
    #[arg(long)]
    discard: bool,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    ground: Ground,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(super) struct Rebuilt {
    topic: String,
    domains: Vec<String>,
    /// `planned`, `folded`, `swapped`, `swapped back`, `restored`, `exchanged` (of some partitions), `discarded`.
    pub(super) done: &'static str,
    events: u64,
    events_per_second: u64,
    /// The snapshot that it began with.
    snapshot: Option<PathBuf>,
    /// Partitions whose live tables stood before it.
    pub(super) behind: Vec<Behind>,
    /// How long the steps took.
    folding_seconds: f64,
    indexing_seconds: f64,
    comparing_seconds: f64,
    differences: Vec<Shown>,
    /// There are more differences than these.
    more: bool,
    /// Rows of the tables that all domains share, exchanged with the swap; of some partitions rows of all tables.
    pub(super) exchanged: u64,
    /// How long projection of the topic waited for the swap.
    pub(super) stood_still_ms: Option<u64>,
    /// Views of others that look at the new tables now.
    pub(super) views: Vec<String>,
    /// What may be done next.
    pub(super) next: String,
}

impl Rebuilt {
    /// For the audit: how much, without which.
    fn brief(&self) -> Value {
        json!({"done": self.done, "events": self.events, "differences": self.differences.len(), "exchanged": self.exchanged,
            "stood_still_ms": self.stood_still_ms})
    }
}

/// Runs the command.
pub(crate) async fn run(args: RebuildArgs) -> Result<ExitCode> {
    let registry = args.ground.registry()?;
    let topic = named(&registry, &args.domain)?.topic.clone();
    // Says what is wrong with Postgres before anything is noted.
    args.ground.connect("rebuild", &registry).await?;
    let arguments = json!({"domain": args.domain, "no_swap": args.no_swap, "back": args.back, "discard": args.discard, "partitions": args.partitions, "snapshot": args.snapshot,
        "accept_differences": args.accept_differences});
    let audit = Audit::begin(&args.ground.database, &args.operator, "rebuild", &arguments).await?;
    let mut ended = Err(anyhow!(STOPPED));
    until_signal(LEAVE, async |stop| {
        ended = rebuild(&args, &registry, &topic, &stop).await;
        Ok(())
    })
    .await?;
    let detail = ended.as_ref().map_or(json!({}), Rebuilt::brief);
    audit.end(&ended, detail).await;
    let rebuilt = ended?;
    args.output.output.print(&rebuilt, text)?;
    Ok(match rebuilt.done {
        "folded" if !args.no_swap => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

async fn rebuild(
    args: &RebuildArgs,
    registry: &Arc<Registry>,
    topic: &str,
    stop: &watch::Receiver<bool>,
) -> Result<Rebuilt> {
    if let Some(wanted) = args.schema_version
        && wanted != FOLD_VERSION
    {
        bail!(
            "this build folds by version {FOLD_VERSION}, not {wanted}: run the build whose rules are to be rolled out, or leave out --schema-version"
        );
    }
    let whole = args.ground.shadow(registry, topic, Purpose::Rebuild, None)?;
    let partitions = existing(&whole, &args.partitions).await?;
    let shadow = args
        .ground
        .shadow(registry, topic, Purpose::Rebuild, partitions)?;
    let mut client = args.ground.connect("rebuild", registry).await?;
    shadow.lock(&client).await?;
    let state = shadow.state(&client).await?;
    if args.discard {
        return discard(args, &shadow, state, &mut client).await;
    }
    match (args.back, state) {
        (true, None | Some((ShadowState::Restoring | ShadowState::Loading | ShadowState::Ready, _))) => {
            bail!("there is nothing to swap back: what the last swap took out is gone, or there was none")
        }
        (false, Some((ShadowState::Retired, _))) => bail!(
            "what the last swap of this topic took out is still there: swap it back with --back, or drop it with --discard first"
        ),
        (false, Some((_, false))) => bail!(
            "an unfinished rebuild was begun by another release, another definition, or for other partitions: drop it with --discard, and begin again"
        ),
        (false, Some((ShadowState::Restoring, _))) if args.snapshot.is_none() => bail!(
            "the load of a snapshot was cut off: give --snapshot again to begin it anew, or --discard to give up"
        ),
        _ => {}
    }
    let state = state.map(|(state, _)| state);
    if args.operator.dry_run {
        return planned(args, &shadow, &client, state, stop).await;
    }
    let (mut state, begun, mut snapshot) = (state, state.is_some(), None);
    if let (Some(dir), None | Some(ShadowState::Restoring)) = (&args.snapshot, state) {
        let found = restore(&args.ground, &shadow, dir, begun, &client, stop).await?;
        (state, snapshot) = (Some(ShadowState::Loading), Some(found.dir));
    } else if !begun {
        let mut made = shadow.connect().await?;
        shadow.make(&mut made).await?;
    }
    let rebuilt = go(args, &shadow, &mut client, state, stop).await?;
    Ok(Rebuilt { snapshot, ..rebuilt })
}

async fn discard(
    args: &RebuildArgs,
    shadow: &Shadow,
    state: Option<(ShadowState, bool)>,
    client: &mut Client,
) -> Result<Rebuilt> {
    let what = match state {
        None => bail!("there is nothing to drop"),
        Some((ShadowState::Retired, _)) => "the tables that the last swap has taken out",
        Some(_) => "an unfinished rebuild",
    };
    if !args.operator.dry_run {
        args.confirm.confirm(&Danger {
            what: &format!("Dropping {what}"),
            name: &args.domain,
            named: true,
            flags: "--yes",
        })?;
        shadow.discard(client).await?;
    }
    Ok(Rebuilt {
        topic: shadow.topic(),
        domains: names(shadow),
        done: if args.operator.dry_run {
            "planned"
        } else {
            "discarded"
        },
        next: match args.operator.dry_run {
            true => format!("without --dry-run it drops {what}; there is no way back then"),
            false => String::new(),
        },
        ..Rebuilt::default()
    })
}

async fn planned(
    args: &RebuildArgs,
    shadow: &Shadow,
    client: &Client,
    state: Option<ShadowState>,
    stop: &watch::Receiver<bool>,
) -> Result<Rebuilt> {
    let to = shadow.live_positions(client).await?;
    let begun = state.is_some_and(|state| state != ShadowState::Restoring);
    let mut snapshot = None;
    let from = match (begun, &args.snapshot) {
        (true, _) => shadow.positions().await?,
        (false, None) => std::collections::BTreeMap::new(),
        (false, Some(dir)) => {
            let found = checked(shadow, dir, stop).await?;
            snapshot = Some(found.dir);
            offsets(&found.manifest.positions)
        }
    };
    Ok(Rebuilt {
        topic: shadow.topic(),
        domains: names(shadow),
        done: "planned",
        events: ahead(&from, &to),
        snapshot,
        next: match (begun, args.back) {
            (_, true) => {
                "without --dry-run it brings the retired tables up to date and swaps them back".into()
            }
            (true, _) => "without --dry-run it goes on with the rebuild that was begun".into(),
            (false, _) => "without --dry-run it begins".into(),
        },
        ..Rebuilt::default()
    })
}

pub(super) const STOPPED: &str = "stopped: run it again to go on, or with --discard to give up";

async fn go(
    args: &RebuildArgs,
    shadow: &Shadow,
    client: &mut Client,
    state: Option<ShadowState>,
    stop: &watch::Receiver<bool>,
) -> Result<Rebuilt> {
    let everything = Arc::new(Selection::All);
    let pace = near(shadow, client, stop).await?;
    let mut indexing = Duration::ZERO;
    if state.is_none_or(|state| state == ShadowState::Loading) {
        let began = Instant::now();
        let made = shadow.connect().await?;
        let what = format!("indexing {}", shadow.topic());
        during(&what, 0, || 0, shadow.index(&made)).await?;
        indexing = began.elapsed();
        let what = format!("analyzing {}", shadow.topic());
        during(&what, 0, || 0, shadow.analyze()).await?;
        shadow.note_state(client, ShadowState::Ready).await?;
    }
    near(shadow, client, stop).await?;
    let behind = shadow.behind(client).await?;
    if !behind.is_empty() {
        let rebuilt = folded(shadow, pace, indexing);
        if !args.partitions.is_empty() {
            bail!(
                "the live tables stand before the snapshot, so they can only be restored with the whole topic: --discard this, and leave out --partitions"
            );
        }
        if args.no_swap {
            return Ok(rebuilt);
        }
        return put_back(shadow, client, &behind, args.accept_differences, stop, rebuilt).await;
    }
    let began = Instant::now();
    let what = format!("comparing {}", shadow.topic());
    let (_, candidates) = during(&what, 0, || 0, shadow.compare(client, &everything)).await?;
    let settled = shadow
        .settle(client, &candidates, &everything, false, stop)
        .await?;
    if settled.stopped {
        bail!(STOPPED);
    }
    let mut rebuilt = Rebuilt {
        comparing_seconds: began.elapsed().as_secs_f64(),
        differences: settled.differences.iter().map(Shown::from).collect(),
        more: settled.more,
        ..folded(shadow, pace, indexing)
    };
    let differs = !rebuilt.differences.is_empty() && !args.accept_differences;
    if args.no_swap || differs {
        rebuilt.next = match differs {
            true => "rows differ, so nothing was swapped: look at them, then run it again with --accept-differences, or with --discard".into(),
            false => "run it again without --no-swap to swap".into(),
        };
        return Ok(rebuilt);
    }
    match args.partitions.is_empty() {
        true => swap(args, shadow, client, &candidates, stop, rebuilt).await,
        false => exchange(shadow, client, candidates, stop, rebuilt).await,
    }
}

/// What there is to tell once all is folded.
fn folded(shadow: &Shadow, pace: Pace, indexing: Duration) -> Rebuilt {
    Rebuilt {
        topic: shadow.topic(),
        domains: names(shadow),
        done: "folded",
        events: pace.events,
        events_per_second: pace.rate() as u64,
        folding_seconds: pace.seconds,
        indexing_seconds: indexing.as_secs_f64(),
        next: "run it again without --no-swap to swap".into(),
        ..Rebuilt::default()
    }
}

/// Of some partitions the tables cannot be swapped: their rows become what the log says, where they are not, and the shadow goes.
async fn exchange(
    shadow: &Shadow,
    client: &mut Client,
    mut candidates: Vec<Candidates>,
    stop: &watch::Receiver<bool>,
    mut rebuilt: Rebuilt,
) -> Result<Rebuilt> {
    let everything = Arc::new(Selection::All);
    for _ in 0..ROUNDS {
        let what = format!("exchanging rows of {}", shadow.topic());
        let settling = async {
            let settled = shadow
                .settle(client, &candidates, &everything, true, stop)
                .await?;
            match settled.stopped {
                true => Err(anyhow!(STOPPED)),
                false => Ok(settled),
            }
        };
        let settled = during(&what, 0, || 0, settling).await?;
        rebuilt.exchanged += settled.mended;
        if !settled.more {
            shadow.discard(client).await?;
            rebuilt.done = "exchanged";
            rebuilt.next = String::new();
            return Ok(rebuilt);
        }
        candidates = shadow.compare(client, &everything).await?.1;
    }
    bail!("rows go on differing: somebody else writes to the tables; what was exchanged stays")
}

async fn swap(
    args: &RebuildArgs,
    shadow: &Shadow,
    client: &mut Client,
    candidates: &[Candidates],
    stop: &watch::Receiver<bool>,
    mut rebuilt: Rebuilt,
) -> Result<Rebuilt> {
    let swapping = async { shadow.swap(client, candidates, stop).await?.context(STOPPED) };
    let what = format!("swapping {}", shadow.topic());
    let swapped = during(&what, 0, || 0, swapping).await?;
    rebuilt.done = if args.back { "swapped back" } else { "swapped" };
    rebuilt.exchanged = swapped.exchanged;
    rebuilt.stood_still_ms = Some(swapped.stood_still.as_millis() as u64);
    rebuilt.views = swapped.views;
    rebuilt.next = format!(
        "what was live before is kept: `tidelog rebuild --domain {0} --back` swaps it back, and with --discard it is dropped",
        args.domain
    );
    Ok(rebuilt)
}

/// Folds until the service is hardly ahead.
async fn near(shadow: &Shadow, client: &Client, stop: &watch::Receiver<bool>) -> Result<Pace> {
    let everything = Arc::new(Selection::All);
    let mut all = Pace::default();
    for _ in 0..ROUNDS {
        let pace = fold(shadow, client, &everything, stop).await?.context(STOPPED)?;
        all.events += pace.events;
        all.seconds += pace.seconds;
        if pace.events < NEAR {
            return Ok(all);
        }
    }
    bail!(
        "the service applies events as fast as they can be folded again: give it more --jobs, or try at a quieter hour; what was folded stays"
    )
}

fn text(rebuilt: &Rebuilt) -> String {
    let mut text = format!(
        "{} ({}): {}",
        rebuilt.topic,
        rebuilt.domains.join(", "),
        rebuilt.done
    );
    if let Some(snapshot) = &rebuilt.snapshot {
        text.push_str(&format!(", from {}", snapshot.display()));
    }
    if rebuilt.events > 0 {
        text.push_str(&format!(
            ", {} {}",
            grouped(rebuilt.events as f64),
            worded(&rebuilt.events, "event", "events")
        ));
    }
    if rebuilt.events_per_second > 0 {
        text.push_str(&format!(" at {}/s", grouped(rebuilt.events_per_second as f64)));
    }
    if rebuilt.done == "exchanged" {
        text.push_str(&format!(
            ", {} put right",
            counted(rebuilt.exchanged, "row", "rows")
        ));
    }
    if let Some(ms) = rebuilt.stood_still_ms {
        text.push_str(&format!(", projection waited {ms} ms for the swap"));
    }
    text.push_str(&match (rebuilt.done, rebuilt.differences.len()) {
        ("planned" | "discarded" | "restored", _) => "\n".to_owned(),
        (_, 0) if !rebuilt.behind.is_empty() => "; the live tables stand before it\n".to_owned(),
        (_, 0) => "; no row differs\n".to_owned(),
        (_, count) => format!("; {}\n", counted(count as u64, "row differs", "rows differ")),
    });
    text.push_str(&shown::text(&rebuilt.differences));
    for view in &rebuilt.views {
        text.push_str(&format!("  The view {view} looks at the new tables.\n"));
    }
    if !rebuilt.next.is_empty() {
        text.push_str(&format!("Next: {}.\n", rebuilt.next));
    }
    text
}
