//! Which batches are taken now. A batch needs room for its bytes, of which each tenant has a fair share, and then a
//! [turn](tidelog_http::turns). All of this is before the claim, so that what is refused has cost nothing and left
//! nothing. Must not know what taking a batch means.

use crate::error::IngestError;
use crate::pace::Pace;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidelog_http::auth::Caller;
use tidelog_http::turns::{Asker, Patience, Refusal, Turn, Turns};
use tidelog_http::{Share, Shares};

/// What a batch counts at least, so that many small ones are bounded too.
const LEAST_WEIGHT: usize = 32 * 1024;

/// A rush may wait for as long as a user does not mind. In an overload, about what a batch takes in quiet times: so what is
/// accepted is never much slower than then.
const PATIENCE: Patience = Patience {
    rush: Duration::from_secs(1),
    overload: Duration::from_millis(20),
};

/// A batch that takes longer waits for something that is away or hangs, and takes nothing of what turns are about: it
/// gives its turn up, so that some that hang do not keep out those that need not.
const HANGING: Duration = Duration::from_secs(1);

/// The doors. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admission {
    turns: Turns,
    pace: Arc<Mutex<Pace>>,
    /// In units of [`LEAST_WEIGHT`].
    room: Shares,
}

/// A batch that is taken, until this is dropped.
pub(crate) struct Admitted {
    admission: Admission,
    bytes: usize,
    turn: Turn,
    room: Share,
}

impl Admission {
    /// With room for so many bytes of bodies.
    pub(crate) fn new(bytes: usize) -> Admission {
        Admission {
            turns: Turns::new(Pace::FIRST, PATIENCE),
            pace: Arc::new(Mutex::new(Pace::new(Instant::now()))),
            room: Shares::new((bytes / LEAST_WEIGHT).max(1)),
        }
    }

    /// Waits for a turn for a body of so many bytes.
    pub(crate) async fn enter(&self, caller: &Caller, bytes: usize) -> Result<Admitted, IngestError> {
        let units = bytes.div_ceil(LEAST_WEIGHT).max(1);
        let room = self.room.take(caller.tenant.as_str(), units);
        let room = room.ok_or_else(Refusal::of_all)?;
        let turn = self.turns.enter(Asker::of(caller)).await?;
        Ok(Admitted {
            admission: self.clone(),
            bytes,
            turn,
            room,
        })
    }

    /// Whether more batches come in than can be taken.
    pub(crate) fn overloaded(&self) -> bool {
        self.turns.overloaded()
    }

    /// Waits until nothing is being taken.
    pub(crate) async fn idle(&self) {
        while !self.room.is_whole() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn note(&self, bytes: usize, began: Instant) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let at_once = pace.done(bytes, now - began, now);
        drop(pace);
        self.turns.set_at_once(at_once);
    }
}

impl Admitted {
    /// Does the work. How long it took says how many to work on at once; of work that fails or hangs it says nothing.
    pub(crate) async fn work<T, E>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let Admitted {
            admission,
            bytes,
            turn,
            room: _room,
        } = self;
        let began = Instant::now();
        let mut work = std::pin::pin!(work);
        match tokio::time::timeout(HANGING, &mut work).await {
            Ok(result) => {
                if result.is_ok() {
                    admission.note(bytes, began);
                }
                drop(turn);
                result
            }
            Err(_) => {
                drop(turn);
                work.await
            }
        }
    }
}
