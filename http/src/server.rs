//! The accept loop: as many connections as allowed, each in a task of its own, and an end with a deadline.
//!
//! warp's own server has no header timeout and no connection limit, and its graceful shutdown waits for ever
//! for a half-sent request or an open stream. Must not know what the routes do.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use warp::{Filter, Rejection, Reply};

use crate::connection::{self, End, Stage};
use crate::door::Door;
use crate::meter::Meter;
use crate::places::{Address, Place, Places};
use crate::problem;
use crate::request::{self, Requests};

/// The pause after an accept that failed: from, and doubling to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How often the log is told that a limit of connections is met.
const TELLING_AGAIN: Duration = Duration::from_secs(10);

/// How long connections that were cut are given to be dropped.
const CUTTING: Duration = Duration::from_secs(1);

/// What one server allows its clients.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the first moment of a connection, or the first byte of a later request, to the end of the head.
    pub header_timeout: Duration,
    /// How long a connection is kept open between two requests. Longer than a load balancer's, usually 60 s.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that is waiting for it.
    pub write_timeout: Duration,
    /// Request line and headers together. More is 431.
    pub max_header_bytes: usize,
    /// Open connections. For one more, some that wait for their clients are closed, first of the address that has
    /// the most; if all are being answered, it gets 503 with `Retry-After`, without its request being read.
    pub max_connections: usize,
    /// Open connections of one address (of one /64 network, in IPv6). One more is treated likewise, among these.
    pub max_connections_per_address: usize,
    /// From the shutdown signal until whatever still hangs is dropped.
    pub shutdown_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            max_header_bytes: 16 * 1024,
            max_connections: 4096,
            // Behind a load balancer all clients have its address.
            max_connections_per_address: usize::MAX,
            shutdown_deadline: Duration::from_secs(20),
        }
    }
}

/// What a server did, for the log at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeReport {
    /// Connections served.
    pub connections: u64,
    /// Connections over a limit: answered 503, or closed where too many came at once.
    pub refused: u64,
    /// Connections that waited for their clients and were closed to make room for others.
    pub made_room: u64,
    /// Requests whose head was read.
    pub requests: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Connections closed for being slow: a head, an idle time, an answer not read.
    pub timed_out: u64,
    /// Failures to accept, such as no file handle left.
    pub accept_errors: u64,
    /// Connections open when the shutdown began.
    pub open_at_shutdown: usize,
    /// Of these, the ones that still hung at the deadline.
    pub dropped: usize,
}

/// The counts behind a [`ServeReport`].
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) requests: AtomicU64,
    pub(crate) panics: AtomicU64,
    timed_out: AtomicU64,
    made_room: AtomicU64,
}

/// Serves `routes` on `listener` until `shutdown` is ready and all connections have ended, or the deadline
/// after it has passed.
///
/// Speaks HTTP/1.1 with keep-alive and pipelining. Request bodies in gzip arrive decompressed, answers are
/// compressed for those who accept it, and every rejection becomes a problem document ([`problem::recover`]),
/// a panic one too. A client that closes its side may still listen, so its request is answered; whether it is gone only
/// a write tells. A handler's future may be dropped all the same (the shutdown's deadline): what must go on to its end
/// belongs into a task. Dropping the future that this returns cuts all connections.
pub async fn serve<F>(
    listener: TcpListener,
    routes: F,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> ServeReport
where
    F: Filter<Error = Rejection> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
{
    let stack = request::stack(warp::service(routes.recover(problem::recover)));
    let limits = Arc::new(Limits {
        max_connections: limits.max_connections.clamp(1, u32::MAX as usize),
        max_connections_per_address: limits.max_connections_per_address.max(1),
        // hyper's read buffer has a least size.
        max_header_bytes: limits.max_header_bytes.max(1024),
        ..limits
    });
    let tally = Arc::new(Tally::default());
    let mut report = ServeReport::default();
    let (stage, told) = watch::channel(Stage::Running);
    let places = Places::new(limits.max_connections, limits.max_connections_per_address);
    let mut entrance = Entrance {
        door: Door::new(&limits, told.clone()),
        listener,
        places: places.clone(),
        pause: ACCEPT_PAUSE,
        accept_errors: 0,
        told: None,
    };
    let mut shutdown = pin!(shutdown);

    loop {
        let (stream, place, meter) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            entered = entrance.next() => entered,
        };
        report.connections += 1;
        let requests = Arc::new(Requests {
            stack: Mutex::new(stack.clone()),
            meter: meter.clone(),
            tally: tally.clone(),
        });
        let (limits, told, tally) = (limits.clone(), told.clone(), tally.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| request::respond(requests.clone(), request));
            match connection::drive(stream, place, meter, service, &limits, told).await {
                End::TimedOut => tally.timed_out.fetch_add(1, Ordering::Relaxed),
                End::MadeRoom => tally.made_room.fetch_add(1, Ordering::Relaxed),
                End::Closed | End::Failed | End::Cut => 0,
            };
        });
    }
    (report.refused, report.accept_errors) = (entrance.door.refused, entrance.accept_errors);

    // Stop accepting first, so that whoever would connect now goes elsewhere at once.
    drop(entrance);
    report.open_at_shutdown = places.taken();
    stage.send_replace(Stage::Draining);
    if timeout(limits.shutdown_deadline, places.all_free())
        .await
        .is_err()
    {
        report.dropped = places.taken();
        tracing::warn!(
            dropped = report.dropped,
            "connections still hung at the shutdown's deadline"
        );
    }
    stage.send_replace(Stage::Cut);
    let _ = timeout(CUTTING, places.all_free()).await;

    report.requests = tally.requests.load(Ordering::Relaxed);
    report.panics = tally.panics.load(Ordering::Relaxed);
    report.timed_out = tally.timed_out.load(Ordering::Relaxed);
    report.made_room = tally.made_room.load(Ordering::Relaxed);
    report
}

/// Where connections come in.
struct Entrance {
    listener: TcpListener,
    places: Arc<Places>,
    door: Door,
    pause: Duration,
    accept_errors: u64,
    /// When it was last told that a limit is met.
    told: Option<Instant>,
}

impl Entrance {
    /// The next connection that has a place. Dropped while it waits, it loses at most one that has none yet.
    async fn next(&mut self) -> (TcpStream, Place, Arc<Meter>) {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok((stream, peer)) => (stream, Address::from(peer.ip())),
                Err(error) => {
                    self.cannot_accept(&error).await;
                    continue;
                }
            };
            self.pause = ACCEPT_PAUSE;
            let meter = Meter::new();
            let place = self.places.take(address, &meter).await;
            if place.is_err() || self.places.full() {
                self.tell_of_crowd();
            }
            let place = match place {
                Ok(place) => place,
                Err(full) => {
                    self.door.refuse(stream, full);
                    continue;
                }
            };
            // Answers are written whole: waiting for more to send with them only delays them.
            let _ = stream.set_nodelay(true);
            return (stream, place, meter);
        }
    }

    /// Says in the log that a limit is met, not more often than is of use.
    fn tell_of_crowd(&mut self) {
        if self.told.is_none_or(|told| told.elapsed() >= TELLING_AGAIN) {
            self.told = Some(Instant::now());
            let (open, refused) = (self.places.taken(), self.door.refused);
            tracing::warn!(
                open,
                refused,
                "a limit of connections is met: idle ones make room, and more are refused"
            );
        }
    }

    /// Mostly that there is no file handle left. A pause lets connections end, and those that only wait are asked to;
    /// the backlog keeps the rest.
    async fn cannot_accept(&mut self, error: &io::Error) {
        if of_the_connection(error) {
            return;
        }
        self.accept_errors += 1;
        let asked_to_go = self.places.make_room_for_any();
        tracing::warn!(%error, asked_to_go, pause = ?self.pause, "cannot accept connections");
        tokio::time::sleep(self.pause).await;
        self.pause = (2 * self.pause).min(LONGEST_ACCEPT_PAUSE);
    }
}

/// Whether the failure is of the one connection that was to be accepted, and the next may well work.
fn of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
