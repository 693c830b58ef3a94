//! `tidelog status`: how far the projection is behind the log, partition by partition.
//!
//! What is in the log is asked of Kafka, what has been applied of Postgres, and the difference is the lag. Group
//! offsets are not looked at: Postgres' positions are the truth. `looker` looks, `projection` has the SQL, `watch` looks
//! again and again and `screen` is the terminal for that. With `--idempotency` it shows who repeats themselves instead,
//! which is `hits`.

mod looker;
mod projection;
mod screen;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tidelog_events::position::TopicPartition;

use crate::domains;
use crate::hits::{self, HitsArgs};
use crate::output::{OutputArgs, counted, printable, table};
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings};

pub(crate) use looker::Looker;
pub(crate) use projection::InFlight;

/// Shows how far the projection is behind the log
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Shows how far the projection is behind the log: a line a topic, or a partition with --all. As JSON, \
                  always every partition. Owners that have not been heard of for 15 seconds are gone, or cannot reach Postgres: they are \
                  not counted, but told. With --watch it looks again and again: on a terminal as a live screen, on which what is wrong \
                  stands on top and `q` or Ctrl-C ends; else a block of text, or a JSON object on a line of its own, each \
                  time. Rates are told between two looks, so only with --watch. With --idempotency it shows the devices that sent batches or items again \
                  in the last 24 hours instead, the most restless first.",
    after_help = "Examples:\n  tidelog status\n  tidelog status --output json | jq .lag\n  \
                  tidelog status --watch\n  tidelog status --watch 5 --output json | jq -c '[.looked_at, .lag, .rate]'\n  \
                  tidelog status --idempotency --tenant acme --limit 5\n\nExit codes:\n  \
                  0  shown, whatever the lag; --watch ended by `q`, Ctrl-C or its reader\n  \
                  1  Kafka or Postgres is away, or the schema is not migrated; it says which (--watch shows it and goes on)\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct StatusArgs {
    /// Show every partition
    #[arg(long)]
    all: bool,
    /// Look again and again, every so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds, conflicts_with = "idempotency")]
    watch: Option<Duration>,
    /// Show who sends the same batches and items again
    #[arg(long, conflicts_with = "all")]
    idempotency: bool,
    #[command(flatten)]
    hits: HitsArgs,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// All partitions.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// When it was looked. RFC 3339.
    pub(crate) looked_at: String,
    /// Records that are in the log and not yet applied.
    pub(crate) lag: i64,
    /// How long ago the oldest of them was logged; absent where that is not known.
    pub(crate) lag_seconds: Option<f64>,
    /// Records applied.
    pub(crate) applied: i64,
    /// Records applied a second, between this look and the one before.
    pub(crate) rate: Option<f64>,
    /// Records that the fold could not read and nobody has dealt with.
    pub(crate) dead_letters: i64,
    /// How often batches and items came again whose keys were hit in the last 24 hours.
    pub(crate) idempotency_hits_24h: Option<i64>,
    /// Batches that are being appended.
    pub(crate) in_flight: Option<InFlight>,
    /// What could not be reached this time: all else is then what was seen last.
    pub(crate) away: Vec<String>,
    /// Topics that are not there.
    pub(crate) missing_topics: Vec<String>,
    /// By topic and number.
    pub(crate) partitions: Vec<Partition>,
}

impl Status {
    /// Whether every partition that is there is this projector's.
    pub(crate) fn owned_by(&self, instance: &str) -> bool {
        self.missing_topics.is_empty()
            && self
                .partitions
                .iter()
                .all(|p| p.owner.as_deref() == Some(instance))
    }
}

/// One partition.
#[derive(Debug, Serialize)]
pub(crate) struct Partition {
    /// The topic, with the deployment's prefix.
    pub(crate) topic: String,
    /// The domains on it.
    pub(crate) domains: Vec<String>,
    /// Its number.
    pub(crate) partition: i32,
    /// What the fold takes next.
    pub(crate) next_offset: i64,
    /// The first offset that the log still has; absent where the topic is not there.
    pub(crate) begin_offset: Option<i64>,
    /// After the last record of the log; absent where the topic is not there.
    pub(crate) end_offset: Option<i64>,
    /// The difference.
    pub(crate) lag: i64,
    /// How long ago the oldest record that is not applied was logged; 0 where all are, absent where it is not known.
    pub(crate) lag_seconds: Option<f64>,
    /// Records applied a second, between this look and the one before.
    pub(crate) rate: Option<f64>,
    /// Records of it that the fold could not read and nobody has dealt with.
    pub(crate) dead_letters: i64,
    /// The projector that has it, or had it last.
    pub(crate) owner: Option<String>,
    /// How long ago it was last heard of.
    pub(crate) owner_seen_seconds: Option<f64>,
    /// By which fold it was applied last.
    pub(crate) fold_version: Option<i32>,
    /// Whatever the log had by then has been applied.
    pub(crate) applied_through: Option<String>,
    /// How long ago that was, in seconds.
    pub(crate) behind_seconds: Option<f64>,
    /// Why projectors do not read it, where the log does not have its position.
    pub(crate) withheld: Option<Withheld>,
    /// The position lies after the log's end: the topic was made anew, or this is another cluster.
    pub(crate) beyond_end: bool,
}

/// Why a partition is not read: as projectors see it, which leave alone what they cannot read from where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Withheld {
    /// The log begins after the position: what stood between was deleted and is not applied.
    Cut,
    /// The log ends before the position: it was lost or made anew, or this is another cluster.
    Beyond,
}

impl Withheld {
    fn of(position: i64, begins: Option<i64>, ends: Option<i64>) -> Option<Withheld> {
        match (begins, ends) {
            (_, Some(ends)) if position > ends => Some(Withheld::Beyond),
            (Some(begins), _) if position < begins => Some(Withheld::Cut),
            _ => None,
        }
    }
}

/// An owner that was not heard of for so many seconds is gone, or cannot reach Postgres.
const SILENT_SECONDS: f64 = 15.0;

impl Partition {
    fn at(&self) -> TopicPartition {
        TopicPartition {
            topic: self.topic.clone(),
            partition: self.partition,
        }
    }

    /// For how many seconds its owner was not heard of, where that is too long.
    fn silence(&self) -> Option<f64> {
        self.owner_seen_seconds.filter(|silent| *silent > SILENT_SECONDS)
    }

    /// What is wrong with it, the worst first.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        match (self.withheld, self.begin_offset) {
            (Some(Withheld::Beyond), _) => wrong.push("withheld: beyond the log's end".to_owned()),
            (Some(Withheld::Cut), Some(begins)) => {
                wrong.push(format!("withheld: the log begins at {begins}"))
            }
            _ => {}
        }
        match (&self.owner, self.silence()) {
            (None, _) => wrong.push("no owner".to_owned()),
            (Some(_), Some(silent)) => wrong.push(format!("owner silent for {silent:.0} s")),
            (Some(_), None) => {}
        }
        if self.dead_letters > 0 {
            wrong.push(counted(self.dead_letters, "dead letter", "dead letters"));
        }
        if self.lag > 0 && self.lag_seconds.is_none_or(|seconds| seconds >= 1.0) {
            wrong.push("behind".to_owned());
        }
        wrong
    }
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, like 1 or 0.5")?;
    match (0.1..=3600.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("give 0.1 to 3600 seconds"),
    }
}

/// Runs the command.
pub(crate) async fn run(args: StatusArgs) -> Result<()> {
    let registry = domains::registry(&args.domains)?;
    if args.idempotency {
        let hits = hits::hits(&args.database, &registry, &args.hits).await?;
        return args.output.output.print(&hits, hits::text);
    }
    let mut looker = Looker::new(&args.kafka, &args.database, &registry);
    if let Some(every) = args.watch {
        return watch::run(looker, every, args.all, args.output.output).await;
    }
    let status = looker.look().await?;
    for topic in &status.missing_topics {
        eprintln!("warning: the topic {topic} is not there: `tidelog topics` makes it");
    }
    for partition in &status.partitions {
        let (place, applied) = (
            format!("{} partition {}", partition.topic, partition.partition),
            partition.next_offset,
        );
        match partition.withheld {
            Some(Withheld::Beyond) => eprintln!(
                "warning: {place} has been applied up to {applied}, beyond the log's end: was the topic made anew? It is not read"
            ),
            Some(Withheld::Cut) => eprintln!(
                "warning: {place} has been applied up to {applied}, and the log begins at {}: what stood between was deleted. It is not read",
                partition.begin_offset.unwrap_or_default()
            ),
            None => {}
        }
    }
    args.output.output.print(&status, |status| text(status, args.all))
}

/// A table, a line a topic or a partition, and the totals.
fn text(status: &Status, all: bool) -> String {
    let (number, owner) = if all {
        ("partition", "owner")
    } else {
        ("partitions", "owners")
    };
    let heading = [
        "topic",
        number,
        "applied",
        "in the log",
        "lag",
        "oldest",
        "rate",
        "dead",
        "applied through",
        owner,
    ];
    let right = [false, true, true, true, true, true, true, true, false, false];
    let topics = status.partitions.chunk_by(|a, b| !all && a.topic == b.topic);
    let rows: Vec<[String; 10]> = topics.map(|partitions| row(partitions, all)).collect();
    format!(
        "{}\n{}\n{}\n{}",
        table(heading, right, &rows),
        totals(status),
        keys(status),
        unattended(status)
    )
}

/// Who does not see to partitions that are theirs, and what is nobody's: a line each.
fn unattended(status: &Status) -> String {
    let mut silent: BTreeMap<&str, Vec<&Partition>> = BTreeMap::new();
    let mut nobodys: Vec<&Partition> = Vec::new();
    for partition in &status.partitions {
        match (&partition.owner, partition.silence()) {
            (Some(owner), Some(_)) => silent.entry(owner).or_default().push(partition),
            (None, _) => nobodys.push(partition),
            (Some(_), None) => {}
        }
    }
    let mut text = String::new();
    for (owner, partitions) in silent {
        // The latest of what was heard of it.
        let heard = partitions
            .iter()
            .filter_map(|p| p.silence())
            .fold(f64::MAX, f64::min);
        text.push_str(&format!(
            "The owner {} has been silent for {heard:.0} s: gone, or without Postgres; it has {}\n",
            printable(owner),
            which(&partitions)
        ));
    }
    if !nobodys.is_empty() {
        text.push_str(&format!("Nobody has {}\n", which(&nobodys)));
    }
    text
}

/// How many partitions, and of which topics.
fn which(partitions: &[&Partition]) -> String {
    let topics: BTreeSet<&str> = partitions.iter().map(|p| p.topic.as_str()).collect();
    let number = counted(partitions.len() as u64, "partition", "partitions");
    match topics.first() {
        Some(topic) if topics.len() == 1 => format!("{number} of {topic}"),
        _ => format!("{number} of {} topics", topics.len()),
    }
}

/// The sums over all partitions.
fn totals(status: &Status) -> String {
    let mut text = format!(
        "{} applied, lag {}, {}",
        counted(status.applied, "record", "records"),
        status.lag,
        counted(status.dead_letters, "dead letter", "dead letters")
    );
    if let Some(seconds) = status.lag_seconds.filter(|_| status.lag > 0) {
        text.push_str(&format!(", the oldest logged {seconds} s ago"));
    }
    match status.partitions.iter().filter(|p| p.withheld.is_some()).count() {
        0 => {}
        withheld => {
            let partitions = counted(withheld, "partition", "partitions");
            text.push_str(&format!(", {partitions} withheld"));
        }
    }
    if let Some(rate) = status.rate {
        text.push_str(&format!(", {rate} applied a second"));
    }
    text
}

/// What the keys tell.
fn keys(status: &Status) -> String {
    let (Some(hits), Some(flight)) = (status.idempotency_hits_24h, &status.in_flight) else {
        return "keys were not counted".to_owned();
    };
    let oldest = flight
        .oldest_seconds
        .map(|age| format!(" (the oldest for {age} s)"))
        .unwrap_or_default();
    let abandoned = match flight.abandoned {
        0 => String::new(),
        number => format!(", {number} broken off"),
    };
    format!(
        "{} of keys in 24 h, {} in flight{oldest}{abandoned}",
        counted(hits, "hit", "hits"),
        counted(flight.batches, "batch", "batches")
    )
}

/// The line of one partition, or of all of a topic.
fn row(partitions: &[Partition], all: bool) -> [String; 10] {
    let sum = |number: fn(&Partition) -> i64| partitions.iter().map(number).sum::<i64>().to_string();
    let owners = |living: bool| -> BTreeSet<&str> {
        let owned = partitions.iter().filter(|p| p.silence().is_none() == living);
        owned.filter_map(|p| p.owner.as_deref()).collect()
    };
    let (living, mut silent) = (owners(true), owners(false));
    // One that is heard of elsewhere is there.
    silent.retain(|owner| !living.contains(owner));
    // A topic is applied through what its last partition is applied through.
    let through = partitions
        .iter()
        .map(|p| p.applied_through.as_deref())
        .min()
        .flatten();
    let oldest = partitions
        .iter()
        .filter(|p| p.lag > 0)
        .filter_map(|p| p.lag_seconds)
        .reduce(f64::max);
    let rate = partitions.iter().filter_map(|p| p.rate).reduce(|a, b| a + b);
    let owner = match (&partitions[0].owner, partitions[0].silence()) {
        (None, _) if all => "-".to_owned(),
        (Some(owner), Some(silent)) if all => format!("{owner} (silent for {silent:.0} s)"),
        (Some(owner), None) if all => owner.clone(),
        _ if living.is_empty() && silent.is_empty() => "-".to_owned(),
        _ if silent.is_empty() => living.len().to_string(),
        _ => format!("{} ({} silent)", living.len(), silent.len()),
    };
    let number = if all {
        partitions[0].partition
    } else {
        partitions.len() as i32
    };
    [
        partitions[0].topic.clone(),
        number.to_string(),
        sum(|p| p.next_offset),
        sum(|p| p.end_offset.unwrap_or(0)),
        sum(|p| p.lag),
        oldest.map_or("-".to_owned(), |seconds| format!("{seconds} s")),
        rate.map_or("-".to_owned(), |rate| format!("{rate:.1}/s")),
        sum(|p| p.dead_letters),
        through.unwrap_or("-").to_owned(),
        owner,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(
        topic: &str,
        partition: i32,
        next_offset: i64,
        end: i64,
        through: Option<&str>,
    ) -> Partition {
        Partition {
            topic: topic.into(),
            domains: vec![],
            partition,
            next_offset,
            begin_offset: Some(0),
            end_offset: Some(end),
            lag: end - next_offset,
            lag_seconds: Some(if end > next_offset { 4.0 } else { 0.0 }),
            rate: None,
            dead_letters: 0,
            owner_seen_seconds: Some(1.0),
            fold_version: Some(1),
            behind_seconds: Some(2.0),
            owner: Some("host-1".into()),
            applied_through: through.map(str::to_owned),
            withheld: None,
            beyond_end: false,
        }
    }

    #[test]
    fn a_partition_whose_position_the_log_does_not_have_is_withheld() {
        let of = |position| Withheld::of(position, Some(7), Some(20));
        assert_eq!([of(7), of(20)], [None, None]);
        assert_eq!([of(6), of(21)], [Some(Withheld::Cut), Some(Withheld::Beyond)]);
        assert_eq!(Withheld::of(0, None, None), None, "the topic is not there");
        let mut cut = partition("a", 0, 6, 20, None);
        (cut.withheld, cut.begin_offset) = (of(6), Some(7));
        assert_eq!(cut.complaints(), ["withheld: the log begins at 7", "behind"]);
        assert!(totals(&status(vec![cut])).ends_with(", 1 partition withheld"));
    }

    fn status(partitions: Vec<Partition>) -> Status {
        Status {
            looked_at: "2026-01-02T00:00:00.000Z".into(),
            lag: 2,
            lag_seconds: Some(4.0),
            applied: 12,
            rate: None,
            dead_letters: 0,
            idempotency_hits_24h: Some(3),
            in_flight: None,
            away: vec![],
            missing_topics: vec![],
            partitions,
        }
    }

    #[test]
    fn an_owner_that_is_gone_is_told_and_not_counted() {
        let mut gone = [1, 2].map(|number| partition("a", number, 3, 3, None));
        for partition in &mut gone {
            partition.owner = Some("host-2".into());
            partition.owner_seen_seconds = Some(24.3);
        }
        let mut dead = partition("b", 0, 3, 3, None);
        dead.owner = Some("host-2".into());
        dead.owner_seen_seconds = Some(25.0);
        let mut nobodys = partition("c", 0, 3, 3, None);
        (nobodys.owner, nobodys.owner_seen_seconds) = (None, None);
        let [first, second] = gone;
        let all = vec![partition("a", 0, 3, 3, None), first, second, dead, nobodys];
        let text = text(&status(all), false);
        let lines: Vec<&str> = text.lines().collect();
        let ends = ["1 (1 silent)", "0 (1 silent)", "-"];
        for (line, end) in lines[1..].iter().zip(ends) {
            assert!(line.ends_with(end), "{text}");
        }
        assert_eq!(
            lines[7..],
            [
                "The owner host-2 has been silent for 24 s: gone, or without Postgres; it has 3 partitions of 2 topics",
                "Nobody has 1 partition of c"
            ]
        );
    }

    #[test]
    fn a_topic_is_one_line_unless_all_are_asked_for() {
        let status = status(vec![
            partition("a", 0, 5, 7, Some("2026-01-02T00:00:00.000Z")),
            partition("a", 1, 3, 3, Some("2026-01-01T00:00:00.000Z")),
            partition("b", 0, 4, 4, None),
        ]);
        let (short, long) = (text(&status, false), text(&status, true));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let short: Vec<String> = short.lines().map(words).collect();
        assert_eq!(short[1], "a 2 8 10 2 4 s - 0 2026-01-01T00:00:00.000Z 1");
        assert_eq!(short[2], "b 1 4 4 0 - - 0 - 1");
        assert_eq!(
            short[4],
            "12 records applied, lag 2, 0 dead letters, the oldest logged 4 s ago"
        );
        let long: Vec<String> = long.lines().map(words).collect();
        assert_eq!(long[1], "a 0 5 7 2 4 s - 0 2026-01-02T00:00:00.000Z host-1");
        assert_eq!(long.len(), 7);
    }
}
