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
