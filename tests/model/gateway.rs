//! The gateway's steps, as `ingest::{service, claim, delivery, record, answer}` take them: claim, append, record,
//! answer, and what is left of them by a crash. Must not know of lanes and epochs.
//!
//! Claim and hand-over are one step: what lies between them is the process's own, and items that are handed over may
//! reach the log however late. The last report and the record are one step for the same reason. Leases have no clock:
//! one whose holder is gone runs out at any time, and one that is held ends if its holder sleeps. That a lease can be
//! renewed after it has ended is left out, since without it more is taken over and not less. The projection's
//! positions are read as they are: a gateway that reads them late gives up, or answers later. Items of one append reach
//! the log in order, with a gap at their end only, which is what an idempotent producer keeps to unless it gives an item
//! up and not the next; and a gateway with items of a lost attempt on the wire takes no post, which the other one does.

use crate::fold::Batch;
use crate::guards::{Guard, Guards};
use crate::steps::Scope;
use crate::world::{Answer, Claim, Gateway, Key, Receipt, Told, Work, World};

/// What a gateway may do, or what may be done to it. Which gateway is in [`Step`](crate::steps::Step).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatewayStep {
    /// A phone posts; the gateway claims the key, and hands the items over or answers what is known. `away`: Postgres
    /// cannot be asked. (Trouble.)
    Post { batch: Batch, release: u8, away: bool },
    /// The next item reaches the log, whether or not the process that sent it still lives.
    Append,
    /// What has not reached the log and nobody waits for never does.
    Lose,
    /// A record counts as undelivered: 503. (Trouble.)
    Fail,
    /// All is delivered: the record is written, or left for later. (`away`: trouble.)
    Record { away: bool },
    /// A record that waited for Postgres is written.
    RecordLater,
    /// The projection has the batch: the final answer. `away`: it cannot be kept. (Trouble.)
    Answer { away: bool },
    /// The wait is over first: 202.
    GiveUp,
    /// An answer that was told gets into the store.
    Keep,
    /// It slept for longer than its lease. (Trouble.)
    LeaseEnds,
    /// Killed. (Trouble.)
    Crash,
}

/// What gateway `gateway` may do now. A pause is that it does not.
pub(crate) fn steps(world: &World, gateway: &Gateway, scope: &Scope, found: &mut Vec<GatewayStep>) {
    let trouble = world.trouble > 0;
    let delivered = gateway.wire.is_empty() || !scope.guards.has(Guard::Delivered);
    match gateway.work {
        Work::Idle => {
            if gateway.wire.is_empty() {
                posts(world, scope, found);
            } else {
                found.push(GatewayStep::Lose);
            }
        }
        Work::Appending { claim, .. } => {
            found.extend(delivered.then_some(GatewayStep::Record { away: false }));
            if trouble {
                found.extend(delivered.then_some(GatewayStep::Record { away: true }));
                found.extend((claim == Claim::Held).then_some(GatewayStep::LeaseEnds));
                found.push(GatewayStep::Fail);
            }
        }
        Work::Open {
            receipt, replayed, ..
        } => {
            found.push(GatewayStep::GiveUp);
            // One answer at a time is on its way into the store: a bound of the model alone.
            if world.postgres.position.next_offset > receipt.last && (replayed || gateway.keeping.is_none()) {
                found.push(GatewayStep::Answer { away: false });
                found.extend((trouble && replayed).then_some(GatewayStep::Answer { away: true }));
            }
        }
    }
    found.extend((!gateway.wire.is_empty()).then_some(GatewayStep::Append));
    found.extend(gateway.keeping.is_some().then_some(GatewayStep::Keep));
    found.extend(gateway.later.is_some().then_some(GatewayStep::RecordLater));
    if trouble && (gateway.work != Work::Idle || gateway.keeping.is_some() || gateway.later.is_some()) {
        found.push(GatewayStep::Crash);
    }
}

/// What phones may post: a batch whose key somebody works under is answered 409, which changes nothing.
fn posts(world: &World, scope: &Scope, found: &mut Vec<GatewayStep>) {
    for batch in Batch::ALL {
        if world.posts[batch as usize] == 0 {
            continue;
        }
        let key = world.postgres.keys[batch as usize].as_ref();
        let in_flight = key.is_some_and(|key| key.leased && key.receipt.is_none());
        let refused = in_flight && scope.guards.has(Guard::ClaimFirst);
        for release in 0..scope.releases {
            let post = |away| GatewayStep::Post { batch, release, away };
            found.extend((!refused).then_some(post(false)));
            found.extend((world.trouble > 0).then_some(post(true)));
        }
    }
}

/// Takes a step of gateway `at`.
pub(crate) fn take(world: &mut World, at: usize, step: GatewayStep, guards: Guards) {
    match step {
        GatewayStep::Fail | GatewayStep::LeaseEnds | GatewayStep::Crash => world.trouble -= 1,
        GatewayStep::Post { away, .. } | GatewayStep::Record { away } | GatewayStep::Answer { away } => {
            world.trouble -= u8::from(away);
        }
        _ => {}
    }
    match step {
        GatewayStep::Post { batch, release, away } => post(world, at, batch, release, away, guards),
        GatewayStep::Append => append(world, at),
        GatewayStep::Lose => world.gateways[at].wire.clear(),
        GatewayStep::Fail => {
            release(world, at);
            world.gateways[at].work = Work::Idle;
        }
        GatewayStep::Record { away } => record(world, at, away, guards),
        GatewayStep::RecordLater => {
            if let Some((batch, receipt)) = world.gateways[at].later.take() {
                write_record(world, batch, receipt);
            }
        }
        GatewayStep::Answer { away } => answer(world, at, away, guards),
        GatewayStep::GiveUp => {
            if let Work::Open { batch, .. } = std::mem::take(&mut world.gateways[at].work) {
                world.told[batch as usize].acknowledged = true;
            }
        }
        GatewayStep::Keep => {
            if let Some((batch, answer)) = world.gateways[at].keeping.take() {
                keep_answer(world, batch, &answer, guards);
            }
        }
        GatewayStep::LeaseEnds => release(world, at),
        GatewayStep::Crash => {
            let gateway = &mut world.gateways[at];
            let wire = std::mem::take(&mut gateway.wire);
            *gateway = Gateway {
                wire,
                ..Gateway::default()
            };
        }
    }
}

/// `Ledger::claim`, and what follows from what it answers.
fn post(world: &mut World, at: usize, batch: Batch, release: u8, away: bool, guards: Guards) {
    world.posts[batch as usize] -= 1;
    let mut claim = Claim::Skipped;
    if !away {
        let key = world.postgres.keys[batch as usize].get_or_insert_default();
        if guards.has(Guard::ClaimFirst) {
            if let Some(answer) = key.answer.clone() {
                return world.told[batch as usize].hear(answer);
            }
            if let Some(receipt) = key.receipt {
                world.gateways[at].work = Work::Open {
                    batch,
                    receipt,
                    release,
                    replayed: true,
                };
                return;
            }
        }
        key.leased = true;
        claim = Claim::Held;
    }
    // With derived ids the batch's events are the same however often it is sent.
    let sending = match guards.has(Guard::DerivedIds) {
        true => 0,
        false => world.posts[batch as usize] + 1,
    };
    world.gateways[at].wire = batch.events(sending);
    world.gateways[at].work = Work::Appending {
        batch,
        sending,
        release,
        claim,
        last: None,
    };
}

/// The broker takes what the producer sent, in order, and reports it to whoever still waits.
fn append(world: &mut World, at: usize) {
    let gateway = &mut world.gateways[at];
    if let Work::Appending { last, .. } = &mut gateway.work {
        *last = Some(world.log.len() as u8);
    }
    world.log.push(gateway.wire.remove(0));
}

/// `Claim::release`, or the lease's end: whoever held it does not any more.
fn release(world: &mut World, at: usize) {
    if let Work::Appending { batch, claim, .. } = &mut world.gateways[at].work
        && *claim == Claim::Held
    {
        *claim = Claim::Ended;
        if let Some(key) = &mut world.postgres.keys[*batch as usize] {
            key.leased = false;
        }
    }
}

/// `Ingest::record`: what becomes of a batch that is in the log.
fn record(world: &mut World, at: usize, away: bool, guards: Guards) {
    let Work::Appending {
        batch,
        sending,
        release,
        last,
        ..
    } = std::mem::take(&mut world.gateways[at].work)
    else {
        return;
    };
    let receipt = Receipt {
        sending,
        last: last.unwrap_or_default(),
    };
    if away {
        world.gateways[at].later = Some((batch, receipt));
        world.told[batch as usize].acknowledged = true;
        return;
    }
    let standing = write_record(world, batch, receipt);
    let others = guards.has(Guard::FirstRecord);
    if let Some(answer) = standing.answer.filter(|_| others) {
        return world.told[batch as usize].hear(answer);
    }
    let first = standing.receipt.filter(|_| others).unwrap_or(receipt);
    world.gateways[at].work = Work::Open {
        batch,
        receipt: first,
        release,
        replayed: first != receipt,
    };
}

/// `Ledger::record`: the first record stays. Answers what stands.
fn write_record(world: &mut World, batch: Batch, receipt: Receipt) -> Key {
    let key = world.postgres.keys[batch as usize].get_or_insert_default();
    key.leased = false;
    key.receipt.get_or_insert(receipt);
    key.clone()
}

/// `Answers::conclude`: composed from what the projection says. A first answer goes out before it is kept; a later
/// one is what was kept.
fn answer(world: &mut World, at: usize, away: bool, guards: Guards) {
    let Work::Open {
        batch,
        receipt,
        release,
        replayed,
    } = std::mem::take(&mut world.gateways[at].work)
    else {
        return;
    };
    let composed = Answer {
        outcomes: world.postgres.tables.of_batch(batch, receipt.sending),
        receipt,
        release,
    };
    if composed.outcomes.len() < batch.items().len() {
        // "An applied batch lacks outcomes": the answer stays open.
        world.told[batch as usize].acknowledged = true;
        return;
    }
    let told = match (replayed, away) {
        (true, false) => keep_answer(world, batch, &composed, guards),
        (true, true) => composed,
        (false, _) => {
            world.gateways[at].keeping = Some((batch, composed.clone()));
            composed
        }
    };
    world.told[batch as usize].hear(told);
}

/// `Ledger::keep_answer`: the first answer stays. Answers the one that stands.
fn keep_answer(world: &mut World, batch: Batch, answer: &Answer, guards: Guards) -> Answer {
    let Some(key) = &mut world.postgres.keys[batch as usize] else {
        return answer.clone();
    };
    let kept = match &key.answer {
        Some(first) if guards.has(Guard::FirstAnswer) => first.clone(),
        _ => answer.clone(),
    };
    world.seen.replaced |= key.answer.as_ref().is_some_and(|before| *before != kept);
    key.answer = Some(kept.clone());
    kept
}

impl Told {
    fn hear(&mut self, answer: Answer) {
        self.acknowledged = true;
        match &self.answer {
            None => self.answer = Some(answer),
            Some(first) if *first != answer => self.another = Some(answer),
            Some(_) => {}
        }
    }
}
