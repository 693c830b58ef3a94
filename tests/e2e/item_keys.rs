//! An item is recognised whatever batch it comes in, answers with its first outcome for ever, and each time it comes
//! again is counted once: whatever is retried, replayed or rebuilt.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::items::{DOMAINS, Known, ticket, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "items").deployment
}

fn key() -> String {
    Uuid::new_v4().to_string()
}

async fn post(phone: &Phone, domain: &str, entries: &[String]) -> Value {
    phone.post_keyed(domain, &key(), entries).await.expect(200).json()
}

/// The rows of items, whole.
async fn rows(deployment: &Deployment, tenant: &str) -> Vec<Value> {
    let sql = "SELECT * FROM idempotency_records WHERE tenant_id = $1 AND scope = 'item' ORDER BY domain, subject, device_id, key";
    deployment.db().await.objects(sql, &[&tenant]).await
}

fn counts(rows: &[Value]) -> Vec<i64> {
    rows.iter()
        .map(|row| row["hit_count"].as_i64().expect("a count"))
        .collect()
}

/// What an item was told first, and what it is told as a repeat: the same but for the status.
fn assert_same(first: &Value, again: &Value, list: &str) {
    let entries = |answer: &Value| answer[list].as_array().expect("a list").clone();
    assert_eq!(entries(first).len(), entries(again).len(), "{first}\n{again}");
    for (mut then, mut now) in entries(first).into_iter().zip(entries(again)) {
        assert_eq!(now["status"], "duplicate", "{again}");
        then["status"].take();
        now["status"].take();
        assert_eq!(then, now);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_became_of_an_item_it_is_told_again_under_any_key_and_after_a_day() {
    let phone = Phone::new(deployment(), &tenant("outcomes"), "asha");
    let ben = Phone::of(deployment(), &phone.tenant, "ben", "phone-2", Role::User);
    let (mine, shared) = (Uuid::new_v4(), Uuid::new_v4());
    ben.apply("helpdesk", ticket(shared, "Somebody else's ticket"))
        .await;
    ben.apply(
        "helpdesk",
        json!({"mobile_id": shared, "version": 1, "comments": "changed since"}),
    )
    .await;
    let entries = [
        ticket(mine, "Created, updated, deleted").to_string(),
        json!({"mobile_id": mine, "version": 1, "comments": "updated"}).to_string(),
        json!({"mobile_id": shared, "version": 1, "comments": "behind"}).to_string(),
        json!({"mobile_id": mine, "version": 2, "sync_status": "pending_delete"}).to_string(),
        json!({"mobile_id": mine, "version": 3, "sync_status": "pending_delete"}).to_string(),
    ];
    let first = post(&phone, "helpdesk", &entries).await;
    assert_eq!(first["synced_items"].as_array().map(Vec::len), Some(4), "{first}");
    assert!(first["conflicts"][0]["conflict_id"].is_string(), "{first}");
    assert_eq!(rows(deployment(), &phone.tenant).await, [] as [Value; 0]);
    for round in 1..=2 {
        let again = post(&phone, "helpdesk", &entries).await;
        assert_same(&first, &again, "synced_items");
        assert_same(&first, &again, "conflicts");
        let rows = rows(deployment(), &phone.tenant).await;
        assert_eq!(counts(&rows), [round; 5], "{rows:?}");
        assert!(
            rows.iter().all(|row| row["batch_id"] == again["batch_id"]),
            "{rows:?}"
        );
    }
    // A day later nothing is left of keys, and the fold knows the items all the same: they are counted from anew.
    let sql = "UPDATE idempotency_records SET expires_at = expires_at - '25 h'::interval, last_hit_at = last_hit_at - '25 h'::interval,
                   created_at = created_at - '25 h'::interval WHERE tenant_id = $1";
    deployment().db().await.rows(sql, &[&phone.tenant]).await;
    let again = post(&phone, "helpdesk", &entries).await;
    assert_same(&first, &again, "synced_items");
    assert_same(&first, &again, "conflicts");
    assert_eq!(counts(&rows(deployment(), &phone.tenant).await), [1; 5]);
    let sql = "SELECT count(*) FROM conflicts WHERE tenant_id = $1";
    assert_eq!(deployment().db().await.count(sql, &[&phone.tenant]).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_of_every_domain_that_comes_again_is_one_row_that_can_be_asked_for() {
    let phone = Phone::new(deployment(), &tenant("domains"), "asha");
    for known in &DOMAINS {
        let made = (known.item)(1);
        let items = [made.text.clone()];
        post(&phone, known.url, &items).await;
        let second = key();
        phone.post_keyed(known.url, &second, &items).await.expect(200);
        let sql = "SELECT *, round(extract(epoch FROM expires_at - last_hit_at))::bigint AS kept, logged_at FROM idempotency_records
                   JOIN outcomes USING (tenant_id, batch_id, domain, subject, topic, partition) WHERE tenant_id = $1 AND scope = 'item' AND domain = $2";
        let found = deployment()
            .db()
            .await
            .objects(sql, &[&phone.tenant, &known.url])
            .await;
        assert_eq!(found.len(), 1, "{}: {found:?}", known.url);
        let row = &found[0];
        let subject = made.subject("asha", "phone-1");
        assert_eq!(row["subject"], json!(subject));
        assert_eq!((&row["hit_count"], &row["kept"]), (&json!(1), &json!(24 * 3600)));
        assert_eq!(
            (&row["last_hit_at"], &row["created_at"]),
            (&row["logged_at"], &row["logged_at"]),
            "by the log's time"
        );
        let key = row["key"].as_str().expect("a key");
        assert_eq!(row["fingerprint"], json!(format!("\\x{key}")));
        ask_for(&phone, known, &subject, key, &second).await;
    }
}

async fn ask_for(phone: &Phone, known: &Known, subject: &str, item: &str, batch: &str) {
    let path = |key: &str| format!("/api/v1/sync/idempotency/{key}");
    let of_item = phone.get(&path(item)).await.expect(200).json()["records"][0].clone();
    assert_eq!(
        (&of_item["scope"], &of_item[known.id_column()], &of_item["domain"]),
        (&json!("item"), &json!(subject), &json!(known.url)),
        "{of_item}"
    );
    let of_batch = phone.get(&path(batch)).await.expect(200).json()["records"][0].clone();
    let repeated = &of_batch["items"][0];
    assert_eq!(
        (
            &repeated["status"],
            &repeated[known.id_column()],
            &repeated["index"]
        ),
        (&json!("duplicate"), &json!(subject), &json!(0)),
        "{of_batch}"
    );
    for (tenant, user, role, status) in [
        (phone.tenant.clone(), "ben", Role::Supervisor, 404),
        (phone.tenant.clone(), "ops", Role::Operator, 200),
        (format!("{}-2", phone.tenant), "asha", Role::Operator, 404),
    ] {
        let other = Phone::of(deployment(), &tenant, user, "phone-9", role);
        for key in [item, batch] {
            other.get(&path(key)).await.expect(status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_while_its_row_is_being_removed_waits_and_counts_from_anew() {
    let phone = Phone::new(deployment(), &tenant("removed"), "asha");
    let entries = tickets(1);
    for _ in 0..3 {
        post(&phone, "helpdesk", &entries).await;
    }
    assert_eq!(counts(&rows(deployment(), &phone.tenant).await), [2]);
    let db = deployment().db().await;
    db.rows("BEGIN", &[]).await;
    let sql = "DELETE FROM idempotency_records WHERE tenant_id = $1 AND scope = 'item' RETURNING key";
    assert_eq!(db.rows(sql, &[&phone.tenant]).await.len(), 1);
    let headers = [("prefer", "wait=1")];
    let thrice = phone.batch(&[&entries[0], &entries[0], &entries[0]]);
    let waiting = phone.send_batch("helpdesk", &headers, thrice.clone()).await;
    waiting.expect(202);
    db.rows("COMMIT", &[]).await;
    eventually("the batch is applied", async || {
        let answer = phone.send_batch("helpdesk", &headers, thrice.clone()).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(
        counts(&rows(deployment(), &phone.tenant).await),
        [3],
        "those of this batch, and no more"
    );
}

/// Waits until everything in the log is applied.
async fn applied(deployment: &Deployment) {
    eventually("no lag", async || {
        let status = deployment.run(&["status", "--output", "json"]).json();
        (status["lag"] == 0 && status["applied"].as_i64() > Some(0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_counts_nothing_and_a_rebuild_counts_the_same() {
    let service = Service::start("item-rebuild");
    let deployment = service.deployment.clone();
    let phone = Phone::new(&deployment, &tenant("rebuild"), "asha");
    let tablet = Phone::of(&deployment, &phone.tenant, "asha", "tablet-1", Role::User);
    let entries = tickets(20);
    post(&phone, "helpdesk", &entries).await;
    for repeat in 1..5 {
        post(&phone, "helpdesk", &entries[..20 - 3 * repeat]).await;
        post(&tablet, "helpdesk", &entries[..repeat]).await;
        post(&phone, "voice", &[(Known::of("voice").item)(repeat % 2).text]).await;
    }
    let before = rows(&deployment, &phone.tenant).await;
    assert_eq!(counts(&before).iter().sum::<i64>(), 50 + 10 + 2, "{before:?}");
    assert_eq!(service.process.terminate(), 0);

    // The whole log read again, by a worker that has forgotten how far it was.
    let sql = "UPDATE positions SET next_offset = 0 RETURNING topic";
    deployment.db().await.rows(sql, &[]).await;
    let again = deployment.start_listening("serve", "/readyz");
    applied(&deployment).await;
    assert_eq!(rows(&deployment, &phone.tenant).await, before);
    assert_eq!(again.terminate(), 0);

    // And into tables that have never seen it.
    let mut fresh = deployment.clone();
    fresh.schema.push_str("_fresh");
    fresh.run(&["migrate"]).ok();
    let rebuilt = fresh.start_listening("serve", "/readyz");
    applied(&fresh).await;
    assert_eq!(rows(&fresh, &phone.tenant).await, before);
    assert_eq!(rebuilt.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_who_sends_the_same_again() {
    let service = Service::start("restless");
    let deployment = &service.deployment;
    let nobody = deployment.run(&["status", "--idempotency"]).ok();
    assert!(nobody.contains("Nobody sent anything again"), "{nobody}");
    let (acme, other) = (tenant("acme"), tenant("other"));
    let of = |tenant: &str, user, device| Phone::of(deployment, tenant, user, device, Role::User);
    let restless = of(&acme, "asha", "phone-1");
    let (entries, one) = (tickets(10), key());
    for _ in 0..4 {
        restless.post_keyed("helpdesk", &one, &entries).await.expect(200);
    }
    post(&restless, "helpdesk", &entries).await;
    let sometimes = of(&acme, "asha", "phone-2");
    post(&sometimes, "helpdesk", &entries[..2]).await;
    let elsewhere = of(&other, "ben", "phone-1");
    for _ in 0..2 {
        elsewhere.post("helpdesk", &entries[..1]).await.expect(200);
    }
    of(&acme, "cleo", "phone-3")
        .post("helpdesk", &tickets(3))
        .await
        .expect(200);

    let shown = |args: &[&str]| {
        let all = [&["status", "--idempotency", "--output", "json"], args].concat();
        let found = deployment.run(&all).json();
        let lines: Vec<[Value; 8]> = found["devices"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|d| {
                assert!(d["last_hit_at"].is_string(), "{d}");
                [
                    "tenant",
                    "user",
                    "device",
                    "hits",
                    "batch_hits",
                    "item_hits",
                    "keys",
                    "keys_hit",
                ]
                .map(|name| d[name].clone())
            })
            .collect();
        (lines, found["has_more"] == true)
    };
    let line = |tenant: &str, user, device, numbers: [i64; 5]| {
        let [hits, batches, items, keys, hit] = numbers;
        [
            json!(tenant),
            json!(user),
            json!(device),
            json!(hits),
            json!(batches),
            json!(items),
            json!(keys),
            json!(hit),
        ]
    };
    let expected = [
        line(&acme, "asha", "phone-1", [13, 3, 10, 12, 11]),
        line(&acme, "asha", "phone-2", [2, 0, 2, 3, 2]),
        line(&other, "ben", "phone-1", [1, 1, 0, 1, 1]),
    ];
    assert_eq!(shown(&[]), (expected.to_vec(), false));
    assert_eq!(shown(&["--limit", "1"]), (expected[..1].to_vec(), true));
    assert_eq!(shown(&["--tenant", &other]), (expected[2..].to_vec(), false));
    let text = deployment.run(&["status", "--idempotency", "--limit", "2"]).ok();
    assert!(
        text.contains("phone-2") && text.contains("There are more") && !text.contains("ben"),
        "{text}"
    );
    for bad in [
        &["status", "--limit", "5"][..],
        &["status", "--idempotency", "--limit", "0"],
        &["status", "--idempotency", "--all"],
    ] {
        assert_eq!(deployment.run(bad).code, 2, "{bad:?}");
    }
}
