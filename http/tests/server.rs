//! What a server does to clients that are slow, too big, too many or gone, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Client, Server, chunk, get, gunzip, gzip, head, post, soon};
use futures_util::StreamExt;
use tidelog_http::Limits;
use tidelog_http::body::json_body;
use tokio::sync::Semaphore;
use warp::{Filter, Rejection, Reply};

const LIMIT: usize = 64 * 1024;

/// `POST /echo` gives the body back, `/length` its length, `GET /ok` says so, `/panic` and `/panic/late` panic.
fn routes() -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let body = || json_body(LIMIT, Duration::from_millis(300));
    let ok = warp::path!("ok").and(warp::get()).map(|| "ok");
    let echo = warp::path!("echo")
        .and(warp::post())
        .and(body())
        .map(|body: Bytes| body.to_vec());
    let length = warp::path!("length")
        .and(warp::post())
        .and(body())
        .map(|body: Bytes| body.len().to_string());
    let panics = warp::path!("panic").map(|| -> &str { panic!("on purpose") });
    let late = warp::path!("panic" / "late").map(|| {
        let parts = futures_util::stream::iter(0..2).map(|part| match part {
            0 => Ok::<_, Infallible>("first"),
            _ => panic!("on purpose, late"),
        });
        warp::reply::stream(parts)
    });
    let text = warp::path!("text" / usize).map(|length| "x".repeat(length));
    let events = warp::path!("events").map(|| {
        let body = "data: x\n\n".repeat(1000);
        warp::reply::with_header(body, "content-type", "text/event-stream")
    });
    ok.or(echo).or(length).or(panics).or(late).or(text).or(events)
}

async fn server(limits: Limits) -> Server {
    Server::start(limits, routes()).await
}

/// Limits that no test meets unless it sets them.
fn limits() -> Limits {
    Limits {
        shutdown_deadline: Duration::from_secs(20),
        ..Limits::default()
    }
}

/// The server answers and the connection can be used again.
async fn usable(client: &mut Client) {
    let answer = client.ask(get("/ok")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}

// Time.

#[tokio::test]
async fn a_head_that_trickles_in_ends_the_connection_at_the_timeout() {
    let header_timeout = Duration::from_millis(300);
    let server = server(Limits {
        header_timeout,
        ..limits()
    })
    .await;
    let begun = Instant::now();
    let mut client = server.connect().await;
    let mut slow = server.connect().await;
    let trickle = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if slow.try_send("x").await.is_err() {
                break;
            }
        }
    };
    client.send("GET /ok HT").await;
    tokio::join!(client.closed(), trickle);
    assert!(begun.elapsed() >= header_timeout);
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(server.stop().await.timed_out, 2);
}

#[tokio::test]
async fn an_idle_connection_has_longer_than_a_head() {
    let (header_timeout, idle_timeout) = (Duration::from_millis(100), Duration::from_millis(500));
    let server = server(Limits {
        header_timeout,
        idle_timeout,
        ..limits()
    })
    .await;
    let mut client = server.connect().await;
    usable(&mut client).await;
    let idle = Instant::now();
    client.closed().await;
    assert!(
        idle.elapsed() >= Duration::from_millis(450),
        "{:?}",
        idle.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn a_later_head_has_the_same_timeout_as_the_first() {
    let header_timeout = Duration::from_millis(200);
    let server = server(Limits {
        header_timeout,
        idle_timeout: common::PATIENCE * 2,
        ..limits()
    })
    .await;
    let mut client = server.connect().await;
    usable(&mut client).await;
    client.send("GET /ok HT").await;
    client.closed().await;
    assert_eq!(server.stop().await.timed_out, 1);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408_and_the_end() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let answer = client.ask(head("/echo", "content-length: 10\r\n") + "{").await;
    assert_eq!(answer.status, 408);
    assert_eq!(answer.problem()["retryable"], true);
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    client.closed().await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_dropped() {
    let server = server(Limits {
        write_timeout: Duration::from_millis(200),
        ..limits()
    })
    .await;
    let mut client = server.connect().await;
    client.send(get("/text/100000000")).await;
    // Nothing is read until the server has given up, which the report tells.
    let mut other = server.connect().await;
    usable(&mut other).await;
    drop(other);
    let report = server.stop().await;
    assert_eq!((report.timed_out, report.dropped), (1, 0));
}

// Size.

#[tokio::test]
async fn sixteen_kib_of_headers_is_the_most() {
    let server = server(limits()).await;
    for (length, status) in [(15, 200), (17, 431), (1000, 431)] {
        let mut client = server.connect().await;
        let request = format!("GET /ok HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(length * 1024));
        // The server may close before all of it is written; the answer must arrive all the same.
        let _ = client.try_send(request).await;
        assert_eq!(client.answer().await.status, status, "{length} KiB");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_gzipped_body_arrives_plain() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let body = b"{\"a\": 1}".repeat(1000);
    for coding in ["gzip", "GZIP"] {
        let coding = format!("content-encoding: {coding}\r\n");
        let answer = client.ask(post("/echo", &coding, &gzip(&body))).await;
        assert_eq!((answer.status, &answer.body), (200, &body));
    }
    let mut request = head(
        "/echo",
        "content-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
    )
    .into_bytes();
    gzip(&body).chunks(7).for_each(|part| request.extend(chunk(part)));
    request.extend(chunk(b""));
    assert_eq!(client.ask(request).await.body, body);
    usable(&mut client).await;
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_cannot_be_decompressed_is_400() {
    let server = server(limits()).await;
    let whole = gzip(b"{\"a\": 1}");
    for broken in [
        &b"{}"[..],
        &whole[..whole.len() - 9],
        &[&whole[..], b"more"].concat(),
    ] {
        let mut client = server.connect().await;
        let answer = client
            .ask(post("/echo", "content-encoding: gzip\r\n", broken))
            .await;
        assert_eq!(answer.status, 400, "{broken:?}");
        assert!(answer.problem()["detail"].as_str().unwrap().contains("gzip"));
    }
    let mut client = server.connect().await;
    let answer = client.ask(post("/echo", "content-encoding: br\r\n", b"{}")).await;
    assert_eq!(
        (answer.status, answer.header("accept-encoding").as_deref()),
        (415, Some("gzip"))
    );
    assert_eq!(answer.problem()["type"], "/problems/unsupported-media-type");
    server.stop().await;
}

#[tokio::test]
async fn a_length_over_the_limit_is_refused_before_the_body() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let answer = client
        .ask(head("/echo", &format!("content-length: {}\r\n", LIMIT + 1)))
        .await;
    assert_eq!(
        (answer.status, answer.problem()["limit"].as_u64()),
        (413, Some(LIMIT as u64))
    );
    let mut patient = server.connect().await;
    let expecting = format!("expect: 100-continue\r\ncontent-length: {}\r\n", LIMIT + 1);
    assert_eq!(patient.ask(head("/echo", &expecting)).await.status, 413);
    server.stop().await;
}

#[tokio::test]
async fn chunks_over_the_limit_are_413_even_to_a_client_that_sends_on() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    client
        .send(head("/length", "transfer-encoding: chunked\r\n"))
        .await;
    // Far more than the sockets' buffers hold: were the rest not read, the answer would be lost in a reset.
    for _ in 0..500 {
        client.send(chunk(&[b'1'; LIMIT / 2])).await;
    }
    let answer = client.answer().await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    server.stop().await;
}

#[tokio::test]
async fn the_limit_itself_passes_in_chunks() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let mut request = head("/length", "transfer-encoding: chunked\r\n").into_bytes();
    request.extend(chunk(&[b'1'; LIMIT / 2]));
    request.extend(chunk(&[b'1'; LIMIT / 2]));
    request.extend(chunk(b""));
    assert_eq!(client.ask(request).await.text(), LIMIT.to_string());
    usable(&mut client).await;
    server.stop().await;
}

// Answers.

#[tokio::test]
async fn the_connection_lives_on_after_a_4xx_whose_body_was_read() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    assert_eq!(client.ask(get("/nowhere")).await.status, 404);
    assert_eq!(client.ask(post("/ok", "", b"{}")).await.status, 405);
    assert_eq!(client.ask(post("/echo", "", b"\"\xff\"")).await.status, 400);
    assert_eq!(
        client
            .ask(post("/echo", "content-encoding: gzip\r\n", b"{}"))
            .await
            .status,
        400
    );
    usable(&mut client).await;
    let report = server.stop().await;
    assert_eq!((report.connections, report.requests), (1, 5));
}

#[tokio::test]
async fn requests_in_one_write_are_answered_in_order() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let requests = [
        post("/echo", "", b"1"),
        get("/ok").into_bytes(),
        post("/echo", "", b"2"),
    ]
    .concat();
    client.send(requests).await;
    for text in ["1", "ok", "2"] {
        assert_eq!(client.answer().await.text(), text);
    }
    server.stop().await;
}

#[tokio::test]
async fn answers_are_compressed_for_who_accepts_it_and_for_no_one_else() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let mut ask = async |path: &str, accept: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n{accept}\r\n");
        let answer = client.ask(request).await;
        assert_eq!(answer.status, 200);
        answer
    };
    let answer = ask("/text/5000", "accept-encoding: gzip, br\r\n").await;
    assert_eq!(answer.header("content-encoding").as_deref(), Some("gzip"));
    assert_eq!(answer.header("vary").as_deref(), Some("accept-encoding"));
    assert_eq!(gunzip(&answer.body), "x".repeat(5000).into_bytes());
    for (path, accept) in [
        ("/text/5000", ""),
        ("/text/5000", "accept-encoding: gzip;q=0\r\n"),
        ("/text/5000", "accept-encoding: br\r\n"),
        ("/text/500", "accept-encoding: gzip\r\n"),
        ("/events", "accept-encoding: gzip\r\n"),
    ] {
        assert_eq!(
            ask(path, accept).await.header("content-encoding"),
            None,
            "{path} {accept}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let answer = client
        .ask("GET /ok HTTP/1.1\r\nhost: test\r\nx-request-id: theirs-1\r\n\r\n")
        .await;
    assert_eq!(answer.header("x-request-id").as_deref(), Some("theirs-1"));
    assert!(client.ask(get("/nowhere")).await.header("x-request-id").is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_trailing_slash_changes_nothing() {
    let api = warp::path("api")
        .and(warp::path::param::<String>())
        .and(warp::path("sync"));
    let server = Server::start(limits(), api.and(warp::path::end()).map(|domain: String| domain)).await;
    let mut client = server.connect().await;
    for path in [
        "/api/work-orders/sync",
        "/api/work-orders/sync/",
        "/api/work-orders/sync/?limit=1",
    ] {
        assert_eq!(client.ask(get(path)).await.text(), "work-orders", "{path}");
    }
    assert_eq!(client.ask(get("/api/work-orders/sync//")).await.status, 404);
    server.stop().await;
}

// Failures.

#[tokio::test]
async fn a_panic_is_a_500_that_says_nothing_and_the_server_lives() {
    let server = server(limits()).await;
    let mut client = server.connect().await;
    let answer = client.ask(get("/panic")).await;
    assert_eq!(answer.status, 500);
    assert!(!answer.problem().to_string().contains("on purpose"));
    let mut client = server.connect().await;
    client.send(get("/panic/late")).await;
    client.closed().await;
    usable(&mut server.connect().await).await;
    assert_eq!(server.stop().await.panics, 1);
}

#[tokio::test]
async fn a_client_that_is_gone_in_mid_body_leaves_nothing_behind() {
    let server = server(limits()).await;
    for more in ["content-length: 10\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = server.connect().await;
        client.send(head("/echo", more)).await;
        drop(client);
    }
    usable(&mut server.connect().await).await;
    assert_eq!(server.stop().await.dropped, 0);
}

// The end.

#[tokio::test]
async fn at_shutdown_idle_connections_close_and_a_request_in_flight_is_answered() {
    let gate = Arc::new(Semaphore::new(0));
    let entered = Arc::new(Semaphore::new(0));
    let slow = warp::path!("slow").then({
        let (gate, entered) = (gate.clone(), entered.clone());
        move || {
            let (gate, entered) = (gate.clone(), entered.clone());
            async move {
                entered.add_permits(1);
                gate.acquire().await.unwrap().forget();
                "done"
            }
        }
    });
    let server = Server::start(limits(), slow.or(routes())).await;
    let (mut idle, mut fresh, mut busy) = (
        server.connect().await,
        server.connect().await,
        server.connect().await,
    );
    usable(&mut idle).await;
    busy.send(get("/slow")).await;
    soon("the request to be in flight", entered.acquire())
        .await
        .unwrap()
        .forget();
    usable(&mut idle).await;
    let address = server.address;
    let end = server.signal();
    idle.closed().await;
    fresh.closed().await;
    assert!(
        tokio::net::TcpStream::connect(address).await.is_err(),
        "still accepting"
    );
    gate.add_permits(1);
    let answer = busy.answer().await;
    assert_eq!(
        (answer.text().as_str(), answer.header("connection").as_deref()),
        ("done", Some("close"))
    );
    let report = soon("the end", end).await.unwrap();
    assert_eq!(report.dropped, 0);
}

#[tokio::test]
async fn what_hangs_at_the_shutdowns_deadline_is_dropped() {
    let stream = warp::path!("stream").map(|| {
        let first = futures_util::stream::iter([Ok::<_, Infallible>("first")]);
        warp::reply::stream(first.chain(futures_util::stream::pending()))
    });
    let body = warp::path!("body")
        .and(json_body(LIMIT, common::PATIENCE))
        .map(|_| "");
    let shutdown_deadline = Duration::from_millis(300);
    let server = Server::start(
        Limits {
            shutdown_deadline,
            ..limits()
        },
        stream.or(body).or(routes()),
    )
    .await;
    let (mut head_only, mut half_body, mut open_stream) = (
        server.connect().await,
        server.connect().await,
        server.connect().await,
    );
    // Whether this half was read by the time of the signal is not to be seen from here; if not, it is closed at once.
    head_only.send("GET /body HTT").await;
    half_body
        .send(head("/body", "expect: 100-continue\r\ncontent-length: 10\r\n"))
        .await;
    assert_eq!(half_body.answer().await.status, 100);
    open_stream.send(get("/stream")).await;
    let mut first = [0; 12];
    soon("the stream to open", open_stream.peek(&mut first)).await;
    let begun = Instant::now();
    let report = server.stop().await;
    assert!(begun.elapsed() >= shutdown_deadline && begun.elapsed() < Duration::from_secs(5));
    assert_eq!(
        (report.open_at_shutdown, report.dropped >= 2),
        (3, true),
        "{report:?}"
    );
    head_only.closed().await;
    half_body.closed().await;
    open_stream.closed().await;
}
