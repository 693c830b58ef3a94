//! A domain that keeps its history for a while: what is older goes while phones write, whoever stands before it is told so and
//! begins anew, nobody else notices, and the log folded again says the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::http::Http;
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::{Deployment, Service};

use super::own_domain::deployment_with;

/// Seconds, which builds for tests take; topics have the broker's time.
const ROUNDS: &str = r#"
domain = "rounds"
kind = "entity"
topic = "sync.rounds.v1"
policy = "merge"
history = "8s"
delete_flag = "is_deleted"

[fields]
place = { type = "string" }
seen = { type = "integer" }
is_deleted = { type = "boolean" }
"#;

/// Goes on making, changing and deleting records in every partition until it is told to stop.
async fn work(phone: Phone, stop: Arc<AtomicBool>) {
    let mut rounds = 0;
    let mut ids: Vec<Uuid> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        rounds += 1;
        let mut items = Vec::new();
        for n in 0..6 {
            let id = Uuid::new_v4();
            items.push(json!({"mobile_id": id, "place": format!("{rounds}/{n}")}).to_string());
            ids.push(id);
        }
        // Some of long ago as well: their device was alone with them, and is behind nobody.
        for id in ids.iter().rev().skip(6).step_by(7).take(8) {
            items.push(json!({"mobile_id": id, "seen": rounds}).to_string());
        }
        if rounds % 3 == 0 {
            let id = ids.remove(0);
            items.push(json!({"mobile_id": id, "is_deleted": true}).to_string());
        }
        let answer = phone.post("rounds", &items).await.expect(200).json();
        assert_eq!(answer["conflicts"].as_array().map_or(0, Vec::len), 0, "{answer}");
        assert_eq!(answer["errors"].as_array().map_or(0, Vec::len), 0, "{answer}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Goes on pulling, which is never told that anything is gone; answers what it holds in the end.
async fn follow(phone: Phone, stop: Arc<AtomicBool>) -> Replica {
    let mut replica = Replica::default();
    while !stop.load(Ordering::Relaxed) {
        replica.catch_up(&phone, "rounds", 20).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    replica
}

/// Everything as a phone has it that begins now.
async fn anew(phone: &Phone) -> Replica {
    let mut replica = Replica::default();
    replica.catch_up(phone, "rounds", 100).await;
    replica
}

fn verified(deployment: &Deployment) {
    let ran = deployment.run(&["verify", "--domain", "rounds", "--output", "json"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    assert_eq!(told[0]["differences"], json!([]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_a_domains_history_goes_and_nobody_misses_a_change() {
    let deployment =
        deployment_with("keeping", "rounds.toml", ROUNDS).with("TIDELOG_DRILL_NUMBERS", "history_ms=300");
    let service = Service::of(deployment);
    let acme = tenant("keeping");
    let phone = Phone::new(&service.deployment, &acme, "asha");
    let ben = Phone::new(&service.deployment, &acme, "ben");
    let (stays, goes) = (Uuid::new_v4(), Uuid::new_v4());
    let first = [
        json!({"mobile_id": stays, "place": "Stairwell B"}).to_string(),
        json!({"mobile_id": goes, "place": "Roof"}).to_string(),
    ];
    let answer = phone.post("rounds", &first).await.expect(200).json();
    let batch = answer["batch_id"].as_str().expect("an id").to_owned();
    phone
        .post(
            "rounds",
            &[
                json!({"mobile_id": stays, "seen": 1}).to_string(),
                json!({"mobile_id": goes, "is_deleted": true}).to_string(),
            ],
        )
        .await
        .expect(200);
    // A conflict that is decided, and an item that comes again.
    let behind = json!({"mobile_id": stays, "version": 1, "place": "Stairwell C"}).to_string();
    let told = ben.post("rounds", &[behind]).await.expect(200).json();
    assert_eq!(told["conflicts"][0]["winner"], "merged", "{told}");
    phone.post("rounds", &first[..1]).await.expect(200);
    let page = phone.page("rounds", "limit=1").await;
    let amid_the_walk = page["cursor"].as_str().expect("a cursor").to_owned();
    let old = anew(&phone).await.cursor.expect("a cursor");
    let since = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    phone
        .get(&format!("/api/v1/rounds/changes?cursor={old}"))
        .await
        .expect(200);

    let stop = Arc::new(AtomicBool::new(false));
    let working = tokio::spawn(work(Phone::new(&service.deployment, &acme, "carl"), stop.clone()));
    let ended = Arc::new(AtomicBool::new(false));
    let following = tokio::spawn(follow(
        Phone::new(&service.deployment, &acme, "dora"),
        ended.clone(),
    ));
    let db = service.deployment.db().await;
    eventually("all partitions have forgotten the beginning", async || {
        let floors = db
            .count(
                "SELECT count(*) FROM positions WHERE feed_floor > 10 AND topic LIKE '%rounds%'",
                &[],
            )
            .await;
        let tombs = db
            .count("SELECT count(*) FROM rounds WHERE mobile_id = $1", &[&goes])
            .await;
        let places = "SELECT count(*) FROM (SELECT tenant_id FROM outcomes UNION ALL SELECT tenant_id FROM conflicts) t WHERE tenant_id = $1";
        let rest = db.count(places, &[&acme]).await;
        (floors == 3 && tombs == 0 && rest == 0).then_some(())
    })
    .await;

    for path in [
        format!("/api/v1/rounds/changes?cursor={old}"),
        format!("/api/v1/rounds/changes?cursor={amid_the_walk}"),
        format!("/api/v1/rounds/changes?since={since}"),
        format!("/api/v1/rounds/checksum?cursor={old}"),
        format!("/api/v1/rounds/checksum?cursor={old}&prefix="),
    ] {
        phone
            .get(&path)
            .await
            .expect_problem(410, "gone-cursor", "starts anew with everything");
    }
    let receipt = phone.get(&format!("/api/v1/sync/batches/{batch}")).await;
    receipt.expect_problem(410, "gone-batch", "longer ago than is kept");
    let past = phone
        .get(&format!("/api/v1/rounds/records/{stays}/history"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&past["items"], &past["forgotten"]),
        (&json!([]), &json!(true)),
        "{past}"
    );
    phone.record("rounds", &stays.to_string()).await.expect(200);

    // Nobody can tell any more what Ben did not know; so a person is asked, and what waits is not forgotten.
    let late = [json!({"mobile_id": stays, "version": 1, "seen": 77}).to_string()];
    let told = ben
        .post_keyed("rounds", "a-key-of-bens-own", &late)
        .await
        .expect(200)
        .json();
    assert_eq!(told["conflicts"][0]["winner"], "none", "{told}");
    let conflict = told["conflicts"][0]["conflict_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let asked = std::time::Instant::now();

    // Folded again while phones write and what is old goes.
    verified(&service.deployment);
    let rebuilt = service
        .deployment
        .run(&["rebuild", "--domain", "rounds", "--output", "json"])
        .json();
    assert_eq!(
        (&rebuilt["done"], &rebuilt["differences"]),
        (&json!("swapped"), &json!([])),
        "{rebuilt}"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    verified(&service.deployment);

    // The same events again, when their first effect is forgotten and their key too.
    tokio::time::sleep(Duration::from_secs(11).saturating_sub(asked.elapsed())).await;
    db.rows(
        "DELETE FROM idempotency_records WHERE tenant_id = $1 AND scope = 'batch'",
        &[&acme],
    )
    .await;
    let again = ben
        .post_keyed("rounds", "a-key-of-bens-own", &late)
        .await
        .expect(200)
        .json();
    assert_eq!(again["conflicts"][0]["conflict_id"], json!(conflict), "{again}");
    let id: Uuid = conflict.parse().expect("a UUID");
    let row = &db
        .objects(
            "SELECT winner, operation FROM conflicts WHERE conflict_id = $1",
            &[&id],
        )
        .await;
    assert_eq!(row.len(), 1, "{row:?}");
    let sue = Phone::of(&service.deployment, &acme, "sue", "desk-1", Role::Supervisor);
    let shown = sue
        .get(&format!("/api/v1/conflicts/{conflict}"))
        .await
        .expect(200)
        .json();
    let decision = json!({"strategy": "client_wins", "version": shown["record_version"]});
    let path = format!("/api/v1/conflicts/{conflict}/resolve");
    let decided = sue
        .send(
            Method::POST,
            &path,
            &[("prefer", "wait=30")],
            decision.to_string(),
        )
        .await;
    decided.expect(200);
    let record = phone
        .record("rounds", &stays.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&record["seen"], &record["place"]),
        (&json!(77), &json!("Stairwell C")),
        "{record}"
    );

    stop.store(true, Ordering::Relaxed);
    working.await.expect("the work went well");
    ended.store(true, Ordering::Relaxed);
    let mut follower = following.await.expect("the cursor stayed good");
    follower.catch_up(&ben, "rounds", 20).await;
    let fresh = anew(&phone).await;
    assert_eq!(follower.records, fresh.records, "nothing was missed");
    assert!(follower.records.contains_key(&stays.to_string()));
    let cursor = follower.cursor.clone().expect("a cursor");
    let sum = |path: String| {
        let phone = &phone;
        async move { phone.get(&path).await.expect(200).json()["hash"].clone() }
    };
    assert_eq!(
        sum(format!("/api/v1/rounds/checksum?cursor={cursor}")).await,
        sum("/api/v1/rounds/checksum".into()).await
    );
    let rows = db
        .count("SELECT count(*) FROM rounds_changes c JOIN positions p USING (partition) WHERE p.topic LIKE '%rounds%' AND c.\"offset\" < p.feed_floor - 200", &[])
        .await;
    assert_eq!(rows, 0, "what a rebuild brings back goes as well");
    verified(&service.deployment);
}

const PLANS: &str = r#"
domain = "plans"
kind = "entity"
topic = "sync.plans.v1"
history = "8s"
delete_flag = "is_deleted"

[fields]
place = { type = "string" }
is_deleted = { type = "boolean" }
"#;

const STEPS: &str = r#"
domain = "steps"
kind = "entity"
topic = "sync.plans.v1"
history = "6s"
delete_flag = "is_deleted"

[parent]
domain = "plans"
field = "plan"

[fields]
plan = { type = "uuid", required = true }
note = { type = "string" }
is_deleted = { type = "boolean" }
"#;

const READINGS: &str = r#"
domain = "readings"
kind = "telemetry"
topic = "telemetry.readings.v1"
history = "8s"
identity = ["reading_id"]

[fields]
reading_id = { type = "string", min = 1, max = 100, required = true }
timestamp = { type = "datetime", required = true, column = true }
value = { type = "number" }
"#;

const THREE: [&str; 3] = ["plans", "steps", "readings"];

/// Plans with a step each and readings, in every partition, until it is told to stop.
async fn make_plans(phone: Phone, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let ids: Vec<Uuid> = (0..12).map(|_| Uuid::new_v4()).collect();
        let items = |item: fn(&Uuid) -> Value| ids.iter().map(|id| item(id).to_string()).collect::<Vec<_>>();
        let plans = items(|id| json!({"mobile_id": id, "place": "Roof"}));
        let steps = items(|id| json!({"mobile_id": Uuid::new_v4(), "plan": id, "note": "Look"}));
        let readings = items(|id| json!({"reading_id": id, "timestamp": "2026-03-01T10:00:00Z", "value": 1}));
        for (domain, items) in THREE.iter().zip([plans, steps, readings]) {
            phone.post(domain, &items).await.expect(200);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_on_a_record_and_what_only_comes_in_keep_their_history_as_well() {
    let figures = format!("127.0.0.1:{}", Deployment::new("keeping-figures").port);
    let deployment = deployment_with("keeping-three", "plans.toml", PLANS)
        .with("TIDELOG_DRILL_NUMBERS", "history_ms=300")
        .with("TIDELOG_METRICS_LISTEN", figures.clone());
    for (file, text) in [("steps.toml", STEPS), ("readings.toml", READINGS)] {
        std::fs::write(deployment.dir.join("domains").join(file), text).expect("a file");
    }
    let service = Service::of(deployment);
    let acme = tenant("keeping-three");
    let asha = Phone::new(&service.deployment, &acme, "asha");
    let ben = Phone::new(&service.deployment, &acme, "ben");
    // Asha's plan with a step of Ben's, which goes from sight with it; and a reading.
    let (plan, step, reading) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4().to_string());
    let read = json!({"reading_id": reading, "timestamp": "2026-03-01T10:00:00Z", "value": 7.5}).to_string();
    let mut batches = Vec::new();
    for (phone, domain, item) in [
        (
            &asha,
            "plans",
            json!({"mobile_id": plan, "place": "Stairwell B"}).to_string(),
        ),
        (
            &ben,
            "steps",
            json!({"mobile_id": step, "plan": plan, "note": "Paint"}).to_string(),
        ),
        (&asha, "readings", read.clone()),
    ] {
        let answer = phone.post(domain, &[item]).await.expect(200).json();
        batches.push(answer["batch_id"].as_str().expect("an id").to_owned());
    }
    asha.record("steps", &step.to_string()).await.expect(200);
    let mut cursors = Vec::new();
    for domain in THREE {
        let mut replica = Replica::default();
        replica.catch_up(&asha, domain, 100).await;
        assert_eq!(replica.records.len(), 1, "{domain}");
        cursors.push(replica.cursor.expect("a cursor"));
    }
    let gone = json!({"mobile_id": plan, "version": 1, "is_deleted": true}).to_string();
    asha.post("plans", &[gone]).await.expect(200);
    for phone in [&asha, &ben] {
        phone.record("steps", &step.to_string()).await.expect(404);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let working = tokio::spawn(make_plans(
        Phone::new(&service.deployment, &acme, "carl"),
        stop.clone(),
    ));
    let db = service.deployment.db().await;
    eventually("all partitions have forgotten the beginning", async || {
        let floors = "SELECT count(*) FROM positions WHERE feed_floor > 10 AND (topic LIKE '%plans%' OR topic LIKE '%readings%')";
        let tombs = "SELECT count(*) FROM plans WHERE mobile_id = $1";
        let left = "SELECT (SELECT count(*) FROM steps_changes WHERE mobile_id = $1) + (SELECT count(*) FROM readings_changes WHERE item_id = $2)";
        (db.count(floors, &[]).await == 6
            && db.count(tombs, &[&plan]).await == 0
            && db.count(left, &[&step, &reading]).await == 0)
            .then_some(())
    })
    .await;

    for (domain, cursor) in THREE.iter().zip(&cursors) {
        let path = format!("/api/v1/{domain}/changes?cursor={cursor}");
        let told = asha.get(&path).await;
        told.expect_problem(410, "gone-cursor", "starts anew with everything");
    }
    for (phone, batch) in [&asha, &ben, &asha].into_iter().zip(&batches) {
        let receipt = phone.get(&format!("/api/v1/sync/batches/{batch}")).await;
        receipt.expect_problem(410, "gone-batch", "longer ago than is kept");
    }
    // Whoever begins anew has what there is: of what is forgotten nothing but what is there still.
    for (domain, id, there) in [
        ("plans", plan.to_string(), false),
        ("steps", step.to_string(), false),
        ("readings", reading.clone(), true),
    ] {
        let mut replica = Replica::default();
        replica.catch_up(&asha, domain, 100).await;
        assert_eq!(replica.records.contains_key(&id), there, "{domain}");
        asha.record(domain, &id)
            .await
            .expect(if there { 200 } else { 404 });
    }
    // A reading that comes again is the one that is there.
    let key = Uuid::new_v4().to_string();
    let again = asha
        .post_keyed("readings", &key, &[read])
        .await
        .expect(200)
        .json();
    println!("a reading again: {again}");
    let rows = "SELECT count(*) FROM readings WHERE item_id = $1";
    assert_eq!(db.count(rows, &[&reading]).await, 1, "{again}");
    let shown = asha.record("readings", &reading).await.expect(200).json();
    assert_eq!(shown["value"], 7.5, "{shown}");
    // The step is not gone with the plan: its owner may go on with it, alone until there is such a plan.
    let more = json!({"mobile_id": step, "plan": plan, "version": 1, "note": "Paint it green"}).to_string();
    let told = ben.post("steps", &[more]).await.expect(200).json();
    assert_eq!(told["synced_items"][0]["status"], "updated", "{told}");
    let mine = ben.record("steps", &step.to_string()).await.expect(200).json();
    assert_eq!(
        (&mine["note"], &mine["version"]),
        (&json!("Paint it green"), &json!(2)),
        "{mine}"
    );
    asha.record("steps", &step.to_string()).await.expect(404);
    let anew = json!({"mobile_id": plan, "place": "Stairwell C"}).to_string();
    let told = asha.post("plans", &[anew]).await.expect(200).json();
    assert_eq!(
        (
            &told["synced_items"][0]["status"],
            &told["synced_items"][0]["server_version"]
        ),
        (&json!("created"), &json!(1)),
        "{told}"
    );
    asha.record("steps", &step.to_string()).await.expect(200);

    stop.store(true, Ordering::Relaxed);
    working.await.expect("the work went well");
    for domain in ["plans", "readings"] {
        let ran = service.deployment.run(&["verify", "--domain", domain]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let rebuilt = service
            .deployment
            .run(&["rebuild", "--domain", domain, "--output", "json"]);
        assert_eq!(rebuilt.json()["differences"], json!([]), "{domain}");
    }
    asha.record("steps", &step.to_string()).await.expect(200);

    // It is told how much went.
    let log = service.process.log();
    assert!(log.contains("what is older than the history is gone"), "{log}");
    let page = Http::new(format!("http://{figures}"));
    let page = page
        .send(Method::GET, "/metrics", &[], bytes::Bytes::new())
        .await
        .expect(200)
        .text();
    let removed = |domain: &str, table: &str| {
        let line = format!("tidelog_history_removed_rows_total{{domain=\"{domain}\",table=\"{table}\"}} ");
        let number = page.lines().find_map(|told| told.strip_prefix(line.as_str()));
        number
            .unwrap_or_else(|| panic!("{line} in\n{page}"))
            .parse::<u64>()
            .expect("a number")
    };
    for domain in THREE {
        assert!(removed(domain, &format!("{domain}_changes")) > 12, "{page}");
    }
    assert_eq!(
        (
            removed("plans", "plans"),
            removed("steps", "steps"),
            removed("readings", "readings")
        ),
        (1, 0, 0),
        "{page}"
    );
    assert_eq!(service.process.terminate(), 0);
}
