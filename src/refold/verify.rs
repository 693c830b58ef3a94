//! `tidelog verify`: whether the tables still are what the log says, and where they are not. Folds into tables of its own, which are
//! gone when it ends, and changes nothing else. With `--follow` it is done again and again, which is `follow`'s to arrange.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tidelog_events::domain::Registry;
use tidelog_events::topic_name;
use tidelog_projector::shadow::{Selection, Shadow};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::follow::{self, Gently};
use super::restoring::load_scratch;
use super::shown::{self, Shown, Sum};
use super::{Ground, Pace, Purpose, existing, fold, names};
use crate::domains::named;
use crate::output::{OutputArgs, counted};
use crate::progress::during;
use crate::settings::duration;
use crate::shutdown::until_signal;

/// How long a step may go on after Ctrl-C.
const LEAVE: Duration = Duration::from_secs(60);

/// Says whether the tables are what the log says
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Folds the log again beside the live tables, which go on serving, and compares: sums over each partition, then \
                  over stretches of records, then row by row where these differ. Names every row that is missing, extra or \
                  changed, and how to mend it. The log is what counts: what differs is wrong in the tables. Needs room for the \
                  tables of one topic at a time, or with --sample for a part of them; nothing of it stays.\n\nWith --follow it \
                  begins again and again, at a rate that the service does not feel, prints what each round finds and serves it as \
                  metrics. Kafka or Postgres that is away is waited for; Ctrl-C ends it.\n\nWith --snapshot it begins with what `tidelog \
                  snapshot` has written, where the log has lost its beginning. Damage from before the snapshot was taken is in it too.",
    after_help = "Examples:\n  tidelog verify\n  tidelog verify --domain helpdesk --partition 3\n  \
                  tidelog verify --domain helpdesk --sample 20\n  tidelog verify --snapshot /backup/tidelog\n  tidelog verify --output json | jq '.[].differences'\n  \
                  tidelog verify --follow --rate 5000 --every 1h --metrics-listen 127.0.0.1:9464\n\nExit codes:\n  \
                  0  the tables are what the log says; with --follow, ended by Ctrl-C or SIGTERM\n  \
                  1  failed, or stopped on the way\n  \
                  2  wrong command line or setting\n  \
                  3  something differs; it says what"
)]
pub(crate) struct VerifyArgs {
    /// This domain's topic alone; all of them by default
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// This partition alone; may be given several times
    #[arg(long, value_name = "N", requires = "domain")]
    partition: Vec<i32>,
    /// One record in N, chosen by its identity and another N each day
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    sample: Option<u32>,
    /// Begin with the latest snapshot of each topic in this folder, or with the one that the folder is
    #[arg(long, value_name = "DIR")]
    snapshot: Option<PathBuf>,
    /// Begin again and again until Ctrl-C; print a line a topic, in JSON a document a line
    #[arg(long)]
    follow: bool,
    /// With --follow: events a second that are read and folded, at most
    #[arg(long, value_name = "EVENTS", requires = "follow", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    pub(super) rate: u32,
    /// With --follow: from the beginning of a round to that of the next, unless it takes longer, like 10m or 1h
    #[arg(long, value_name = "TIME", requires = "follow", default_value = "10m", value_parser = duration)]
    pub(super) every: Duration,
    /// With --follow: serve what was found as metrics, under /metrics of this address
    #[arg(long, value_name = "HOST:PORT", requires = "follow")]
    pub(super) metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    ground: Ground,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl VerifyArgs {
    /// What a topic is called in Kafka.
    pub(super) fn in_the_log(&self, topic: &str) -> String {
        topic_name(&self.ground.kafka.topic_prefix, topic)
    }
}

/// A topic, looked at.
#[derive(Debug, Serialize)]
pub(super) struct Verified {
    topic: String,
    domains: Vec<String>,
    /// Events that were read.
    events: u64,
    events_per_second: u64,
    /// One record in so many was looked at.
    sample: Option<u32>,
    pub(super) checksums: Vec<Sum>,
    pub(super) differences: Vec<Shown>,
    /// There are more differences than these.
    more: bool,
    /// What to do about them.
    mend: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(mut args: VerifyArgs) -> Result<ExitCode> {
    let registry = args.ground.registry()?;
    let topics = match &args.domain {
        Some(name) => vec![named(&registry, name)?.topic.clone()],
        None => registry.topics().into_iter().map(str::to_owned).collect(),
    };
    if args.follow {
        args.ground.gently();
        until_signal(LEAVE, async |stop| {
            follow::run(&args, &registry, &topics, stop).await
        })
        .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut all = Vec::new();
    until_signal(LEAVE, async |stop| {
        for topic in &topics {
            all.push(verify(&args, &registry, topic, None, &stop).await?);
        }
        Ok(())
    })
    .await?;
    args.output.output.print(&all, |all| text(all))?;
    Ok(match all.iter().all(|verified| verified.differences.is_empty()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(3),
    })
}

/// Looks at one topic: as fast as can be and showing how far it is, or gently.
pub(super) async fn verify(
    args: &VerifyArgs,
    registry: &Arc<Registry>,
    topic: &str,
    gently: Option<&Gently>,
    stop: &watch::Receiver<bool>,
) -> Result<Verified> {
    let purpose = Purpose::Scratch("verify");
    let whole = args.ground.shadow(registry, topic, purpose, None)?;
    let partitions = existing(&whole, &args.partition).await?;
    let shadow = args.ground.shadow(registry, topic, purpose, partitions)?;
    let mut client = args.ground.connect("verify", registry).await?;
    let mut made = shadow.connect().await?;
    shadow.lock(&client).await?;
    // What a run left behind that was killed.
    shadow.discard(&mut made).await?;
    shadow.make(&mut made).await?;
    let looked = look(args, &shadow, &mut client, gently, stop).await;
    put_away(&shadow, made, client).await?;
    looked
}

/// Drops what a look made, though its connections may have broken meanwhile. Where another run has the lock by now, it is that
/// one's, who has dropped what was there.
async fn put_away(shadow: &Shadow, mut made: Client, mut client: Client) -> Result<()> {
    if shadow.discard(&mut made).await.is_ok() || shadow.discard(&mut client).await.is_ok() {
        return Ok(());
    }
    drop((made, client));
    let mut again = shadow.connect().await?;
    shadow.lock(&again).await?;
    Ok(shadow.discard(&mut again).await?)
}

async fn look(
    args: &VerifyArgs,
    shadow: &Shadow,
    client: &mut Client,
    gently: Option<&Gently>,
    stop: &watch::Receiver<bool>,
) -> Result<Verified> {
    const STOPPED: &str = "stopped: nothing was compared, and nothing is left behind";
    let selection = Arc::new(match args.sample {
        Some(of) => Selection::Share {
            of,
            number: share_of_today(of),
        },
        None => Selection::All,
    });
    if let Some(dir) = &args.snapshot {
        load_scratch(&args.ground, shadow, dir, client, stop).await?;
    }
    let folded = match gently {
        Some(gently) => gently.fold(shadow, client, &selection, stop).await?,
        None => fold(shadow, client, &selection, stop).await?,
    };
    let Some(Pace { events, seconds }) = folded else {
        anyhow::bail!(STOPPED);
    };
    let comparing = shadow.compare(client, &selection);
    let (tables, candidates) = match gently {
        Some(_) => comparing.await?,
        None => during(&format!("comparing {}", shadow.topic()), 0, || 0, comparing).await?,
    };
    let settled = shadow
        .settle(client, &candidates, &selection, false, stop)
        .await?;
    if settled.stopped {
        anyhow::bail!(STOPPED);
    }
    let differences: Vec<Shown> = settled.differences.iter().map(Shown::from).collect();
    let domain = &shadow.domains()[0].name;
    Ok(Verified {
        topic: shadow.topic(),
        domains: names(shadow),
        events,
        events_per_second: Pace { events, seconds }.rate() as u64,
        sample: args.sample,
        checksums: shown::sums(&tables),
        mend: (!differences.is_empty()).then(|| match &args.snapshot {
            None => format!("tidelog replay --domain {domain}"),
            Some(dir) => format!(
                "tidelog rebuild --domain {domain} --snapshot {} --accept-differences",
                dir.display()
            ),
        }),
        differences,
        more: settled.more,
    })
}

/// Another share each day, so that all of them come by in time.
fn share_of_today(of: u32) -> u32 {
    let day = chrono::Utc::now().timestamp() / 86_400;
    (day.unsigned_abs() % u64::from(of)) as u32
}

/// For people: a line a topic, and what differs.
pub(super) fn text(all: &[Verified]) -> String {
    let mut text = String::new();
    for verified in all {
        let sample = match verified.sample {
            Some(of) => format!(", one record in {of}"),
            None => String::new(),
        };
        let rows: i64 = verified.checksums.iter().map(Sum::rows).sum();
        text.push_str(&format!(
            "{}: {}, {}{sample}: {}\n",
            verified.topic,
            counted(verified.events, "event", "events"),
            counted(rows, "row", "rows"),
            match verified.differences.len() {
                0 => "the tables are what the log says".to_owned(),
                count => counted(count as u64, "row differs", "rows differ"),
            }
        ));
        text.push_str(&shown::text(&verified.differences));
        if let Some(mend) = &verified.mend {
            text.push_str(&format!(
                "  The log is right and the tables are wrong: `{mend}` mends them.\n"
            ));
        }
    }
    text
}
