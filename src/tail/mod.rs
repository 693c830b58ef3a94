//! `tidelog tail`: the log as it is written, all topics as one, each event with what became of it. Reads outside the
//! projectors' group and writes nothing, so it may run as often and as long as anybody likes. `merge` brings the
//! partitions together, `waiting` finds the outcomes, `opening` opens what is sealed, `filter` says what is shown.

mod filter;
mod merge;
mod opening;
mod waiting;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use clap::Args;
use tidelog_events::domain::Registry;
use tidelog_events::ids::{DeviceId, TenantId};
use tidelog_events::topic_name;
use tidelog_projector::log::Log;
use tokio::sync::mpsc::{self, Receiver};

use crate::domains;
use crate::kafka::Cluster;
use crate::look::became::Became;
use crate::look::seen::Seen;
use crate::moment::moment;
use crate::output::{self, Output, OutputArgs};
use crate::settings::{self, DatabaseSettings, DomainSettings, KafkaSettings, SealSettings};
use crate::shutdown;

pub(crate) use filter::identity;

/// Most events that wait for their outcome, and most that wait to be among them.
const WAITING: usize = 1000;
const MERGED: usize = 100;
/// How often Postgres is asked while something waits.
const ASK_EVERY: Duration = Duration::from_millis(30);
/// How soon it is noticed that nobody reads any more.
const LOOK_UP: Duration = Duration::from_millis(250);

/// Shows events as they come, each with what became of it
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Shows events as they come, of all topics together; those that are there at the start by the log's time: time, domain, partition/offset, \
                  tenant, user, device, operation, record, the version that the device last saw, and what became of it. An \
                  event that the projection has not come to within --wait is `pending`; where Postgres is away it is `unknown`. \
                  Ends with Ctrl-C, with --limit, or with --no-follow at what was the log's end. As JSON, an object a line.",
    after_help = "Examples:\n  tidelog tail\n  tidelog tail --tenant acme --device phone-1 --from 15m\n  \
                  tidelog tail --domain helpdesk --from beginning --no-follow --payload\n  \
                  tidelog tail --output json | jq -c 'select(.outcome.outcome == \"refused\")'\n\nExit codes:\n  \
                  0  ended as asked, with Ctrl-C too\n  \
                  1  Kafka is away at the start, a topic cannot be read, or there is no such domain\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct TailArgs {
    /// Only of this domain; may be given several times
    #[arg(long, value_name = "NAME")]
    domain: Vec<String>,
    /// Only of this tenant
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: Option<TenantId>,
    /// Only about this record, by its identity
    #[arg(long, value_name = "ID")]
    record: Option<String>,
    /// Only from this device
    #[arg(long, value_name = "ID", value_parser = |text: &str| DeviceId::parse(text))]
    device: Option<DeviceId>,
    /// Where to begin: `beginning`, `now`, an offset of every partition, a time (RFC 3339), or how long ago, like 15m
    #[arg(long, value_name = "PLACE", default_value = "now", value_parser = from)]
    from: From,
    /// Go on as events come; this is so unless --no-follow is given
    #[arg(long, overrides_with = "no_follow")]
    follow: bool,
    /// End at what is the log's end now
    #[arg(long)]
    no_follow: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// How long an event waits for its outcome, like 500ms or 5s
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = settings::duration)]
    wait: Duration,
    /// Show the items too, opened where seal_secret is given
    #[arg(long)]
    payload: bool,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    seal: SealSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// Where the reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Beginning,
    Now,
    Offset(i64),
    Time(DateTime<Utc>),
}

fn from(text: &str) -> Result<From, &'static str> {
    const RULE: &str =
        "give beginning, now, an offset, a time like 2026-03-01T10:00:00Z, or how long ago, like 15m";
    match text {
        "beginning" => Ok(From::Beginning),
        "now" => Ok(From::Now),
        _ => match (text.parse::<i64>(), moment(text)) {
            (Ok(offset), _) if offset >= 0 => Ok(From::Offset(offset)),
            (_, Ok(time)) => Ok(From::Time(time)),
            _ => Err(RULE),
        },
    }
}

/// Runs the command.
pub(crate) async fn run(args: TailArgs) -> Result<()> {
    tokio::select! {
        ended = tail(&args) => ended,
        stopped = shutdown::signalled() => stopped,
    }
}

async fn tail(args: &TailArgs) -> Result<()> {
    let registry = domains::registry(&args.domains)?;
    for name in &args.domain {
        domains::named(&registry, name)?;
    }
    let filter = filter::Filter {
        domains: args.domain.clone(),
        tenant: args.tenant.clone(),
        device: args.device.clone(),
        record: args.record.as_deref().map(identity),
        payload: args.payload,
    };
    // Where it begins is settled first: what is appended from now on is shown.
    let mut lanes = Vec::new();
    for log in logs(args, &registry).await? {
        lanes.push(lane(args, &log).await?);
    }
    let mut postgres = waiting::Postgres::connect(args.database.clone(), registry.clone()).await;
    let (sender, merged) = mpsc::channel(MERGED);
    tokio::spawn(merge::run(lanes, registry, filter, sender));
    print(args, merged, &mut postgres).await
}

/// The topics that are there of those that are asked for.
async fn logs(args: &TailArgs, registry: &Registry) -> Result<Vec<Log>> {
    let there = Cluster::new(&args.kafka, "tail")?.metadata().await?.topics;
    let wanted = registry.topics().into_iter().filter(|topic| {
        let on_topic = registry.on_topic(topic);
        args.domain.is_empty() || on_topic.iter().any(|domain| args.domain.contains(&domain.name))
    });
    let mut logs = Vec::new();
    for topic in wanted {
        let topic = topic_name(&args.kafka.topic_prefix, topic);
        match there.contains_key(&topic) {
            true => logs.push(Log::new(&args.kafka.kafka_brokers, &topic)),
            false => eprintln!("warning: the topic {topic} is not there: `tidelog topics` makes it"),
        }
    }
    match logs.is_empty() {
        true => bail!("none of the topics is there: run `tidelog topics` first"),
        false => Ok(logs),
    }
}

async fn lane(args: &TailArgs, log: &Log) -> Result<merge::Lane> {
    let cannot = || format!("cannot tell where {} begins and ends", log.topic());
    let bounds = log.bounds().await.with_context(cannot)?;
    let each = |place: &dyn Fn(&Range<i64>) -> i64| -> BTreeMap<i32, i64> {
        bounds
            .iter()
            .map(|(partition, bounds)| (*partition, place(bounds)))
            .collect()
    };
    let from = match args.from {
        From::Beginning => each(&|bounds| bounds.start),
        From::Now => each(&|bounds| bounds.end),
        From::Offset(offset) => each(&|bounds| offset.clamp(bounds.start, bounds.end)),
        From::Time(time) => log.at_time(time).await.with_context(cannot)?,
    };
    Ok(merge::Lane::start(log, &bounds, &from, !args.no_follow))
}

/// Prints what comes until nothing more does, or nobody reads any more.
async fn print(
    args: &TailArgs,
    mut merged: Receiver<Result<Seen>>,
    postgres: &mut waiting::Postgres,
) -> Result<()> {
    let mut waiting = waiting::Waiting::default();
    let opener = match args.payload {
        true => opening::opener(&args.kafka, &args.database, &args.seal).await?,
        false => None,
    };
    let (mut left, mut ended) = (args.limit.unwrap_or(u64::MAX), None);
    while ended.is_none() || waiting.len() > 0 {
        if ended.is_none() && waiting.len() < WAITING {
            ended = gather(&mut merged, &mut waiting, args.wait).await;
        } else {
            tokio::time::sleep(ASK_EVERY).await;
        }
        waiting.ask(postgres).await;
        let mut lines = String::new();
        while left > 0
            && let Some((mut seen, became)) = waiting.next(Instant::now())
        {
            if let Some(opener) = &opener {
                opening::open(opener, &mut seen).await;
            }
            lines.push_str(&line(args.output.output, &seen, &became)?);
            left -= 1;
        }
        if !output::write(&lines)? || left == 0 || output::is_abandoned() {
            return Ok(());
        }
    }
    ended.unwrap_or(Ok(()))
}

/// Takes in what comes within a moment. Answers how the stream ended, where it did.
async fn gather(
    merged: &mut Receiver<Result<Seen>>,
    waiting: &mut waiting::Waiting,
    wait: Duration,
) -> Option<Result<()>> {
    let since = Instant::now();
    while waiting.len() < WAITING {
        let patience = if waiting.len() == 0 { LOOK_UP } else { ASK_EVERY };
        match tokio::time::timeout(patience.saturating_sub(since.elapsed()), merged.recv()).await {
            Ok(Some(Ok(seen))) => waiting.add(seen, Instant::now() + wait),
            Ok(Some(Err(error))) => return Some(Err(error)),
            Ok(None) => return Some(Ok(())),
            Err(_) => break,
        }
    }
    None
}

fn line(form: Output, seen: &Seen, became: &Became) -> Result<String> {
    match form {
        Output::Text => Ok(seen.text(became)),
        Output::Json => Ok(seen.json(became)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_begin_is_a_word_an_offset_or_a_time() {
        assert_eq!(from("beginning"), Ok(From::Beginning));
        assert_eq!(from("17"), Ok(From::Offset(17)));
        let time = DateTime::parse_from_rfc3339("2026-03-01T10:00:00Z").expect("a time");
        assert_eq!(from("2026-03-01T12:00:00+02:00"), Ok(From::Time(time.to_utc())));
        let Ok(From::Time(ago)) = from("15m") else {
            panic!("no time")
        };
        assert!((Utc::now() - ago).num_minutes() >= 15);
        for bad in ["", "-1", "yesterday", "2026-03-01"] {
            assert!(from(bad).is_err(), "{bad}");
        }
    }
}
