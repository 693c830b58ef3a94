//! `tidelog status --watch`: looks again and again. On a terminal what is wrong stands on top, and all of it fits; elsewhere
//! each look is a block of text or a line of JSON. A side that is away is said to be so, and looked for again.

use std::time::Duration;

use anyhow::Result;

use super::looker::Looker;
use super::screen::{Screen, Woken};
use super::{Partition, Status, keys, text, totals};
use crate::output::{self, Output, table};
use crate::shutdown;

/// Until somebody has seen enough.
pub(super) async fn run(looker: Looker, every: Duration, all: bool, form: Output) -> Result<()> {
    let screen = if form == Output::Text {
        Screen::enter()
    } else {
        None
    };
    let watching = async {
        match &screen {
            Some(screen) => live(looker, every, screen).await,
            None => plain(looker, every, all, form).await,
        }
    };
    tokio::select! {
        ended = watching => ended,
        stopped = shutdown::signalled() => stopped,
    }
}

async fn plain(mut looker: Looker, every: Duration, all: bool, form: Output) -> Result<()> {
    let mut ticks = ticks(every);
    loop {
        ticks.tick().await;
        let status = looker.look_on().await;
        let shown = match form {
            Output::Json => format!("{}\n", serde_json::to_string(&status)?),
            Output::Text => block(&status, all),
        };
        if !output::write(&shown)? {
            return Ok(());
        }
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

fn block(status: &Status, all: bool) -> String {
    let mut block = format!("{}\n", status.looked_at);
    for away in away(status) {
        block.push_str(&format!("{away}\n"));
    }
    format!("{block}{}\n", text(status, all))
}

fn away(status: &Status) -> impl Iterator<Item = String> {
    let missing = status.missing_topics.iter();
    let missing = missing.map(|topic| format!("The topic {topic} is not there: `tidelog topics` makes it"));
    let away = status
        .away
        .iter()
        .map(|why| format!("AWAY, shown as seen last: {why}"));
    away.chain(missing)
}

async fn live(mut looker: Looker, every: Duration, screen: &Screen) -> Result<()> {
    screen.draw(&["Looking …".to_owned()]);
    loop {
        let since = tokio::time::Instant::now();
        // `q` is heard while a side that is away is waited for.
        let status = {
            let mut looking = std::pin::pin!(looker.look_on());
            loop {
                tokio::select! {
                    status = &mut looking => break status,
                    woken = screen.wait(every) => if woken == Woken::Quit { return Ok(()) },
                }
            }
        };
        loop {
            screen.draw(&lines(&status, screen.size()));
            match screen.wait(every.saturating_sub(since.elapsed())).await {
                Woken::Quit => return Ok(()),
                Woken::Time => break,
                Woken::Resized => {}
            }
        }
    }
}

/// A screenful: the totals, then the partitions, the worst first, as many as there is room for.
fn lines(status: &Status, (columns, rows): (usize, usize)) -> Vec<String> {
    let mut lines = vec![format!("tidelog  {}  (q ends)", status.looked_at)];
    lines.extend(away(status));
    lines.extend([totals(status), keys(status), String::new()]);
    let mut partitions: Vec<&Partition> = status.partitions.iter().collect();
    partitions.sort_by_key(|partition| urgency(partition));
    let cells: Vec<[String; 9]> = partitions.iter().map(|partition| cells(partition)).collect();
    let heading = [
        "topic",
        "partition",
        "lag",
        "oldest",
        "rate",
        "applied",
        "dead",
        "wrong",
        "owner",
    ];
    let right = [false, true, true, true, true, true, true, false, false];
    let table = table(heading, right, &cells);
    let room = rows.saturating_sub(lines.len() + 1);
    let all: Vec<&str> = table.lines().collect();
    // The heading, and what fits under it.
    let shown = if all.len() <= room {
        all.len()
    } else {
        room.saturating_sub(1)
    };
    lines.extend(all.iter().take(shown).map(|line| (*line).to_owned()));
    if shown < all.len() && shown > 0 {
        let hidden = &partitions[shown - 1..];
        let wrong = hidden
            .iter()
            .filter(|partition| !partition.complaints().is_empty())
            .count();
        lines.push(format!(
            "… and {} more, {wrong} of them with something wrong",
            hidden.len()
        ));
    }
    lines.truncate(rows);
    lines
        .iter()
        .map(|line| line.chars().take(columns).collect())
        .collect()
}

/// Sorts what is wrong to the top: no reading at all, then lag by age and number, then dead letters, then the rest by name.
fn urgency(partition: &Partition) -> impl Ord + use<> {
    let complaints = partition.complaints();
    let stands = partition.withheld.is_some() || complaints.iter().any(|why| why.contains("owner"));
    let behind = complaints.iter().any(|why| why == "behind");
    (
        std::cmp::Reverse((stands, behind, partition.dead_letters > 0)),
        std::cmp::Reverse(partition.lag),
        partition.topic.clone(),
        partition.partition,
    )
}

fn cells(partition: &Partition) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let oldest = partition.lag_seconds.filter(|_| partition.lag > 0);
    [
        partition.topic.clone(),
        partition.partition.to_string(),
        partition
            .end_offset
            .map_or("?".into(), |_| partition.lag.to_string()),
        or_dash(oldest.map(|seconds| format!("{seconds} s"))),
        or_dash(partition.rate.map(|rate| format!("{rate:.1}/s"))),
        partition.next_offset.to_string(),
        partition.dead_letters.to_string(),
        partition.complaints().join(", "),
        or_dash(partition.owner.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32, lag: i64) -> Partition {
        Partition {
            topic: "sync.helpdesk.v1".into(),
            domains: vec![],
            partition: number,
            next_offset: 10,
            begin_offset: Some(0),
            end_offset: Some(10 + lag),
            lag,
            lag_seconds: Some(if lag > 0 { 30.0 } else { 0.0 }),
            rate: Some(1.5),
            dead_letters: 0,
            owner: Some("host-1".into()),
            owner_seen_seconds: Some(1.0),
            fold_version: Some(1),
            applied_through: None,
            behind_seconds: None,
            withheld: None,
            beyond_end: false,
        }
    }

    fn status(partitions: Vec<Partition>) -> Status {
        Status {
            looked_at: "2026-01-02T00:00:00.000Z".into(),
            lag: 7,
            lag_seconds: Some(30.0),
            applied: 60,
            rate: Some(1.5),
            dead_letters: 2,
            idempotency_hits_24h: Some(3),
            in_flight: None,
            missing_topics: vec![],
            away: vec!["Postgres at db cannot be reached".into()],
            partitions,
        }
    }

    #[test]
    fn what_is_wrong_stands_on_top() {
        let mut dead = partition(1, 0);
        dead.dead_letters = 2;
        let mut silent = partition(4, 0);
        silent.owner_seen_seconds = Some(60.0);
        let all = vec![
            partition(0, 0),
            dead,
            partition(2, 3),
            partition(3, 4),
            silent,
            partition(5, 0),
        ];
        let lines = lines(&status(all), (200, 50));
        let text = lines.join("\n");
        assert!(
            text.contains("AWAY, shown as seen last: Postgres at db cannot be reached"),
            "{text}"
        );
        assert!(text.contains(
            "60 records applied, lag 7, 2 dead letters, the oldest logged 30 s ago, 1.5 applied a second"
        ));
        let order: Vec<&str> = lines[6..]
            .iter()
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        assert_eq!(order, ["4", "3", "2", "1", "0", "5"], "{text}");
        assert!(
            text.contains("owner silent for 60 s")
                && text.contains("2 dead letters")
                && text.contains("behind")
        );
    }

    #[test]
    fn a_screen_is_never_overfull() {
        let all: Vec<Partition> = (0..40).map(|n| partition(n, i64::from(n % 2))).collect();
        let status = status(all);
        for rows in 0..60 {
            for columns in [1, 20, 300] {
                let lines = lines(&status, (columns, rows));
                assert!(lines.len() <= rows, "{rows}: {}", lines.len());
                assert!(lines.iter().all(|line| line.chars().count() <= columns));
            }
        }
        let lines = lines(&status, (200, 12));
        assert_eq!(
            lines.last().map(String::as_str),
            Some("… and 36 more, 16 of them with something wrong")
        );
    }
}
