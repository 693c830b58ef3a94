//! Records on their way from the consumer to the lanes: gathered by topic, handed over in parcels, kept while a lane has
//! no room. Says when a topic should be paused and when it may go on; pausing itself is the consumer's. What it keeps
//! is bounded by the pause: a paused topic brings nothing more.

use crate::lane::ToLane;
use crate::record::{Copyist, LogRecord};
use rdkafka::message::{BorrowedMessage, Message};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Parcels that wait for a lane.
pub(crate) const LANE_PARCELS: usize = 8;
/// Most records of a parcel.
pub(crate) const PARCEL_RECORDS: usize = 500;
/// Bytes that may be kept for a lane before its topic is paused. A pause throws away what was prefetched, so it should
/// be rare.
const KEPT_BYTES: usize = 8 << 20;
/// Records likewise: each costs some hundred bytes besides its value.
const KEPT_RECORDS: usize = 8000;

/// What is kept for one lane.
#[derive(Default)]
struct Kept {
    parcels: VecDeque<Vec<LogRecord>>,
    paused: bool,
}

impl Kept {
    fn is_much(&self) -> bool {
        let records: usize = self.parcels.iter().map(Vec::len).sum();
        let bytes: usize = self.parcels.iter().flatten().map(size).sum();
        records > KEPT_RECORDS || bytes > KEPT_BYTES
    }
}

fn size(record: &LogRecord) -> usize {
    record.payload().map_or(0, <[u8]>::len)
}

/// What the consumer has read and the lanes have not taken.
#[derive(Default)]
pub(crate) struct Backlog {
    /// Of each topic that anything came of.
    copyists: Vec<Copyist>,
    gathered: BTreeMap<Arc<str>, Vec<LogRecord>>,
    kept: BTreeMap<Arc<str>, Kept>,
}

/// Topics to pause, and to resume.
#[derive(Default)]
pub(crate) struct Flow {
    pub(crate) pause: Vec<String>,
    pub(crate) resume: Vec<String>,
}

impl Backlog {
    /// Takes a record that was read.
    pub(crate) fn gather(&mut self, message: &BorrowedMessage<'_>) {
        let of_topic = |copyist: &Copyist| **copyist.topic() == *message.topic();
        let at = self.copyists.iter().position(of_topic).unwrap_or_else(|| {
            self.copyists.push(Copyist::of(message.topic()));
            self.copyists.len() - 1
        });
        let copyist = &mut self.copyists[at];
        let record = copyist.copy(message);
        self.gathered
            .entry(copyist.topic().clone())
            .or_default()
            .push(record);
    }

    /// Forgets the records of partitions that are not this process's any more: whoever owns them next reads them
    /// again, and so does this process if that is it.
    pub(crate) fn forget(&mut self, topic: &str, partitions: &[i32]) {
        let stays = |record: &LogRecord| !partitions.contains(&record.partition());
        if let Some(records) = self.gathered.get_mut(topic) {
            records.retain(stays);
        }
        if let Some(kept) = self.kept.get_mut(topic) {
            for parcel in &mut kept.parcels {
                parcel.retain(stays);
            }
        }
    }

    /// Whether records wait for a lane.
    pub(crate) fn waits(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Hands over what the lanes have room for.
    pub(crate) fn hand_over(&mut self, lanes: &HashMap<String, mpsc::Sender<ToLane>>) -> Flow {
        for (topic, records) in std::mem::take(&mut self.gathered) {
            self.kept.entry(topic).or_default().parcels.push_back(records);
        }
        let mut flow = Flow::default();
        self.kept.retain(|topic, kept| {
            let Some(lane) = lanes.get(&**topic) else {
                return false;
            };
            while let Some(parcel) = kept.parcels.pop_front() {
                if parcel.is_empty() {
                    continue;
                }
                if let Err(mpsc::error::TrySendError::Full(ToLane::Records(parcel))) =
                    lane.try_send(ToLane::Records(parcel))
                {
                    kept.parcels.push_front(parcel);
                    break;
                }
            }
            if kept.parcels.is_empty() {
                if kept.paused {
                    flow.resume.push(topic.to_string());
                }
                return false;
            }
            // Told again while there is too much: a rebalance may have brought partitions that came unpaused.
            if kept.is_much() {
                kept.paused = true;
                flow.pause.push(topic.to_string());
            }
            true
        });
        flow
    }
}
