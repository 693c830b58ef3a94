//! Slowloris: heads and bodies that come a byte at a time, or stop coming.

use std::time::{Duration, Instant};

use crate::attack;
use crate::attacker::{Attacker, Socket, post_head};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};
use crate::vitals::Cost;

/// What a head has, and what a body has that stops or drips (30 s in earnest), with time for a busy machine.
const HEAD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
const BODY: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(23));

/// Of each kind.
const MANY: usize = 200;

/// A service of its own, since it takes as long as a body may.
#[test]
fn a_slow_head_and_a_slow_body_are_cut_off_in_time() {
    let service =
        Service::of(Deployment::new("hostile-slow").with("TIDELOG_DRILL_NUMBERS", "body_idle_ms=8000"));
    let most = Cost {
        memory: 96,
        threads: 16,
        handles: 4 * MANY as u64 + 50,
    };
    attack("slowloris", &service, most, async |deployment| {
        let attacker = Attacker::at(10, deployment);
        let bearer = Phone::new(deployment, &tenant("slow"), "eve").bearer;
        let head = "GET /livez HTTP/1.1\r\nx: ";
        let body = post_head(&bearer, "content-length: 100000\r\n") + "{";
        let chunked = post_head(&bearer, "transfer-encoding: chunked\r\n") + "1\r\n{\r\n";
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..MANY {
            tasks.spawn(drip(attacker.say(head).await, b"x", HEAD, None));
            tasks.spawn(drip(attacker.say(&body).await, b" ", BODY, Some(408)));
            tasks.spawn(drip(attacker.say(&chunked).await, b"1\r\n \r\n", BODY, Some(408)));
            tasks.spawn(drip(attacker.say(&body).await, b"", BODY, Some(408)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("each is cut off in time");
        }
    });
}

/// Sends `drop` every second, until the service closes; that has to be in time, and after that answer, if any.
async fn drip(socket: Socket, drop: &'static [u8], time: (Duration, Duration), told: Option<u16>) {
    let begun = Instant::now();
    let Socket { stream, .. } = &socket;
    let _ = stream.set_nodelay(true);
    let mut socket = socket;
    let mut tick = crate::attacker::every(1);
    let status = loop {
        tokio::select! {
            answer = socket.answer() => break answer.map(|answer| answer.status),
            _ = tick.tick() => {}
        }
        // What cannot be sent any more is told by the reading side.
        let _ = socket.send(drop).await;
    };
    let took = begun.elapsed();
    assert_eq!(status, told, "after {took:?}");
    // A moment may lie between the connection and the service's taking it up.
    let (least, most) = (time.0 - Duration::from_millis(500), time.1);
    assert!(least <= took && took <= most, "{told:?} after {took:?}");
}
