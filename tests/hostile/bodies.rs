//! Bodies without end, and bodies that are small on the wire only.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::attacker::{Answer, Attacker, Socket, chunk, post_head};
use crate::support::phone::{Phone, tenant};
use crate::vitals::Cost;
use crate::{attack, one_at_a_time, service};

const CHUNKED: &str = "transfer-encoding: chunked\r\n";
const GZIPPED: &str = "transfer-encoding: chunked\r\ncontent-encoding: gzip\r\n";

/// Bodies take no more memory than is set aside for all of them, and what is read of each connection.
const MOST: Cost = Cost {
    memory: 400,
    threads: 16,
    handles: 200,
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Sends the same part until the service has had enough; what it said, and how many parts it took.
async fn endless(mut socket: Socket, part: Vec<u8>) -> (Answer, usize) {
    let mut parts = 0;
    loop {
        // An answer does not keep this client from sending on.
        if parts > 100_000 || socket.send(&part).await.is_err() {
            break;
        }
        parts += 1;
    }
    (socket.answer().await.expect("an answer before the end"), parts)
}

/// Many at a time; each has to get that status.
async fn all_get(attacker: Attacker, head: String, part: Vec<u8>, many: usize, allowed: &[u16]) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..many {
        tasks.spawn(endless(attacker.say(&head).await, part.clone()));
    }
    let mut seen = std::collections::BTreeMap::<u16, usize>::new();
    while let Some(ended) = tasks.join_next().await {
        let (answer, _) = ended.expect("an answer");
        assert!(allowed.contains(&answer.status), "{answer:?}");
        if answer.status == 503 {
            assert!(
                answer.head.to_ascii_lowercase().contains("retry-after"),
                "{answer:?}"
            );
        }
        *seen.entry(answer.status).or_default() += 1;
    }
    println!("answers by status: {seen:?}");
    assert!(seen.contains_key(&allowed[0]), "{seen:?}");
}

#[test]
fn endless_chunked_bodies_stop_at_the_limit() {
    let _turn = one_at_a_time();
    attack("endless bodies", service(), MOST, async |deployment| {
        let bearer = Phone::new(deployment, &tenant("endless"), "eve").bearer;
        let attacker = Attacker::at(60, deployment);
        let part = chunk(&[b' '; 64 * 1024]);
        // Of many large ones at a time some are told to come again, since they would take all memory together.
        all_get(attacker, post_head(&bearer, CHUNKED), part, 60, &[413, 503]).await;
        // Without a token nothing is read for long, and nothing kept.
        let part = chunk(&[b' '; 64 * 1024]);
        all_get(attacker, post_head("Bearer none", CHUNKED), part, 20, &[401]).await;
    });
}

#[test]
fn gzip_bombs_go_off_within_their_limit() {
    let _turn = one_at_a_time();
    attack("gzip bombs", service(), MOST, async |deployment| {
        let bearer = Phone::new(deployment, &tenant("bombs"), "eve").bearer;
        let attacker = Attacker::at(70, deployment);
        // Each part is a member of 16 MiB.
        let bomb = chunk(&gzip(&vec![b' '; 16 << 20]));
        all_get(attacker, post_head(&bearer, GZIPPED), bomb, 40, &[413, 503]).await;
        // And one that holds nothing, over and over.
        let nothing = chunk(&gzip(b"").repeat(1000));
        all_get(attacker, post_head(&bearer, GZIPPED), nothing, 20, &[400]).await;
    });
}
