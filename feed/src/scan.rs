//! Following the feed: from a place in each partition on, merged by log time, until the page is full or nothing
//! follows. Never passes over a change that it has not looked at: where it stops for whatever reason, the cursor
//! stands right there.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::cursor::{Cursor, Spot};
use crate::error::FeedError;
use crate::page::Page;
use crate::reading::{Batch, Effort, Reading};

/// Rows to ask for where a page goes beyond its limit.
const BEYOND: usize = 1000;

/// Where a pull ended.
pub(crate) struct End {
    /// Something follows, or may.
    pub(crate) has_more: bool,
    /// A pull since this time misses nothing that this one has not told.
    pub(crate) next_timestamp: DateTime<Utc>,
}

/// Why one batch's rows came to an end.
enum Stop {
    /// The next change has no room on the page; its log time.
    Full(DateTime<Utc>),
    /// What lies behind the last change looked at is not known; its log time.
    Unknown(DateTime<Utc>),
    /// Nothing follows.
    Exhausted,
}

/// What was asked of one statement.
struct Ask {
    each: usize,
    all: usize,
}

/// Fills the page from the cursor's places on and moves these. `since` is the time that the caller asked from, if it
/// goes by time. Such a caller can only go on from a time, so the page takes in more than fit where it would have to
/// start over: all changes at that very time, and everything while a partition has not been applied up to it.
pub(crate) async fn follow(
    reading: &Reading<'_>,
    cursor: &mut Cursor,
    page: &mut Page,
    since: Option<DateTime<Utc>>,
) -> Result<End, FeedError> {
    let mut effort = Effort::new();
    let mut first = true;
    loop {
        let room = match page.room() {
            // Beyond the limit, on account of `since`: how much follows is not known.
            0 if !first => BEYOND,
            room => room,
        };
        let all = effort.next(room);
        let ask = Ask {
            each: if first { share(all, cursor.feed.len()) } else { all },
            all,
        };
        let mut batch = fetch(reading, cursor, &ask).await?;
        batch.reaches(cursor)?;
        first = false;
        let told = page.len();
        let applied = batch.applied_through();
        let gets_on = |at: DateTime<Utc>| since.is_none_or(|since| at.min(applied) > since);
        let stop = consume(reading, cursor, page, &mut batch, &ask, gets_on)?;
        effort.note(batch.rows.len(), page.len() - told);
        let (has_more, reached) = match stop {
            Stop::Exhausted => {
                for place in &batch.places {
                    cursor.advance(place.partition, place.next_offset);
                }
                (false, applied)
            }
            Stop::Full(at) => (true, at),
            Stop::Unknown(at) if effort.is_enough() => (true, at),
            Stop::Unknown(at) if page.room() == 0 && gets_on(at) => (true, at),
            Stop::Unknown(_) => continue,
        };
        return Ok(End {
            has_more,
            next_timestamp: reached.min(applied),
        });
    }
}

/// Rows to ask of each partition so that all together are `all`: records are spread by hash, so each has about its
/// part, and three standard deviations more hold nearly always. Where they don't, the page takes another statement.
fn share(all: usize, partitions: usize) -> usize {
    let part = all.div_ceil(partitions.max(1));
    (part + 3 * part.isqrt() + 8).min(all)
}

async fn fetch(reading: &Reading<'_>, cursor: &Cursor, ask: &Ask) -> Result<Batch, FeedError> {
    let child = reading.from.is_child();
    let partitions: Vec<i32> = cursor.feed.iter().map(|spot| spot.partition).collect();
    // Children are read after (offset, identity): the end of the offset before, or amid one.
    let offset = |spot: &Spot| {
        if child && spot.after.is_none() {
            spot.next - 1
        } else {
            spot.next
        }
    };
    let offsets: Vec<i64> = cursor.feed.iter().map(offset).collect();
    let after: Vec<Option<Uuid>> = cursor.feed.iter().map(|spot| spot.after).collect();
    let (each, all) = (ask.each as i64, ask.all as i64);
    let (tenant, topic) = (reading.tenant, &reading.from.topic);
    let mut values: Vec<crate::store::Parameter<'_>> = vec![
        &tenant,
        topic,
        &reading.reader,
        &reading.filters,
        &partitions,
        &offsets,
        &each,
        &all,
    ];
    if child {
        values.push(&after);
    }
    Batch::fetch(reading, &reading.from.statements.follow, &values).await
}

/// Puts a batch's rows on the page, in the order of time, and moves the cursor past each. `gets_on` says of a log time
/// whether a next pull can start there.
fn consume(
    reading: &Reading<'_>,
    cursor: &mut Cursor,
    page: &mut Page,
    batch: &mut Batch,
    ask: &Ask,
    gets_on: impl Fn(DateTime<Utc>) -> bool,
) -> Result<Stop, FeedError> {
    let child = reading.from.is_child();
    let mut rows = batch
        .rows
        .iter_mut()
        .map(|row| Ok((row.order(child)?, row)))
        .collect::<Result<Vec<_>, FeedError>>()?;
    // They come in this order; that they do is the planner's choice, not the statement's promise.
    rows.sort_by_key(|(order, _)| *order);
    let mut looked_at: HashMap<i32, usize> = HashMap::new();
    let mut last = None;
    for ((changed_at, partition, offset, id), row) in rows {
        let tells = row.tells();
        if tells && page.room() == 0 && gets_on(changed_at) {
            return Ok(Stop::Full(changed_at));
        }
        if tells {
            row.tell(page)?;
        }
        *cursor.spot(partition) = match child {
            true => Spot {
                partition,
                next: offset,
                after: Some(id),
            },
            false => Spot {
                partition,
                next: offset + 1,
                after: None,
            },
        };
        let count = looked_at.entry(partition).or_default();
        *count += 1;
        if *count == ask.each {
            // The partition was cut here: its next change may come before the others'.
            return Ok(Stop::Unknown(changed_at));
        }
        last = Some(changed_at);
    }
    Ok(match last {
        Some(last) if batch.rows.len() == ask.all => Stop::Unknown(last),
        _ => Stop::Exhausted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partitions_share_is_its_part_and_a_margin() {
        assert_eq!(share(1001, 6), 167 + 3 * 12 + 8);
        assert_eq!(share(101, 1), 101);
        assert_eq!(share(101, 0), 101);
        assert_eq!(share(2, 64), 2);
    }
}
