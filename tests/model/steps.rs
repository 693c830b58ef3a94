//! The machine: which steps there are in a moment, and what each leads to. Puts gateways, lanes and what happens around
//! them side by side; what they do is theirs.

use crate::fold::{Batch, fold_chunk};
use crate::gateway::{self, GatewayStep};
use crate::guards::Guards;
use crate::lane::{self, LaneStep, commit};
use crate::promises;
use crate::world::{Gateway, Lane, Work, World};
use crate::{fold::Event, world::Claim};
use stateright::{Model, Property};

/// How much is looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    pub(crate) gateways: usize,
    /// Projectors; where there are none, the projection takes record by record and never fails.
    pub(crate) lanes: usize,
    /// How often each batch is posted, in the order of [`Batch::ALL`].
    pub(crate) posts: [u8; 3],
    /// How much goes wrong in one history, of whatever kind.
    pub(crate) trouble: u8,
    /// Logs to begin with.
    pub(crate) logs: Vec<Vec<Event>>,
    /// Releases that run side by side and compose answers differently.
    pub(crate) releases: u8,
    /// Whether Postgres may lose what it committed last, as it may with `synchronous_commit = off`. (Trouble.)
    pub(crate) forgetful: bool,
    pub(crate) guards: Guards,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Gateway(usize, GatewayStep),
    Lane(usize, LaneStep),
    /// Postgres runs a transaction that nobody waits for.
    CommitOrphan(usize),
    /// The projection without lanes takes the next record.
    Project,
    /// A lease of a gateway that is gone.
    LeaseRunsOut(Batch),
    /// Postgres crashes, and loses the last of a key: its row, or the answer alone.
    Forget {
        batch: Batch,
        row: bool,
    },
}

impl Scope {
    fn around(&self, world: &World, found: &mut Vec<Step>) {
        if self.lanes == 0 && usize::from(world.postgres.position.next_offset) < world.log.len() {
            found.push(Step::Project);
        }
        for (at, orphan) in world.orphans.iter().enumerate() {
            if at == 0 || world.orphans[at - 1] != *orphan {
                found.push(Step::CommitOrphan(at));
            }
        }
        for batch in Batch::ALL {
            let Some(key) = &world.postgres.keys[batch as usize] else {
                continue;
            };
            if key.leased && !world.gateways.iter().any(|gateway| holds(gateway, batch)) {
                found.push(Step::LeaseRunsOut(batch));
            }
            if self.forgetful && world.trouble > 0 {
                found.push(Step::Forget { batch, row: true });
                found.extend(key.answer.is_some().then_some(Step::Forget { batch, row: false }));
            }
        }
    }
}

/// Whether a gateway works under a lease of that key.
pub(crate) fn holds(gateway: &Gateway, batch: Batch) -> bool {
    matches!(gateway.work, Work::Appending { batch: of, claim: Claim::Held, .. } if of == batch)
}

/// Each of a row of like processes, but for those that are as the one before.
fn different<T: PartialEq>(all: &[T]) -> impl Iterator<Item = (usize, &T)> {
    let differs = |(at, one): &(usize, &T)| *at == 0 || all[*at - 1] != **one;
    all.iter().enumerate().filter(differs)
}

impl Model for Scope {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let nothing = vec![Vec::new()];
        let logs = if self.logs.is_empty() {
            &nothing
        } else {
            &self.logs
        };
        let beginning = |log: &Vec<Event>| World {
            log: log.clone(),
            gateways: vec![Gateway::default(); self.gateways],
            lanes: vec![Lane::default(); self.lanes],
            posts: self.posts,
            trouble: self.trouble,
            ..World::default()
        };
        logs.iter().map(beginning).collect()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let (mut gateways, mut lanes) = (Vec::new(), Vec::new());
        for (at, gateway) in different(&world.gateways) {
            gateway::steps(world, gateway, self, &mut gateways);
            steps.extend(gateways.drain(..).map(|step| Step::Gateway(at, step)));
        }
        for (at, lane) in different(&world.lanes) {
            lane::steps(world, lane, self.guards, &mut lanes);
            steps.extend(lanes.drain(..).map(|step| Step::Lane(at, step)));
        }
        self.around(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = world.clone();
        match step {
            Step::Gateway(at, step) => gateway::take(&mut world, at, step, self.guards),
            Step::Lane(at, step) => lane::take(&mut world, at, step, self.guards),
            Step::CommitOrphan(at) => {
                let folded = world.orphans.remove(at);
                commit(&mut world.postgres, &mut world.seen, &folded, self.guards);
            }
            Step::Project => {
                let from = world.postgres.position.next_offset;
                let events = &world.log[usize::from(from)..usize::from(from) + 1];
                let results = fold_chunk(&world.postgres.tables, events, from, self.guards);
                world.postgres.tables.write(&results);
                world.postgres.position.next_offset += 1;
            }
            Step::LeaseRunsOut(batch) => {
                if let Some(key) = &mut world.postgres.keys[batch as usize] {
                    key.leased = false;
                }
            }
            Step::Forget { batch, row } => {
                world.trouble -= 1;
                let key = &mut world.postgres.keys[batch as usize];
                if row {
                    *key = None;
                } else if let Some(key) = key {
                    key.answer = None;
                }
            }
        }
        Some(world.in_order())
    }

    fn properties(&self) -> Vec<Property<Scope>> {
        promises::of(self)
    }
}
