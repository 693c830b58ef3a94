//! What is known of keys, and what becomes of those whose time is over: against a real Postgres, with several gateways,
//! and with rows that somebody uses at that moment.

mod support;

use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::{Door, Fixture, batch, fixture, fixture_of, places};
use tidelog_events::ids::Role;
use tidelog_ingest::IngestConfig;
use tokio::task::JoinHandle;
use warp::http::Response;
use warp::hyper::body::Bytes;

const NOW: (&str, &str) = ("prefer", "wait=0");
const KEY: (&str, &str) = ("idempotency-key", "a-key-of-sixteen-characters");
const OFTEN: Duration = Duration::from_millis(20);

fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("JSON")
}

fn often(_: &mut tokio_postgres::Config, (config, _): &mut (IngestConfig, tidelog_ingest::ProducerConfig)) {
    config.expiry_every = OFTEN;
}

/// Removes expired keys in the background until it is aborted.
fn removing(fixture: &Fixture) -> JoinHandle<()> {
    let ingest = fixture.ingest.clone();
    tokio::spawn(async move { ingest.expire_keys().await })
}

/// Rows of another kind a tenant: `expired` of them over since a second to an hour, and `live` that are not.
async fn keys(fixture: &Fixture, expired: i64, live: i64) {
    let sql = "INSERT INTO idempotency_records
            (tenant_id, scope, user_id, device_id, key, fingerprint, batch_id, receipt, expires_at)
        SELECT 'acme', 'batch', 'anna', 'phone-1', 'a-long-key-number-' || n, '\\x00', gen_random_uuid(), 'r',
            CASE WHEN n <= $1::bigint THEN now() - make_interval(secs => 1 + (n % 3600)::int) ELSE now() + '1 h'::interval END
        FROM generate_series(1, $1::bigint + $2::bigint) AS n";
    fixture.db.execute(sql, &[&expired, &live]).await.expect("rows");
}

async fn run(fixture: &Fixture, sql: &str) {
    fixture.db.batch_execute(sql).await.expect("it runs");
}

async fn until(fixture: &Fixture, what: &str, sql: &str, expected: i64) {
    let since = std::time::Instant::now();
    while fixture.count(sql).await != expected {
        assert!(since.elapsed() < Duration::from_secs(30), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const ALL: &str = "SELECT count(*) FROM idempotency_records";

#[tokio::test(flavor = "multi_thread")]
async fn several_gateways_remove_each_expired_key_once_and_no_other() {
    let fixture = fixture_of(places(), often).await;
    run(
        &fixture,
        "CREATE TABLE gone (key text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO gone VALUES (old.key); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER DELETE ON idempotency_records FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .await;
    keys(&fixture, 3_000, 200).await;
    let schema = fixture.prefix.trim_end_matches('.').to_owned();
    let beside = fixture_of(places(), |database, settings| {
        database.options(format!("-c search_path={schema}"));
        often(database, settings);
    })
    .await;
    let gateways = [removing(&fixture), removing(&beside), removing(&fixture)];
    until(&fixture, "the expired are gone", ALL, 200).await;
    assert_eq!(fixture.count("SELECT count(*) FROM gone").await, 3_000);
    assert_eq!(fixture.count("SELECT count(DISTINCT key) FROM gone").await, 3_000);
    // With nothing to do they go on.
    tokio::time::sleep(5 * OFTEN).await;
    assert!(gateways.iter().all(|gateway| !gateway.is_finished()));
    assert_eq!(fixture.count(ALL).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_claim_is_held_stays() {
    let fixture = fixture_of(places(), often).await;
    keys(&fixture, 3, 0).await;
    run(
        &fixture,
        "UPDATE idempotency_records SET lease_owner = gen_random_uuid(), lease_until = now() + '1 h'::interval
            WHERE key = 'a-long-key-number-1';
         UPDATE idempotency_records SET lease_owner = gen_random_uuid(), lease_until = now() - '1 s'::interval
            WHERE key = 'a-long-key-number-2'",
    )
    .await;
    let _removing = removing(&fixture);
    until(&fixture, "those that nobody holds are gone", ALL, 1).await;
    let held = "SELECT count(*) FROM idempotency_records WHERE key = 'a-long-key-number-1'";
    tokio::time::sleep(5 * OFTEN).await;
    assert_eq!(fixture.count(held).await, 1);
    run(&fixture, "UPDATE idempotency_records SET lease_until = now()").await;
    until(&fixture, "given up, it goes too", ALL, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_items_count_stays_until_the_log_has_passed_its_time() {
    let fixture = fixture_of(places(), often).await;
    keys(&fixture, 2, 0).await;
    run(
        &fixture,
        "UPDATE idempotency_records SET scope = 'item', topic = 't', partition = substr(key, 19)::int;
         INSERT INTO positions (topic, partition, applied_through) VALUES
            ('t', 1, now() - '1 d'::interval), ('t', 2, now())",
    )
    .await;
    let _removing = removing(&fixture);
    until(&fixture, "the one that was passed is gone", ALL, 1).await;
    tokio::time::sleep(5 * OFTEN).await;
    let behind = "SELECT count(*) FROM idempotency_records WHERE partition = 1";
    assert_eq!(
        fixture.count(behind).await,
        1,
        "hits before its end may still come"
    );
    run(&fixture, "UPDATE positions SET applied_through = now()").await;
    until(&fixture, "passed, it goes too", ALL, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_somebody_uses_while_it_is_looked_at_stays() {
    let fixture = fixture_of(places(), often).await;
    keys(&fixture, 10, 0).await;
    let (mut other, connection) = {
        let mut database = places().database;
        database.options(format!("-c search_path={}", fixture.prefix.trim_end_matches('.')));
        database.connect(tokio_postgres::NoTls).await.expect("Postgres")
    };
    tokio::spawn(connection);
    let hit = other.transaction().await.expect("a transaction");
    let sql = "UPDATE idempotency_records SET expires_at = now() + '1 h'::interval WHERE key = 'a-long-key-number-7'";
    hit.batch_execute(sql).await.expect("a hit");
    let _removing = removing(&fixture);
    until(&fixture, "nobody waits for the row that is used", ALL, 1).await;
    hit.commit().await.expect("the hit counts");
    tokio::time::sleep(5 * OFTEN).await;
    assert_eq!(fixture.count(ALL).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_while_its_expired_key_is_being_removed_begins_anew() {
    let fixture = Arc::new(fixture().await);
    fixture.post(&batch(2), &[NOW, KEY]).await;
    fixture.post(&batch(2), &[NOW, KEY]).await;
    run(&fixture, "UPDATE idempotency_records SET expires_at = now()").await;
    run(&fixture, "BEGIN; DELETE FROM idempotency_records").await;
    let posting = {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.post(&batch(2), &[NOW, KEY]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!posting.is_finished(), "it waits for the row");
    run(&fixture, "COMMIT").await;
    let response = posting.await.expect("no panic");
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers().get("idempotent-replayed"), None);
    assert_eq!(
        fixture.count("SELECT hit_count FROM idempotency_records").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_away_nothing_is_told_of_keys_and_removal_goes_on_later() {
    let places = places();
    let door = Door::before_postgres(&places).await;
    let fixture = fixture_of(places, |database, settings| {
        door.lead_through(database);
        often(database, settings);
        settings.0.claim_timeout = Duration::from_millis(300);
    })
    .await;
    keys(&fixture, 5, 1).await;
    door.shut();
    let removing = removing(&fixture);
    let away = fixture.known("a-long-key-number-6").await;
    assert_eq!(away.status(), 503);
    assert_eq!(away.headers()["retry-after"], "1");
    assert_eq!(json(&away)["retryable"], true);
    tokio::time::sleep(5 * OFTEN).await;
    assert!(!removing.is_finished());
    assert_eq!(fixture.count(ALL).await, 6);
    door.open();
    until(&fixture, "Postgres is back, and they go", ALL, 1).await;
    while fixture.known("a-long-key-number-6").await.status() != 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_says_how_far_its_batch_has_come() {
    let fixture = fixture().await;
    let status = async || json(&fixture.known(KEY.1).await)["records"][0]["status"].clone();
    fixture.post(&batch(2), &[NOW, KEY]).await;
    assert_eq!(status().await, "pending");
    fixture.told.applied(2);
    fixture.project().await;
    assert_eq!(status().await, "complete", "applied, although nobody asked");
    let answer = json(&fixture.post(&batch(2), &[KEY]).await);
    let known = json(&fixture.known(KEY.1).await);
    let record = &known["records"][0];
    assert_eq!(
        (&record["status"], &record["scope"], &record["hit_count"]),
        (&json!("complete"), &json!("batch"), &json!(1))
    );
    assert_eq!(
        (&record["batch_id"], &record["receipt"]),
        (&answer["batch_id"], &answer["receipt"])
    );
    assert_eq!(
        (&record["user_id"], &record["device_id"], &record["domain"]),
        (&json!("anna"), &json!("phone-1"), &json!("helpdesk"))
    );
    assert_eq!(
        (&record["repeated_items"], &record["items"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(known["has_more"], false);

    run(
        &fixture,
        "UPDATE idempotency_records SET receipt = NULL, answer = NULL, lease_owner = gen_random_uuid(),
            lease_until = now() + '1 h'::interval",
    )
    .await;
    assert_eq!(status().await, "in_flight");
    run(&fixture, "UPDATE idempotency_records SET lease_until = now()").await;
    assert_eq!(status().await, "released");
    run(&fixture, "UPDATE idempotency_records SET expires_at = now()").await;
    assert_eq!(fixture.known(KEY.1).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_told_to_its_user_its_device_and_operators_and_bounded() {
    let fixture = fixture().await;
    run(
        &fixture,
        "INSERT INTO idempotency_records
            (tenant_id, scope, user_id, device_id, key, fingerprint, batch_id, expires_at)
         SELECT t, 'batch', u, 'device-' || d, 'the-key-of-them-all', '\\x00', gen_random_uuid(), now() + '1 h'::interval
         FROM unnest('{acme,other}'::text[]) t, unnest('{anna,bert}'::text[]) u, generate_series(1, 12) d",
    )
    .await;
    let key = "the-key-of-them-all";
    let told = async |user, device, role| {
        let response = fixture.known_to(key, user, device, role).await;
        let known = json(&response);
        let count = known["records"].as_array().map_or(0, Vec::len);
        (response.status().as_u16(), count, known["has_more"].clone())
    };
    let (no, yes) = (json!(false), json!(true));
    assert_eq!(told("anna", None, Role::User).await, (200, 12, no.clone()));
    assert_eq!(
        told("anna", Some("device-3"), Role::User).await,
        (200, 1, no.clone())
    );
    assert_eq!(told("anna", Some("device-13"), Role::User).await.0, 404);
    assert_eq!(told("bert", None, Role::Supervisor).await, (200, 12, no));
    assert_eq!(told("cleo", None, Role::Supervisor).await.0, 404);
    assert_eq!(told("cleo", None, Role::Operator).await, (200, 20, yes));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_path_keeps_the_headers_rule() {
    let fixture = fixture().await;
    let odd = "a/key?with#everything%in:it";
    fixture.post(&batch(1), &[NOW, ("idempotency-key", odd)]).await;
    let encoded = "a%2Fkey%3Fwith%23everything%25in:it";
    for path in [encoded.to_owned(), format!("{encoded}/")] {
        let response = fixture.known(&path).await;
        assert_eq!(
            (response.status().as_u16(), &json(&response)["records"][0]["key"]),
            (200, &odd.into()),
            "{path}"
        );
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
    for (bad, rule) in [
        ("short", "length"),
        ("fifteen-letters", "length"),
        (&*"k".repeat(256), "length"),
        ("with%20a%20space%20in%20it", "visible-ascii"),
        ("with%00a%00null%00in%00it", "visible-ascii"),
        ("%FF%FEthis-is-no-utf-8-at-all", "visible-ascii"),
    ] {
        let response = fixture.known(bad).await;
        assert_eq!(
            (response.status().as_u16(), &json(&response)["rule"]),
            (400, &rule.into()),
            "{bad}"
        );
    }
    for unknown in ["sixteen-letters!", &*"k".repeat(255)] {
        assert_eq!(fixture.known(unknown).await.status(), 404, "{unknown}");
    }
}
