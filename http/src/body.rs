//! A request's JSON body as bytes, bounded in size and in time.
//!
//! The limit counts what the body is after decompression, which happens outside ([`crate::serve`]), so a
//! gzip bomb costs no more than the limit. Says that the bytes are UTF-8 and called JSON; must not parse them.

use std::error::Error;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::time::Instant;
use warp::{Filter, Rejection};

use crate::problem::Problem;

/// What is set aside before a byte has arrived, at most: a Content-Length is a claim, not a body.
const MOST_UPFRONT: usize = 64 * 1024;

/// What all bodies of this process may take together, from their first byte until they are dropped. Thousands of clients
/// may send one at a time, and each may be as large as its limit; small ones are not counted, and so never kept out.
static MEMORY: Budget = Budget::new(256 << 20);

/// Bytes a second, after decompression, below which a body is too slow: less than a mobile network carries at its worst.
/// Without it a client could hold a connection and its memory for years, a byte now and then.
const SLOWEST: f64 = 512.0;

/// Extracts the body of a request whose content type is `application/json`, of up to `limit` bytes.
///
/// `idle` is how long the client may go on sending less than 512 bytes a second, or nothing. Rejects with a problem: 415 for another
/// content type (or none) and for a charset other than UTF-8; 413 for more than `limit`, before reading where
/// Content-Length says so already; 400 for a body that cannot be decompressed, breaks off or is not UTF-8;
/// 408 past `idle`; 503 where other large bodies take up all the memory there is for them. After 413, 408 and 503 the connection closes.
///
/// Put it last in a route: what it has read, no other route can read again.
pub fn json_body(limit: usize, idle: Duration) -> impl Filter<Extract = (Bytes,), Error = Rejection> + Copy {
    warp::header::optional::<String>("content-type")
        .and(warp::header::optional::<u64>("content-length"))
        .and(warp::body::stream())
        .and_then(
            move |content_type: Option<String>, length: Option<u64>, body| async move {
                let read = async {
                    is_json(content_type.as_deref())?;
                    utf8(read(body, length, limit, idle, &MEMORY).await?)
                };
                read.await.map_err(warp::reject::custom)
            },
        )
}

fn is_json(content_type: Option<&str>) -> Result<(), Problem> {
    let Some(content_type) = content_type else {
        return Err(Problem::unsupported_media_type(
            "the body needs the content type application/json",
        ));
    };
    let mut parts = content_type.split(';').map(str::trim);
    // A merge patch (RFC 7396) is JSON, and its own type says so.
    let json = ["application/json", "application/merge-patch+json"];
    if !parts
        .next()
        .is_some_and(|kind| json.iter().any(|json| kind.eq_ignore_ascii_case(json)))
    {
        return Err(Problem::unsupported_media_type(
            "the body's content type is not application/json",
        ));
    }
    let charsets = parts.filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("charset")
            .then(|| value.trim_matches('"'))
    });
    for charset in charsets {
        if !["utf-8", "utf8", "us-ascii"]
            .iter()
            .any(|known| charset.eq_ignore_ascii_case(known))
        {
            return Err(Problem::unsupported_media_type("the body's charset is not UTF-8"));
        }
    }
    Ok(())
}

async fn read<S, B>(
    body: S,
    length: Option<u64>,
    limit: usize,
    idle: Duration,
    memory: &'static Budget,
) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut rest: Option<Gathered> = None;
    let enough = (idle.as_secs_f64() * SLOWEST) as usize;
    let (mut since, mut then) = (Instant::now(), 0);
    loop {
        let so_far = rest.as_ref().map_or(first.len(), |rest| rest.bytes.len());
        if so_far - then >= enough {
            (since, then) = (Instant::now(), so_far);
        }
        let part = match tokio::time::timeout_at(since + idle, body.next()).await {
            Ok(Some(Ok(mut part))) => part.copy_to_bytes(part.remaining()),
            Ok(Some(Err(error))) => return Err(unreadable(&error)),
            Ok(None) => break,
            Err(_) => return Err(too_slow(idle)),
        };
        // Parts that are there already must not keep others from this thread while a large body is decompressed.
        tokio::task::coop::consume_budget().await;
        if part.len() > limit - so_far {
            return Err(too_large(limit));
        }
        match &mut rest {
            // Most bodies come in one part, which is then passed on as it is.
            None if first.is_empty() => first = part,
            None => {
                let whole = length.map_or(0, |length| length.min(MOST_UPFRONT as u64) as usize);
                let mut gathered = Gathered::new(memory);
                gathered.reserve(whole.max(2 * (first.len() + part.len())).min(limit))?;
                gathered.bytes.extend_from_slice(&first);
                gathered.bytes.extend_from_slice(&part);
                rest = Some(gathered);
            }
            Some(gathered) => {
                let needed = so_far + part.len();
                if needed > gathered.bytes.capacity() {
                    gathered.reserve((2 * so_far).max(needed).min(limit))?;
                }
                gathered.bytes.extend_from_slice(&part);
            }
        }
    }
    Ok(rest.map_or(first, Gathered::freeze))
}

/// Bytes that may be held at one time.
struct Budget {
    most: usize,
    held: AtomicUsize,
}

impl Budget {
    const fn new(most: usize) -> Budget {
        Budget {
            most,
            held: AtomicUsize::new(0),
        }
    }

    fn take(&self, bytes: usize) -> Result<(), Problem> {
        let within = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.most);
        match self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(Problem::unavailable("too many large bodies are being taken", 1).closing()),
        }
    }
}

/// A body so far, and what it has taken of the budget.
struct Gathered {
    bytes: BytesMut,
    memory: &'static Budget,
    taken: usize,
}

impl Gathered {
    fn new(memory: &'static Budget) -> Gathered {
        Gathered {
            bytes: BytesMut::new(),
            memory,
            taken: 0,
        }
    }

    /// Room for `capacity` bytes in all.
    fn reserve(&mut self, capacity: usize) -> Result<(), Problem> {
        if capacity > MOST_UPFRONT {
            self.memory.take(capacity - self.taken)?;
            self.taken = capacity;
        }
        self.bytes.reserve(capacity - self.bytes.len());
        Ok(())
    }

    /// The body, which gives back what it took when the last of it is dropped.
    fn freeze(mut self) -> Bytes {
        match self.taken {
            0 => std::mem::take(&mut self.bytes).freeze(),
            _ => Bytes::from_owner(self),
        }
    }
}

impl AsRef<[u8]> for Gathered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

fn utf8(body: Bytes) -> Result<Bytes, Problem> {
    match std::str::from_utf8(&body) {
        Ok(_) => Ok(body),
        Err(error) => {
            let offset = error.valid_up_to();
            Err(
                Problem::bad_request(format!("the body is not UTF-8 at byte {offset}"))
                    .with("offset", offset),
            )
        }
    }
}

fn too_slow(idle: Duration) -> Problem {
    let idle = idle.as_secs_f64();
    Problem::request_timeout(format!(
        "for {idle} s the body arrived at less than {SLOWEST} bytes a second"
    ))
}

fn too_large(limit: usize) -> Problem {
    Problem::payload_too_large(format!(
        "the body is larger than {limit} bytes, after decompression"
    ))
    .with("limit", limit)
    .closing()
}

/// A body error is the connection's (then hyper made it) or the decompressor's.
fn unreadable(error: &warp::Error) -> Problem {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<hyper::Error>() {
            return Problem::bad_request("the body broke off, or is not framed as HTTP/1.1 asks").closing();
        }
        cause = error.source();
    }
    Problem::bad_request("the body cannot be decompressed: it is not one whole gzip stream")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn routes(
        limit: usize,
    ) -> impl Filter<Extract = (impl warp::Reply,), Error = std::convert::Infallible> + Clone {
        json_body(limit, Duration::from_secs(5))
            .map(|body: Bytes| body.to_vec())
            .recover(crate::problem::recover)
    }

    async fn post(content_type: Option<&str>, body: &[u8]) -> (StatusCode, String) {
        let mut request = warp::test::request().method("POST").body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = request.reply(&routes(16)).await;
        (
            response.status(),
            String::from_utf8_lossy(response.body()).into_owned(),
        )
    }

    #[tokio::test]
    async fn only_json_in_utf_8_is_read() {
        for good in [
            "application/json",
            "Application/JSON ; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json; profile=x",
        ] {
            assert_eq!(post(Some(good), b"{}").await.0, 200, "{good}");
        }
        for bad in [
            "text/plain",
            "application/jsonx",
            "application/json; charset=latin1",
            "",
            "application/*",
        ] {
            assert_eq!(post(Some(bad), b"{}").await.0, 415, "{bad}");
        }
        assert_eq!(post(None, b"{}").await.0, 415);
    }

    #[tokio::test]
    async fn the_limit_itself_is_allowed() {
        assert_eq!(post(Some("application/json"), &[b'1'; 16]).await.0, 200);
        assert_eq!(post(Some("application/json"), &[b'1'; 17]).await.0, 413);
    }

    #[tokio::test]
    async fn what_is_not_utf_8_is_named_by_its_offset() {
        let (status, text) = post(Some("application/json"), b"{\"a\":\"\xff\"}").await;
        assert_eq!(status, 400);
        assert!(
            text.contains("at byte 6") && text.contains("\"offset\":6"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn parts_are_put_together_in_order() {
        let parts = ["{\"a\"", ":", "", "\"bcdef\"}"].map(|part| Ok(Bytes::from_static(part.as_bytes())));
        let body = read(
            futures_util::stream::iter(parts),
            None,
            64,
            Duration::from_secs(1),
            &MEMORY,
        )
        .await
        .unwrap();
        assert_eq!(&body[..], b"{\"a\":\"bcdef\"}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_falls_silent_gets_408() {
        let body =
            futures_util::stream::iter([Ok(Bytes::from_static(b"{"))]).chain(futures_util::stream::pending());
        let problem = read(body, None, 64, Duration::from_secs(30), &MEMORY)
            .await
            .unwrap_err();
        assert_eq!((problem.status().as_u16(), problem.is_retryable()), (408, true));
    }

    /// What becomes of a body in parts of these sizes, one every five seconds.
    async fn dripping(sizes: impl Iterator<Item = usize>) -> Result<Bytes, Problem> {
        let drops = futures_util::stream::iter(sizes).then(|size| async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(Bytes::from(vec![b'1'; size]))
        });
        read(drops, None, usize::MAX, Duration::from_secs(30), &MEMORY).await
    }

    #[tokio::test]
    async fn large_bodies_share_what_memory_there_is_and_give_it_back() {
        static LITTLE: Budget = Budget::new(300 * 1024);
        let body = async |kib: usize| {
            let parts = futures_util::stream::iter((0..kib).map(|_| Ok(Bytes::from(vec![b'1'; 1024]))));
            read(parts, None, 1 << 20, Duration::from_secs(1), &LITTLE).await
        };
        let first = body(200).await.unwrap();
        assert_eq!(first.len(), 200 * 1024);
        let refused = body(200).await.unwrap_err();
        assert_eq!((refused.status().as_u16(), refused.is_retryable()), (503, true));
        // A small one needs none of it.
        assert_eq!(body(30).await.unwrap().len(), 30 * 1024);
        let part = first.slice(..10);
        drop(first);
        assert!(body(200).await.is_err());
        drop(part);
        assert_eq!(body(200).await.unwrap().len(), 200 * 1024);
        assert_eq!(LITTLE.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_408_and_a_slow_network_is_not() {
        let begun = Instant::now();
        let problem = dripping(std::iter::repeat_n(1, 100_000)).await.unwrap_err();
        assert_eq!(problem.status().as_u16(), 408);
        assert!(problem.to_string().contains("512 bytes a second"), "{problem}");
        assert!(
            begun.elapsed() <= Duration::from_secs(30),
            "{:?}",
            begun.elapsed()
        );
        // What it sent before does not buy it more time.
        let sizes = std::iter::once(1 << 20).chain(std::iter::repeat_n(1, 100_000));
        assert_eq!(dripping(sizes).await.unwrap_err().status().as_u16(), 408);
        let slow_network = dripping(std::iter::repeat_n(5 * 512, 500)).await.unwrap();
        assert_eq!(slow_network.len(), 500 * 5 * 512);
    }
}
