//! Alone in its process, so that the process's peak memory says what one bomb costs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{Server, gzip, post};
use tidelog_http::Limits;
use tidelog_http::body::json_body;
use warp::Filter;

const LIMIT: usize = 10 * 1024 * 1024;

/// A gigabyte of zeros, as gzip lets it be written: one member of 16 MiB, 64 times.
fn bomb() -> Vec<u8> {
    gzip(&vec![b'0'; 16 << 20]).repeat(64)
}

/// The most memory that this process ever had, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn a_gzip_bomb_is_413_and_costs_no_more_than_the_limit() {
    let body = json_body(LIMIT, Duration::from_secs(30));
    let server = Server::start(Limits::default(), warp::path!("sync").and(body).map(|_| "")).await;
    let request = post("/sync", "content-encoding: gzip\r\n", &bomb());
    let before = peak();
    let mut client = server.connect().await;
    client.send(&request).await;
    assert_eq!(client.answer().await.status, 413);
    // The buffer doubles as it grows: up to the limit, and the half of it that was before.
    let cost = peak() - before;
    assert!(cost < 40, "{cost} MiB");
    server.stop().await;
}
