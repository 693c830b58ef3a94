//! The accept loop: as many connections as allowed, each in a task of its own, and an end with a deadline.
//!
//! warp's own server has no header timeout and no connection limit, and its graceful shutdown waits for ever
//! for a half-sent request or an open stream. Must not know what the routes do.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use hyper::service::service_fn;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use warp::{Filter, Rejection, Reply};

use crate::connection::{self, End, Meter, Stage};
use crate::problem::{self, Problem};
use crate::request::{self, Requests};

/// How many connections over the limit are being told so at any time. More wait in the kernel's backlog.
const BEING_REFUSED: usize = 64;

/// How long a refused client is given to read its refusal.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// The pause after an accept that failed: from, and doubling to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

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
    /// Open connections. One more is answered 503 with `Retry-After`, without reading its request.
    pub max_connections: usize,
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
            shutdown_deadline: Duration::from_secs(20),
        }
    }
}

/// What a server did, for the log at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeReport {
    /// Connections served.
    pub connections: u64,
    /// Connections over the limit, answered 503.
    pub refused: u64,
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
}

/// Serves `routes` on `listener` until `shutdown` is ready and all connections have ended, or the deadline
/// after it has passed.
///
/// Speaks HTTP/1.1 with keep-alive and pipelining. Request bodies in gzip arrive decompressed, answers are
/// compressed for those who accept it, and every rejection becomes a problem document ([`problem::recover`]),
/// a panic one too. A handler's future is dropped when its client disconnects, as warp has it: what must go on
/// to its end belongs into a task. Dropping the future that this returns cuts all connections.
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
        // hyper's read buffer has a least size.
        max_header_bytes: limits.max_header_bytes.max(1024),
        ..limits
    });
    let tally = Arc::new(Tally::default());
    let mut report = ServeReport::default();
    let (stage, told) = watch::channel(Stage::Running);
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let refusals = Arc::new(Semaphore::new(BEING_REFUSED));
    let refusal = refusal();
    let mut pause = ACCEPT_PAUSE;
    let mut shutdown = pin!(shutdown);

    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if of_the_connection(&error) => continue,
            Err(error) => {
                // Mostly that there is no file handle left. A pause lets connections end; the backlog keeps the rest.
                report.accept_errors += 1;
                tracing::warn!(%error, ?pause, "cannot accept connections");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (2 * pause).min(LONGEST_ACCEPT_PAUSE);
                continue;
            }
        };
        pause = ACCEPT_PAUSE;

        // Over the limit, a client is told so at once rather than left hanging: it can go elsewhere or come
        // back. A few are told at a time, so that telling stays cheap; past these, the backlog is what holds.
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => match refusals.clone().try_acquire_owned() {
                Ok(slot) => {
                    report.refused += 1;
                    tracing::debug!(
                        limit = limits.max_connections,
                        "connection refused: too many are open"
                    );
                    let (refusal, told) = (refusal.clone(), told.clone());
                    tokio::spawn(async move {
                        refuse(stream, refusal, told).await;
                        drop(slot);
                    });
                    continue;
                }
                Err(_) => tokio::select! {
                    () = &mut shutdown => break,
                    place = places.clone().acquire_owned() => match place {
                        Ok(place) => place,
                        Err(_) => unreachable!("the semaphore is never closed"),
                    },
                },
            },
        };
        report.connections += 1;
        // Answers are written whole: waiting for more to send with them only delays them.
        let _ = stream.set_nodelay(true);
        let meter = Meter::new();
        let requests = Arc::new(Requests {
            stack: Mutex::new(stack.clone()),
            meter: meter.clone(),
            tally: tally.clone(),
        });
        let (limits, told, tally) = (limits.clone(), told.clone(), tally.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| request::respond(requests.clone(), request));
            if connection::drive(stream, place, meter, service, &limits, told).await == End::TimedOut {
                tally.timed_out.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    // Stop accepting first, so that whoever would connect now goes elsewhere at once.
    drop(listener);
    report.open_at_shutdown = limits.max_connections - places.available_permits();
    stage.send_replace(Stage::Draining);
    // All connections have ended when all places are free.
    let all = || places.acquire_many(limits.max_connections as u32);
    if tokio::time::timeout(limits.shutdown_deadline, all())
        .await
        .is_err()
    {
        report.dropped = limits.max_connections - places.available_permits();
        tracing::warn!(
            dropped = report.dropped,
            "connections still hung at the shutdown's deadline"
        );
    }
    stage.send_replace(Stage::Cut);
    let _ = tokio::time::timeout(CUTTING, all()).await;

    report.requests = tally.requests.load(Ordering::Relaxed);
    report.panics = tally.panics.load(Ordering::Relaxed);
    report.timed_out = tally.timed_out.load(Ordering::Relaxed);
    report
}

/// Whether the failure is of the one connection that was to be accepted, and the next may well work.
fn of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// The bytes of the 503 for a connection over the limit.
fn refusal() -> Bytes {
    let response: Response<Bytes> = Problem::unavailable("too many connections are open", 1)
        .closing()
        .to_response();
    let mut text = b"HTTP/1.1 503 Service Unavailable\r\n".to_vec();
    for (name, value) in response.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body().len()).as_bytes());
    text.extend_from_slice(response.body());
    text.into()
}

async fn refuse(mut stream: TcpStream, refusal: Bytes, mut told: watch::Receiver<Stage>) {
    let refuse = async {
        // A few hundred bytes: the kernel's buffer takes them at once.
        if stream.write_all(&refusal).await.is_ok() {
            connection::linger(&mut stream, REFUSAL_LINGER).await;
        }
    };
    tokio::select! {
        () = refuse => {}
        _ = told.wait_for(|stage| *stage != Stage::Running) => {}
    }
}
