//! Who gets in where more come than there are places, and who has to go for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Client, Server, get, head, soon};
use tidelog_http::Limits;
use tidelog_http::body::json_body;
use tokio::sync::Semaphore;
use warp::{Filter, Rejection, Reply};

/// A server with `GET /ok`, `POST /body`, and `GET /slow`, which is answered once [`Crowd::open`] has been called for it.
struct Crowd {
    server: Server,
    gate: Arc<Semaphore>,
    entered: Arc<Semaphore>,
}

fn slow(
    gate: Arc<Semaphore>,
    entered: Arc<Semaphore>,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    warp::path!("slow").then(move || {
        let (gate, entered) = (gate.clone(), entered.clone());
        async move {
            entered.add_permits(1);
            gate.acquire().await.unwrap().forget();
            "done"
        }
    })
}

impl Crowd {
    async fn start(max_connections: usize, max_connections_per_address: usize) -> Crowd {
        let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let body = warp::path!("body")
            .and(json_body(1 << 20, common::PATIENCE))
            .map(|body: bytes::Bytes| body.to_vec());
        let routes = slow(gate.clone(), entered.clone())
            .or(warp::path!("ok").map(|| "ok"))
            .or(body);
        let limits = Limits {
            max_connections,
            max_connections_per_address,
            header_timeout: common::PATIENCE * 2,
            idle_timeout: common::PATIENCE * 2,
            ..Limits::default()
        };
        Crowd {
            server: Server::start(limits, routes).await,
            gate,
            entered,
        }
    }

    /// A client at 127.0.0.`host` whose request is being worked on.
    async fn busy(&self, host: u8) -> Client {
        let mut client = self.server.connect_from(host).await;
        client.send(get("/slow")).await;
        soon("the request to be in flight", self.entered.acquire())
            .await
            .unwrap()
            .forget();
        client
    }

    /// A client at 127.0.0.`host` that has its answer and says nothing more.
    async fn idle(&self, host: u8) -> Client {
        let mut client = self.server.connect_from(host).await;
        usable(&mut client).await;
        client
    }

    /// A client at 127.0.0.`host` whose body is on its way.
    async fn half_sent(&self, host: u8) -> Client {
        let mut client = self.server.connect_from(host).await;
        let expecting = "expect: 100-continue\r\ncontent-length: 10\r\n";
        assert_eq!(client.ask(head("/body", expecting)).await.status, 100);
        client
    }

    /// The busy client gets its answer.
    async fn done(&self, client: &mut Client) {
        self.gate.add_permits(1);
        assert_eq!(client.answer().await.text(), "done");
    }
}

/// The server answers and the connection can be used again.
async fn usable(client: &mut Client) {
    let answer = client.ask(get("/ok")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}

const ANY: usize = usize::MAX;

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_gets_in_when_another_ends() {
    let crowd = Crowd::start(2, ANY).await;
    let (mut first, mut second) = (crowd.busy(1).await, crowd.busy(1).await);
    let refused = crowd.server.connect().await.ask(get("/ok")).await;
    assert_eq!(
        (refused.status, refused.header("retry-after").as_deref()),
        (503, Some("1"))
    );
    assert_eq!(refused.problem()["retryable"], true);
    crowd.done(&mut first).await;
    usable(&mut crowd.server.connect().await).await;
    crowd.done(&mut second).await;
    assert!(crowd.server.stop().await.refused >= 1);
}

#[tokio::test]
async fn past_those_being_refused_the_rest_is_hung_up_on_and_keeps_nobody_waiting() {
    let crowd = Crowd::start(1, ANY).await;
    let mut first = crowd.busy(1).await;
    // Silent, so that each keeps the slot in which it is told.
    let mut silent = Vec::new();
    for _ in 0..64 {
        let mut client = crowd.server.connect().await;
        assert_eq!(client.answer().await.status, 503);
        silent.push(client);
    }
    crowd.server.connect().await.closed().await;
    crowd.done(&mut first).await;
    usable(&mut crowd.server.connect().await).await;
    assert_eq!(crowd.server.stop().await.refused, 65);
}

#[tokio::test]
async fn who_has_been_idle_longest_makes_room() {
    let crowd = Crowd::start(3, ANY).await;
    let mut busy = crowd.busy(1).await;
    let mut longest = crowd.idle(1).await;
    let mut idle = crowd.idle(1).await;
    let mut newcomer = crowd.idle(1).await;
    longest.closed().await;
    usable(&mut idle).await;
    usable(&mut newcomer).await;
    crowd.done(&mut busy).await;
    let report = crowd.server.stop().await;
    assert_eq!((report.made_room, report.refused), (1, 0));
}

#[tokio::test]
async fn who_never_says_anything_makes_room() {
    let crowd = Crowd::start(100, ANY).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(crowd.server.connect_from(2).await);
        if silent.len() % 50 == 0 {
            crowd.idle(1).await;
        }
    }
    silent[0].closed().await;
    let report = crowd.server.stop().await;
    assert_eq!(report.refused, 0);
    assert!(report.made_room >= 200, "{report:?}");
}

#[tokio::test]
async fn an_address_with_many_connections_makes_room_before_one_with_few() {
    let crowd = Crowd::start(4, ANY).await;
    // It has been idle longest, but is alone at its address.
    let mut alone = crowd.idle(1).await;
    let mut many = [crowd.idle(2).await, crowd.idle(2).await, crowd.idle(2).await];
    let mut newcomer = crowd.idle(3).await;
    many[0].closed().await;
    usable(&mut alone).await;
    usable(&mut newcomer).await;
    crowd.server.stop().await;
}

#[tokio::test]
async fn bodies_on_their_way_make_room_only_where_one_address_has_the_lions_share() {
    let crowd = Crowd::start(10, ANY).await;
    let mut greedy = Vec::new();
    for _ in 0..10 {
        greedy.push(crowd.half_sent(2).await);
    }
    greedy.pop();
    let mut modest = crowd.idle(3).await;
    // Of the same address, a newcomer is no better than those who are there, and worse than who has fewer.
    assert_eq!(crowd.server.connect_from(2).await.answer().await.status, 503);
    usable(&mut modest).await;
    usable(&mut crowd.server.connect_from(1).await).await;
    greedy[0].closed().await;
    greedy[8].send("1234567890").await;
    assert_eq!(greedy[8].answer().await.text(), "1234567890");
    // A shutdown would wait for the rest of their bodies.
    drop(greedy);
    crowd.server.stop().await;
}

#[tokio::test]
async fn an_address_that_has_all_it_may_have_keeps_nobody_else_out() {
    let crowd = Crowd::start(100, 2).await;
    let (mut first, mut second) = (crowd.busy(2).await, crowd.busy(2).await);
    let refused = crowd.server.connect_from(2).await.answer().await;
    assert_eq!(refused.status, 503);
    let detail = refused.problem()["detail"].to_string();
    assert!(
        detail.contains("this address") && detail.contains('2'),
        "{detail}"
    );
    // Silent ones, far more than are told.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(crowd.server.connect_from(2).await);
    }
    let mut other = crowd.idle(1).await;
    usable(&mut other).await;
    // And among its own it is the idle one that makes room.
    crowd.done(&mut first).await;
    crowd.idle(2).await;
    first.closed().await;
    crowd.done(&mut second).await;
    crowd.server.stop().await;
}

#[tokio::test]
async fn a_client_that_has_closed_its_side_gets_its_answer_and_goes() {
    let crowd = Crowd::start(10, ANY).await;
    let mut client = crowd.busy(1).await;
    client.half_close().await;
    // The server has seen it, and has not given the request up.
    tokio::time::sleep(Duration::from_millis(50)).await;
    crowd.done(&mut client).await;
    client.closed().await;
    let mut quick = crowd.server.connect().await;
    quick.send(get("/ok").repeat(3)).await;
    quick.half_close().await;
    for _ in 0..3 {
        assert_eq!(quick.answer().await.text(), "ok");
    }
    quick.closed().await;
    // Half a request is none.
    for half in [
        "GET /o".to_owned(),
        head("/body", "content-length: 10\r\n") + "123",
    ] {
        let mut broken = crowd.server.connect().await;
        broken.send(half).await;
        broken.half_close().await;
        broken.closed().await;
    }
    assert_eq!(crowd.server.stop().await.dropped, 0);
}
