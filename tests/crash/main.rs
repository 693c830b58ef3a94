//! Gateway and projector killed with -9 at any moment of 200 batches, started again, the phones trying again under the
//! same keys: each item has one row's effect, one outcome, one feed entry; what was told is what is stored; and readers
//! that followed their cursors through it all hold what the rows hold.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::db::Db;
use support::phone::{Phone, Replica, tenant};
use support::process::Process;
use support::service::Deployment;
use support::{Dice, PATIENCE, eventually};
use uuid::Uuid;
use warp::http::Method;

const PHONES: usize = 8;
const BATCHES: usize = 25;
const ITEMS: usize = 20;
const KILLS: usize = 6;

/// What a phone was told of one item.
#[derive(Debug)]
struct Told {
    batch: String,
    index: i64,
    entry: Value,
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_moment_loses_nothing_and_repeats_nothing() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let deployment = Arc::new(Deployment::new("crash"));
    deployment.prepare();
    let ingest = deployment.start_listening("ingest", "/livez");
    let project = deployment.start("project");
    let tenant = tenant("crash");
    let done = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));

    let phones: Vec<_> = (0..PHONES)
        .map(|number| {
            let phone = Phone::new(&deployment, &tenant, &format!("user-{number}"));
            tokio::spawn(work(phone, seed + number as u64, answered.clone()))
        })
        .collect();
    let readers: Vec<_> = [3, 500]
        .into_iter()
        .map(|limit| {
            let phone = Phone::new(&deployment, &tenant, &format!("reader-{limit}"));
            tokio::spawn(follow(phone, limit, done.clone()))
        })
        .collect();
    let (ingest, project) = kill(&deployment, ingest, project, seed, &answered).await;

    let mut told = Vec::new();
    for phone in phones {
        told.extend(phone.await.expect("a phone that came to its end"));
    }
    assert_eq!(told.len(), PHONES * BATCHES * ITEMS, "an answer for every item");
    done.store(true, Ordering::SeqCst);
    let db = deployment.db().await;
    every_item_has_one_outcome(&db, &told).await;
    versions_rise_by_one(&db).await;
    let rows = documents(&db).await;
    for reader in readers {
        let mut reader = reader.await.expect("a reader that came to its end");
        let phone = Phone::new(&deployment, &tenant, "reader-end");
        reader.catch_up(&phone, "helpdesk", 500).await;
        let held: BTreeMap<String, i64> = versions_of(&reader);
        assert_eq!(held, rows, "what a reader holds is what the rows hold");
    }
    drop((ingest, project));
}

/// Kills one of the two, or both, again and again while the phones work.
async fn kill(
    deployment: &Deployment,
    ingest: Process,
    project: Process,
    seed: u64,
    answered: &AtomicUsize,
) -> (Process, Process) {
    let (mut ingest, mut project) = (Some(ingest), Some(project));
    let mut dice = Dice::new(seed);
    for round in 1..=KILLS {
        // Spread over the run by what has been answered, and within it by chance.
        let due = round * PHONES * BATCHES / (KILLS + 2);
        eventually("enough batches are answered", async || {
            (answered.load(Ordering::SeqCst) >= due).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(dice.roll(60) as u64)).await;
        let victims = dice.roll(3);
        println!(
            "kill {round} after {} batches: {}",
            answered.load(Ordering::SeqCst),
            ["ingest", "project", "both"][victims]
        );
        if victims != 1 {
            ingest.take().expect("a gateway").kill9();
            ingest = Some(deployment.start("ingest"));
        }
        if victims != 0 {
            project.take().expect("a projector").kill9();
            project = Some(deployment.start("project"));
        }
    }
    (ingest.expect("a gateway"), project.expect("a projector"))
}

/// A phone's day: creations, edits and deletions of its own tickets and of a few that all share, batch by batch, each
/// sent until it is answered for good.
async fn work(phone: Phone, seed: u64, answered: Arc<AtomicUsize>) -> Vec<Told> {
    let mut dice = Dice::new(seed);
    let mut versions: Vec<(Uuid, i64)> = Vec::new();
    let mut told = Vec::new();
    for number in 0..BATCHES {
        let entries: Vec<String> = (0..ITEMS)
            .map(|_| item(&mut dice, &mut versions, number).to_string())
            .collect();
        let key = format!("\"{}-{number}-{}\"", phone.user, Uuid::new_v4());
        // Every fourth batch is a mixed one.
        let (path, body, lists) = match number % 4 {
            3 => (
                "sync/batch",
                phone.mixed(&entries.iter().map(as_mixed).collect::<Vec<_>>()),
                &["results"][..],
            ),
            _ => (
                "helpdesk/sync",
                phone.batch(&entries),
                &["synced_items", "conflicts", "errors"][..],
            ),
        };
        let answer = answer_for_good(&phone, path, &key, &body).await;
        answered.fetch_add(1, Ordering::SeqCst);
        let batch = answer["batch_id"].as_str().expect("a batch id").to_owned();
        for list in lists {
            for entry in answer[list].as_array().expect("a list") {
                let id: Uuid = entry["mobile_id"]
                    .as_str()
                    .and_then(|id| id.parse().ok())
                    .expect("an id");
                if let (Some(known), Some(version)) = (
                    versions.iter_mut().find(|(known, _)| *known == id),
                    entry["server_version"].as_i64(),
                ) {
                    known.1 = version;
                }
                let index = entry["index"].as_i64().expect("an index");
                told.push(Told {
                    batch: batch.clone(),
                    index,
                    entry: entry.clone(),
                });
            }
        }
    }
    told
}

fn item(dice: &mut Dice, versions: &mut Vec<(Uuid, i64)>, number: usize) -> Value {
    let text = format!("ticket of batch {number}, throw {}", dice.roll(1_000_000));
    let time = format!("2026-01-01T00:00:{:02}.{:06}Z", number % 60, dice.roll(1_000_000));
    match dice.roll(10) {
        // A ticket that every phone knows.
        0 | 1 => json!({ "mobile_id": Uuid::from_u128(0x4000_8000_0000_0000_0000 + dice.roll(5) as u128),
                         "version": dice.roll(4), "ticketdesc": text, "client_timestamp": time }),
        2..=5 if !versions.is_empty() => {
            let at = dice.roll(versions.len());
            let (id, version) = versions[at];
            if dice.roll(6) == 0 {
                return json!({ "mobile_id": id, "version": version, "sync_status": "pending_delete", "client_timestamp": time });
            }
            json!({ "mobile_id": id, "version": version, "ticketdesc": text, "client_timestamp": time })
        }
        _ => {
            let id = Uuid::new_v4();
            versions.push((id, 0));
            json!({ "mobile_id": id, "version": 0, "ticketdesc": text, "client_timestamp": time })
        }
    }
}

/// The same item in the envelope of a mixed batch.
fn as_mixed(item: &String) -> String {
    let Ok(Value::Object(mut data)) = serde_json::from_str(item) else {
        panic!("no object: {item}")
    };
    let mut envelope = json!({ "entity_type": "ticket" });
    for name in ["mobile_id", "version", "client_timestamp"] {
        envelope[name] = data.remove(name).expect("a member");
    }
    envelope["operation"] = match (data.remove("sync_status"), &envelope["version"]) {
        (Some(_), _) => "delete",
        (None, version) if *version == 0 => "create",
        _ => "update",
    }
    .into();
    if !data.is_empty() {
        envelope["data"] = Value::Object(data);
    }
    envelope.to_string()
}

/// Sends a batch under one key until the answer is final. Sometimes the connection is gone, sometimes the key is still
/// held by a gateway that was killed, sometimes outcomes are pending.
async fn answer_for_good(phone: &Phone, path: &str, key: &str, body: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    let path = format!("/api/v1/{path}");
    let headers = [("idempotency-key", key), ("prefer", "wait=5")];
    while Instant::now() < deadline {
        let sent = phone.try_send(Method::POST, &path, &headers, body.to_owned());
        // A gateway that is killed may leave the connection open and silent.
        match tokio::time::timeout(Duration::from_secs(15), sent).await {
            Ok(Ok(answer)) if answer.status == 200 => return answer.json(),
            Ok(Ok(answer)) => assert!(matches!(answer.status, 202 | 409 | 500..), "{}", answer.text()),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the batch got no final answer")
}

/// Follows the changes all along, whatever is killed; answers what it holds.
async fn follow(phone: Phone, limit: usize, done: Arc<AtomicBool>) -> Replica {
    let mut replica = Replica::default();
    let mut highest: BTreeMap<String, i64> = BTreeMap::new();
    while !done.load(Ordering::SeqCst) {
        let more = replica.try_step(&phone, "helpdesk", limit).await;
        for (id, version) in versions_of(&replica) {
            let last = highest.entry(id).or_insert(version);
            assert!(version >= *last, "a reader saw a version go back");
            *last = version;
        }
        if more != Some(true) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    replica
}

fn versions_of(replica: &Replica) -> BTreeMap<String, i64> {
    let version = |doc: &Value| doc["version"].as_i64().expect("a version");
    replica
        .records
        .iter()
        .map(|(id, doc)| (id.clone(), version(doc)))
        .collect()
}

/// One feed row or one row of outcomes for each item, and it says what the phone was told.
async fn every_item_has_one_outcome(db: &Db, told: &[Told]) {
    let sql = "SELECT batch_id::text, batch_index, version, operation, conflict_id::text AS conflict_id, NULL::jsonb AS detail \
               FROM helpdesk_changes \
               UNION ALL SELECT batch_id::text, batch_index, NULL, NULL, NULL, detail FROM outcomes";
    let mut stored: BTreeMap<(String, i64), Vec<Value>> = BTreeMap::new();
    for row in db.rows(sql, &[]).await {
        let outcome = match row.get::<_, Option<i64>>("version") {
            Some(version) => json!({
                "version": version,
                "operation": row.get::<_, &str>("operation"),
                "conflict_id": row.get::<_, Option<&str>>("conflict_id"),
            }),
            None => row.get("detail"),
        };
        let key = (row.get::<_, String>(0), i64::from(row.get::<_, i32>(1)));
        stored.entry(key).or_default().push(outcome);
    }
    assert_eq!(stored.len(), told.len(), "as many outcomes as items");
    for Told { batch, index, entry } in told {
        let outcomes = &stored[&(batch.clone(), *index)];
        assert_eq!(outcomes.len(), 1, "one outcome an item: {outcomes:?}");
        let outcome = &outcomes[0];
        match entry["status"].as_str().expect("a status") {
            status @ ("created" | "updated") if outcome.get("operation").is_some() => {
                assert_eq!(outcome["version"], entry["server_version"]);
                assert_eq!(outcome["operation"] == "create", status == "created");
            }
            "updated" => assert_eq!(outcome["outcome"], "no_effect", "{outcome}"),
            "conflict" => {
                assert_eq!(outcome["conflict_id"], entry["conflict_id"]);
                // A feed row, where the policy let the item change its record, or an outcome, where it did not.
                let version = outcome.get("version").unwrap_or(&outcome["server_version"]);
                assert_eq!(version, &entry["server_version"]);
            }
            "duplicate" => assert_eq!(outcome["outcome"], "duplicate"),
            "error" => assert_eq!(outcome["error"]["error_code"], entry["error_code"]),
            other => panic!("a status {other:?}"),
        }
    }
}

/// A record's feed rows are its versions, 1 to the row's, without gap or repeat.
async fn versions_rise_by_one(db: &Db) {
    let broken = "SELECT count(*) FROM (SELECT mobile_id, count(*) AS rows, count(DISTINCT version) AS versions, max(version) AS last \
                  FROM helpdesk_changes GROUP BY mobile_id) f FULL JOIN helpdesk r USING (mobile_id) \
                  WHERE f.rows IS DISTINCT FROM r.version OR f.versions IS DISTINCT FROM r.version OR f.last IS DISTINCT FROM r.version";
    assert_eq!(db.count(broken, &[]).await, 0);
}

async fn documents(db: &Db) -> BTreeMap<String, i64> {
    let rows = db
        .rows(
            "SELECT mobile_id::text, version FROM helpdesk WHERE NOT deleted",
            &[],
        )
        .await;
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}
