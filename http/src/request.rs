//! What is done to every request and every answer: an id, a span, content codings, a panic turned into a 500.
//!
//! tower-http's compression and our own steps around `warp::service(routes)`. Must not know of sockets beyond the
//! meter of their connection.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tower::{Layer, Service};
use tower_http::CompressionLevel;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::compression::{Compression, CompressionLayer};
use tracing::Instrument;

use crate::connection::{BoxError, Reading, Writing};
use crate::gzip::Decoded;
use crate::meter::Meter;
use crate::problem::Problem;
use crate::server::Tally;

/// The header that names a request in answers and logs. A caller's own is taken over if it looks like one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers below this many bytes go as they are: they fit into one packet with their head.
const WORTH_COMPRESSING: u64 = 1024;

/// Answers worth compressing: not small, not an event stream, not media.
type Worthwhile = tower_http::compression::predicate::And<
    tower_http::compression::predicate::And<
        tower_http::compression::predicate::And<SizeAbove, NotForContentType>,
        NotForContentType,
    >,
    NotForContentType,
>;

/// The routes with the layer around them, built once for the server and cloned for each connection.
pub(crate) type Stack<S> = Compression<S, Worthwhile>;

pub(crate) fn stack<S: Clone>(service: S) -> Stack<S> {
    let worthwhile = SizeAbove::new(WORTH_COMPRESSING)
        .and(NotForContentType::SSE)
        .and(NotForContentType::IMAGES)
        .and(NotForContentType::const_new("application/octet-stream"));
    CompressionLayer::new()
        .gzip(true)
        // An answer is compressed anew each time it is asked for, so the cheapest level.
        .quality(CompressionLevel::Fastest)
        .compress_when(worthwhile)
        .layer(service)
}

/// What the requests of one connection share. hyper gives them out one at a time, so the lock is never waited for.
pub(crate) struct Requests<S> {
    pub(crate) stack: Mutex<Stack<S>>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) tally: Arc<Tally>,
}

/// Answers one request.
pub(crate) async fn respond<S, B>(
    requests: Arc<Requests<S>>,
    request: Request<Incoming>,
) -> Result<Response<Writing>, Infallible>
where
    Stack<S>: Service<Request<Decoded<Reading>>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let Requests { stack, meter, tally } = &*requests;
    let busy = meter.busy();
    let started = Instant::now();
    tally.requests.fetch_add(1, Ordering::Relaxed);

    let id = request_id(request.headers());
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
    );
    let work = async {
        let mut request = request.map(|body| Reading::new(body, meter.clone()));
        let request = match content_coding(request.headers_mut()) {
            Ok(Coding::Identity) => request.map(Decoded::Plain),
            Ok(Coding::Gzip) => request.map(Decoded::gzip),
            Err(problem) => return problem.to_response().map(of_problem),
        };
        let call = AssertUnwindSafe(async {
            // Always ready: neither the layer nor warp holds anything back. The lock is held for making the future only.
            let answer = stack.lock().unwrap_or_else(PoisonError::into_inner).call(request);
            answer.await
        });
        match call.catch_unwind().await {
            Ok(Ok(response)) => response.map(BodyExt::boxed_unsync),
            Err(_) => {
                tally.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!("a handler panicked");
                Problem::internal().closing().to_response().map(of_problem)
            }
        }
    };
    let mut response = work.instrument(span.clone()).await;
    response.headers_mut().entry(REQUEST_ID).or_insert(id);

    let (status, ms) = (response.status().as_u16(), started.elapsed().as_secs_f64() * 1e3);
    // A 503 is said by whoever is the cause, once and not for each request that it meets.
    let failed = response.status().is_server_error() && response.status() != StatusCode::SERVICE_UNAVAILABLE;
    span.in_scope(|| match failed {
        true => tracing::warn!(status, ms, "answered"),
        false => tracing::debug!(status, ms, "answered"),
    });
    Ok(response.map(|body| Writing::new(body, busy)))
}

fn of_problem(body: Full<Bytes>) -> UnsyncBoxBody<Bytes, BoxError> {
    body.map_err(|never| match never {}).boxed_unsync()
}

/// How a body is coded.
#[derive(Debug, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
}

/// Takes the content coding out of the headers, with the length that was of the coded body.
fn content_coding(headers: &mut HeaderMap) -> Result<Coding, Problem> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let (first, more) = (values.next(), values.next());
    let Some(first) = first else {
        return Ok(Coding::Identity);
    };
    let coding = match (first.to_str().unwrap_or_default().trim(), more) {
        (gzip, None)
            if ["gzip", "x-gzip"]
                .iter()
                .any(|name| gzip.eq_ignore_ascii_case(name)) =>
        {
            Coding::Gzip
        }
        (identity, None) if identity.eq_ignore_ascii_case("identity") => Coding::Identity,
        _ => {
            let detail = "the body's Content-Encoding is neither gzip nor identity";
            return Err(Problem::unsupported_media_type(detail)
                .header(ACCEPT_ENCODING, HeaderValue::from_static("gzip")));
        }
    };
    headers.remove(CONTENT_ENCODING);
    if coding == Coding::Gzip {
        headers.remove(CONTENT_LENGTH);
    }
    Ok(coding)
}

/// The caller's id for the request, or one of our own: the process's start and a count.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static STARTED: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(theirs) = headers.get(REQUEST_ID)
        && (1..=128).contains(&theirs.len())
        && theirs.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return theirs.clone();
    }
    let started = STARTED.get_or_init(|| {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        since.as_micros() as u64
    });
    let id = format!("{started:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed));
    // Hexadecimal digits and a hyphen are always a header value.
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(values: &[&'static str]) -> Result<Coding, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        content_coding(&mut headers).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn gzip_and_identity_are_taken_in_any_case_and_nothing_else_is() {
        assert_eq!(coded(&[]), Ok(Coding::Identity));
        assert_eq!(coded(&["identity"]), Ok(Coding::Identity));
        assert_eq!(coded(&["GZip"]), Ok(Coding::Gzip));
        assert_eq!(coded(&["x-gzip"]), Ok(Coding::Gzip));
        for bad in [
            &["br"][..],
            &["gzip, gzip"],
            &["gzip", "gzip"],
            &["deflate"],
            &[""],
        ] {
            assert_eq!(coded(bad), Err(415), "{bad:?}");
        }
    }

    #[test]
    fn a_callers_id_is_taken_over_unless_it_is_no_id() {
        let mut headers = HeaderMap::new();
        let ours = request_id(&headers);
        assert_ne!(ours, request_id(&headers));
        headers.insert(REQUEST_ID, HeaderValue::from_static("trace-1"));
        assert_eq!(request_id(&headers), "trace-1");
        headers.insert(REQUEST_ID, HeaderValue::from_static("two words"));
        assert_ne!(request_id(&headers), "two words");
    }
}
