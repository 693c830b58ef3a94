//! Where a connection stands: whose turn it is, since when, and when its client has had long enough.
//!
//! Told by the connection's socket, its service and its bodies; read by its clock, and by whoever looks for a
//! connection that can make room for another. Must not know of sockets or requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::server::Limits;

/// One connection's state.
pub(crate) struct Meter {
    gauge: Mutex<Gauge>,
    go: Notify,
}

struct Gauge {
    phase: Phase,
    /// Since when the client has not taken what there is to write.
    stalled: Option<Instant>,
    /// Whether the latest request's body was left unread.
    unread: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Between two requests, or read on only until the client has seen the last answer, since.
    Idle(Instant),
    /// A head is awaited or half there, since.
    Head(Instant),
    /// A request is being read, worked on or answered, since: the handler and the body reader have their own limits.
    Busy(Instant),
    /// No longer HTTP.
    Left,
}

/// What a connection waits for, when it is the client's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// A request, the rest of a head, or that it hangs up: nothing of it is known yet, and nothing is lost with it.
    Request,
    /// The rest of a body, or that it takes its answer: its client would have to send the request again.
    Body,
}

impl Meter {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Meter {
            gauge: Mutex::new(Gauge {
                phase: Phase::Head(Instant::now()),
                stalled: None,
                unread: false,
            }),
            go: Notify::new(),
        })
    }

    fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.gauge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins. It has ended when the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.gauge().phase = Phase::Busy(Instant::now());
        Busy(self.clone())
    }

    /// Whether there is a body that is not read to its end.
    pub(crate) fn body(&self, unread: bool) {
        self.gauge().unread = unread;
    }

    /// The client has sent something.
    pub(crate) fn received(&self) {
        let mut gauge = self.gauge();
        if let Phase::Idle(_) = gauge.phase {
            gauge.phase = Phase::Head(Instant::now());
        }
    }

    /// There is something to write, and the client has taken some of it, or nothing.
    pub(crate) fn wrote(&self, moved: bool) {
        let mut gauge = self.gauge();
        gauge.stalled = if moved {
            None
        } else {
            gauge.stalled.or_else(|| Some(Instant::now()))
        };
    }

    /// HTTP has ended here. Answers whether a body was left unread.
    pub(crate) fn ended(&self) -> bool {
        let mut gauge = self.gauge();
        gauge.phase = Phase::Left;
        gauge.unread
    }

    /// Everything is answered, and the client is given time to see it.
    pub(crate) fn lingers(&self) {
        let mut gauge = self.gauge();
        (gauge.phase, gauge.unread) = (Phase::Idle(Instant::now()), false);
    }

    /// When the connection is to be closed if nothing happens until then.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let gauge = self.gauge();
        let phase = match gauge.phase {
            Phase::Idle(since) => Some(since + limits.idle_timeout),
            Phase::Head(since) => Some(since + limits.header_timeout),
            Phase::Busy(_) | Phase::Left => None,
        };
        let stalled = gauge.stalled.map(|since| since + limits.write_timeout);
        phase.into_iter().chain(stalled).min()
    }

    /// What is awaited of the client, and since when; none while it is the server's turn.
    pub(crate) fn waits(&self) -> Option<(Awaited, Instant)> {
        let gauge = self.gauge();
        match (gauge.phase, gauge.stalled) {
            (Phase::Idle(since) | Phase::Head(since), _) => Some((Awaited::Request, since)),
            (Phase::Busy(_), Some(since)) => Some((Awaited::Body, since)),
            (Phase::Busy(since), None) if gauge.unread => Some((Awaited::Body, since)),
            (Phase::Busy(_) | Phase::Left, _) => None,
        }
    }

    /// Asks the connection to end, if it still waits for its client when it hears this.
    pub(crate) fn go(&self) {
        self.go.notify_one();
    }

    /// Ready when [`Meter::go`] was called.
    pub(crate) async fn asked_to_go(&self) {
        self.go.notified().await;
    }
}

/// A request in flight.
pub(crate) struct Busy(Arc<Meter>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.gauge().phase = Phase::Idle(Instant::now());
    }
}
