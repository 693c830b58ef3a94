//! Requests out of all proportion: heads of megabytes, a thousand headers, a thousand requests in one write.

use crate::attacker::Attacker;
use crate::vitals::Cost;
use crate::{attack, one_at_a_time, service};

const MOST: Cost = Cost {
    memory: 96,
    threads: 16,
    handles: 300,
};

#[test]
fn a_flood_of_headers_is_431() {
    let _turn = one_at_a_time();
    attack("header floods", service(), MOST, async |deployment| {
        let attacker = Attacker::at(80, deployment);
        let begin = "GET /livez HTTP/1.1\r\nhost: x\r\n";
        let one_large = format!("{begin}x: {}\r\n\r\n", "x".repeat(1 << 20));
        let many_small = format!("{begin}{}\r\n", "a: b\r\n".repeat(1000));
        let many = format!("{begin}{}\r\n", "a: b\r\n".repeat(100_000));
        let long_line = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200 {
            let flood = match n % 4 {
                0 => &one_large,
                1 => &many_small,
                2 => &many,
                _ => &long_line,
            };
            let (mut socket, flood) = (attacker.connect().await, flood.clone());
            tasks.spawn(async move {
                // It may be told before it has said all.
                let _ = socket.send(&flood).await;
                let answer = socket.answer().await.expect("an answer before the end");
                assert!([431, 414].contains(&answer.status), "{answer:?}");
                socket.closed().await;
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("each is told");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let _turn = one_at_a_time();
    attack("pipelining", service(), MOST, async |deployment| {
        let attacker = Attacker::at(90, deployment);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..20 {
            let requests: String = (0..500)
                .map(|m| {
                    let path = if m % 3 == 0 { "/nowhere" } else { "/livez" };
                    format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-request-id: {n}-{m}\r\n\r\n")
                })
                .collect();
            let mut socket = attacker.say(&requests).await;
            tasks.spawn(async move {
                for m in 0..500 {
                    let answer = socket.answer().await.expect("an answer to each");
                    assert_eq!(answer.status, if m % 3 == 0 { 404 } else { 200 }, "{answer:?}");
                    let id = format!("x-request-id: {n}-{m}\r\n");
                    assert!(answer.head.contains(&id), "{m}: {answer:?}");
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("all are answered, in order");
        }
        // Who asks on and never listens is no longer read.
        let mut deaf = attacker.connect().await;
        let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
        let sent = async { while deaf.send(&request).await.is_ok() {} };
        let stopped = tokio::time::timeout(std::time::Duration::from_secs(2), sent).await;
        assert!(stopped.is_err(), "the service closed, or read on for ever");
    });
}
