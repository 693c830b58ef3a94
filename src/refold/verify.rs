//! `tidelog verify`: whether the tables still are what the log says, and where they are not. Folds into tables of its own, which are
//! gone when it ends, and changes nothing else.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tidelog_events::domain::Registry;
use tidelog_projector::shadow::{Selection, Shadow};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::shown::{self, Shown, Sum};
use super::{Ground, Pace, Purpose, existing, fold, names};
use crate::domains::named;
use crate::output::OutputArgs;
use crate::progress::during;
use crate::shutdown::until_signal;

/// How long a step may go on after Ctrl-C.
const LEAVE: Duration = Duration::from_secs(60);

/// Says whether the tables are what the log says
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Folds the log again beside the live tables, which go on serving, and compares: sums over each partition, then \
                  over stretches of records, then row by row where these differ. Names every row that is missing, extra or \
                  changed, and how to mend it. The log is what counts: what differs is wrong in the tables. Needs room for the \
                  tables of one topic at a time, or with --sample for a part of them; nothing of it stays.",
    after_help = "Examples:\n  tidelog verify\n  tidelog verify --domain helpdesk --partition 3\n  \
                  tidelog verify --domain helpdesk --sample 20\n  tidelog verify --output json | jq '.[].differences'\n\nExit codes:\n  \
                  0  the tables are what the log says\n  \
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
    #[command(flatten)]
    ground: Ground,
    #[command(flatten)]
    output: OutputArgs,
}

/// A topic, looked at.
#[derive(Debug, Serialize)]
struct Verified {
    topic: String,
    domains: Vec<String>,
    /// Events that were read.
    events: u64,
    events_per_second: u64,
    /// One record in so many was looked at.
    sample: Option<u32>,
    checksums: Vec<Sum>,
    differences: Vec<Shown>,
    /// There are more differences than these.
    more: bool,
    /// What to do about them.
    mend: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(args: VerifyArgs) -> Result<ExitCode> {
    let registry = args.ground.registry()?;
    let topics = match &args.domain {
        Some(name) => vec![named(&registry, name)?.topic.clone()],
        None => registry.topics().into_iter().map(str::to_owned).collect(),
    };
    let mut all = Vec::new();
    until_signal(LEAVE, async |stop| {
        for topic in &topics {
            all.push(verify(&args, &registry, topic, &stop).await?);
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

async fn verify(
    args: &VerifyArgs,
    registry: &Arc<Registry>,
    topic: &str,
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
    let looked = look(args, &shadow, &mut client, stop).await;
    shadow.discard(&mut made).await?;
    looked
}

async fn look(
    args: &VerifyArgs,
    shadow: &Shadow,
    client: &mut Client,
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
    let Some(Pace { events, seconds }) = fold(shadow, client, &selection, stop).await? else {
        anyhow::bail!(STOPPED);
    };
    let what = format!("comparing {}", shadow.topic());
    let (tables, candidates) = during(&what, 0, || 0, shadow.compare(client, &selection)).await?;
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
        mend: (!differences.is_empty()).then(|| format!("tidelog replay --domain {domain}")),
        differences,
        more: settled.more,
    })
}

/// Another share each day, so that all of them come by in time.
fn share_of_today(of: u32) -> u32 {
    let day = chrono::Utc::now().timestamp() / 86_400;
    (day.unsigned_abs() % u64::from(of)) as u32
}

fn text(all: &[Verified]) -> String {
    let mut text = String::new();
    for verified in all {
        let sample = match verified.sample {
            Some(of) => format!(", one record in {of}"),
            None => String::new(),
        };
        let rows: i64 = verified.checksums.iter().map(Sum::rows).sum();
        text.push_str(&format!(
            "{}: {} events, {rows} rows{sample}: {}\n",
            verified.topic,
            verified.events,
            match verified.differences.len() {
                0 => "the tables are what the log says".to_owned(),
                count => format!("{count} rows differ"),
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
