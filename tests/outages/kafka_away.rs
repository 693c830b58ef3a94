//! With Kafka away nothing is acknowledged: 503 with `Retry-After`, nothing stays claimed, and what was sent meanwhile
//! happens once.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use uuid::Uuid;

use crate::support::db::Db;
use crate::support::eventually;
use crate::support::http::{Answer, bytes_of};
use crate::support::items::{id_of, tickets};
use crate::support::kafka::read_topic;
use crate::support::own_stack::OwnStack;
use crate::support::phone::{Phone, tenant};
use crate::support::service::Deployment;

fn is_retryable(answer: Answer) {
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let problem = answer.expect_problem(503, "unavailable", "");
    assert_eq!(problem["retryable"], true, "{problem}");
}

async fn is_claimed(db: &Db, key: &str) -> bool {
    let sql = "SELECT count(*) FROM idempotency_records WHERE key = $1 AND lease_owner IS NOT NULL";
    db.count(sql, &[&key]).await == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_broker_there_it_is_503_and_nothing_stays_claimed() {
    let deployment = Deployment::new("no-broker");
    deployment.prepare();
    // Nothing listens on the port for discarding.
    let away = deployment.clone().with("TIDELOG_KAFKA_BROKERS", "127.0.0.1:9");
    let gateway = away.start_listening("ingest", "/livez");
    let phone = Phone::new(&deployment, &tenant("away"), "asha");
    let (key, entries) = (Uuid::new_v4().to_string(), tickets(3));
    is_retryable(phone.post_keyed("helpdesk", &key, &entries).await);
    // The same key at once: not in flight, but the same 503.
    is_retryable(phone.post_keyed("helpdesk", &key, &entries).await);
    let db = deployment.db().await;
    assert!(!is_claimed(&db, &key).await);
    assert_eq!(
        phone.get("/readyz").await.status,
        503,
        "it takes nothing, so it is not ready"
    );
    gateway.terminate();
    // The phone goes on trying, and meets a gateway that has a log.
    let _serve = deployment.start_listening("serve", "/readyz");
    let answer = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    assert_eq!(answer.json()["synced_items"].as_array().map(Vec::len), Some(3));
    assert_eq!(phone.pull("helpdesk", "").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_freezes_holds_batches_in_flight_and_then_they_happen_once() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("frozen-{}-0", std::process::id()));
    let stack = OwnStack::start(&dir, &["--backing-only"]);
    let env = stack.env();
    let deployment = Deployment::on("frozen", &env.kafka_brokers, &env.database_url, &env.jwt_secret)
        .with("TIDELOG_SHUTDOWN_DEADLINE", "5s");
    deployment.prepare();
    let serve = deployment.start_listening("serve", "/readyz");
    let phone = Arc::new(Phone::new(&deployment, &tenant("frozen"), "asha"));
    let db = deployment.db().await;
    phone.post("helpdesk", &tickets(1)).await.expect(200);

    stack.signal("kafka", Signal::STOP);
    let (key, entries) = (Uuid::new_v4().to_string(), tickets(4));
    let waiting = tokio::spawn({
        let (phone, key, entries) = (phone.clone(), key.clone(), entries.clone());
        async move { phone.post_keyed("helpdesk", &key, &entries).await }
    });
    eventually("the batch is in flight", async || {
        is_claimed(&db, &key).await.then_some(())
    })
    .await;
    // The same batch again, and another under its key.
    let answer = phone.post_keyed("helpdesk", &key, &entries).await;
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    answer.expect_problem(409, "request-in-flight", "");
    phone
        .post_keyed("helpdesk", &key, &tickets(4))
        .await
        .expect_problem(422, "idempotency-key-reused", "");
    // A phone that hangs up amid its append.
    let (hung_up, lost) = (Uuid::new_v4().to_string(), tickets(4));
    let headers = [
        ("authorization", phone.bearer.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", hung_up.as_str()),
    ];
    let bytes = bytes_of(
        "POST",
        "/api/v1/helpdesk/sync",
        &headers,
        phone.batch(&lost).as_bytes(),
    );
    let mut stream = TcpStream::connect(("127.0.0.1", deployment.port)).expect("it listens");
    stream.write_all(&bytes).expect("it reads");
    eventually("that batch is in flight too", async || {
        is_claimed(&db, &hung_up).await.then_some(())
    })
    .await;
    drop(stream);
    stack.signal("kafka", Signal::CONT);

    let answer = waiting.await.expect("no panic").expect(200);
    assert_eq!(
        answer.json()["synced_items"].as_array().map(Vec::len),
        Some(4),
        "{}",
        answer.text()
    );
    eventually("what the lost phone sent is applied", async || {
        let told = phone.pull("helpdesk", "limit=100").await;
        (told.len() == 9).then_some(())
    })
    .await;
    assert_eq!(
        phone
            .post_keyed("helpdesk", &key, &entries)
            .await
            .expect(200)
            .body,
        answer.body
    );

    // For longer than a batch is waited for: nothing is acknowledged, and the retry happens once.
    stack.signal("kafka", Signal::STOP);
    let (key, entries) = (Uuid::new_v4().to_string(), tickets(4));
    is_retryable(phone.post_keyed("helpdesk", &key, &entries).await);
    assert!(!is_claimed(&db, &key).await, "nothing stays claimed");
    stack.signal("kafka", Signal::CONT);
    let answer = eventually("the log takes it", async || {
        let answer = phone.post_keyed("helpdesk", &key, &entries).await;
        assert!([200, 202, 409, 503].contains(&answer.status), "{}", answer.text());
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(
        answer.json()["synced_items"].as_array().map(Vec::len),
        Some(4),
        "{}",
        answer.text()
    );
    let changes = db
        .count(
            "SELECT count(*) FROM helpdesk_changes WHERE tenant_id = $1",
            &[&phone.tenant],
        )
        .await;
    assert_eq!(changes, 13, "each once");
    // What was appended twice, if it was, bears the same ids.
    let records = read_topic(&deployment.brokers, &deployment.topic("sync.helpdesk.v1"));
    for entry in &entries {
        let mut ids: Vec<&str> = records
            .iter()
            .filter(|r| r.header("ce_subject") == id_of(entry))
            .map(|r| r.header("ce_id"))
            .collect();
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
    }

    // A service stops in time although Kafka does not answer.
    stack.signal("kafka", Signal::STOP);
    let since = Instant::now();
    serve.terminate();
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    stack.signal("kafka", Signal::CONT);
}
