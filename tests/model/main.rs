//! A model of lease, append, delivery, record and the projector's fence, checked exhaustively: every order of the steps
//! of two gateways and two projectors over three items, with a crash, a pause, a duplicate or a lost answer anywhere.
//! It mirrors the names of the code and runs none of it; what the code does with real servers is the business of the
//! tests beside it. Each guard of the code is taken out once, and the checker has to find what goes wrong then.
//!
//! What bounds the space, and why no trouble is lost by it:
//! - A pause is no step: a process that does nothing while others go on is an order like any other. What time alone
//!   brings about (a lease that ends under its holder, a rebalance away from a worker that lives) is `trouble`, as are
//!   crashes, lost answers and Postgres being away; each scope says how much of it one history may have.
//! - Processes of a kind are alike, so worlds that differ in who is who are one (`World::in_order`).
//! - What is one step here is one in the code as well, or nobody could tell the difference: `gateway` and `lane` say of
//!   each why.
//! - Gateways read of the projection only positions and outcomes, and projectors read the log alone. So each side is
//!   looked at with more trouble by itself: gateways with a projection that takes record by record, which is what
//!   projectors are shown to come to (`FOLDED`); projectors with every log of three events, in whatever order gateways
//!   may have written them. The two together have less trouble.
//! - Pasts are known whole. By which rule the code loads parts of them is checked by the property tests of `projector`.
//! - One tenant, one topic, one partition: nothing here reaches across either.

mod fold;
mod gateway;
mod guards;
mod lane;
mod promises;
mod steps;
mod world;

use fold::{Batch, Event};
use guards::{Guard, Guards};
use promises::*;
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::collections::{BTreeSet, HashSet};
use std::time::Instant;
use steps::Scope;
use world::World;

/// Gateways alone. Posts of [`Batch::First`], [`Batch::Other`], [`Batch::Again`].
fn gateways(posts: [u8; 3], trouble: u8) -> Scope {
    Scope {
        gateways: 2,
        posts,
        trouble,
        releases: 1,
        ..Scope::default()
    }
}

/// Projectors alone.
fn lanes(logs: Vec<Vec<Event>>, trouble: u8) -> Scope {
    Scope {
        lanes: 2,
        logs,
        trouble,
        ..Scope::default()
    }
}

/// What a log may hold: the three items, and one of them under another key.
fn events() -> [Event; 4] {
    let (first, other, again) = (
        Batch::First.events(0),
        Batch::Other.events(0),
        Batch::Again.events(0),
    );
    [first[0], first[1], other[0], again[0]]
}

/// Every log of that many events.
fn every_log(length: usize) -> Vec<Vec<Event>> {
    (0..length).fold(vec![Vec::new()], |logs, _| {
        let longer = |log: &Vec<Event>| events().map(|event| [log.as_slice(), &[event]].concat());
        logs.iter().flat_map(longer).collect()
    })
}

/// Logs that have one of everything: an item refused and sent again, a batch twice, another key, both records.
fn chosen_logs() -> Vec<Vec<Event>> {
    let [create_a, create_b, patch_a, again] = events();
    vec![
        vec![create_a, create_b, patch_a],
        vec![patch_a, create_a, patch_a],
        vec![create_a, again, create_a],
        vec![create_a, create_b, create_a, create_b],
    ]
}

/// Looks at all of a scope; every promise holds, and everything that has to be met is met.
fn check(name: &str, scope: Scope) {
    let since = Instant::now();
    let checked = scope.checker().threads(2).spawn_bfs().join();
    let (worlds, depth) = (checked.unique_state_count(), checked.max_depth());
    println!(
        "{name}: {worlds} worlds, up to {depth} steps deep, in {:.1?}",
        since.elapsed()
    );
    checked.assert_properties();
}

/// Whether every history from `world` on has an end. `open` are the worlds on the way there, `ended` those known to.
fn ends(scope: &Scope, world: World, open: &mut HashSet<World>, ended: &mut HashSet<World>) -> bool {
    if ended.contains(&world) {
        return true;
    }
    if !open.insert(world.clone()) {
        return false;
    }
    let mut next = scope.next_states(&world).into_iter();
    let all = next.all(|next| ends(scope, next, open, ended));
    open.remove(&world);
    ended.insert(world);
    all
}

/// Takes a guard out; the checker finds how the promise is broken.
fn breaks(guard: Guard, scope: Scope, promise: &'static str) {
    let without = Scope {
        guards: Guards { without: Some(guard) },
        ..scope
    };
    let broken = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    let checked = without.checker().finish_when(broken).spawn_bfs().join();
    let Some(path) = checked.discovery(promise) else {
        panic!("without {guard:?} it still holds that {promise}");
    };
    println!("without {guard:?}, not: {promise}: {:?}", path.into_actions());
}

#[test]
fn gateways_keep_their_word_when_two_things_go_wrong() {
    check("gateways", gateways([2, 1, 0], 2));
}

#[test]
fn gateways_keep_their_word_when_a_batch_comes_under_another_key() {
    check("gateways and another key", gateways([2, 0, 1], 1));
}

#[test]
fn projectors_keep_theirs_on_every_log() {
    check("projectors, every log", lanes(every_log(3), 1));
}

#[test]
fn projectors_keep_theirs_when_two_things_go_wrong() {
    check("projectors", lanes(chosen_logs(), 2));
}

#[test]
fn both_sides_together_keep_it() {
    let both = Scope {
        lanes: 2,
        ..gateways([2, 1, 0], 1)
    };
    check("gateways and projectors", both);
}

/// [`IN_THE_END`] looks at the last world of a history, which says something only if each has a last one.
#[test]
fn no_history_goes_round() {
    let both = Scope {
        lanes: 2,
        ..gateways([1, 1, 0], 1)
    };
    for scope in [both, gateways([2, 0, 0], 2), lanes(chosen_logs(), 1)] {
        let mut ended = HashSet::new();
        for world in scope.init_states() {
            assert!(ends(&scope, world, &mut HashSet::new(), &mut ended));
        }
        println!("{} worlds lead to an end", ended.len());
    }
}

/// Claims, records and answers are committed without waiting for the disk. What a crash of Postgres loses of them costs
/// the final answer its bytes at most (its receipt is then that of another append), and never what it says of an item.
#[test]
fn what_postgres_forgets_of_keys_changes_no_outcome() {
    let forgetful = Scope {
        forgetful: true,
        ..gateways([2, 1, 0], 1)
    };
    check("a Postgres that forgets", forgetful);
}

/// Two releases may compose one answer differently. Which of them was told first is not in the store then, but what
/// got there stays.
#[test]
fn an_answer_stays_while_releases_change() {
    let changing = Scope {
        releases: 2,
        ..gateways([3, 0, 0], 1)
    };
    check("two releases", changing);
}

/// The claim spares work. That nothing is lost or done twice does not hang on it, or Postgres could not be away.
#[test]
fn without_the_claim_two_gateways_append_and_nothing_else_is_broken() {
    breaks(Guard::ClaimFirst, gateways([2, 0, 0], 0), ONE_APPENDER);
    let unclaimed = Scope {
        guards: Guards {
            without: Some(Guard::ClaimFirst),
        },
        ..gateways([2, 1, 0], 1)
    };
    let checked = unclaimed.checker().threads(2).spawn_bfs().join();
    let properties = checked.model().properties();
    let promises = properties
        .iter()
        .filter(|property| property.expectation == Expectation::Always);
    let broken = promises.filter(|promise| checked.discovery(promise.name).is_some());
    assert_eq!(
        broken.map(|promise| promise.name).collect::<Vec<_>>(),
        [ONE_APPENDER]
    );
}

#[test]
fn each_guard_of_the_projector_is_needed() {
    breaks(Guard::Epoch, lanes(chosen_logs(), 1), NO_ZOMBIE);
    breaks(Guard::Offset, lanes(chosen_logs(), 1), FORWARD);
    breaks(Guard::Touched, lanes(chosen_logs(), 0), FOLDED);
    breaks(Guard::Repeat, lanes(chosen_logs(), 0), ONE_OUTCOME);
    breaks(Guard::SameItem, lanes(chosen_logs(), 0), ONE_EFFECT);
}

#[test]
fn each_guard_of_the_gateway_is_needed() {
    breaks(Guard::DerivedIds, gateways([2, 0, 0], 1), ONE_OUTCOME);
    breaks(Guard::Delivered, gateways([1, 0, 0], 0), ACKNOWLEDGED);
    breaks(Guard::FirstRecord, gateways([2, 0, 0], 1), SAME_ANSWER);
    breaks(Guard::Repeat, gateways([1, 2, 0], 1), AS_STORED);
    let changing = Scope {
        releases: 2,
        ..gateways([3, 0, 0], 1)
    };
    breaks(Guard::FirstAnswer, changing, KEPT);
}
