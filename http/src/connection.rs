//! One connection: its socket, its clock, and how it ends.
//!
//! hyper parses and frames; this file knows what hyper does not: when a connection is asked to make room,
//! whether its place under the connection limit is still held, that a client which has said all that it has to
//! say may still listen, and that a socket closed over unread bytes takes the answer down with it. Its clock is
//! `meter`. Must not know what a request is about.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
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
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::meter::{Busy, Meter};
use crate::places::Place;
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
    /// It was waiting for its client, and its place was needed.
    MadeRoom,
    /// It still hung at the shutdown's deadline.
    Cut,
}

/// A request's body that notes whether it was read to its end.
pub(crate) struct Reading {
    body: Incoming,
    meter: Arc<Meter>,
}

impl Reading {
    pub(crate) fn new(body: Incoming, meter: Arc<Meter>) -> Self {
        meter.body(!body.is_end_stream());
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
            self.meter.body(false);
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
    _place: Place,
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
    place: Place,
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
        // A client that has said all it has to say may still listen; one that is gone is found out by a write.
        .half_close(true)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(BUFFER.max(limits.max_header_bytes))
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let clock = Box::pin(tokio::time::sleep_until(Instant::now() + limits.header_timeout));
    let mut timed = Timed {
        conn,
        meter: meter.clone(),
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
            () = meter.asked_to_go() => match meter.waits() {
                Some(_) => return End::MadeRoom,
                // A request has come in between: it is answered first.
                None => Pin::new(&mut timed.conn).graceful_shutdown(),
            },
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
    let unread = meter.ended();
    if let Some(parts) = timed.conn.into_parts()
        && (unread || unparsed)
    {
        let mut socket = parts.io.into_inner();
        meter.lingers();
        tokio::select! {
            () = linger(&mut socket, LINGER) => {}
            () = meter.asked_to_go() => {}
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
