//! What a run is about: from where to where each partition is exported. It ends where the log ended when the run began,
//! before the day that is not over, and before the first event that the projection has not come to, whichever comes
//! first; so what a run writes is settled before it writes. Knows no format.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, NaiveTime, Utc};
use serde::Serialize;
use tidelog_events::position::{Positions, TopicPartition};
use tidelog_projector::log::Log;
use tokio_postgres::Client;

use super::folder::{Again, Progress};
use crate::look::outcomes;
use crate::moment::moment;

/// How often the projection's positions are looked at while it is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A place in every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// What the log still has first, or last.
    Edge,
    /// An offset of every partition.
    Offset(i64),
    /// The first record that is no older.
    Time(DateTime<Utc>),
}

/// A place, and how it was said.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// As it was said.
    pub(super) text: String,
    /// What it means.
    pub(super) place: Place,
}

/// Where an export begins.
pub(super) fn from(text: &str) -> Result<Said, String> {
    said(text, "beginning")
}

/// Where a run ends.
pub(super) fn to(text: &str) -> Result<Said, String> {
    said(text, "end")
}

fn said(text: &str, edge: &str) -> Result<Said, String> {
    let place = match (text.parse::<i64>(), moment(text)) {
        _ if text == edge => Place::Edge,
        (Ok(offset), _) if offset >= 0 => Place::Offset(offset),
        (_, Ok(time)) => Place::Time(time),
        _ => {
            return Err(format!(
                "give {edge}, an offset, a time like 2026-03-01T00:00:00Z, or how long ago, like 7d"
            ));
        }
    };
    Ok(Said {
        text: text.to_owned(),
        place,
    })
}

/// A partition's part of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    /// Which.
    pub(super) partition: i32,
    /// Where its export began, in this run or an earlier one.
    pub(super) first_offset: i64,
    /// What is new begins here.
    pub(super) from: i64,
    /// And ends before here.
    pub(super) to: i64,
    /// The last file of the runs before.
    pub(super) again: Option<Again>,
    /// What became of events is known before here.
    pub(super) known_to: i64,
}

/// Events that the projection has yet to come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Behind {
    /// Of this partition.
    pub(super) partition: i32,
    /// From here on.
    pub(super) from_offset: i64,
    /// So many offsets.
    pub(super) events: u64,
}

/// What is asked for.
pub(super) struct Asked<'a> {
    /// These partitions; all, if there are none.
    pub(super) partitions: &'a [i32],
    /// Where partitions begin that were not exported before.
    pub(super) from: Place,
    /// Where the run ends.
    pub(super) to: Place,
    /// The day that is not over too.
    pub(super) include_today: bool,
    /// How long the projection may take.
    pub(super) wait: Duration,
    /// Events that it has not come to by then are exported all the same.
    pub(super) with_pending: bool,
}

/// What a run writes, and what it leaves.
pub(super) struct Settled {
    /// The partitions' parts.
    pub(super) spans: Vec<Span>,
    /// What the projection has not come to.
    pub(super) behind: Vec<Behind>,
    /// So many offsets are left out because their day is not over.
    pub(super) of_today: u64,
}

/// Settles where each partition begins and ends, and what is left for another time.
pub(super) async fn settle(
    asked: &Asked<'_>,
    log: &Log,
    client: &Client,
    before: &BTreeMap<i32, Progress>,
) -> Result<Settled> {
    let bounds = bounds(log, asked.partitions).await?;
    let Ends { ends, with_today } = ends(asked, log, &bounds).await?;
    let starts = match asked.from {
        Place::Time(time) => log.at_time(time).await.with_context(|| cannot_tell(log))?,
        _ => BTreeMap::new(),
    };
    let mut spans = Vec::new();
    for (partition, bounds) in bounds {
        let end = ends.get(&partition).copied().unwrap_or(bounds.end);
        let span = match before.get(&partition) {
            Some(progress) => {
                readable(log, partition, progress, &bounds)?;
                Span {
                    partition,
                    first_offset: progress.first_offset,
                    from: progress.next_offset,
                    to: end,
                    again: progress.again,
                    known_to: end,
                }
            }
            None => {
                let from = match asked.from {
                    Place::Edge => bounds.start,
                    Place::Offset(offset) => offset.max(bounds.start),
                    Place::Time(_) => starts.get(&partition).copied().unwrap_or(bounds.end),
                };
                Span {
                    partition,
                    first_offset: from,
                    from,
                    to: end,
                    again: None,
                    known_to: end,
                }
            }
        };
        spans.push(span);
    }
    let of_today = of_today(&spans, &with_today);
    let positions = waited(client, log.topic(), &spans, asked.wait).await?;
    let (spans, behind) = within(spans, &positions, log.topic(), asked.with_pending);
    Ok(Settled {
        spans,
        behind,
        of_today,
    })
}

/// How many offsets the spans would have more, did they end where they do `with_today`.
fn of_today(spans: &[Span], with_today: &BTreeMap<i32, i64>) -> u64 {
    let each = spans.iter().map(|span| {
        let end = with_today.get(&span.partition).copied().unwrap_or(span.to);
        end - span.to.max(span.from)
    });
    each.map(|offsets| offsets.max(0).unsigned_abs()).sum()
}

/// What of the spans is known, or is exported all the same; and what is not.
fn within(
    spans: Vec<Span>,
    positions: &Positions,
    topic: &str,
    with_pending: bool,
) -> (Vec<Span>, Vec<Behind>) {
    let (mut kept, mut behind) = (Vec::new(), Vec::new());
    for mut span in spans {
        span.known_to = positions.next_offset(&at(topic, span.partition)).min(span.to);
        let pending = span.again.filter(|again| again.pending);
        let open = span
            .known_to
            .max(pending.map_or(span.from, |again| again.first_offset));
        let unknown = span.to - open;
        if unknown > 0 {
            behind.push(Behind {
                partition: span.partition,
                from_offset: open,
                events: unknown.unsigned_abs(),
            });
        }
        if !with_pending {
            span.to = span.known_to;
        }
        // Files that hold pending events are written again as soon as that makes them no shorter.
        let again = pending.is_some_and(|again| span.to >= span.from && span.known_to > again.first_offset);
        if span.to > span.from || again {
            kept.push(span);
        }
    }
    (kept, behind)
}

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition {
        topic: topic.to_owned(),
        partition,
    }
}

/// The positions, once they have passed all of the spans or have had the time to.
async fn waited(client: &Client, topic: &str, spans: &[Span], wait: Duration) -> Result<Positions> {
    let until = Instant::now() + wait;
    let mut told = false;
    loop {
        let positions = outcomes::positions(client).await?;
        let passed = |span: &Span| {
            let nothing = span.to <= span.from && span.again.is_none_or(|again| !again.pending);
            nothing || positions.next_offset(&at(topic, span.partition)) >= span.to
        };
        if spans.iter().all(passed) || Instant::now() >= until {
            return Ok(positions);
        }
        if !told {
            eprintln!("Waiting for the projection to come to the end of {topic}, {wait:?} at the most");
            told = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Where each of the partitions that are asked for begins and ends.
async fn bounds(log: &Log, wanted: &[i32]) -> Result<BTreeMap<i32, Range<i64>>> {
    let mut bounds = log.bounds().await.with_context(|| cannot_tell(log))?;
    if let Some(missing) = wanted.iter().find(|partition| !bounds.contains_key(partition)) {
        bail!(
            "{} has no partition {missing}: it has {} of them, numbered from 0",
            log.topic(),
            bounds.len()
        );
    }
    bounds.retain(|partition, _| wanted.is_empty() || wanted.contains(partition));
    Ok(bounds)
}

/// Where a run ends in each partition, as far as the log alone tells.
struct Ends {
    ends: BTreeMap<i32, i64>,
    /// Where it would end if the day that is not over were not left out.
    with_today: BTreeMap<i32, i64>,
}

async fn ends(asked: &Asked<'_>, log: &Log, bounds: &BTreeMap<i32, Range<i64>>) -> Result<Ends> {
    let mut ends: BTreeMap<i32, i64> = bounds
        .iter()
        .map(|(partition, bounds)| (*partition, bounds.end))
        .collect();
    match asked.to {
        Place::Edge => {}
        Place::Offset(offset) => ends.values_mut().for_each(|end| *end = offset.min(*end)),
        Place::Time(time) => cut_at(time, log, &mut ends).await?,
    }
    let with_today = ends.clone();
    if !asked.include_today {
        // The first record of this day or a later one: whatever comes after it counts to that day too.
        let midnight = Utc::now().date_naive().and_time(NaiveTime::MIN).and_utc();
        cut_at(midnight, log, &mut ends).await?;
    }
    Ok(Ends { ends, with_today })
}

/// Lets the ends be no later than a time.
async fn cut_at(time: DateTime<Utc>, log: &Log, ends: &mut BTreeMap<i32, i64>) -> Result<()> {
    let found = log.at_time(time).await.with_context(|| cannot_tell(log))?;
    for (partition, end) in ends {
        *end = found.get(partition).map_or(*end, |at| (*at).min(*end));
    }
    Ok(())
}

/// Whether the log still has what comes next.
fn readable(log: &Log, partition: i32, progress: &Progress, bounds: &Range<i64>) -> Result<()> {
    let next = progress.next_offset;
    if next > bounds.end {
        bail!(
            "partition {partition} of {} was exported up to offset {next}, and the log ends at {}: this is another log. Export it \
             into another folder with --into",
            log.topic(),
            bounds.end
        );
    }
    if next < bounds.start {
        bail!(
            "partition {partition} of {} was exported up to offset {next}, and the log has nothing before {} any more: what lies \
             between was deleted before it was exported. Export what is left into another folder with --into, and export more \
             often than the topic's retention",
            log.topic(),
            bounds.start
        );
    }
    Ok(())
}

fn cannot_tell(log: &Log) -> String {
    format!(
        "cannot tell where {} begins and ends; `tidelog topics` makes it where it is not there",
        log.topic()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDate;

    fn span(from: i64, to: i64, again: Option<Again>) -> Span {
        Span {
            partition: 0,
            first_offset: 0,
            from,
            to,
            again,
            known_to: to,
        }
    }

    fn kept(span: Span, position: i64, with_pending: bool) -> (Option<(i64, i64)>, u64) {
        let positions = [(at("t", 0), position)].into_iter().collect();
        let (kept, behind) = within(vec![span], &positions, "t", with_pending);
        (
            kept.first().map(|span| (span.from, span.to)),
            behind.first().map_or(0, |behind| behind.events),
        )
    }

    #[test]
    fn a_place_is_an_edge_an_offset_or_a_time() {
        assert_eq!(from("beginning").map(|said| said.place), Ok(Place::Edge));
        assert_eq!(to("17").map(|said| said.place), Ok(Place::Offset(17)));
        assert!(matches!(to("7d").map(|said| said.place), Ok(Place::Time(_))));
        for bad in ["", "-1", "end", "2026-03-01"] {
            assert!(from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_run_ends_before_what_the_projection_has_not_come_to() {
        assert_eq!(kept(span(5, 10, None), 12, false), (Some((5, 10)), 0));
        assert_eq!(kept(span(5, 10, None), 8, false), (Some((5, 8)), 2));
        assert_eq!(kept(span(5, 10, None), 5, false), (None, 5));
        assert_eq!(kept(span(5, 10, None), 0, false), (None, 5));
        assert_eq!(kept(span(5, 10, None), 8, true), (Some((5, 10)), 2));
        // A run that ends earlier than the ones before has nothing to do.
        assert_eq!(kept(span(5, 3, None), 8, false), (None, 0));
    }

    #[test]
    fn what_is_left_for_its_day_to_end_is_counted_once() {
        let with_today = [(0, 12)].into_iter().collect();
        let left = |span| of_today(&[span], &with_today);
        assert_eq!(left(span(5, 10, None)), 2);
        // A run that took today in has written some of it, and one that began today has all of it left.
        assert_eq!(left(span(11, 10, None)), 1);
        assert_eq!(left(span(0, 0, None)), 12);
        assert_eq!(left(span(5, 12, None)), 0);
        assert_eq!(left(span(14, 10, None)), 0);
    }

    #[test]
    fn files_with_pending_events_are_written_again_once_that_makes_them_no_shorter() {
        let date = NaiveDate::from_ymd_opt(2026, 3, 1).expect("a date");
        let again = Some(Again {
            date,
            first_offset: 2,
            pending: true,
        });
        assert_eq!(kept(span(5, 5, again), 5, false), (Some((5, 5)), 0));
        assert_eq!(kept(span(5, 9, again), 4, false), (None, 5));
        assert_eq!(kept(span(5, 9, again), 7, false), (Some((5, 7)), 2));
        let settled = Some(Again {
            date,
            first_offset: 2,
            pending: false,
        });
        assert_eq!(kept(span(5, 5, settled), 5, false), (None, 0));
    }

    #[test]
    fn a_log_that_lost_what_comes_next_or_is_another_is_not_gone_on_with() {
        let log = Log::new("nowhere:9092", "t");
        let told = |next_offset, bounds: Range<i64>| {
            let progress = Progress {
                first_offset: 0,
                next_offset,
                again: None,
            };
            let found = readable(&log, 3, &progress, &bounds);
            found.map_err(|error| error.to_string())
        };
        assert_eq!(told(7, 7..9), Ok(()));
        assert_eq!(told(9, 7..9), Ok(()));
        let lost = told(6, 7..9).expect_err("a gap");
        assert!(lost.contains("nothing before 7 any more"), "{lost}");
        let other = told(10, 7..9).expect_err("too short");
        assert!(
            other.contains("the log ends at 9: this is another log"),
            "{other}"
        );
    }
}
