//! `tidelog replay`: a stretch of the log applied again. The records that it is about are folded from the log's beginning beside the
//! live tables, and every row of theirs that is not what comes of it is put right while the partition stands still for a moment. On
//! healthy tables that changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tidelog_events::domain::Registry;
use tidelog_projector::shadow::{Difference, Differs, Offsets, Selection, Shadow};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::shown::{self, Shown};
use super::{Ground, Purpose, ahead, existing, fold};
use crate::audit::Audit;
use crate::domains::named;
use crate::guard_rails::OperatorArgs;
use crate::moment::moment;
use crate::output::{self, OutputArgs};
use crate::progress::during;
use crate::shutdown::until_signal;

const LEAVE: Duration = Duration::from_secs(60);
/// Records that a stretch may be about, to be remembered one by one; a longer stretch is the whole partition's to replay.
const MOST_KEYS: usize = 2_000_000;
/// How often what was mended is compared again, where there is more than is looked at at once.
const ROUNDS: usize = 100;

/// Applies a stretch of the log again
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Applies a stretch of a domain's log again, by default all of it: folds the records that it is about beside the \
                  live tables, from the log's beginning to where the service stands, and puts right every row of theirs that was \
                  lost, changed or added by hand. Changes nothing where the tables are what the log says. Safe while the service \
                  is up: projection of the topic waits for moments at a time.",
    after_help = "Examples:\n  tidelog replay --domain helpdesk --dry-run\n  \
                  tidelog replay --domain helpdesk --partition 3 --from 120000 --to 130000\n  \
                  tidelog replay --domain helpdesk --from 2026-03-01T08:00:00Z\n\nExit codes:\n  \
                  0  done; it says how many events were applied, in effect already, or different\n  \
                  1  failed, or stopped on the way; what was mended stays, and running it again goes on\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct ReplayArgs {
    /// The domain
    #[arg(long, value_name = "NAME")]
    domain: String,
    /// This partition alone; may be given several times
    #[arg(long, value_name = "N")]
    partition: Vec<i32>,
    /// From this offset, or from this moment of the log (RFC 3339, or how long ago, like 2h)
    #[arg(long, value_name = "OFFSET|TIME", value_parser = bound)]
    from: Option<Bound>,
    /// Before this offset, or before this moment of the log
    #[arg(long, value_name = "OFFSET|TIME", value_parser = bound)]
    to: Option<Bound>,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    ground: Ground,
    #[command(flatten)]
    output: OutputArgs,
}

/// One end of a stretch.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Offset(i64),
    Time(DateTime<Utc>),
}

impl Display for Bound {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Offset(offset) => offset.fmt(f),
            Bound::Time(time) => f.write_str(&time.to_rfc3339()),
        }
    }
}

fn bound(text: &str) -> Result<Bound, String> {
    match text.parse::<i64>() {
        Ok(offset) if offset >= 0 => Ok(Bound::Offset(offset)),
        _ => moment(text)
            .map(Bound::Time)
            .map_err(|rule| format!("give an offset, or {}", rule.trim_start_matches("give "))),
    }
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Replayed {
    topic: String,
    dry_run: bool,
    /// Events of the stretch.
    events: u64,
    /// Whose effect was not there, and is now.
    applied: u64,
    /// Whose effect was there already.
    duplicates: u64,
    /// Whose effect was another one, and is now what the log says.
    different: u64,
    /// Rows that were put right, in all tables.
    rows_mended: u64,
    differences: Vec<Shown>,
}

impl Replayed {
    /// For the audit: how much, without which.
    fn brief(&self) -> Value {
        json!({"events": self.events, "applied": self.applied, "different": self.different, "rows_mended": self.rows_mended})
    }
}

/// Runs the command.
pub(crate) async fn run(args: ReplayArgs) -> Result<()> {
    let registry = args.ground.registry()?;
    let topic = named(&registry, &args.domain)?.topic.clone();
    // Says what is wrong with Postgres before anything is noted.
    args.ground.connect("replay", &registry).await?;
    let arguments = json!({"domain": args.domain, "partition": args.partition,
        "from": args.from.map(|bound| bound.to_string()), "to": args.to.map(|bound| bound.to_string())});
    let audit = Audit::begin(&args.ground.database, &args.operator, "replay", &arguments).await?;
    let mut ended = Err(anyhow!(STOPPED));
    until_signal(LEAVE, async |stop| {
        ended = replay(&args, &registry, &topic, &stop).await;
        Ok(())
    })
    .await?;
    let detail = ended.as_ref().map_or(json!({}), Replayed::brief);
    audit.end(&ended, detail).await;
    args.output.output.print(&ended?, text)
}

async fn replay(
    args: &ReplayArgs,
    registry: &Arc<Registry>,
    topic: &str,
    stop: &watch::Receiver<bool>,
) -> Result<Replayed> {
    let purpose = Purpose::Scratch("replay");
    let whole = args.ground.shadow(registry, topic, purpose, None)?;
    let partitions = existing(&whole, &args.partition).await?;
    let shadow = args.ground.shadow(registry, topic, purpose, partitions)?;
    let mut client = args.ground.connect("replay", registry).await?;
    let stretch = stretch(args, &shadow, &client).await?;
    let mut made = shadow.connect().await?;
    shadow.lock(&client).await?;
    shadow.discard(&mut made).await?;
    shadow.make(&mut made).await?;
    let replayed = go(args, &shadow, &mut client, &stretch, stop).await;
    shadow.discard(&mut made).await?;
    replayed
}

/// From where to where each partition is replayed: within what has been applied.
async fn stretch(
    args: &ReplayArgs,
    shadow: &Shadow,
    client: &Client,
) -> Result<BTreeMap<i32, (i64, Option<i64>)>> {
    let applied = shadow.live_positions(client).await?;
    let from = places(shadow, args.from, &Offsets::new()).await?;
    let to = places(shadow, args.to, &applied).await?;
    let mut stretch = BTreeMap::new();
    for (&partition, &end) in &applied {
        let from = from.get(&partition).copied().unwrap_or(0);
        let to = to.get(&partition).copied().unwrap_or(end).min(end);
        if from < to {
            stretch.insert(partition, (from, Some(to)));
        }
    }
    if stretch.is_empty() {
        bail!(
            "nothing lies between --from and --to that has been applied yet: `tidelog status --all` shows what has"
        );
    }
    Ok(stretch)
}

async fn places(shadow: &Shadow, bound: Option<Bound>, otherwise: &Offsets) -> Result<Offsets> {
    Ok(match bound {
        None => otherwise.clone(),
        Some(Bound::Time(time)) => shadow.log().at_time(time).await?,
        Some(Bound::Offset(offset)) => {
            let bounds = shadow.log().bounds().await?;
            bounds.keys().map(|partition| (*partition, offset)).collect()
        }
    })
}

/// The keys of the records that a stretch is about; all, where it is all that has been applied.
async fn selection(
    args: &ReplayArgs,
    shadow: &Shadow,
    stretch: &BTreeMap<i32, (i64, Option<i64>)>,
) -> Result<Selection> {
    if args.from.is_none() && args.to.is_none() {
        return Ok(Selection::All);
    }
    let mut keys = HashSet::new();
    let mut parcels = shadow.log().read(stretch);
    while let Some(parcel) = parcels.recv().await {
        for record in parcel?.records {
            keys.extend(record.key().map(<[u8]>::to_vec));
        }
        if keys.len() > MOST_KEYS {
            bail!(
                "the stretch is about more than {MOST_KEYS} records: take a shorter one, or leave out --from and --to to replay whole partitions"
            );
        }
    }
    Ok(Selection::Keys(keys))
}

async fn go(
    args: &ReplayArgs,
    shadow: &Shadow,
    client: &mut Client,
    stretch: &BTreeMap<i32, (i64, Option<i64>)>,
    stop: &watch::Receiver<bool>,
) -> Result<Replayed> {
    let chosen = Arc::new(selection(args, shadow, stretch).await?);
    shadow.note_selected(client, &chosen).await?;
    fold(shadow, client, &chosen, stop).await?.context(STOPPED)?;
    let mut differences: Vec<Difference> = Vec::new();
    let mut mended = 0;
    for _ in 0..ROUNDS {
        let what = format!("comparing {}", shadow.topic());
        let (_, candidates) = during(&what, 0, || 0, shadow.compare(client, &chosen)).await?;
        let settled = shadow
            .settle(client, &candidates, &chosen, !args.operator.dry_run, stop)
            .await?;
        mended += settled.mended;
        differences.extend(settled.differences);
        if settled.stopped {
            bail!(STOPPED);
        }
        if !settled.more || args.operator.dry_run {
            break;
        }
    }
    Ok(counted(args, shadow, stretch, &differences, mended))
}

const STOPPED: &str = "stopped: what was mended stays, and running it again goes on";

/// Counts by event: one without its row in the feed or among the outcomes had no effect.
fn counted(
    args: &ReplayArgs,
    shadow: &Shadow,
    stretch: &BTreeMap<i32, (i64, Option<i64>)>,
    differences: &[Difference],
    mended: u64,
) -> Replayed {
    let from: Offsets = stretch
        .iter()
        .map(|(partition, (from, _))| (*partition, *from))
        .collect();
    let to: Offsets = stretch
        .iter()
        .filter_map(|(p, (_, to))| Some((*p, (*to)?)))
        .collect();
    let within = |difference: &&Difference| {
        let place = difference.partition.zip(difference.offset);
        place.is_some_and(|(partition, offset)| {
            from.get(&partition).is_some_and(|from| offset >= *from)
                && to.get(&partition).is_some_and(|to| offset < *to)
        })
    };
    let of_events = |differs: Differs| {
        let events: HashSet<(Option<i32>, Option<i64>)> = differences
            .iter()
            .filter(|difference| difference.table.ends_with("_changes") || difference.table == "outcomes")
            .filter(|difference| difference.differs == differs)
            .filter(within)
            .map(|difference| (difference.partition, difference.offset))
            .collect();
        events.len() as u64
    };
    let (events, applied, different) = (
        ahead(&from, &to),
        of_events(Differs::Missing),
        of_events(Differs::Changed),
    );
    Replayed {
        topic: shadow.topic(),
        dry_run: args.operator.dry_run,
        events,
        applied,
        duplicates: events.saturating_sub(applied + different),
        different,
        rows_mended: mended,
        differences: differences.iter().map(Shown::from).collect(),
    }
}

fn text(replayed: &Replayed) -> String {
    let would = if replayed.dry_run { "would be " } else { "" };
    let rows = match replayed.dry_run {
        true => replayed.differences.len() as u64,
        false => replayed.rows_mended,
    };
    format!(
        "{}: {}: {} {would}applied, {} in effect already, {} different; {} {would}put right\n{}",
        replayed.topic,
        output::counted(replayed.events, "event", "events"),
        replayed.applied,
        replayed.duplicates,
        replayed.different,
        output::counted(rows, "row", "rows"),
        shown::text(&replayed.differences),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_a_stretch_is_an_offset_or_a_time() {
        assert!(matches!(bound("0"), Ok(Bound::Offset(0))));
        assert!(matches!(bound("99999999999"), Ok(Bound::Offset(99_999_999_999))));
        assert!(matches!(bound("2026-03-01T08:00:00+01:00"), Ok(Bound::Time(_))));
        for wrong in ["-1", "yesterday", ""] {
            assert!(bound(wrong).is_err(), "{wrong}");
        }
    }
}
