//! Alone in its process, since it uses up all of the process's file handles.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::File;

use common::{Server, get};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidelog_http::Limits;
use warp::Filter;

#[tokio::test]
async fn without_file_handles_the_server_waits_and_goes_on_when_there_are_some() {
    let server = Server::start(Limits::default(), warp::path!("ok").map(|| "ok")).await;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(200),
            ..getrlimit(Resource::Nofile)
        },
    )
    .unwrap();
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(taken.len() > 100);
    // One handle for the client, none for the server's side of it.
    taken.pop();
    let mut client = server.connect().await;
    client.send(get("/ok")).await;
    // The server's failure is not to be seen from outside, so give it the chance to have it: this thread is
    // the server's too, and it has nothing else to do.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(taken);
    assert_eq!(client.answer().await.text(), "ok");
    assert!(server.stop().await.accept_errors >= 1);
}
