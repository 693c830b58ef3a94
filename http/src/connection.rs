//! One connection: its socket, its clock, and how it ends.
//!
//! hyper parses and frames; this file knows what hyper does not: when a head, an idle connection or a reader
//! has taken too long, whether the permit of the connection limit is still held, and that a socket closed
//! over unread bytes takes the answer down with it. Must not know what a request is about.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, UpgradeableConnection};
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep};

use crate::server::Limits;

/// hyper's read buffer a connection, at most: enough for the largest head and for steps in large bodies.
const BUFFER: usize = 64 * 1024;

/// How long an ended connection is read on, in all and between two reads, so that a client still sending
/// gets to see the answer rather than a reset (as nginx's `lingering_time` and `lingering_timeout`).
const LINGER: Duration = Duration::from_secs(10);
const LINGER_IDLE: Duration = Duration::from_secs(2);

/// What all connections are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Serve.
    Running,
    /// Finish the request that is in flight, then close.
    Draining,
    /// Close.
    Cut,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By either side, in the normal course.
    Closed,
    /// The client broke HTTP, or broke off.
    Failed,
    /// Too slow with a head, too long idle, or not reading its answer.
    TimedOut,
    /// It still hung at the shutdown's deadline.
    Cut,
}

/// Where a connection is, told by its socket, its service and its bodies, and read by its clock.
pub(crate) struct Meter(Mutex<Gauge>);

struct Gauge {
    phase: Phase,
    /// Since when the client has not taken what there is to write.
    stalled: Option<Instant>,
    /// Whether the latest request's body was left unread.
    unread: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Between two requests, since.
    Idle(Instant),
    /// A head is awaited or half there, since.
    Head(Instant),
    /// A request is being read, worked on or answered: the handler and the body reader have their own limits.
    Busy,
}

impl Meter {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Meter(Mutex::new(Gauge {
            phase: Phase::Head(Instant::now()),
            stalled: None,
            unread: false,
        })))
    }

    fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins. It has ended when the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.gauge().phase = Phase::Busy;
        Busy(self.clone())
    }

    fn received(&self) {
        let mut gauge = self.gauge();
        if let Phase::Idle(_) = gauge.phase {
            gauge.phase = Phase::Head(Instant::now());
        }
    }

    fn wrote(&self, moved: bool) {
        let mut gauge = self.gauge();
        gauge.stalled = if moved {
            None
        } else {
            gauge.stalled.or_else(|| Some(Instant::now()))
        };
    }

    /// When the connection is to be closed if nothing happens until then.
    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let gauge = self.gauge();
        let phase = match gauge.phase {
            Phase::Idle(since) => Some(since + limits.idle_timeout),
            Phase::Head(since) => Some(since + limits.header_timeout),
            Phase::Busy => None,
        };
        let stalled = gauge.stalled.map(|since| since + limits.write_timeout);
        phase.into_iter().chain(stalled).min()
    }
}

/// A request in flight.
pub(crate) struct Busy(Arc<Meter>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.gauge().phase = Phase::Idle(Instant::now());
    }
}

/// A request's body that notes whether it was read to its end.
pub(crate) struct Reading {
    body: Incoming,
    meter: Arc<Meter>,
}

impl Reading {
    pub(crate) fn new(body: Incoming, meter: Arc<Meter>) -> Self {
        meter.gauge().unread = !body.is_end_stream();
        Reading { body, meter }
    }
}

impl Body for Reading {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.meter.gauge().unread = false;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What an answer's body breaks off with on our side.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer's body that keeps its request in flight for as long as it lives.
pub(crate) struct Writing {
    body: UnsyncBoxBody<Bytes, BoxError>,
    _busy: Busy,
}

impl Writing {
    pub(crate) fn new(body: UnsyncBoxBody<Bytes, BoxError>, busy: Busy) -> Self {
        Writing { body, _busy: busy }
    }
}

/// An answer broke off on our side, so the connection must too.
#[derive(Debug, thiserror::Error)]
#[error("the answer's body failed: {0}")]
pub(crate) struct WritingError(BoxError);

impl Body for Writing {
    type Data = Bytes;
    type Error = WritingError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WritingError>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(WritingError)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A TCP stream that tells its meter what moves, and holds its place under the connection limit until it is
/// dropped, wherever that is: an upgraded connection leaves hyper, but not the limit.
struct Socket {
    stream: TcpStream,
    meter: Arc<Meter>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.meter.received();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.meter.wrote(wrote.is_ready());
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.meter.wrote(wrote.is_ready());
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves one connection to its end.
pub(crate) async fn drive<S>(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    meter: Arc<Meter>,
    service: S,
    limits: &Limits,
    mut stage: watch::Receiver<Stage>,
) -> End
where
    S: HttpService<Incoming, ResBody = Writing, Error = Infallible> + Unpin,
{
    let socket = Socket {
        stream,
        meter: meter.clone(),
        _place: place,
    };
    let conn = http1::Builder::new()
        // Ours is the clock: hyper's gives an idle connection no longer than a head.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(BUFFER.max(limits.max_header_bytes))
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let clock = Box::pin(tokio::time::sleep_until(Instant::now() + limits.header_timeout));
    let mut timed = Timed {
        conn,
        meter,
        clock,
        limits,
    };

    let served = loop {
        match *stage.borrow_and_update() {
            Stage::Running => {}
            Stage::Draining => Pin::new(&mut timed.conn).graceful_shutdown(),
            Stage::Cut => return End::Cut,
        }
        tokio::select! {
            served = &mut timed => break served,
            // Without a sender the server is gone, so there is no one to serve for.
            changed = stage.changed() => if changed.is_err() { return End::Cut },
        }
    };
    let end = match &served {
        None => return End::TimedOut,
        Some(Ok(())) => End::Closed,
        Some(Err(error)) => {
            tracing::debug!(%error, "connection failed");
            End::Failed
        }
    };
    // A 431 or a 400 of hyper's own leaves bytes unread too.
    let unparsed = served.is_some_and(|served| served.is_err_and(|error| error.is_parse()));
    let unread = timed.meter.gauge().unread;
    if let Some(parts) = timed.conn.into_parts()
        && (unread || unparsed)
    {
        let mut socket = parts.io.into_inner();
        tokio::select! {
            () = linger(&mut socket, LINGER) => {}
            _ = stage.wait_for(|stage| *stage == Stage::Cut) => {}
        }
    }
    end
}

/// A connection and its clock: none if the clock ended it.
struct Timed<'a, S>
where
    S: HttpService<Incoming>,
{
    conn: UpgradeableConnection<TokioIo<Socket>, S>,
    meter: Arc<Meter>,
    clock: Pin<Box<Sleep>>,
    limits: &'a Limits,
}

impl<S> Future for Timed<'_, S>
where
    S: HttpService<Incoming, ResBody = Writing, Error = Infallible> + Unpin,
{
    type Output = Option<hyper::Result<()>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(served) = Pin::new(&mut this.conn).poll(cx) {
            return Poll::Ready(Some(served));
        }
        while let Some(deadline) = this.meter.deadline(this.limits) {
            // A clock that would ring early is left alone and set right when it rings: most deadlines move
            // on with the next request, and resetting a timer for each would be the dearer way.
            if this.clock.deadline() > deadline {
                this.clock.as_mut().reset(deadline);
            }
            if this.clock.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(None);
            }
            this.clock.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// Says that nothing more will come, and reads on until the client has heard it, for no longer than `most`.
pub(crate) async fn linger<T: AsyncRead + AsyncWrite + Unpin>(stream: &mut T, most: Duration) {
    let drain = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = [0; 4096];
        while let Ok(Ok(1..)) = tokio::time::timeout(LINGER_IDLE, stream.read(&mut sink)).await {}
    };
    let _ = tokio::time::timeout(most, pin!(drain)).await;
}
