//! A request's JSON body as bytes, bounded in size and in time.
//!
//! The limit counts what the body is after decompression, which happens outside ([`crate::serve`]), so a
//! gzip bomb costs no more than the limit. Says that the bytes are UTF-8 and called JSON; must not parse them.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use warp::{Filter, Rejection};

use crate::problem::Problem;

/// What is set aside before a byte has arrived, at most: a Content-Length is a claim, not a body.
const MOST_UPFRONT: usize = 64 * 1024;

/// Extracts the body of a request whose content type is `application/json`, of up to `limit` bytes.
///
/// `idle` is how long the client may go without sending anything. Rejects with a problem: 415 for another
/// content type (or none) and for a charset other than UTF-8; 413 for more than `limit`, before reading where
/// Content-Length says so already; 400 for a body that cannot be decompressed, breaks off or is not UTF-8;
/// 408 past `idle`. After 413 and 408 the connection closes.
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
                    utf8(read(body, length, limit, idle).await?)
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

async fn read<S, B>(body: S, length: Option<u64>, limit: usize, idle: Duration) -> Result<Bytes, Problem>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    loop {
        let part = match tokio::time::timeout(idle, body.next()).await {
            Ok(Some(Ok(mut part))) => part.copy_to_bytes(part.remaining()),
            Ok(Some(Err(error))) => return Err(unreadable(&error)),
            Ok(None) => break,
            Err(_) => {
                let detail = format!("nothing of the body arrived for {} s", idle.as_secs_f64());
                return Err(Problem::request_timeout(detail));
            }
        };
        // Parts that are there already must not keep others from this thread while a large body is decompressed.
        tokio::task::coop::consume_budget().await;
        let so_far = rest.as_ref().map_or(first.len(), BytesMut::len);
        if part.len() > limit - so_far {
            return Err(too_large(limit));
        }
        match &mut rest {
            // Most bodies come in one part, which is then passed on as it is.
            None if first.is_empty() => first = part,
            None => {
                let whole = length.map_or(0, |length| length.min(MOST_UPFRONT as u64) as usize);
                let mut gathered =
                    BytesMut::with_capacity(whole.max(2 * (first.len() + part.len())).min(limit));
                gathered.extend_from_slice(&first);
                gathered.extend_from_slice(&part);
                rest = Some(gathered);
            }
            Some(gathered) => gathered.extend_from_slice(&part),
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
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
        )
        .await
        .unwrap();
        assert_eq!(&body[..], b"{\"a\":\"bcdef\"}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_falls_silent_gets_408() {
        let body =
            futures_util::stream::iter([Ok(Bytes::from_static(b"{"))]).chain(futures_util::stream::pending());
        let problem = read(body, None, 64, Duration::from_secs(30)).await.unwrap_err();
        assert_eq!((problem.status().as_u16(), problem.is_retryable()), (408, true));
    }
}
