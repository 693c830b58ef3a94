//! What must hold in every moment, and what must be possible, so that the model is not silent for want of trouble.
//! Reads the world; must not know how it came to be.

use crate::fold::{Batch, EventKey, Item, Outcome, Tables};
use crate::steps::{Scope, holds};
use crate::world::{Answer, Gateway, Work, World, Written};
use stateright::{Model, Property};

pub(crate) const ACKNOWLEDGED: &str = "what is acknowledged is in the log, all of it";
pub(crate) const ONE_EFFECT: &str = "an item has at most one effect, and a version rises by one with each";
pub(crate) const ONE_OUTCOME: &str = "an item has at most one outcome";
pub(crate) const AS_STORED: &str = "what was told of a batch is what is stored, of each of its items";
pub(crate) const SAME_ANSWER: &str = "a retried key never gets another answer";
pub(crate) const SAME_OUTCOMES: &str = "a retried key is never told other outcomes";
pub(crate) const KEPT: &str = "an answer that is kept is never replaced";
pub(crate) const ONE_APPENDER: &str = "no two gateways append a batch under leases that hold";
pub(crate) const FORWARD: &str = "a position never moves back";
pub(crate) const FOLDED: &str = "the tables are the fold of the log up to the position";
pub(crate) const NO_ZOMBIE: &str = "who lost the partition writes nothing";
pub(crate) const IN_THE_END: &str =
    "in the end all of the log is applied, and what was acknowledged has its outcomes";

/// What a scope is held to.
pub(crate) fn of(scope: &Scope) -> Vec<Property<Scope>> {
    let mut promises = vec![
        Property::always(ONE_EFFECT, one_effect),
        Property::always(ONE_OUTCOME, one_outcome),
        Property::always(FORWARD, |_: &Scope, world: &World| !world.seen.moved_back),
        Property::always(FOLDED, folded),
        Property::always(NO_ZOMBIE, |_: &Scope, world: &World| !world.seen.zombie_wrote),
        Property::always(IN_THE_END, in_the_end),
    ];
    if scope.gateways > 0 {
        promises.extend([
            Property::always(ACKNOWLEDGED, acknowledged),
            Property::always(AS_STORED, as_stored),
            Property::always(SAME_OUTCOMES, same_outcomes),
        ]);
        match (scope.forgetful, scope.releases) {
            (true, _) => {}
            (false, 1) => promises.push(Property::always(SAME_ANSWER, same_answer)),
            (false, _) => promises.push(Property::always(KEPT, |_: &Scope, world: &World| {
                !world.seen.replaced
            })),
        }
        if !scope.forgetful {
            promises.push(Property::always(ONE_APPENDER, one_appender));
        }
        promises.extend(seen_at_gateways(scope));
    }
    if scope.lanes > 0 {
        promises.extend(seen_at_lanes(scope));
    }
    promises
}

/// What has to be met while gateways are looked at.
fn seen_at_gateways(scope: &Scope) -> Vec<Property<Scope>> {
    let mut seen = vec![Property::sometimes(
        "a batch lies in the log twice",
        |_: &Scope, world: &World| {
            (0..)
                .zip(&world.log)
                .any(|(at, event): (usize, _)| world.log[..at].contains(event))
        },
    )];
    seen.push(Property::sometimes(
        "a batch lies in the log in part, and nobody works on it",
        |_: &Scope, world: &World| {
            let first = |index| {
                world
                    .log
                    .iter()
                    .any(|event| event.key.batch == Batch::First && event.key.index == index)
            };
            let idle = |gateway: &Gateway| gateway.work == Work::Idle && gateway.wire.is_empty();
            first(0) && !first(1) && world.gateways.iter().all(idle)
        },
    ));
    if scope.posts[Batch::Again as usize] > 0 {
        seen.push(Property::sometimes(
            "an item comes again under another key",
            |_: &Scope, world: &World| {
                world
                    .postgres
                    .tables
                    .outcomes
                    .iter()
                    .any(|row| matches!(row.outcome, Outcome::Duplicate { .. }))
            },
        ));
    }
    seen
}

/// What has to be met while lanes are looked at.
fn seen_at_lanes(scope: &Scope) -> Vec<Property<Scope>> {
    let mut seen = vec![
        Property::sometimes("a write is fenced off", |_: &Scope, world: &World| {
            let fenced = Some(Written::Fenced);
            let flights = world.lanes.iter().filter_map(|lane| lane.flight.as_ref());
            flights.into_iter().any(|flight| flight.written == fenced)
        }),
        Property::sometimes(
            "a chunk is ready while another is in flight",
            |_: &Scope, world: &World| {
                world
                    .lanes
                    .iter()
                    .any(|lane| lane.flight.is_some() && lane.prepared.is_some())
            },
        ),
    ];
    if scope.trouble > 0 {
        seen.push(Property::sometimes(
            "a transaction outlives its worker",
            |_: &Scope, world: &World| !world.orphans.is_empty(),
        ));
    }
    seen
}

fn acknowledged(_: &Scope, world: &World) -> bool {
    Batch::ALL.into_iter().all(|batch| {
        let lies = |index| {
            let mut keys = world.log.iter().map(|event| event.key);
            keys.any(|key| key.batch == batch && usize::from(key.index) == index)
        };
        !world.told[batch as usize].acknowledged || (0..batch.items().len()).all(lies)
    })
}

fn one_effect(_: &Scope, world: &World) -> bool {
    let Tables { versions, feed, .. } = &world.postgres.tables;
    let effects = |item: Item| feed.iter().filter(|row| row.event.item == item).count();
    let changes = |record| {
        feed.iter()
            .filter(|row| row.event.item.record() == record)
            .count()
    };
    [Item::CreateA, Item::PatchA, Item::CreateB]
        .into_iter()
        .all(|item| effects(item) <= 1)
        && [0, 1]
            .into_iter()
            .all(|record| changes(record) == usize::from(versions[record]))
}

fn one_outcome(_: &Scope, world: &World) -> bool {
    let tables = &world.postgres.tables;
    let same = |one: &EventKey, other: &EventKey| one.batch == other.batch && one.index == other.index;
    let of = |key: &EventKey| {
        tables
            .entries()
            .filter(|entry| same(&entry.event.key, key))
            .count()
    };
    tables.entries().all(|entry| of(&entry.event.key) == 1)
}

fn as_stored(_: &Scope, world: &World) -> bool {
    Batch::ALL.into_iter().all(|batch| {
        let stored = |answer: &Answer| {
            answer.outcomes.len() == batch.items().len()
                && world.postgres.tables.of_batch(batch, answer.receipt.sending) == answer.outcomes
        };
        let told = &world.told[batch as usize];
        told.answer.iter().chain(&told.another).all(stored)
    })
}

fn same_answer(_: &Scope, world: &World) -> bool {
    world.told.iter().all(|told| told.another.is_none())
}

fn same_outcomes(_: &Scope, world: &World) -> bool {
    let outcomes = |answer: &Option<Answer>| answer.as_ref().map(|answer| answer.outcomes.clone());
    world
        .told
        .iter()
        .all(|told| told.another.is_none() || outcomes(&told.another) == outcomes(&told.answer))
}

fn one_appender(_: &Scope, world: &World) -> bool {
    let holders = |batch| {
        world
            .gateways
            .iter()
            .filter(|gateway| holds(gateway, batch))
            .count()
    };
    Batch::ALL.into_iter().all(|batch| holders(batch) <= 1)
}

fn folded(scope: &Scope, world: &World) -> bool {
    let upto = usize::from(world.postgres.position.next_offset);
    world.postgres.tables == Tables::of(&world.log[..upto], scope.guards)
}

/// Every step uses something up or comes nearer to the log's end, so no history goes on for ever, and whatever must
/// come to pass has done so where there is no step left.
fn in_the_end(scope: &Scope, world: &World) -> bool {
    let applied = usize::from(world.postgres.position.next_offset) == world.log.len();
    let has = |batch, index| {
        let mut keys = world.postgres.tables.entries().map(|entry| entry.event.key);
        keys.any(|key| key.batch == batch && usize::from(key.index) == index)
    };
    let known = |batch: Batch| {
        let mut indexes = 0..batch.items().len();
        !world.told[batch as usize].acknowledged || indexes.all(|index| has(batch, index))
    };
    !terminal(scope, world) || applied && Batch::ALL.into_iter().all(known)
}

/// Whether there is no step left.
fn terminal(scope: &Scope, world: &World) -> bool {
    // Mostly this much tells already, and it is cheaper.
    let works = |gateway: &Gateway| gateway.work != Work::Idle || !gateway.wire.is_empty();
    if world.gateways.iter().any(works) || world.lanes.iter().any(|lane| lane.prepared.is_some()) {
        return false;
    }
    let mut steps = Vec::new();
    scope.actions(world, &mut steps);
    steps.is_empty()
}
