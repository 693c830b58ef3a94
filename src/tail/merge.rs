//! Several topics' logs as one stream: each partition in its order, and all of them together by the log's time. While
//! what was there at the start is read, no partition runs ahead of another that has more to come, as far as the room for
//! what is held allows; after that records come as they are appended. Knows no outcome.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::select_all;
use tidelog_events::domain::Registry;
use tidelog_projector::ProjectorError;
use tidelog_projector::log::{Log, Parcel};
use tokio::sync::mpsc::{Receiver, Sender};

use super::filter::Filter;
use crate::look::seen::Seen;

/// Most bytes that are held of a topic, about, to put its partitions in order.
const ROOM: usize = 8 << 20;
/// A partition that has more to come and brings nothing for this long is not waited for any longer.
const STALL: Duration = Duration::from_secs(3);

/// A topic that is read.
pub(super) struct Lane {
    parcels: Receiver<Result<Parcel, ProjectorError>>,
    partitions: BTreeMap<i32, Queue>,
    topic: String,
    held: usize,
    open: bool,
}

/// What is held of a partition.
#[derive(Default)]
struct Queue {
    events: VecDeque<Seen>,
    /// Everything before it has been read.
    read_to: i64,
    /// The log's end when the reading began.
    behind_to: i64,
}

impl Lane {
    /// Begins to read each partition from where `from` says to where its bounds end, or for ever.
    pub(super) fn start(
        log: &Log,
        bounds: &BTreeMap<i32, Range<i64>>,
        from: &BTreeMap<i32, i64>,
        follow: bool,
    ) -> Lane {
        let mut ranges = BTreeMap::new();
        let mut partitions = BTreeMap::new();
        for (partition, bounds) in bounds {
            let from = from.get(partition).copied().unwrap_or(bounds.end);
            ranges.insert(*partition, (from, (!follow).then_some(bounds.end)));
            let queue = Queue {
                read_to: from,
                behind_to: bounds.end,
                ..Queue::default()
            };
            partitions.insert(*partition, queue);
        }
        Lane {
            parcels: log.read(&ranges),
            partitions,
            topic: log.topic().to_owned(),
            held: 0,
            open: true,
        }
    }

    fn has_room(&self) -> bool {
        self.open && self.held < ROOM
    }

    /// Whether a partition of it may still bring something older than what others hold.
    fn is_awaited(&self) -> bool {
        let behind = |queue: &Queue| queue.events.is_empty() && queue.read_to < queue.behind_to;
        self.has_room() && self.partitions.values().any(behind)
    }

    fn take(&mut self, parcel: &Parcel, registry: &Registry, filter: &Filter) {
        let queue = self.partitions.entry(parcel.partition).or_default();
        queue.read_to = parcel.next_offset;
        for record in &parcel.records {
            let seen = Seen::of(record, registry, filter.payload);
            if filter.passes(&seen) {
                self.held += seen.weight();
                queue.events.push_back(seen);
            }
        }
    }
}

/// Reads all lanes into one channel until they end, somebody stops listening, or one of them cannot be read.
pub(super) async fn run(
    mut lanes: Vec<Lane>,
    registry: Arc<Registry>,
    filter: Filter,
    merged: Sender<Result<Seen>>,
) {
    let mut stalled = false;
    loop {
        while let Some(seen) = next(&mut lanes, stalled) {
            if merged.send(Ok(seen)).await.is_err() {
                return;
            }
        }
        if lanes.iter().all(|lane| !lane.open) {
            return;
        }
        match arrive(&mut lanes).await {
            None => stalled = true,
            Some((lane, Some(Ok(parcel)))) => {
                stalled = false;
                lanes[lane].take(&parcel, &registry, &filter);
            }
            Some((lane, None)) => lanes[lane].open = false,
            Some((lane, Some(Err(error)))) => {
                let error =
                    anyhow::Error::new(error).context(format!("{} cannot be read", lanes[lane].topic));
                // Nobody listening any more is no error.
                let _ = merged.send(Err(error)).await;
                return;
            }
        }
        if merged.is_closed() {
            return;
        }
    }
}

/// The next parcel of any lane that has room, with the lane's number; none where nothing came for a while.
async fn arrive(lanes: &mut [Lane]) -> Option<(usize, Option<Result<Parcel, ProjectorError>>)> {
    let receiving = lanes.iter_mut().enumerate().filter(|(_, lane)| lane.has_room());
    let receiving: Vec<_> = receiving
        .map(|(n, lane)| Box::pin(async move { (n, lane.parcels.recv().await) }))
        .collect();
    if receiving.is_empty() {
        return None;
    }
    let arrived = tokio::time::timeout(STALL, select_all(receiving)).await;
    arrived.ok().map(|(arrived, ..)| arrived)
}

/// Takes the oldest that is held, unless somebody may still bring an older one.
fn next(lanes: &mut [Lane], stalled: bool) -> Option<Seen> {
    if !stalled && lanes.iter().any(Lane::is_awaited) {
        return None;
    }
    let heads = lanes.iter().enumerate().flat_map(|(n, lane)| {
        lane.partitions.iter().filter_map(move |(partition, queue)| {
            let head = queue.events.front()?;
            Some(((head.log_time, n, *partition), head.weight()))
        })
    });
    let ((_, lane, partition), weight) = heads.min_by_key(|(order, _)| *order)?;
    lanes[lane].held -= weight;
    lanes[lane].partitions.get_mut(&partition)?.events.pop_front()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use tidelog_events::position::TopicPartition;
    use tokio::sync::mpsc;

    fn seen(partition: i32, offset: i64, millis: i64) -> Seen {
        Seen {
            at: TopicPartition {
                topic: "t".into(),
                partition,
            },
            offset,
            log_time: DateTime::from_timestamp_millis(millis).expect("a time"),
            event: Err("none".into()),
            payload: None,
        }
    }

    /// A lane of two partitions whose logs both end at 2, of which some has been read.
    fn lane(held: [&[Seen]; 2]) -> Lane {
        let (_, parcels) = mpsc::channel(1);
        let queue = |events: &[Seen]| Queue {
            read_to: events.len() as i64,
            behind_to: 2,
            events: events.iter().cloned().collect(),
        };
        Lane {
            parcels,
            partitions: held
                .iter()
                .enumerate()
                .map(|(n, events)| (n as i32, queue(events)))
                .collect(),
            topic: "t".into(),
            held: held
                .iter()
                .flat_map(|events| events.iter())
                .map(Seen::weight)
                .sum(),
            open: true,
        }
    }

    fn all(lanes: &mut [Lane], stalled: bool) -> Vec<(i32, i64)> {
        std::iter::from_fn(|| next(lanes, stalled))
            .map(|seen| (seen.at.partition, seen.offset))
            .collect()
    }

    #[test]
    fn partitions_are_merged_by_the_logs_time() {
        let (first, second) = ([seen(0, 0, 5), seen(0, 1, 7)], [seen(1, 0, 4), seen(1, 1, 6)]);
        let mut lanes = [lane([&first, &second])];
        assert_eq!(all(&mut lanes, false), [(1, 0), (0, 0), (1, 1), (0, 1)]);
        assert_eq!(lanes[0].held, 0);
    }

    #[test]
    fn a_partition_with_more_to_come_is_waited_for_but_not_for_ever() {
        let first = [seen(0, 0, 5), seen(0, 1, 7)];
        let mut lanes = [lane([&first, &[]])];
        assert_eq!(all(&mut lanes, false), []);
        assert_eq!(all(&mut lanes, true), [(0, 0), (0, 1)]);
        // Nor where there is no room to wait in.
        let mut lanes = [lane([&first, &[]])];
        lanes[0].held += ROOM;
        assert_eq!(all(&mut lanes, false), [(0, 0), (0, 1)]);
    }
}
