//! The projector's steps, as `projector::{ownership, lane, flight, write}` take them: claim, prepare, begin, land, and
//! what follows a write that failed. Must not know of gateways and keys.
//!
//! A transaction is one step: its first statement locks the position's row until the end, so that a claim or another
//! write is before or after all of it. Load and fold are one step too: what a chunk loads is only written by whoever
//! owns the partition, and a write in between is a fence's business wherever in the load it falls.

use crate::fold::fold_chunk;
use crate::guards::{Guard, Guards};
use crate::world::{Flight, Folded, Lane, Owned, Postgres, Seen, World, Written};

/// Most records of a chunk.
const CHUNK_RECORDS: u8 = 2;

/// What a projector may do, or what may be done to it. Which lane is in [`Step`](crate::steps::Step).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneStep {
    /// Takes the partition, as Kafka's group says: its epoch rises.
    Claim,
    /// Reads that many records, loads and folds them.
    Prepare { records: u8 },
    /// Sends the transaction of what was made ready.
    Begin,
    /// Postgres runs it.
    Commit,
    /// The lane hears how that went.
    Land,
    /// The connection goes, before or after the commit; the answer is lost. (Trouble.)
    Cut,
    /// Reads what the table says of its partition.
    Reread,
    /// Killed. (Trouble.)
    Crash,
}

/// What lane `lane` may do now. A pause is that it does not.
pub(crate) fn steps(world: &World, lane: &Lane, guards: Guards, found: &mut Vec<LaneStep>) {
    // Kafka's group names an owner where there is none; a rebalance away from one that lives is trouble.
    if lane.owned.is_none() && (world.trouble > 0 || !held(world)) {
        found.push(LaneStep::Claim);
    }
    let Some(owned) = lane.owned else { return };
    if lane.unsure {
        found.push(LaneStep::Reread);
    } else if lane.prepared.is_none() {
        let arrived = world.log.len() as u8 - owned.next_offset.min(world.log.len() as u8);
        for records in 1..=arrived.min(CHUNK_RECORDS) {
            if !guards.has(Guard::Touched) || !touches(world, lane, owned.next_offset, records) {
                found.push(LaneStep::Prepare { records });
            }
        }
    }
    match &lane.flight {
        None if lane.prepared.is_some() => found.push(LaneStep::Begin),
        None => {}
        Some(flight) if flight.written.is_none() => found.push(LaneStep::Commit),
        Some(_) => found.push(LaneStep::Land),
    }
    if world.trouble > 0 {
        found.push(LaneStep::Crash);
        if lane.flight.is_some() {
            found.push(LaneStep::Cut);
        }
    }
}

/// Whether somebody that lives has the partition.
fn held(world: &World) -> bool {
    let epoch = world.postgres.position.epoch;
    let owns = |lane: &Lane| lane.owned.is_some_and(|owned| owned.epoch == epoch);
    world.lanes.iter().any(owns)
}

/// Whether a record of these is as the chunk in flight leaves it.
fn touches(world: &World, lane: &Lane, from: u8, records: u8) -> bool {
    let Some(flight) = &lane.flight else { return false };
    let record = |offset: u8| world.log[usize::from(offset)].item.record();
    let mut flying = flight.folded.from..flight.folded.to;
    flying.any(|before| (from..from + records).any(|after| record(before) == record(after)))
}

/// Takes a step of lane `at`.
pub(crate) fn take(world: &mut World, at: usize, step: LaneStep, guards: Guards) {
    if matches!(step, LaneStep::Cut | LaneStep::Crash) || step == LaneStep::Claim && held(world) {
        world.trouble -= 1;
    }
    let World {
        log,
        postgres,
        lanes,
        orphans,
        seen,
        ..
    } = world;
    let lane = &mut lanes[at];
    match step {
        LaneStep::Claim => {
            postgres.position.epoch += 1;
            lane.owned = Some(postgres.position);
        }
        LaneStep::Prepare { records } => {
            let Some(Owned {
                epoch,
                next_offset: from,
            }) = lane.owned
            else {
                return;
            };
            let to = from + records;
            let events = &log[usize::from(from)..usize::from(to)];
            let results = fold_chunk(&postgres.tables, events, from, guards);
            lane.prepared = Some(Folded {
                epoch,
                from,
                to,
                results,
            });
        }
        LaneStep::Begin => begin(lane),
        LaneStep::Commit => {
            if let Some(flight) = &mut lane.flight {
                flight.written = Some(commit(postgres, seen, &flight.folded, guards));
            }
        }
        LaneStep::Land => {
            if let Some(flight) = lane.flight.take()
                && flight.written == Some(Written::Fenced)
            {
                lane.owned = Some(flight.before);
                lane.prepared = None;
                lane.unsure = true;
            }
        }
        LaneStep::Cut => {
            if let Some(flight) = lane.flight.take() {
                // What was made ready on it is thrown away, and both chunks are done again.
                lane.owned = Some(flight.before);
                lane.prepared = None;
                orphans.extend(flight.written.is_none().then_some(flight.folded));
            }
        }
        LaneStep::Reread => {
            let now = postgres.position;
            lane.owned = lane.owned.filter(|owned| owned.epoch == now.epoch).map(|_| now);
            lane.unsure = false;
        }
        LaneStep::Crash => {
            let flight = std::mem::take(lane).flight;
            let waiting = flight.filter(|flight| flight.written.is_none());
            orphans.extend(waiting.map(|flight| flight.folded));
        }
    }
}

/// The position moves in the lane's mind before it does in the table, so that the next chunk can be read.
fn begin(lane: &mut Lane) {
    if let (Some(before), Some(folded)) = (lane.owned, lane.prepared.take()) {
        lane.owned = Some(Owned {
            next_offset: folded.to,
            ..before
        });
        lane.flight = Some(Flight {
            folded,
            before,
            written: None,
        });
    }
}

/// `projector::write`: the move, `fence()`, and everything else or nothing.
pub(crate) fn commit(postgres: &mut Postgres, seen: &mut Seen, folded: &Folded, guards: Guards) -> Written {
    let Postgres { position, tables, .. } = postgres;
    let fenced = guards.has(Guard::Epoch) && folded.epoch != position.epoch
        || guards.has(Guard::Offset) && folded.from != position.next_offset;
    if fenced || tables.collides(&folded.results) {
        return Written::Fenced;
    }
    seen.zombie_wrote |= folded.epoch != position.epoch;
    seen.moved_back |= folded.to < position.next_offset;
    position.next_offset = folded.to;
    tables.write(&folded.results);
    Written::Committed
}
