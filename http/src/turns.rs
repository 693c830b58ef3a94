//! Whose turn it is, where there is more to do than can be done at once. So many requests are worked on, the others wait
//! in a [line](crate::line) in which tenants take turns. How long they wait tells a rush from an overload: a line that
//! was empty a moment ago holds a rush, which passes, and waiting is better than trying again; in one that has not been
//! empty for a while everybody would only wait as long as the line is, so there the wait is short and who has not come to
//! a turn by then is refused (a queue under controlled delay: B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015). Who asks for far
//! less than a share has time in either case. Must not know what is worked on.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::line::Line;
use crate::problem::Problem;

pub use crate::line::Asker;

/// A line that has not been empty for so long is no rush.
const RUSH: Duration = Duration::from_millis(100);
/// Those who may wait, at most.
const LONGEST_LINE: usize = 1024;
/// What makes a refusal the tenant's own doing, in fair shares.
const OVER_SHARE: f64 = 1.25;
/// What a tenant may have to be given time also in an overload, in fair shares.
const MODEST: f64 = 0.5;
/// Whoever is refused comes back after one to so many seconds, not all at once.
const LONGEST_PAUSE: u64 = 3;

/// How long somebody waits for a turn.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// In a rush.
    pub rush: Duration,
    /// In an overload. What is taken then takes about this much longer than what needs not wait.
    pub overload: Duration,
}

/// How many are worked on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtOnce {
    /// In a rush: as many as do no harm.
    pub rush: usize,
    /// In an overload: as few as get as much done.
    pub overload: usize,
}

impl AtOnce {
    /// So many in either case.
    pub fn always(many: usize) -> AtOnce {
        AtOnce {
            rush: many,
            overload: many,
        }
    }
}

/// Why there is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Whether the tenant asks for more than its share while others ask too; else there is too much of everybody.
    pub over_share: bool,
    /// Seconds after which to try again, different for each.
    pub retry_after: u32,
}

impl Refusal {
    /// That there is too much of everybody.
    pub fn of_all() -> Refusal {
        Refusal {
            over_share: false,
            retry_after: pause(),
        }
    }

    /// The answer: 429 where the caller's tenant is the cause, else 503.
    pub fn problem(&self) -> Problem {
        match self.over_share {
            true => Problem::too_many(
                "this tenant asks for more than its share while others wait",
                self.retry_after,
            ),
            false => Problem::unavailable("more is asked for than this gateway can do", self.retry_after),
        }
    }
}

/// One to [`LONGEST_PAUSE`] seconds, by chance.
fn pause() -> u32 {
    // Each `RandomState` has keys of its own.
    (1 + RandomState::new().hash_one(0) % LONGEST_PAUSE) as u32
}

/// The turns of one kind of work. Cheap to clone.
#[derive(Clone)]
pub struct Turns(Arc<Whole>);

/// The right to work, until it is dropped.
#[must_use]
pub struct Turn {
    turns: Turns,
    asker: Asker,
}

struct Whole {
    patience: Patience,
    state: Mutex<State>,
}

struct State {
    at_once: AtOnce,
    working: usize,
    /// Working or waiting, of each tenant.
    of_tenant: HashMap<Arc<str>, usize>,
    line: Line<Waiting>,
    empty_at: Instant,
}

struct Waiting {
    asker: Asker,
    told: oneshot::Sender<Turn>,
}

impl Turns {
    /// Turns of which `at_once` are taken at any time.
    pub fn new(at_once: AtOnce, patience: Patience) -> Turns {
        Turns(Arc::new(Whole {
            patience,
            state: Mutex::new(State {
                at_once,
                working: 0,
                of_tenant: HashMap::new(),
                line: Line::new(),
                empty_at: Instant::now(),
            }),
        }))
    }

    /// Waits for a turn. Dropped meanwhile, it gives its place in the line up.
    pub async fn enter(&self, asker: Asker) -> Result<Turn, Refusal> {
        let (told, patience) = {
            let mut state = self.lock();
            state.tidy();
            if state.line.len() == 0 && state.working < state.at_once() {
                state.begin(&asker);
                drop(state);
                return Ok(Turn {
                    turns: self.clone(),
                    asker,
                });
            }
            if state.line.len() >= LONGEST_LINE {
                return Err(state.refusal(&asker));
            }
            let patience = self.patience(&state, &asker);
            (state.wait(&asker), patience)
        };
        match tokio::time::timeout(patience, told).await {
            Ok(Ok(turn)) => Ok(turn),
            // Nobody drops a place in the line but who waits there.
            Ok(Err(_)) => Err(Refusal::of_all()),
            Err(_) => {
                let mut state = self.lock();
                let refusal = state.refusal(&asker);
                state.tidy();
                Err(refusal)
            }
        }
    }

    /// Whether more is asked for than can be done.
    pub fn overloaded(&self) -> bool {
        let mut state = self.lock();
        state.tidy();
        state.is_overloaded()
    }

    fn patience(&self, state: &State, asker: &Asker) -> Duration {
        // As long as few tenants wait, that is no long time.
        let modest = state.share_of(asker) <= MODEST && state.line.tenants() < state.at_once();
        match state.is_overloaded() && !modest {
            true => self.0.patience.overload,
            false => self.0.patience.rush,
        }
    }

    /// Changes how many are taken at once.
    pub fn set_at_once(&self, at_once: AtOnce) {
        let mut state = self.lock();
        if state.at_once != at_once {
            state.at_once = at_once;
            let next = state.next();
            drop(state);
            self.call(next);
        }
    }

    fn finish(&self, asker: &Asker) {
        let mut state = self.lock();
        state.working -= 1;
        state.leave(asker);
        let next = state.next();
        drop(state);
        self.call(next);
    }

    /// Without the lock: one who has left meanwhile drops the turn, which ends it.
    fn call(&self, next: Vec<Waiting>) {
        for Waiting { asker, told } in next {
            let turns = self.clone();
            let _ = told.send(Turn { turns, asker });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts are changed by steps that cannot panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turn").field(&self.asker).finish()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.finish(&self.asker);
    }
}

impl State {
    fn begin(&mut self, asker: &Asker) {
        self.working += 1;
        *self.of_tenant.entry(asker.tenant.clone()).or_default() += 1;
        self.empty_at = Instant::now();
    }

    /// Takes out of the line whoever's turn it is now.
    fn next(&mut self) -> Vec<Waiting> {
        self.tidy();
        let mut next = Vec::new();
        while self.working < self.at_once()
            && let Some(waiting) = self.line.next()
        {
            self.working += 1;
            next.push(waiting);
        }
        self.note_emptiness();
        next
    }

    fn at_once(&self) -> usize {
        let at_once = match self.is_overloaded() {
            true => self.at_once.overload,
            false => self.at_once.rush,
        };
        at_once.max(1)
    }

    fn wait(&mut self, asker: &Asker) -> oneshot::Receiver<Turn> {
        let (told, asked) = oneshot::channel();
        let asker = asker.clone();
        *self.of_tenant.entry(asker.tenant.clone()).or_default() += 1;
        self.line.push(&asker.clone(), Waiting { asker, told });
        asked
    }

    fn leave(&mut self, asker: &Asker) {
        if let Some(count) = self.of_tenant.get_mut(&asker.tenant) {
            *count -= 1;
            if *count == 0 {
                self.of_tenant.remove(&asker.tenant);
            }
        }
    }

    fn is_overloaded(&self) -> bool {
        self.line.len() > 0 && self.empty_at.elapsed() > RUSH
    }

    /// What a tenant has working and waiting, in fair shares.
    fn share_of(&self, asker: &Asker) -> f64 {
        let own = self.of_tenant.get(&asker.tenant).copied();
        let all: usize = self.of_tenant.values().sum();
        let tenants = self.of_tenant.len() + usize::from(own.is_none());
        own.unwrap_or(0) as f64 * tenants as f64 / all.max(1) as f64
    }

    fn refusal(&self, asker: &Asker) -> Refusal {
        Refusal {
            over_share: self.share_of(asker) > OVER_SHARE,
            ..Refusal::of_all()
        }
    }

    /// Takes out of the line whoever has left it.
    fn tidy(&mut self) {
        let mut left = Vec::new();
        self.line.keep(|waiting| {
            let gone = waiting.told.is_closed();
            if gone {
                left.push(waiting.asker.clone());
            }
            !gone
        });
        left.iter().for_each(|asker| self.leave(asker));
        self.note_emptiness();
    }

    fn note_emptiness(&mut self) {
        if self.line.len() == 0 {
            self.empty_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::task::JoinHandle;

    const PATIENCE: Patience = Patience {
        rush: Duration::from_secs(1),
        overload: Duration::from_millis(20),
    };
    const MOMENT: Duration = Duration::from_millis(1);

    type Asking = JoinHandle<Result<Turn, Refusal>>;

    fn asker(tenant: &str, device: &str) -> Asker {
        Asker {
            tenant: tenant.into(),
            device: device.into(),
        }
    }

    /// Asks, and is in the line or has its answer when this returns.
    async fn ask(turns: &Turns, tenant: &str, device: &str) -> Asking {
        let (turns, asker) = (turns.clone(), asker(tenant, device));
        let asking = tokio::spawn(async move { turns.enter(asker).await });
        tokio::task::yield_now().await;
        asking
    }

    async fn turn(turns: &Turns, tenant: &str) -> Turn {
        turns.enter(asker(tenant, "a")).await.expect("a turn")
    }

    /// An answer that is there.
    async fn answer(asking: Asking) -> Result<Turn, Refusal> {
        tokio::task::yield_now().await;
        asking.now_or_never().expect("it is told").expect("no panic")
    }

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
        // Whoever has waited long enough leaves.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_alone_takes_everything_and_the_next_place_goes_to_the_next_tenant() {
        let turns = Turns::new(AtOnce::always(2), PATIENCE);
        let (first, second) = (turn(&turns, "much").await, turn(&turns, "much").await);
        let much = ask(&turns, "much", "a").await;
        let more = ask(&turns, "much", "a").await;
        let little = ask(&turns, "little", "a").await;
        drop(first);
        let _much = answer(much).await.expect("came first");
        drop(second);
        let _little = answer(little).await.expect("its tenant's turn");
        assert!(!more.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rush_waits_and_in_an_overload_one_is_told_soon() {
        let turns = Turns::new(AtOnce::always(1), PATIENCE);
        let working = turn(&turns, "t").await;
        let early = ask(&turns, "t", "a").await;
        assert!(!turns.overloaded());
        pass(RUSH + MOMENT).await;
        assert!(turns.overloaded());
        let late = ask(&turns, "t", "a").await;
        pass(PATIENCE.overload + MOMENT).await;
        let refused = answer(late).await.expect_err("refused");
        assert!(!refused.over_share, "there is nobody else");
        assert_eq!(refused.problem().status(), 503);
        assert!((1..=3).contains(&refused.retry_after));
        assert!(!early.is_finished());
        drop(working);
        assert!(answer(early).await.is_ok());
        assert!(!turns.overloaded());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_over_its_share_is_told_so_and_a_modest_one_has_time() {
        let turns = Turns::new(AtOnce::always(3), PATIENCE);
        let mut working = Vec::new();
        for _ in 0..3 {
            working.push(turn(&turns, "much").await);
        }
        let _early = ask(&turns, "much", "a").await;
        pass(RUSH + MOMENT).await;
        let much = ask(&turns, "much", "b").await;
        let little = ask(&turns, "little", "a").await;
        pass(PATIENCE.overload + MOMENT).await;
        let refused = answer(much).await.expect_err("refused");
        assert!(refused.over_share);
        assert_eq!(refused.problem().status(), 429);
        assert!(!little.is_finished());
        drop(working);
        assert!(answer(little).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_or_waits_too_long_is_forgotten() {
        let turns = Turns::new(AtOnce::always(1), PATIENCE);
        let working = turn(&turns, "t").await;
        ask(&turns, "t", "b").await.abort();
        let waited = ask(&turns, "t", "c").await;
        pass(PATIENCE.rush + MOMENT).await;
        assert!(answer(waited).await.is_err());
        drop(working);
        let state = turns.lock();
        assert_eq!((state.working, state.line.len()), (0, 0));
        assert!(state.of_tenant.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_has_an_end() {
        let turns = Turns::new(AtOnce::always(1), PATIENCE);
        let _working = turn(&turns, "t").await;
        let mut line = Vec::new();
        for _ in 0..LONGEST_LINE {
            line.push(ask(&turns, "t", "a").await);
        }
        assert!(answer(ask(&turns, "t", "a").await).await.is_err());
        assert!(line.iter().all(|asking| !asking.is_finished()));
    }
}
