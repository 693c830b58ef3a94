//! A mixed batch as a request: it needs a key and is known by it, it answers an entry an item in the order sent, and it
//! has a receipt that resolves in the same form. What its items do is told in `mixed_items`.

use std::sync::OnceLock;

use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::items::{ENTITY_TYPES, Known, mixed, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

/// Shared with the other files on mixed batches.
pub(super) fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "mixed").deployment
}

pub(super) fn phone_of(name: &str) -> Phone {
    Phone::new(deployment(), &tenant(name), "asha")
}

fn key() -> String {
    Uuid::new_v4().to_string()
}

/// A new ticket, as an item of a mixed batch.
fn ticket(text: &str) -> String {
    mixed(
        "ticket",
        "create",
        Uuid::new_v4(),
        0,
        &json!({ "ticketdesc": text }).to_string(),
    )
}

fn statuses(answer: &Value) -> Vec<&str> {
    let results = answer["results"].as_array().expect("results");
    results
        .iter()
        .map(|entry| entry["status"].as_str().expect("a status"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_types_in_one_batch_are_answered_in_the_order_sent() {
    let phone = phone_of("five");
    let mut items = Vec::new();
    let mut expected = Vec::new();
    // Two rounds, so that no order by domain is the order sent; what is refused stands among the others.
    for round in 0..2 {
        for (entity_type, domain) in ENTITY_TYPES {
            let made = (Known::of(domain).item)(round);
            let id: Uuid = made.identity[0].parse().expect("an id");
            items.push(mixed(entity_type, "create", id, 0, &made.text));
            expected.push((json!(id), json!(entity_type), json!("created"), json!(1)));
        }
        let id = Uuid::new_v4();
        items.push(mixed("ticket", "create", id, 0, r#"{"ticketdesc":"short"}"#));
        expected.push((json!(id), json!("ticket"), json!("error"), Value::Null));
    }
    let answer = phone.post_mixed(&key(), &items).await.expect(200).json();
    let results = answer["results"].as_array().expect("results");
    let told: Vec<_> = results
        .iter()
        .map(|entry| {
            let member = |name: &str| entry[name].clone();
            (
                member("mobile_id"),
                member("entity_type"),
                member("status"),
                member("server_version"),
            )
        })
        .collect();
    assert_eq!(told, expected, "{answer}");
    assert!(
        results.iter().enumerate().all(|(at, entry)| entry["index"] == at),
        "{answer}"
    );
    assert_eq!(answer["status"], "complete");
    // One receipt for all domains: a read of each waits for it.
    let receipt = answer["receipt"].as_str().expect("a receipt");
    for (_, domain) in ENTITY_TYPES {
        let read = phone.pull(domain, &format!("wait_for={receipt}")).await;
        assert_eq!(read.len(), 2, "{domain}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_needs_one_key_and_a_good_one() {
    let phone = phone_of("keys");
    let item = ticket("A ticket that is not to be");
    let body = |members: &str| format!(r#"{{"client_id":"phone-1",{members}"items":[{item}]}}"#);
    let named = key();
    let other = format!(r#""idempotency_key":"{}","#, key());
    let both = [("idempotency-key", named.as_str())];
    for (headers, members, slug, detail) in [
        (&[][..], "", "bad-request", "a mixed batch needs a key"),
        (
            &[],
            r#""idempotency_key":null,"#,
            "bad-request",
            "a mixed batch needs a key",
        ),
        (&both, other.as_str(), "bad-request", "two different keys"),
        (
            &[],
            r#""idempotency_key":"fifteen-letters","#,
            "idempotency-key-invalid",
            "16 to 255",
        ),
        (
            &[],
            r#""idempotency_key":"","#,
            "idempotency-key-invalid",
            "16 to 255",
        ),
        (
            &[],
            r#""idempotency_key":"with a space in it","#,
            "idempotency-key-invalid",
            "visible ASCII",
        ),
        (
            &[],
            r#""idempotency_key":1234567890123456,"#,
            "bad-request",
            "idempotency_key must be a string",
        ),
        (
            &[("idempotency-key", "short")],
            "",
            "idempotency-key-invalid",
            "16 to 255",
        ),
    ] {
        let answer = phone.send_mixed(headers, body(members)).await;
        answer.expect_problem(400, slug, detail);
    }
    assert!(phone.pull("helpdesk", "").await.is_empty(), "nothing was taken");

    // In the header, quoted or not, in the body, and in both: the same key, so the same batch.
    let in_body = format!(r#""idempotency_key":"{named}","#);
    let quoted = format!("\"{named}\"");
    let first = phone.send_mixed(&[], body(&in_body)).await.expect(200);
    assert_eq!(first.header("idempotent-replayed"), None);
    for (header, members) in [
        (Some(&named), ""),
        (Some(&quoted), ""),
        (Some(&named), &in_body),
        (None, &in_body),
    ] {
        let headers: Vec<_> = header
            .iter()
            .map(|value| ("idempotency-key", value.as_str()))
            .collect();
        let again = phone.send_mixed(&headers, body(members)).await.expect(200);
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        assert_eq!(again.body, first.body);
    }
    assert_eq!(phone.pull("helpdesk", "").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_batch_of_one_user() {
    let phone = phone_of("one-key");
    let key = key();
    let id = Uuid::new_v4();
    let data = r#"{"ticketdesc":"Sent once and again","sync_status":"pending_sync"}"#;
    let item = mixed("ticket", "create", id, 0, data);
    let first = phone
        .post_mixed(&key, std::slice::from_ref(&item))
        .await
        .expect(200);

    // A retry renews what says where the device stands, wherever that is told.
    let renewed = json!({
        "client_id": "phone-1", "sent_at": "2026-03-01T10:00:00Z", "last_sync_timestamp": "2026-03-01T09:00:00Z",
        "items": [{
            "mobile_id": id, "entity_type": "ticket", "operation": "create", "version": 0, "sync_status": "sync_error",
            "data": {"last_sync_timestamp": "2026-03-01T09:00:00Z", "sync_status": "sync_error", "ticketdesc": "Sent once and again"},
        }],
    });
    let headers = [("idempotency-key", key.as_str())];
    let again = phone.send_mixed(&headers, renewed.to_string()).await.expect(200);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body, first.body, "byte for byte");

    // Any other word is another batch, and so is one to a domain.
    for (old, new) in [
        ("Sent once", "Sent twice"),
        ("create", "update"),
        (r#""version":0"#, r#""version":1"#),
        (r#""data""#, r#""client_timestamp":"2026-03-01T10:00:00Z","data""#),
    ] {
        let other = item.replace(old, new);
        assert_ne!(other, item);
        let answer = phone.post_mixed(&key, &[other]).await;
        answer.expect_problem(422, "idempotency-key-reused", "another batch");
    }
    let answer = phone.post_keyed("helpdesk", &key, &tickets(1)).await;
    answer.expect_problem(422, "idempotency-key-reused", "another batch");

    // Of another user the same key, and even the same body, is another batch.
    let ben = Phone::of(deployment(), &phone.tenant, "ben", "phone-1", Role::User);
    let bens = ben
        .post_mixed(&key, &[ticket("Another ticket")])
        .await
        .expect(200);
    assert_eq!(bens.header("idempotent-replayed"), None);
    assert_ne!(bens.json()["batch_id"], first.json()["batch_id"]);

    // What is known of the key.
    let known = phone.get(&format!("/api/v1/sync/idempotency/{key}")).await;
    let known = known.expect(200).json();
    let records = known["records"].as_array().expect("records");
    assert_eq!(records.len(), 1, "{known}");
    let record = &records[0];
    assert_eq!(
        (&record["status"], &record["batch_id"], &record["receipt"]),
        (
            &json!("complete"),
            &first.json()["batch_id"],
            &first.json()["receipt"]
        ),
        "{known}"
    );
    assert_eq!(record["hit_count"], 1, "{known}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_resolves_in_the_form_of_the_answer() {
    let deployment = Deployment::new("mixed-receipt");
    deployment.prepare();
    let _ingest = deployment.start_listening("ingest", "/readyz");
    let phone = Phone::new(&deployment, &tenant("receipt"), "asha");
    let items = [
        ticket("Waits for the projection"),
        mixed("lorry", "create", Uuid::new_v4(), 0, "{}"),
        mixed(
            "task",
            "create",
            Uuid::new_v4(),
            0,
            r#"{"jobdesc":"Check the pumps"}"#,
        ),
    ];
    let key = key();
    let headers = [("idempotency-key", key.as_str()), ("prefer", "wait=0")];
    let mut receipts = Vec::new();
    for path in ["/api/v1/sync/batch", "/api/v1/sync/batch/"] {
        let answer = phone
            .send(Method::POST, path, &headers, phone.mixed(&items))
            .await
            .expect(202);
        let told = answer.json();
        assert_eq!(
            (&told["status"], statuses(&told)),
            (&json!("accepted"), vec!["error"])
        );
        assert_eq!(
            (&told["results"][0]["index"], &told["results"][0]["entity_type"]),
            (&json!(1), &json!("lorry")),
            "{told}"
        );
        let location = answer.header("location").expect("a Location").to_owned();
        let receipt = told["receipt"].as_str().expect("a receipt");
        assert_eq!(location, format!("/api/v1/sync/batches/{receipt}"));
        let pending = phone.get(&location).await.expect(200).json();
        assert_eq!(pending["results"], told["results"], "what is known so far");
        assert_eq!(pending["status"], "accepted");
        receipts.push((location, told["batch_id"].clone()));
    }
    assert_eq!(receipts[0], receipts[1], "the same batch");
    let (location, batch) = &receipts[0];
    let batch = batch.as_str().expect("a batch");

    let _project = deployment.start("project");
    let last = eventually("the receipt is final", async || {
        let answer = phone.get(location).await.expect(200);
        (answer.json()["status"] == "complete").then_some(answer)
    })
    .await;
    assert_eq!(statuses(&last.json()), ["created", "error", "created"]);
    let answer = phone.post_mixed(&key, &items).await.expect(200);
    assert_eq!(
        answer.json(),
        last.json(),
        "the receipt says what the answer says"
    );
    let by_id = phone
        .get(&format!("/api/v1/sync/batches/{batch}"))
        .await
        .expect(200);
    assert_eq!(by_id.json()["results"], last.json()["results"]);

    // Only to who sent it, and to operators of the tenant.
    let other = |tenant: &str, role| Phone::of(&deployment, tenant, "eve", "phone-9", role);
    for path in [location.clone(), format!("/api/v1/sync/batches/{batch}")] {
        other(&phone.tenant, Role::Supervisor)
            .get(&path)
            .await
            .expect(404);
        other(&tenant("elsewhere"), Role::Operator)
            .get(&path)
            .await
            .expect(404);
        let operator = other(&phone.tenant, Role::Operator).get(&path).await.expect(200);
        assert_eq!(operator.json()["results"], last.json()["results"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_resolves_by_the_log_alone() {
    let phone = phone_of("unnoted");
    let items = [
        mixed(
            "task",
            "create",
            Uuid::new_v4(),
            0,
            r#"{"jobdesc":"Check the pumps"}"#,
        ),
        ticket("Beside a task"),
    ];
    let answer = phone.post_mixed(&key(), &items).await.expect(200).json();
    // As where the gateway that took it never came to note it down.
    let db = deployment().db().await;
    db.rows("DELETE FROM batches WHERE tenant_id = $1", &[&phone.tenant])
        .await;
    for name in ["receipt", "batch_id"] {
        let id = answer[name].as_str().expect("an id");
        let path = format!("/api/v1/sync/batches/{id}");
        let resolved = phone.get(&path).await.expect(200).json();
        assert_eq!(resolved["results"], answer["results"], "by {name}: {resolved}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_items_are_taken_and_one_more_is_not() {
    let phone = phone_of("thousand");
    let items: Vec<String> = (0..1001)
        .map(|n| match n % 2 {
            0 => ticket(&format!("Ticket number {n} of a batch")),
            _ => mixed(
                "task",
                "create",
                Uuid::new_v4(),
                0,
                &json!({"jobdesc": format!("Task {n}")}).to_string(),
            ),
        })
        .collect();
    let answer = phone.post_mixed(&key(), &items).await;
    answer.expect_problem(413, "payload-too-large", "items has 1001 items; at most 1000");
    let answer = phone.post_mixed(&key(), &items[..1000]).await.expect(200).json();
    assert_eq!(statuses(&answer), ["created"; 1000]);
    assert_eq!(phone.pull("helpdesk", "limit=1000").await.len(), 500);
    assert_eq!(phone.pull("activity", "limit=1000").await.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_mixed_batch_is_told_so() {
    let phone = phone_of("bodies");
    let item = ticket("A ticket that is not to be");
    let key = key();
    let headers = [("idempotency-key", key.as_str())];
    for (body, status, detail) in [
        (format!("[{item}]"), 400, "it is a list"),
        ("{}".to_owned(), 400, "items is missing"),
        (r#"{"items":null}"#.to_owned(), 400, "items is missing"),
        (r#"{"items":[]}"#.to_owned(), 400, "items is empty"),
        (r#"{"items":{}}"#.to_owned(), 400, "items must be a list"),
        (r#"{"items":"none"}"#.to_owned(), 400, "items must be a list"),
        (
            format!(r#"{{"client_id":"phone-1","entries":[{item}]}}"#),
            400,
            "items is missing",
        ),
        (
            format!(r#"{{"client_id":"phone-1","items":[{item}],"items":[{item}]}}"#),
            400,
            "duplicate field `items`",
        ),
        (
            format!(r#"{{"client_id":"x","items":[{item}]}}"#),
            400,
            "client_id must be 5 to 100",
        ),
        (format!(r#"{{"items":[{item}]}}"#), 400, "client_id is missing"),
        (
            format!(r#"{{"client_id":"phone-1","items":[{item}"#),
            400,
            "not a batch in JSON",
        ),
    ] {
        let answer = phone.send_mixed(&headers, body).await;
        answer.expect_problem(status, "bad-request", detail);
    }
    let body = phone.mixed(&[item]);
    let plain = [headers[0], ("content-type", "text/plain")];
    phone.send_mixed(&plain, body.clone()).await.expect(415);
    let json = [headers[0], ("content-type", "application/json")];
    let nobody = phone
        .http
        .send(Method::POST, "/api/v1/sync/batch", &json, body.into());
    nobody.await.expect(401);
    assert!(phone.pull("helpdesk", "").await.is_empty(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_sees_nothing_of_it() {
    let phone = phone_of("mine");
    let stranger = Phone::of(deployment(), &tenant("theirs"), "asha", "phone-1", Role::Operator);
    let (key, id) = (key(), Uuid::new_v4());
    let data = r#"{"ticketdesc":"Nobody else's business"}"#;
    let items = [mixed("ticket", "create", id, 0, data)];
    let mine = phone.post_mixed(&key, &items).await.expect(200).json();
    assert!(stranger.pull("helpdesk", "").await.is_empty());
    for path in [
        format!("helpdesk/records/{id}"),
        format!("helpdesk/records/{id}/history"),
        format!("sync/idempotency/{key}"),
        format!("sync/batches/{}", mine["receipt"].as_str().expect("a receipt")),
        format!("sync/batches/{}", mine["batch_id"].as_str().expect("a batch")),
    ] {
        stranger.get(&format!("/api/v1/{path}")).await.expect(404);
    }
    // The same user, device, key, body and record there: a batch and a record of that tenant's own.
    let theirs = stranger.post_mixed(&key, &items).await.expect(200).json();
    assert_eq!(statuses(&theirs), ["created"]);
    assert_ne!(theirs["batch_id"], mine["batch_id"]);
}
