//! Outages while phones go on posting: what the gateway takes meanwhile, what it says of itself, how much memory that
//! costs, and how long it takes until everything is as it should be.
//!
//! `TIDELOG_OUTAGE_SECONDS=300 cargo test --test outages postgres_stopped -- --nocapture` is the long one by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::items::tickets;
use crate::support::load::{self, Ask, BATCH, Seen, at_rate, phones, rate_taken, served};
use crate::support::own_stack::OwnStack;
use crate::support::phone::Phone;
use crate::support::proxy::Proxy;
use crate::support::service::Deployment;
use crate::support::{eventually, stack};

/// Between something that happened and its effect.
const PROMPTLY: Duration = Duration::from_secs(10);

fn outage() -> Duration {
    let seconds = std::env::var("TIDELOG_OUTAGE_SECONDS");
    Duration::from_secs(seconds.map_or(20, |text| text.parse().expect("a number of seconds")))
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_stopped_for_long_is_not_felt_by_who_posts_and_then_everything_is_applied() {
    let direct = Deployment::new("pg-long");
    direct.prepare();
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = direct.clone();
    through.database_url = url;
    let serve = through.start_listening("serve", "/readyz");
    let phones = phones(&through, 4, 4);
    let rate = 0.5 * rate_taken(&phones, Duration::from_secs(3)).await;
    let before = at_rate(&phones, Ask::Post, rate, Duration::from_secs(5)).await;
    let memory_before = serve.memory() / 1_000_000;

    proxy.cut();
    let since = Instant::now();
    let mut during = Vec::new();
    let mut memory = Vec::new();
    while since.elapsed() < outage() {
        during.extend(at_rate(&phones, Ask::Post, rate, Duration::from_secs(5)).await);
        memory.push(serve.memory() / 1_000_000);
    }
    let lasted = since.elapsed();
    assert_eq!(
        phones[0].get("/readyz").await.expect(200).json()["postgres"],
        "away"
    );
    proxy.mend();
    let back = Instant::now();

    let share = |seen: &[Seen]| served(seen).len() as f64 / seen.len() as f64;
    eprintln!(
        "{:.0} items/s offered; accepted before: {:.1} %, during {:.0} s: {:.1} % ({} items), p99 {:.1} and {:.1} ms; memory before \
         {memory_before} MB, during {memory:?} MB",
        rate * BATCH as f64,
        100.0 * share(&before),
        lasted.as_secs_f64(),
        100.0 * share(&during),
        served(&during).len() * BATCH,
        load::percentile(&served(&before), 99.0),
        load::percentile(&served(&during), 99.0),
    );
    load::refused_politely(&during);
    assert!(share(&during) > 0.95 * share(&before), "as much as before");
    let (half_way, last) = (memory[memory.len() / 2], memory[memory.len() - 1]);
    assert!(
        last < 250 && last <= half_way + 30,
        "memory is bounded, MB: {memory:?}"
    );

    // Each receipt of a phone that has one, from the beginning of the outage to its end.
    let step = (during.len() / 40).max(1);
    for taken in during.iter().filter(|one| one.status == 202).step_by(step) {
        resolves(&phones, taken, back, lasted).await;
    }
    let last = during
        .iter()
        .rfind(|one| one.status == 202)
        .expect("one that was taken");
    resolves(&phones, last, back, lasted).await;
    eprintln!(
        "everything was applied {:.1} s after its return",
        back.elapsed().as_secs_f64()
    );
    everything_is_applied(&direct, &phones, before.iter().chain(&during)).await;
}

/// Waits until a batch's receipt tells of every item.
async fn resolves(phones: &[Arc<Phone>], taken: &Seen, since: Instant, lasted: Duration) {
    let location = taken.location.as_deref().expect("a Location");
    let phone = &phones[taken.phone];
    loop {
        let answer = phone.get(location).await;
        if answer.status == 200 && answer.json()["status"] == "complete" {
            let told = answer.json()["synced_items"].as_array().map(Vec::len);
            assert_eq!(told, Some(BATCH), "{}", answer.text());
            return;
        }
        let patience = 4 * lasted + Duration::from_secs(60);
        assert!(
            since.elapsed() < patience,
            "a receipt does not resolve: {}",
            answer.text()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn everything_is_applied<'a>(
    direct: &Deployment,
    phones: &[Arc<Phone>],
    seen: impl Iterator<Item = &'a Seen>,
) {
    let mut tenants: Vec<&str> = phones.iter().map(|phone| phone.tenant.as_str()).collect();
    tenants.dedup();
    let accepted = seen.filter(|one| one.status < 300).count() * BATCH;
    let db = direct.db().await;
    let sql = "SELECT count(*) FROM helpdesk WHERE tenant_id = ANY($1)";
    eventually("everything is applied", async || {
        let rows = db.count(sql, &[&tenants]).await;
        (rows >= accepted as i64).then_some(())
    })
    .await;
    let twice = "SELECT count(*) FROM helpdesk WHERE tenant_id = ANY($1) AND version > 1";
    assert_eq!(db.count(twice, &[&tenants]).await, 0, "and nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_stopped_is_said_and_nothing_is_acknowledged_until_it_is_back() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stopped-{}-0", std::process::id()));
    let stack = OwnStack::start(&dir, &["--backing-only"]);
    let env = stack.env();
    let deployment = Deployment::on("stopped", &env.kafka_brokers, &env.database_url, &env.jwt_secret);
    deployment.prepare();
    let serve = deployment.start_listening("serve", "/readyz");
    let phones = phones(&deployment, 4, 2);
    phones[0].post("helpdesk", &tickets(1)).await.expect(200);
    let memory_before = serve.memory() / 1_000_000;

    stack.signal("kafka", Signal::STOP);
    let since = Instant::now();
    let told = async {
        until_readyz(&phones[0], 503).await;
        since.elapsed()
    };
    let (told, during) = tokio::join!(told, at_rate(&phones, Ask::Post, 20.0, 2 * PROMPTLY));
    let problem = phones[0].get("/readyz").await.expect(503).json();
    assert!(
        problem["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("Kafka")),
        "{problem}"
    );
    let memory_during = serve.memory() / 1_000_000;
    // Every batch has been answered while Kafka was stopped.
    let acknowledged = during
        .iter()
        .filter(|one| one.status < 500 && one.status != 429)
        .count();
    assert_eq!(acknowledged, 0);
    assert!(during.iter().all(|one| one.retry_after.is_some()));

    stack.signal("kafka", Signal::CONT);
    let back = Instant::now();
    let taken = eventually("a batch is taken", async || {
        let seen = at_rate(&phones[..1], Ask::Post, 1.0, Duration::from_millis(1)).await;
        (served(&seen).len() == 1).then(|| back.elapsed())
    })
    .await;
    until_readyz(&phones[0], 200).await;
    let ready = back.elapsed();
    let applied = eventually("a batch is applied", async || {
        let answer = phones[0].post("helpdesk", &tickets(1)).await;
        (answer.status == 200).then(|| back.elapsed())
    })
    .await;
    eprintln!(
        "not ready {:.1} s after the stop; {} batches refused in {:.0} s; after the return a batch taken in {:.1} s, ready in \
         {:.1} s, a batch applied in {:.1} s; memory {memory_before} and {memory_during} MB",
        told.as_secs_f64(),
        during.len(),
        since.elapsed().as_secs_f64(),
        taken.as_secs_f64(),
        ready.as_secs_f64(),
        applied.as_secs_f64(),
    );
    // Applying waits for the group to give up the member that slept, 6 s after the broker remembers it.
    let applied_in_time = PROMPTLY + Duration::from_secs(5);
    assert!(told < PROMPTLY && taken < PROMPTLY && ready < PROMPTLY && applied < applied_in_time);
    let after = at_rate(&phones, Ask::Post, 10.0, Duration::from_secs(3)).await;
    assert_eq!(served(&after).len(), after.len(), "as before");
}

async fn until_readyz(phone: &Phone, status: u16) {
    eventually("/readyz says it", async || {
        (phone.get("/readyz").await.status == status).then_some(())
    })
    .await;
}
