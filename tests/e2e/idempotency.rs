//! Nothing happens twice: whatever is repeated, together, later, under another key or after the phone hung up, an item
//! has one effect, and a batch one answer.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::OnceLock;

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::{Answer, bytes_of};
use crate::support::items::{id_of, ticket, tickets};
use crate::support::kafka::read_topic;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};
use crate::support::{eventually, phone};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "idempotency").deployment
}

fn phone_of(name: &str) -> Phone {
    Phone::new(deployment(), &tenant(name), "asha")
}

fn key() -> String {
    Uuid::new_v4().to_string()
}

/// How many tickets and changes of tickets a tenant has.
async fn effects(tenant: &str) -> (i64, i64) {
    let db = deployment().db().await;
    (
        db.count("SELECT count(*) FROM helpdesk WHERE tenant_id = $1", &[&tenant])
            .await,
        db.count(
            "SELECT count(*) FROM helpdesk_changes WHERE tenant_id = $1",
            &[&tenant],
        )
        .await,
    )
}

/// Repeats a post until its answer is final.
async fn final_answer(phone: &Phone, key: &str, entries: &[String]) -> Answer {
    eventually("the final answer", async || {
        let answer = phone.post_keyed("helpdesk", key, entries).await;
        (answer.status == 200).then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_posts_of_one_batch_at_once_have_one_effect() {
    let first = phone_of("thirty");
    let (key, entries) = (key(), tickets(50));
    // Thirty phones, so thirty connections.
    let phones: Vec<Phone> = (0..30)
        .map(|_| Phone::new(deployment(), &first.tenant, "asha"))
        .collect();
    let answers = join_all(
        phones
            .iter()
            .map(|phone| phone.post_keyed("helpdesk", &key, &entries)),
    )
    .await;
    let last = final_answer(&first, &key, &entries).await;
    let mut taken = 0;
    for answer in answers {
        match answer.status {
            200 => {
                assert_eq!(answer.body, last.body);
                taken += usize::from(answer.header("idempotent-replayed").is_none());
            }
            _ => {
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
                answer.expect_problem(409, "request-in-flight", "");
            }
        }
    }
    assert_eq!(taken, 1, "one of them was the first");
    assert_eq!(effects(&first.tenant).await, (50, 50));
    let ids: BTreeSet<String> = entries.iter().map(|entry| id_of(entry)).collect();
    let records = read_topic(&deployment().brokers, &deployment().topic("sync.helpdesk.v1"));
    let appended = records
        .iter()
        .filter(|record| ids.contains(record.header("ce_subject")))
        .count();
    assert_eq!(appended, 50, "one append");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_16_to_255_visible_characters() {
    let phone = phone_of("keys");
    for bad in [
        "short",
        "123456789012345",
        &"k".repeat(256),
        "with a space in it, and long",
        "\"0123456789abcdef",
    ] {
        let answer = phone.post_keyed("helpdesk", bad, &tickets(1)).await;
        answer.expect_problem(400, "idempotency-key-invalid", "");
    }
    assert_eq!(effects(&phone.tenant).await, (0, 0));
    for good in ["1234567890123456", &"k".repeat(255)] {
        phone.post_keyed("helpdesk", good, &tickets(1)).await.expect(200);
    }
    assert_eq!(effects(&phone.tenant).await, (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_quoted_and_bare_is_the_same_key() {
    let phone = phone_of("quoted");
    let (key, entries) = (key(), tickets(2));
    let bare = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    assert_eq!(bare.header("idempotent-replayed"), None);
    let quoted = phone
        .post_keyed("helpdesk", &format!("\"{key}\""), &entries)
        .await
        .expect(200);
    assert_eq!(quoted.header("idempotent-replayed"), Some("true"));
    assert_eq!(quoted.body, bare.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_used_again_for_another_body_is_refused() {
    let phone = phone_of("reused");
    let (key, entries) = (key(), tickets(2));
    let first = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    phone
        .post_keyed("helpdesk", &key, &tickets(2))
        .await
        .expect_problem(422, "idempotency-key-reused", "");
    // Another path is another request too.
    phone
        .post_keyed("activity", &key, &entries)
        .await
        .expect_problem(422, "idempotency-key-reused", "");
    assert_eq!(effects(&phone.tenant).await, (2, 2));
    assert_eq!(
        phone
            .post_keyed("helpdesk", &key, &entries)
            .await
            .expect(200)
            .body,
        first.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_one_device_of_one_user_of_one_tenant() {
    let (key, tenant) = (key(), tenant("scope"));
    let other = phone::tenant("scope");
    for (tenant, user, device) in [
        (&tenant, "asha", "phone-1"),
        (&tenant, "asha", "phone-2"),
        (&tenant, "ben", "phone-1"),
        (&other, "asha", "phone-1"),
    ] {
        let phone = Phone::of(deployment(), tenant, user, device, tidelog_http::auth::Role::User);
        let answer = phone.post_keyed("helpdesk", &key, &tickets(1)).await.expect(200);
        assert_eq!(
            answer.json()["synced_items"][0]["status"],
            "created",
            "{user} {device}: {}",
            answer.text()
        );
        assert_eq!(answer.header("idempotent-replayed"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_the_body_is_the_key() {
    let phone = phone_of("keyless");
    let entries = tickets(3);
    let first = phone.post("helpdesk", &entries).await.expect(200);
    // What a retry renews, and how it spells the rest, is no other body.
    let respelled: Vec<Value> = entries
        .iter()
        .map(|entry| serde_json::from_str(entry).expect("JSON"))
        .collect();
    let body = json!({"sent_at": chrono::Utc::now().to_rfc3339(), "last_sync_timestamp": "2026-01-01T00:00:00Z", "client_id": "phone-1", "entries": respelled});
    let again = phone
        .send_batch(
            "helpdesk",
            &[("prefer", "wait=30")],
            serde_json::to_string_pretty(&body).expect("JSON"),
        )
        .await
        .expect(200);
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(effects(&phone.tenant).await, (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_items_in_another_batch_are_duplicates_with_their_first_outcome() {
    let phone = phone_of("items");
    let (created, stale) = (Uuid::new_v4(), Uuid::new_v4());
    let other = Phone::of(
        deployment(),
        &phone.tenant,
        "ben",
        "phone-2",
        tidelog_http::auth::Role::User,
    );
    other
        .apply("helpdesk", ticket(stale, "Somebody else's ticket"))
        .await;
    other
        .apply(
            "helpdesk",
            json!({"mobile_id": stale, "version": 1, "comments": "changed since"}),
        )
        .await;
    let entries = [
        ticket(created, "A ticket that comes twice").to_string(),
        json!({"mobile_id": created, "version": 1, "comments": "and is edited"}).to_string(),
        json!({"mobile_id": stale, "version": 1, "comments": "too late"}).to_string(),
        json!({"mobile_id": created, "version": 2, "status": "CLOSED"}).to_string(),
        json!({"mobile_id": Uuid::new_v4(), "version": 3, "sync_status": "pending_delete"}).to_string(),
    ];
    let first = phone
        .post_keyed("helpdesk", &key(), &entries)
        .await
        .expect(200)
        .json();
    assert_eq!(first["synced_items"].as_array().map(Vec::len), Some(3), "{first}");
    assert_eq!(
        (&first["conflicts"][0]["index"], &first["errors"][0]["index"]),
        (&2.into(), &3.into()),
        "{first}"
    );
    let before = effects(&phone.tenant).await;

    let second = phone
        .post_keyed("helpdesk", &key(), &entries)
        .await
        .expect(200)
        .json();
    assert_eq!(effects(&phone.tenant).await, before);
    for (then, now) in first["synced_items"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(second["synced_items"].as_array().expect("a list"))
    {
        assert_eq!(now["status"], "duplicate", "{second}");
        assert_eq!(
            (&now["mobile_id"], &now["server_version"]),
            (&then["mobile_id"], &then["server_version"]),
            "{second}"
        );
    }
    let (then, now) = (&first["conflicts"][0], &second["conflicts"][0]);
    assert_eq!(now["status"], "duplicate", "{second}");
    assert_eq!(
        (&now["conflict_id"], &now["server_version"]),
        (&then["conflict_id"], &then["server_version"])
    );
    // What was refused is judged anew.
    assert_eq!(
        second["errors"][0]["error_code"], "INVALID_TRANSITION",
        "{second}"
    );
    let db = deployment().db().await;
    assert_eq!(
        db.count(
            "SELECT count(*) FROM conflicts WHERE tenant_id = $1",
            &[&phone.tenant]
        )
        .await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_will_not_wait_gets_a_receipt_that_resolves() {
    let phone = phone_of("receipt");
    let (key, mut entries) = (key(), tickets(3));
    entries.push(r#"{"mobile_id":"no uuid","ticketdesc":"Refused at the door"}"#.into());
    let headers = [("prefer", "wait=0"), ("idempotency-key", key.as_str())];
    let answer = phone
        .send_batch("helpdesk", &headers, phone.batch(&entries))
        .await;
    // The projection may have been quicker.
    if answer.status == 200 {
        assert_eq!(answer.json()["status"], "complete");
    } else {
        let receipt = answer.clone().expect(202).json();
        assert_eq!(receipt["status"], "accepted", "{receipt}");
        let location = answer.header("location").expect("a Location").to_owned();
        assert_eq!(
            location,
            format!(
                "/api/v1/sync/batches/{}",
                receipt["receipt"].as_str().expect("a receipt")
            )
        );
    }
    assert_eq!(answer.header("preference-applied"), Some("wait=0"));
    let (batch, receipt) = (
        answer.json()["batch_id"].clone(),
        answer.json()["receipt"].clone(),
    );
    let resolved = eventually("the receipt resolves", async || {
        let answer = phone
            .get(&format!("/api/v1/sync/batches/{}", receipt.as_str()?))
            .await
            .expect(200);
        (answer.json()["status"] == "complete").then_some(answer)
    })
    .await;
    assert_eq!(
        resolved.json()["synced_items"].as_array().map(Vec::len),
        Some(3),
        "{}",
        resolved.text()
    );
    assert_eq!(resolved.json()["errors"][0]["index"], 3, "{}", resolved.text());
    let by_batch = phone
        .get(&format!(
            "/api/v1/sync/batches/{}/",
            batch.as_str().expect("an id")
        ))
        .await
        .expect(200);
    assert_eq!(by_batch.body, resolved.body);
    let posted = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    assert_eq!(
        posted.body, resolved.body,
        "the post repeated gives the final answer"
    );
    assert_eq!(posted.header("idempotent-replayed"), Some("true"));
    let again = phone
        .send_batch("helpdesk", &headers, phone.batch(&entries))
        .await
        .expect(200);
    assert_eq!(again.body, posted.body, "from then on the same bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_for_its_sender_and_for_operators() {
    let phone = phone_of("private");
    let answer = phone.post("helpdesk", &tickets(1)).await.expect(200).json();
    use tidelog_http::auth::Role;
    for id in [&answer["batch_id"], &answer["receipt"]] {
        let path = format!("/api/v1/sync/batches/{}", id.as_str().expect("an id"));
        phone.get(&path).await.expect(200);
        for (user, role, status) in [
            ("ben", Role::User, 404),
            ("ben", Role::Supervisor, 404),
            ("ops", Role::Operator, 200),
        ] {
            Phone::of(deployment(), &phone.tenant, user, "phone-2", role)
                .get(&path)
                .await
                .expect(status);
        }
        Phone::of(
            deployment(),
            &tenant("foreign"),
            "asha",
            "phone-1",
            Role::Operator,
        )
        .get(&path)
        .await
        .expect(404);
    }
    phone
        .get(&format!("/api/v1/sync/batches/{}", Uuid::new_v4()))
        .await
        .expect_problem(404, "not-found", "");
    phone
        .get("/api/v1/sync/batches/nonsense")
        .await
        .expect_problem(404, "not-found", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_hangs_up_finds_its_batch_taken_once() {
    let phone = phone_of("hangup");
    let batches: Vec<(String, Vec<String>)> = (0..20).map(|_| (key(), tickets(5))).collect();
    for (key, entries) in &batches {
        let headers = [
            ("authorization", phone.bearer.as_str()),
            ("content-type", "application/json"),
            ("idempotency-key", key),
            ("prefer", "wait=30"),
        ];
        let bytes = bytes_of(
            "POST",
            "/api/v1/helpdesk/sync",
            &headers,
            phone.batch(entries).as_bytes(),
        );
        let mut stream = TcpStream::connect(("127.0.0.1", deployment().port)).expect("it listens");
        stream.write_all(&bytes).expect("it reads");
        // Closed with the answer outstanding.
    }
    for (key, entries) in &batches {
        let answer = final_answer(&phone, key, entries).await.json();
        let statuses: BTreeSet<&str> = answer["synced_items"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|e| e["status"].as_str())
            .collect();
        assert_eq!(statuses, BTreeSet::from(["created"]), "{answer}");
    }
    assert_eq!(effects(&phone.tenant).await, (100, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_twice_in_one_batch_is_applied_twice_in_order() {
    let phone = phone_of("twice");
    let id = Uuid::new_v4();
    let entries = [
        ticket(id, "Made offline and edited").to_string(),
        json!({"mobile_id": id, "version": 0, "comments": "first edit", "status": "OPEN"}).to_string(),
        json!({"mobile_id": id, "version": 0, "comments": "second edit", "status": "INPROGRESS"}).to_string(),
    ];
    let answer = phone.post("helpdesk", &entries).await.expect(200).json();
    let told: Vec<(&Value, &Value)> = answer["synced_items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| (&e["status"], &e["server_version"]))
        .collect();
    assert_eq!(
        told,
        [
            (&json!("created"), &json!(1)),
            (&json!("updated"), &json!(2)),
            (&json!("updated"), &json!(3))
        ]
    );
    let record = phone.record("helpdesk", &id.to_string()).await.expect(200).json();
    assert_eq!(
        (&record["comments"], &record["version"]),
        (&"second edit".into(), &3.into())
    );
    assert_eq!(effects(&phone.tenant).await, (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_and_without_a_trailing_slash_is_one_batch() {
    let phone = phone_of("slash");
    let (key, entries) = (key(), tickets(1));
    let first = phone.post_keyed("helpdesk", &key, &entries).await.expect(200);
    let headers = [("idempotency-key", key.as_str())];
    let again = phone
        .send(
            Method::POST,
            "/api/v1/helpdesk/sync/",
            &headers,
            phone.batch(&entries),
        )
        .await
        .expect(200);
    assert_eq!(again.body, first.body);
    assert_eq!(effects(&phone.tenant).await, (1, 1));
}
