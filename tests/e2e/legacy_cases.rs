//! The 25 cases of persistence and idempotency that the system before this one was held to, each under its name: what
//! telemetry leaves, what a repeat does, what keys are and how long. Each looks at the HTTP answers and at Postgres.

use std::collections::BTreeSet;
use std::sync::OnceLock;

mod streams;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::http::Answer;
use crate::support::items::{ticket, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};
use streams::{behavioral, metrics, sessions, voice};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "legacy").deployment
}

fn phone_of(name: &str) -> Phone {
    Phone::new(deployment(), &tenant(name), "asha")
}

fn key() -> String {
    Uuid::new_v4().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn voice_data_persists() {
    voice().persists().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_verification_ids_are_skipped() {
    voice().skips_repeats(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voice_validation_errors_are_captured_without_a_crash() {
    voice().captures_validation_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behavioral_data_persists() {
    behavioral().persists().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_behavioral_events_are_skipped() {
    behavioral().skips_repeats(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behavioral_validation_errors_are_captured_without_a_crash() {
    behavioral().captures_validation_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_data_persists() {
    sessions().persists().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_session_copies_are_skipped() {
    sessions().skips_repeats(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_validation_errors_are_captured_without_a_crash() {
    sessions().captures_validation_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_copy_of_a_session_replaces_the_earlier() {
    let (phone, stream) = (phone_of("replaced"), sessions());
    stream.post(&phone, &stream.texts(1..2)).await;
    let mut later = (stream.item)(1);
    later["session_end"] = json!("2026-03-01T11:00:00Z");
    later["status"] = json!("closed");
    let answer = stream.post(&phone, &[later.to_string()]).await;
    assert_eq!(answer["synced_items"], 1);
    let rows = stream.rows(&phone).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&rows[0]["doc"], &rows[0]["version"]), (&later, &json!(2)));
    assert_eq!(stream.changes(&phone).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_data_persists() {
    metrics().persists().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_metrics_are_skipped() {
    metrics().skips_repeats(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_validation_errors_are_captured_without_a_crash() {
    metrics().captures_validation_errors().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_batch_is_told_so_and_leaves_nothing() {
    let phone = phone_of("empty");
    let empty: [&str; 0] = [];
    for stream in [voice(), behavioral(), sessions(), metrics()] {
        let answer = phone.post_keyed(stream.url, &key(), &empty).await;
        answer.expect_problem(400, "bad-request", "entries is empty");
        assert_eq!(stream.rows(&phone).await, [] as [Value; 0]);
    }
    let db = deployment().db().await;
    for table in ["batches", "idempotency_records", "outcomes"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE tenant_id = $1");
        assert_eq!(db.count(&sql, &[&phone.tenant]).await, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_of_a_hundred_items_persists() {
    let (phone, stream) = (phone_of("large"), voice());
    let answer = stream.post(&phone, &stream.texts(0..100)).await;
    assert_eq!(
        (&answer["synced_items"], &answer["failed_items"]),
        (&json!(100), &json!(0))
    );
    let rows = stream.rows(&phone).await;
    let stored: BTreeSet<&str> = rows.iter().filter_map(|row| row["item_id"].as_str()).collect();
    let sent: Vec<String> = (0..100).map(|n| stream.subject(n)).collect();
    assert_eq!(stored, sent.iter().map(String::as_str).collect());
    assert_eq!(stream.changes(&phone).await, 100);
    assert_eq!(phone.pull("voice", "limit=1000").await.len(), 100);
}

/// A key's row of batch scope, as Postgres has it.
async fn batch_rows(phone: &Phone) -> Vec<Value> {
    let sql = "SELECT key, hit_count, last_hit_at, created_at, expires_at, answer, batch_id FROM idempotency_records
               WHERE tenant_id = $1 AND scope = 'batch' ORDER BY created_at";
    deployment().db().await.objects(sql, &[&phone.tenant]).await
}

/// What the service tells of a key, once its answer is kept.
async fn told(phone: &Phone, key: &str) -> Value {
    let path = format!("/api/v1/sync/idempotency/{key}");
    let answer = phone.get(&path).await.expect(200);
    assert_eq!(phone.get(&format!("{path}/")).await.expect(200).body, answer.body);
    answer.json()["records"].clone()
}

async fn expire(phone: &Phone) {
    let sql = "UPDATE idempotency_records SET expires_at = now() - '1 s'::interval WHERE tenant_id = $1 RETURNING key";
    let rows = deployment().db().await.rows(sql, &[&phone.tenant]).await;
    assert!(!rows.is_empty());
}

fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

#[tokio::test(flavor = "multi_thread")]
async fn key_generation_is_consistent() {
    let phone = phone_of("consistent");
    let item =
        json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "No key was chosen", "bu": 10, "comments": "ü"});
    let first = phone.post("helpdesk", &[item.to_string()]).await.expect(200);
    // Other spelling, other order, what a retry renews.
    let retry = format!(
        r#"{{"sent_at":"{}","entries":[{{"comments":"\u00fc", "bu":1e1,"ticketdesc":"No key was chosen","sync_status":"pending_sync","mobile_id":{}}}],"client_id":"phone-1"}}"#,
        chrono::Utc::now().to_rfc3339(),
        item["mobile_id"]
    );
    let again = phone
        .send_batch("helpdesk", &[("prefer", "wait=30")], retry)
        .await
        .expect(200);
    assert!(
        is_replayed(&again) && again.body == first.body,
        "{}",
        again.text()
    );
    let rows = batch_rows(&phone).await;
    assert_eq!((rows.len(), &rows[0]["hit_count"]), (1, &json!(1)), "{rows:?}");
    let key = rows[0]["key"].as_str().expect("a key");
    assert!(
        key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()),
        "SHA-256: {key}"
    );
    assert_eq!(told(&phone, key).await[0]["hit_count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_generation_is_unique() {
    let tenant = tenant("unique");
    let of = |tenant: &str, user, device| Phone::of(deployment(), tenant, user, device, Role::User);
    let shared =
        json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "The same body", "jobdesc": "The same body"});
    let other =
        json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "The same body", "jobdesc": "The same body"});
    let elsewhere = format!("{tenant}-2");
    for (phone, domain, item) in [
        (of(&tenant, "asha", "phone-1"), "helpdesk", &shared),
        (of(&tenant, "asha", "phone-1"), "helpdesk", &other),
        (of(&tenant, "asha", "phone-1"), "activity", &shared),
        (of(&tenant, "asha", "phone-2"), "helpdesk", &shared),
        (of(&tenant, "ben", "phone-1"), "helpdesk", &shared),
        (of(&elsewhere, "asha", "phone-1"), "helpdesk", &shared),
    ] {
        let answer = phone.post(domain, &[item.to_string()]).await.expect(200);
        assert!(!is_replayed(&answer), "{}", answer.text());
    }
    let sql = "SELECT count(DISTINCT key), sum(hit_count)::bigint FROM idempotency_records
               WHERE tenant_id = ANY ($1) AND scope = 'batch'";
    let found = deployment()
        .db()
        .await
        .rows(sql, &[&vec![tenant, elsewhere]])
        .await;
    assert_eq!((found[0].get::<_, i64>(0), found[0].get::<_, i64>(1)), (6, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_is_no_duplicate() {
    let (phone, key) = (phone_of("first"), key());
    let path = format!("/api/v1/sync/idempotency/{key}");
    phone.get(&path).await.expect_problem(404, "not-found", "");
    let answer = phone.post_keyed("helpdesk", &key, &tickets(2)).await.expect(200);
    assert!(!is_replayed(&answer));
    let statuses: Vec<Value> = answer.json()["synced_items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry["status"].clone())
        .collect();
    assert_eq!(statuses, ["created", "created"]);
    let rows = batch_rows(&phone).await;
    assert_eq!(
        (rows.len(), &rows[0]["hit_count"], &rows[0]["last_hit_at"]),
        (1, &json!(0), &Value::Null)
    );
    let record = &told(&phone, &key).await[0];
    assert_eq!(
        (&record["status"], &record["hit_count"], &record["last_hit_at"]),
        (&json!("complete"), &json!(0), &Value::Null)
    );
    assert_eq!(record["batch_id"], answer.json()["batch_id"]);
    assert_eq!(record["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_returns_the_cached_answer() {
    let (phone, key, entries) = (phone_of("cached"), key(), tickets(3));
    let first = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    for _ in 0..2 {
        let again = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
        assert!(is_replayed(&again));
        assert_eq!(again.body, first.body, "byte for byte");
    }
    let stored = batch_rows(&phone).await[0]["answer"].clone();
    assert_eq!(stored.as_str().map(str::as_bytes), Some(&first.body[..]));
    let db = deployment().db().await;
    let sql = "SELECT count(*) FROM helpdesk_changes WHERE tenant_id = $1";
    assert_eq!(db.count(sql, &[&phone.tenant]).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hit_count_rises() {
    let (phone, key, entries) = (phone_of("rises"), key(), tickets(1));
    phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    let mut last = String::new();
    for hits in 1..=4 {
        phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
        let row = &batch_rows(&phone).await[0];
        assert_eq!(row["hit_count"], hits);
        let at = row["last_hit_at"].as_str().expect("a time").to_owned();
        assert!(at > last, "{at} is later than {last}");
        last = at;
        let record = &told(&phone, &key).await[0];
        assert_eq!(record["hit_count"], hits);
        assert!(record["last_hit_at"].is_string(), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_records_are_not_returned() {
    let (phone, key, entries) = (phone_of("expired"), key(), tickets(2));
    let first = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    expire(&phone).await;
    let path = format!("/api/v1/sync/idempotency/{key}");
    phone.get(&path).await.expect_problem(404, "not-found", "");
    let again = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    assert!(!is_replayed(&again), "counted from anew");
    assert_eq!(
        again.json()["synced_items"],
        first.json()["synced_items"],
        "and still nothing happens twice"
    );
    let record = &told(&phone, &key).await[0];
    assert_eq!(
        (&record["hit_count"], &record["last_hit_at"]),
        (&json!(0), &Value::Null)
    );
    let db = deployment().db().await;
    let sql = "SELECT count(*) FROM helpdesk_changes WHERE tenant_id = $1";
    assert_eq!(db.count(sql, &[&phone.tenant]).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_records_are_cleaned_up() {
    let (phone, live) = (phone_of("cleaned"), phone_of("live"));
    let entries = tickets(2);
    for phone in [&phone, &live] {
        // Keys of batches, and of items that came again.
        for _ in 0..3 {
            phone.post_keyed("helpdesk", &key(), &entries).await.expect(200);
        }
    }
    let count = async |phone: &Phone| {
        let sql = "SELECT count(*) FROM idempotency_records WHERE tenant_id = $1";
        deployment().db().await.count(sql, &[&phone.tenant]).await
    };
    assert_eq!((count(&phone).await, count(&live).await), (5, 5));
    expire(&phone).await;
    eventually("the expired ones are gone", async || {
        (count(&phone).await == 0).then_some(())
    })
    .await;
    assert_eq!(count(&live).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_and_item_scope_differ() {
    let phone = phone_of("scopes");
    let (id, first, second) = (Uuid::new_v4(), key(), key());
    let entries = [ticket(id, "Known to both scopes").to_string()];
    phone.post_keyed("helpdesk", &first, &entries).await.expect(200);
    phone.post_keyed("helpdesk", &second, &entries).await.expect(200);
    phone.post_keyed("helpdesk", &second, &entries).await.expect(200);
    let sql = "SELECT scope, key, hit_count FROM idempotency_records WHERE tenant_id = $1";
    let rows = deployment().db().await.objects(sql, &[&phone.tenant]).await;
    let hits = |scope: &str, key: &str| {
        rows.iter()
            .find(|row| row["scope"] == scope && (key.is_empty() || row["key"] == key))
            .map(|row| row["hit_count"].clone())
    };
    assert_eq!(
        (hits("batch", &first), hits("batch", &second), hits("item", "")),
        (Some(json!(0)), Some(json!(1)), Some(json!(1))),
        "a batch answered from its key asks no item: {rows:?}"
    );
    assert_eq!(rows.len(), 3, "{rows:?}");
    let told_second = &told(&phone, &second).await[0];
    assert_eq!(
        (
            &told_second["repeated_items"],
            &told_second["items"][0]["mobile_id"]
        ),
        (&json!(1), &json!(id))
    );
    // An item's key may be a batch's too: both are told, and neither counts for the other.
    let item = rows.iter().find(|row| row["scope"] == "item").expect("a row");
    let key = item["key"].as_str().expect("a key");
    assert_eq!(key.len(), 32);
    phone.post_keyed("helpdesk", key, &tickets(1)).await.expect(200);
    let records = told(&phone, key).await;
    let of = |n: usize| (records[n]["scope"].clone(), records[n]["hit_count"].clone());
    assert_eq!(
        (of(0), of(1)),
        ((json!("batch"), json!(0)), (json!("item"), json!(1)))
    );
    assert_eq!(records[1]["mobile_id"], json!(id));
}

/// Thirty phones of one device, so thirty connections.
fn thirty(first: &Phone) -> Vec<Phone> {
    (0..30)
        .map(|_| Phone::new(deployment(), &first.tenant, "asha"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_duplicates_of_a_batch_have_one_effect_and_are_all_counted() {
    let (first, key, stream) = (phone_of("concurrent"), key(), voice());
    let (phones, items) = (thirty(&first), stream.texts(0..10));
    let mut taken = 0;
    for answer in join_all(phones.iter().map(|phone| phone.post_keyed("voice", &key, &items))).await {
        match answer.status {
            200 => taken += usize::from(!is_replayed(&answer)),
            _ => drop(answer.expect_problem(409, "request-in-flight", "")),
        }
    }
    assert_eq!(taken, 1);
    assert_eq!(batch_rows(&first).await[0]["hit_count"], 29);
    assert_eq!(
        (stream.rows(&first).await.len(), stream.changes(&first).await),
        (10, 10)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_duplicates_of_items_have_one_effect_and_are_all_counted() {
    let (first, stream) = (phone_of("together"), voice());
    let (phones, items) = (thirty(&first), stream.texts(0..10));
    join_all(phones.iter().map(|phone| stream.post(phone, &items))).await;
    assert_eq!(
        (stream.rows(&first).await.len(), stream.changes(&first).await),
        (10, 10)
    );
    let sql = "SELECT count(*), min(hit_count), max(hit_count) FROM idempotency_records
               WHERE tenant_id = $1 AND scope = 'item'";
    let found = deployment().db().await.rows(sql, &[&first.tenant]).await;
    let found: [i64; 3] = std::array::from_fn(|column| found[0].get(column));
    assert_eq!(found, [10, 29, 29], "each item is one row with all its hits");
}
