//! Crowds: more connections than anyone needs, that sit there or come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::attacker::{Attacker, Socket, every, post_head, sockets};
use crate::support::eventually;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};
use crate::vitals::{Cost, Vitals};
use crate::{attack, one_at_a_time, service};

#[test]
fn ten_thousand_idle_connections_cost_little_and_end() {
    let _turn = one_at_a_time();
    let service = service();
    let many = sockets(10_000);
    let most = Cost {
        memory: 400,
        threads: 16,
        handles: many as u64 + 100,
    };
    attack("idle connections", service, most, async |deployment| {
        let attacker = Attacker::at(20, deployment);
        let before = Vitals::of(&service.process).handles;
        let begun = Instant::now();
        let mut crowd = Vec::with_capacity(many);
        for n in 0..many {
            // Half of them say something first, so that they are between two requests, which may last longer.
            crowd.push(match n % 2 {
                0 => attacker.connect().await,
                _ => attacker.say("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await,
            });
        }
        let open = Vitals::of(&service.process).handles - before;
        println!(
            "{many} connections in {:?}; the service holds {open}",
            begun.elapsed()
        );
        // Those that have said nothing may have been cut by now, the others not.
        assert!(open as usize >= many / 2, "{open} of {many} are open");
        for socket in crowd.iter_mut().skip(1).step_by(2) {
            assert_eq!(socket.answer().await.expect("an answer").status, 200);
        }
        // The silent ones are cut off by themselves.
        for socket in crowd.iter_mut().step_by(2) {
            socket.closed().await;
        }
    });
}

/// A service with few places, all of which an attacker wants.
#[test]
fn a_crowd_beyond_the_limit_keeps_nobody_out() {
    let _turn = one_at_a_time();
    const PLACES: usize = 200;
    let deployment = Deployment::new("hostile-crowd").with("TIDELOG_MAX_CONNECTIONS", PLACES.to_string());
    let service = Service::of(deployment);
    let most = Cost {
        memory: 96,
        threads: 16,
        handles: PLACES as u64 + 150,
    };
    let bodies = async |deployment: &Deployment| {
        let bearer = Phone::new(deployment, &tenant("crowd"), "eve").bearer;
        let body = post_head(&bearer, "content-length: 100000\r\n") + "{";
        crowd_for(Duration::from_secs(4), Attacker::at(31, deployment), body).await
    };
    let silent = async |deployment: &Deployment| {
        crowd_for(
            Duration::from_secs(4),
            Attacker::at(30, deployment),
            String::new(),
        )
        .await
    };
    for (name, cut) in [
        ("silent crowd", attack("silent crowd", &service, most, silent)),
        (
            "crowd with bodies",
            attack("crowd with bodies", &service, most, bodies),
        ),
    ] {
        // Each place that the phone, or another of the crowd, was given.
        println!("{name}: {cut} were cut off or refused");
        assert!(cut > 0, "{name} never filled the service");
    }
}

/// Keeps 500 connections open, each of which has said that much, for a while; answers how many were closed.
async fn crowd_for(time: Duration, attacker: Attacker, said: String) -> usize {
    let cut = Arc::new(AtomicUsize::new(0));
    let said = Arc::new(said);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (cut, said) = (cut.clone(), said.clone());
        tasks.spawn(async move {
            loop {
                let Ok(mut socket) = attacker.try_connect().await else {
                    continue;
                };
                let _ = socket.send(said.as_bytes()).await;
                socket.closed().await;
                cut.fetch_add(1, Ordering::Relaxed);
                // As fast as this, on a machine that it has to share.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    tokio::time::sleep(time).await;
    tasks.shutdown().await;
    cut.load(Ordering::Relaxed)
}

#[test]
fn a_thousand_new_connections_a_second_for_four_seconds_starve_nobody() {
    let _turn = one_at_a_time();
    let most = Cost {
        memory: 96,
        threads: 16,
        handles: 2000,
    };
    attack("new connections", service(), most, async |deployment| {
        let served = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let mut tick = every(100);
        for n in 0..400_u32 {
            tick.tick().await;
            for m in 0..10_u8 {
                // A port is free again a minute after its connection has ended.
                let attacker = Attacker::at(40 + m, deployment);
                let served = served.clone();
                tokio::spawn(async move {
                    let Ok(mut socket) = attacker.try_connect().await else {
                        return;
                    };
                    // Some ask for something, the others are gone as they came.
                    if n % 2 == 0 {
                        let _ = socket.send("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
                        if socket.answer().await.is_some_and(|answer| answer.status == 200) {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        }
        let took = begun.elapsed();
        eventually("all who asked were answered", async || {
            (served.load(Ordering::Relaxed) == 2000).then_some(())
        })
        .await;
        println!(
            "4000 connections in {took:?}, all answered after {:?}",
            begun.elapsed()
        );
        assert!(
            took < Duration::from_secs(15),
            "{took:?}: the attacker is too slow to be one"
        );
    });
}

/// Sockets whose client has said all it has to say, and listens.
#[test]
fn half_closed_sockets_get_their_answer_and_go() {
    let _turn = one_at_a_time();
    let most = Cost {
        memory: 96,
        threads: 16,
        handles: 700,
    };
    attack("half-closed sockets", service(), most, async |deployment| {
        let attacker = Attacker::at(50, deployment);
        let phone = Phone::new(deployment, &tenant("half"), "eve");
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..600 {
            let body = phone.batch(&crate::support::items::tickets(1));
            let length = format!("prefer: wait=30\r\ncontent-length: {}\r\n", body.len());
            let whole = post_head(&phone.bearer, &length) + &body;
            let (said, is_whole) = match n % 3 {
                0 => (whole, true),
                1 => (whole[..whole.len() - 5].to_owned(), false),
                _ => ("GET /livez HTT".to_owned(), false),
            };
            tasks.spawn(async move { half_closed(attacker.say(said).await, is_whole).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("each gets what it is due");
        }
    });
}

async fn half_closed(mut socket: Socket, is_whole: bool) {
    use tokio::io::AsyncWriteExt;
    let _ = socket.stream.shutdown().await;
    let begun = Instant::now();
    let answer = socket.answer().await;
    let status = answer.map(|answer| answer.status);
    match is_whole {
        // Taken, or told to come back: two hundred batches at once are more than a line holds.
        true => assert!(matches!(status, Some(200 | 202 | 429 | 503)), "{status:?}"),
        // Half a request is refused, or nothing; what it is not is an answer as if it had been whole.
        false => assert!(matches!(status, None | Some(400)), "{status:?}"),
    }
    socket.closed().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
