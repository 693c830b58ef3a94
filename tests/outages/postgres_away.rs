//! Ingest needs only the log: with Postgres away batches are accepted, applied once when it is back, and their receipts
//! resolve.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::http::Answer;
use crate::support::items::{id_of, mixed, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::proxy::Proxy;
use crate::support::service::Deployment;
use crate::support::{Dice, eventually, stack};

/// A deployment whose way to Postgres can be cut; one whose way cannot made its tables.
fn cuttable(name: &str) -> (Deployment, Deployment, Proxy) {
    let direct = Deployment::new(name);
    direct.prepare();
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = direct.clone();
    through.database_url = url;
    (direct, through, proxy)
}

/// A retry's answer once it is final.
async fn final_answer(phone: &Phone, key: &str, entries: &[String]) -> Answer {
    eventually("the final answer", async || {
        let answer = phone.post_keyed("helpdesk", key, entries).await;
        (answer.status == 200).then_some(answer)
    })
    .await
}

async fn applied_once(direct: &Deployment, tenant: &str, items: i64) {
    let db = direct.db().await;
    for (table, what) in [("helpdesk", "rows"), ("helpdesk_changes", "changes")] {
        let count = db
            .count(
                &format!("SELECT count(*) FROM {table} WHERE tenant_id = $1"),
                &[&tenant],
            )
            .await;
        assert_eq!(count, items, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_accepted_applied_later_and_their_receipts_resolve() {
    let (direct, through, proxy) = cuttable("pg-cut");
    let _serve = through.start_listening("serve", "/readyz");
    let phone = Phone::new(&through, &tenant("cut"), "asha");
    phone.post("helpdesk", &tickets(2)).await.expect(200);

    proxy.cut();
    let mut taken = Vec::new();
    for n in 0..3 {
        let (key, mut entries) = (Uuid::new_v4().to_string(), tickets(4));
        entries.insert(
            n,
            json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "short"}).to_string(),
        );
        let since = Instant::now();
        let answer = phone.post_keyed("helpdesk", &key, &entries).await.expect(202);
        // It does not wait for what cannot come.
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        let told = answer.json();
        assert_eq!(told["status"], "accepted", "{told}");
        assert_eq!(
            told["errors"][0]["index"], n,
            "what the gateway refused is known already: {told}"
        );
        let location = answer.header("location").expect("a Location").to_owned();
        // Impatient phones ask again meanwhile; nothing may happen twice for it.
        let again = phone
            .post_keyed("helpdesk", &key, &entries)
            .await
            .expect(202)
            .json();
        assert_eq!(again["batch_id"], told["batch_id"]);
        taken.push((
            key,
            entries,
            location,
            again["receipt"].as_str().expect("a receipt").to_owned(),
        ));
    }
    let answer = phone.get("/api/v1/helpdesk/changes").await;
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    answer.expect_problem(503, "unavailable", "");
    let answer = phone.get(&taken[0].2).await;
    answer.expect_problem(503, "unavailable", "");

    proxy.mend();
    for (key, entries, location, second_receipt) in &taken {
        let resolved = eventually("the receipt resolves", async || {
            let answer = phone.get(location).await;
            (answer.status == 200 && answer.json()["status"] == "complete").then_some(answer)
        })
        .await;
        assert_eq!(
            resolved.json()["synced_items"].as_array().map(Vec::len),
            Some(4),
            "{}",
            resolved.text()
        );
        let last = final_answer(&phone, key, entries).await;
        assert_eq!(
            last.json()["errors"].as_array().map(Vec::len),
            Some(1),
            "{}",
            last.text()
        );
        assert_eq!(
            final_answer(&phone, key, entries).await.body,
            last.body,
            "from then on the same bytes"
        );
        let by_second = phone
            .get(&format!("/api/v1/sync/batches/{second_receipt}"))
            .await
            .expect(200)
            .json();
        assert_eq!(by_second["synced_items"], last.json()["synced_items"]);
    }
    applied_once(&direct, &phone.tenant, 2 + 3 * 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_batch_is_accepted_and_its_sealed_receipt_resolves_in_its_form() {
    let (direct, through, proxy) = cuttable("pg-mixed");
    let _project = direct.start("project");
    let ingest = through.start_listening("ingest", "/readyz");
    let phone = Phone::new(&through, &tenant("mixed"), "asha");
    let (ticket, task) = (Uuid::new_v4(), Uuid::new_v4());
    let items = [
        mixed("task", "create", task, 0, r#"{"jobdesc":"Check the pumps"}"#),
        mixed(
            "ticket",
            "create",
            ticket,
            0,
            r#"{"ticketdesc":"The lift is stuck"}"#,
        ),
        mixed("lorry", "create", Uuid::new_v4(), 0, "{}"),
        mixed("ticket", "update", ticket, 0, r#"{"comments":"Since noon"}"#),
    ];
    let key = Uuid::new_v4().to_string();
    proxy.cut();
    let answer = phone.post_mixed(&key, &items).await.expect(202);
    let told = answer.json();
    assert_eq!(told["status"], "accepted", "{told}");
    assert_eq!(told["results"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(
        told["results"][0]["index"], 2,
        "what the gateway refused is known already"
    );
    let location = answer.header("location").expect("a Location").to_owned();

    // This gateway will never note it down: all that is left of the batch is the log and the receipt.
    ingest.kill9();
    proxy.mend();
    let _ingest = direct.start_listening("ingest", "/readyz");
    let resolved = eventually("the receipt resolves", async || {
        let answer = phone.get(&location).await.expect(200).json();
        (answer["status"] == "complete").then_some(answer)
    })
    .await;
    let entry = |index: usize, id: Uuid, entity_type: &str, status: &str, version: i64| json!({"index": index, "mobile_id": id, "entity_type": entity_type, "status": status, "server_version": version});
    assert_eq!(
        resolved["results"],
        json!([
            entry(0, task, "task", "created", 1),
            entry(1, ticket, "ticket", "created", 1),
            entry(3, ticket, "ticket", "updated", 2),
        ])
    );
    // A phone that lost the receipt tries again: another append of the same events, and the whole answer.
    let last = eventually("the final answer", async || {
        let answer = phone.post_mixed(&key, &items).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    let results = last["results"].as_array().expect("results");
    assert_eq!(
        (results.len(), &results[2]["status"]),
        (4, &json!("error")),
        "{last}"
    );
    for told in resolved["results"].as_array().expect("results") {
        assert!(results.contains(told), "{last}");
    }
    let db = direct.db().await;
    for (table, changes) in [("activity_changes", 1), ("helpdesk_changes", 2)] {
        let sql = format!("SELECT count(*) FROM {table} WHERE tenant_id = $1");
        assert_eq!(db.count(&sql, &[&phone.tenant]).await, changes, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_falls_silent_is_not_waited_for() {
    let (direct, through, proxy) = cuttable("pg-silent");
    let _serve = through.start_listening("serve", "/readyz");
    let phone = Phone::new(&through, &tenant("silent"), "asha");
    phone.post("helpdesk", &tickets(2)).await.expect(200);
    proxy.silence();
    for _ in 0..3 {
        let since = Instant::now();
        let answer = phone
            .send_batch("helpdesk", &[], phone.batch(&tickets(5)))
            .await
            .expect(202);
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert_eq!(answer.json()["status"], "accepted");
    }
    proxy.mend();
    let db = direct.db().await;
    eventually("all are applied", async || {
        let sql = "SELECT count(*) FROM helpdesk WHERE tenant_id = $1";
        (db.count(sql, &[&phone.tenant]).await == 17).then_some(())
    })
    .await;
    applied_once(&direct, &phone.tenant, 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_and_a_projector_start_while_postgres_is_away() {
    let (direct, through, proxy) = cuttable("pg-boot");
    proxy.cut();
    let _ingest = through.start_listening("ingest", "/readyz");
    let _project = through.start("project");
    let phone = Phone::new(&through, &tenant("boot"), "asha");
    let (key, entries) = (Uuid::new_v4().to_string(), tickets(5));
    phone.post_keyed("helpdesk", &key, &entries).await.expect(202);
    proxy.mend();
    let answer = final_answer(&phone, &key, &entries).await.json();
    let told: Vec<&Value> = answer["synced_items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| &e["status"])
        .collect();
    assert_eq!(told, ["created"; 5], "{answer}");
    applied_once(&direct, &phone.tenant, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_breaks_now_and_then_loses_and_repeats_nothing() {
    let (direct, through, proxy) = cuttable("pg-flaky");
    let _serve = through.start_listening("serve", "/readyz");
    let phone = Phone::new(&through, &tenant("flaky"), "asha");
    let mut dice = Dice::new(11);
    let mut batches = Vec::new();
    for n in 0..40 {
        let (key, entries) = (Uuid::new_v4().to_string(), tickets(5));
        match dice.roll(4) {
            0 => proxy.cut(),
            1 | 2 => proxy.mend(),
            _ => {}
        }
        let answer = phone
            .send_batch("helpdesk", &[("idempotency-key", &key)], phone.batch(&entries))
            .await;
        assert!([200, 202].contains(&answer.status), "{n}: {}", answer.text());
        batches.push((key, entries));
    }
    proxy.mend();
    for (key, entries) in &batches {
        let answer = final_answer(&phone, key, entries).await.json();
        let told: Vec<&Value> = answer["synced_items"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|e| &e["status"])
            .collect();
        assert_eq!(told, ["created"; 5], "{answer}");
    }
    applied_once(&direct, &phone.tenant, 200).await;
    let told = phone.pull("helpdesk", "limit=33").await;
    assert_eq!(told.len(), 200);
    assert!(batches.iter().all(|(_, entries)| {
        told.iter()
            .any(|item| item["mobile_id"] == id_of(&entries[0]).as_str())
    }));
}

/// Nothing of it reached the log, and nobody could note it: told for good would be told otherwise the next time.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_which_nothing_may_pass_is_final_once_it_can_be_noted() {
    let (_direct, through, proxy) = cuttable("pg-refused");
    let _serve = through.start_listening("serve", "/readyz");
    let phone = Phone::new(&through, &tenant("refused"), "asha");
    phone.post("helpdesk", &tickets(1)).await.expect(200);

    proxy.cut();
    let bad = [
        json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "The lift is stuck again", "priority": "URGENT"})
            .to_string(),
    ];
    let key = Uuid::new_v4().to_string();
    let told = phone.post_keyed("helpdesk", &key, &bad).await.expect(202).json();
    assert_eq!(told["errors"][0]["field"], "priority", "{told}");
    proxy.mend();
    let answer = final_answer(&phone, &key, &bad).await;
    assert_eq!(phone.post_keyed("helpdesk", &key, &bad).await.body, answer.body);
    let path = format!(
        "/api/v1/sync/batches/{}",
        told["receipt"].as_str().expect("a receipt")
    );
    let resolved = phone.get(&path).await.expect(200).json();
    assert_eq!(
        (&resolved["status"], &resolved["errors"]),
        (&json!("complete"), &told["errors"]),
        "{resolved}"
    );
}
