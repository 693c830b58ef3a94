//! No change is missed: whoever follows the cursor holds what the service holds, whatever commits meanwhile; a first
//! sync is without what was deleted; a read can wait for one's own write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::items::{id_of, ticket, tickets};
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::{Deployment, Service};
use crate::support::{Dice, eventually};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "reading").deployment
}

fn phone_of(name: &str) -> Phone {
    Phone::new(deployment(), &tenant(name), "asha")
}

fn ids(items: &[Value]) -> BTreeSet<String> {
    items
        .iter()
        .map(|item| item["mobile_id"].as_str().expect("an id").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_brings_what_is_new_and_each_record_as_it_now_is() {
    let phone = phone_of("cursor");
    let mut replica = Replica::default();
    assert!(replica.catch_up(&phone, "helpdesk", 10).await.is_empty());
    let entries = tickets(25);
    phone.post("helpdesk", &entries).await.expect(200);
    assert_eq!(replica.catch_up(&phone, "helpdesk", 10).await.len(), 25);
    assert!(
        replica.catch_up(&phone, "helpdesk", 10).await.is_empty(),
        "nothing is told twice"
    );
    // Ten changes of one record are one entry.
    let id = id_of(&entries[7]);
    let edits: Vec<String> = (1..=10)
        .map(|n| json!({"mobile_id": id, "version": n, "comments": format!("edit {n}")}).to_string())
        .collect();
    phone.post("helpdesk", &edits).await.expect(200);
    let told = replica.catch_up(&phone, "helpdesk", 10).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["version"], &told[0]["comments"]),
        (&11.into(), &"edit 10".into())
    );
    assert_eq!(
        told[0]["ticketdesc"], "Ticket number 7 of a batch",
        "an edit is a patch"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_cursor_leads_to_what_is_now() {
    let phone = phone_of("old");
    let entries = tickets(5);
    phone.post("helpdesk", &entries).await.expect(200);
    let mut late = Replica::default();
    late.catch_up(&phone, "helpdesk", 100).await;
    let gone = id_of(&entries[0]);
    phone
        .apply(
            "helpdesk",
            json!({"mobile_id": gone, "version": 1, "sync_status": "pending_delete"}),
        )
        .await;
    phone
        .apply(
            "helpdesk",
            json!({"mobile_id": id_of(&entries[1]), "version": 1, "priority": "high"}),
        )
        .await;
    phone.post("helpdesk", &tickets(2)).await.expect(200);
    let told = late.catch_up(&phone, "helpdesk", 1).await;
    assert_eq!(told.len(), 4, "{told:?}");
    let removal = told
        .iter()
        .find(|item| item["mobile_id"] == gone.as_str())
        .expect("a removal");
    assert_eq!(
        *removal,
        json!({"mobile_id": gone, "deleted": true, "version": 2})
    );
    assert_eq!(late.records.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_sync_is_without_what_was_deleted() {
    let phone = phone_of("first");
    let entries = tickets(10);
    phone.post("helpdesk", &entries).await.expect(200);
    let before = phone.page("helpdesk", "limit=1000").await["next_timestamp"]
        .as_str()
        .expect("a time")
        .to_owned();
    for entry in &entries[..4] {
        phone
            .apply(
                "helpdesk",
                json!({"mobile_id": id_of(entry), "version": 1, "sync_status": "pending_delete"}),
            )
            .await;
    }
    let told = phone.pull("helpdesk", "limit=3").await;
    assert_eq!(
        ids(&told),
        entries[4..].iter().map(|entry| id_of(entry)).collect()
    );
    assert!(told.iter().all(|item| item.get("deleted").is_none()));
    // A time includes tombstones.
    let since = phone
        .pull("helpdesk", &format!("since={before}&limit=1000"))
        .await;
    assert_eq!(
        since.iter().filter(|item| item["deleted"] == true).count(),
        4,
        "{since:?}"
    );
    // What was deleted comes back as a create does.
    let id = id_of(&entries[0]);
    phone
        .apply(
            "helpdesk",
            json!({"mobile_id": id, "version": 2, "ticketdesc": "Back from the dead"}),
        )
        .await;
    let record = phone.record("helpdesk", &id).await.expect(200).json();
    assert_eq!(
        (&record["version"], &record["ticketdesc"]),
        (&3.into(), &"Back from the dead".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_misses_nothing() {
    // An old app keeps a time, and asks page by page from the time that it was given last.
    let phone = phone_of("since");
    let first = tickets(7);
    phone.post("helpdesk", &first).await.expect(200);
    let page = phone.page("helpdesk", "limit=1000").await;
    let mut seen = ids(page["items"].as_array().expect("items"));
    let mut posted: BTreeSet<String> = first.iter().map(|entry| id_of(entry)).collect();
    let mut since = page["next_timestamp"].as_str().expect("a time").to_owned();
    for _ in 0..6 {
        let entries = tickets(7);
        posted.extend(entries.iter().map(|entry| id_of(entry)));
        phone.post("helpdesk", &entries).await.expect(200);
        loop {
            let page = phone.page("helpdesk", &format!("limit=5&since={since}")).await;
            let before = seen.len();
            seen.extend(ids(page["items"].as_array().expect("items")));
            let next = page["next_timestamp"].as_str().expect("a time").to_owned();
            let (more, moved) = (page["has_more"] == true, next != since || seen.len() > before);
            since = next;
            assert!(!more || moved, "it stands still at {since}");
            if !more {
                break;
            }
        }
        assert_eq!(seen, posted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_any_size_add_up_while_writes_go_on() {
    let phone = phone_of("pages");
    let writer = Phone::new(deployment(), &phone.tenant, "asha");
    let mut dice = Dice::new(7);
    let first = tickets(40);
    writer.post("helpdesk", &first).await.expect(200);
    let mut known: BTreeMap<String, i64> = first.iter().map(|entry| (id_of(entry), 1)).collect();
    let mut replicas: Vec<Replica> = (0..7).map(|_| Replica::default()).collect();
    let mut told = Vec::new();
    for round in 0..20 {
        // Each reader takes a page, then somebody writes.
        for (limit, replica) in replicas.iter_mut().enumerate() {
            replica.step(&phone, "helpdesk", limit + 1, &mut told).await;
        }
        let mut entries = tickets(2);
        known.extend(entries.iter().map(|entry| (id_of(entry), 1)));
        let picked: BTreeSet<usize> = (0..5).map(|_| dice.roll(known.len())).collect();
        let picked: Vec<String> = known
            .keys()
            .enumerate()
            .filter(|(at, _)| picked.contains(at))
            .map(|(_, id)| id.clone())
            .collect();
        for id in picked {
            let mut edit = json!({"mobile_id": id, "version": known[&id]});
            if dice.roll(3) == 0 {
                edit["sync_status"] = "pending_delete".into();
                known.remove(&id);
            } else {
                edit["comments"] = format!("in round {round}").into();
                known.entry(id).and_modify(|version| *version += 1);
            }
            entries.push(edit.to_string());
        }
        let answer = writer.post("helpdesk", &entries).await.expect(200).json();
        assert_eq!(
            (&answer["errors"], &answer["conflicts"]),
            (&json!([]), &json!([])),
            "{answer}"
        );
    }
    let snapshot: BTreeMap<String, Value> = phone
        .pull("helpdesk", "limit=1000")
        .await
        .into_iter()
        .map(|item| (item["mobile_id"].as_str().expect("an id").to_owned(), item))
        .collect();
    assert_eq!(
        snapshot.keys().collect::<Vec<_>>(),
        known.keys().collect::<Vec<_>>()
    );
    for (limit, replica) in replicas.iter_mut().enumerate() {
        replica.catch_up(&phone, "helpdesk", limit + 1).await;
        assert_eq!(replica.records, snapshot, "pages of {}", limit + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_can_wait_for_ones_own_write() {
    let phone = phone_of("own-write");
    for _ in 0..10 {
        let entries = tickets(20);
        let answer = phone
            .send_batch("helpdesk", &[("prefer", "wait=0")], phone.batch(&entries))
            .await;
        let receipt = answer.json()["receipt"].as_str().expect("a receipt").to_owned();
        let path = format!(
            "/api/v1/helpdesk/records/{}?wait_for={receipt}",
            id_of(&entries[19])
        );
        phone
            .send(http::Method::GET, &path, &[("prefer", "wait=30")], "")
            .await
            .expect(200);
        let query = format!("/api/v1/helpdesk/changes?limit=1000&wait_for={receipt}");
        let page = phone
            .send(http::Method::GET, &query, &[("prefer", "wait=30")], "")
            .await
            .expect(200)
            .json();
        let told = ids(page["items"].as_array().expect("items"));
        assert!(entries.iter().all(|entry| told.contains(&id_of(entry))));
    }
    // A receipt of another tenant is none.
    let foreign = phone_of("own-write")
        .post("helpdesk", &tickets(1))
        .await
        .expect(200)
        .json();
    let query = format!(
        "/api/v1/helpdesk/changes?wait_for={}",
        foreign["receipt"].as_str().expect("a receipt")
    );
    phone
        .get(&query)
        .await
        .expect_problem(400, "bad-request", "wait_for");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_show_a_part() {
    let phone = phone_of("filters");
    let point = json!({"type": "Point", "coordinates": [1, 2]});
    for (domain, parameter, value, hit, miss) in [
        (
            "activity",
            "status",
            "INPROGRESS",
            json!({"jobdesc": "Task one", "jobstatus": "INPROGRESS"}),
            json!({"jobdesc": "Task two"}),
        ),
        (
            "activity",
            "priority",
            "LOW",
            json!({"jobdesc": "Task one", "priority": "LOW"}),
            json!({"jobdesc": "Task two", "priority": "HIGH"}),
        ),
        (
            "work-orders",
            "status",
            "IN_PROGRESS",
            json!({"description": "Order one", "status": "in_progress"}),
            json!({"description": "Order two"}),
        ),
        (
            "helpdesk",
            "priority",
            "high",
            json!({"ticketdesc": "A ticket of note", "priority": "HIGH"}),
            json!({"ticketdesc": "Another ticket"}),
        ),
        (
            "journal",
            "entry_type",
            "gratitude",
            json!({"entry_type": "gratitude", "timestamp": "2026-03-01T00:00:00Z"}),
            json!({"entry_type": "stress_log", "timestamp": "2026-03-01T00:00:00Z"}),
        ),
        (
            "attendance",
            "date_from",
            "2026-03-02",
            json!({"deviceid": "phone-1", "gpslocation": point, "receiveddate": "2026-03-02T00:00:00Z"}),
            json!({"deviceid": "phone-1", "gpslocation": point, "receiveddate": "2026-03-01T23:59:59Z"}),
        ),
        (
            "attendance",
            "date_from",
            "2026-03-02T10:00:00%2B05:30",
            json!({"deviceid": "phone-1", "gpslocation": point, "receiveddate": "2026-03-02T04:30:00Z"}),
            json!({"deviceid": "phone-1", "gpslocation": point, "receiveddate": "2026-03-02T04:29:59Z"}),
        ),
    ] {
        let phone = Phone::new(deployment(), &tenant("filter"), "asha");
        let wanted = Uuid::new_v4();
        for (id, mut item) in [(wanted, hit), (Uuid::new_v4(), miss)] {
            item["mobile_id"] = json!(id);
            phone.apply(domain, item).await;
        }
        for from in ["", "&since=2020-01-01T00:00:00Z"] {
            let told = phone.pull(domain, &format!("{parameter}={value}{from}")).await;
            assert_eq!(
                ids(&told),
                BTreeSet::from([wanted.to_string()]),
                "{domain} {parameter}={value}{from}"
            );
        }
    }
    // Two filters are an and; pages of filtered changes are full.
    let entries: Vec<String> = (0..40)
        .map(|n| json!({"mobile_id": Uuid::new_v4(), "jobdesc": "Task", "priority": if n % 4 == 0 {"LOW"} else {"HIGH"}}).to_string())
        .collect();
    phone.post("activity", &entries).await.expect(200);
    let page = phone.page("activity", "priority=LOW&limit=10").await;
    assert_eq!(page["items"].as_array().map(Vec::len), Some(10));
    assert_eq!(phone.pull("activity", "priority=LOW&limit=3").await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_found_by_its_identity() {
    let phone = phone_of("records");
    let id = Uuid::new_v4();
    phone.apply("helpdesk", ticket(id, "A ticket to be found")).await;
    let record = phone.record("helpdesk", &id.to_string()).await.expect(200);
    assert_eq!(record.json()["mobile_id"], json!(id));
    assert!(
        record.json()["ticketno"]
            .as_str()
            .is_some_and(|number| number.starts_with("TKT-")),
        "{}",
        record.text()
    );
    assert_eq!(
        phone
            .record("helpdesk", &id.to_string().to_uppercase())
            .await
            .expect(200)
            .body,
        record.body
    );
    assert_eq!(
        phone.record("helpdesk", &format!("{id}/")).await.expect(200).body,
        record.body
    );
    for absent in [Uuid::new_v4().to_string(), "17".into(), "%00".into()] {
        phone
            .record("helpdesk", &absent)
            .await
            .expect_problem(404, "not-found", "");
    }
    phone
        .record("activity", &id.to_string())
        .await
        .expect_problem(404, "not-found", "");
    phone
        .apply(
            "helpdesk",
            json!({"mobile_id": id, "version": 1, "sync_status": "pending_delete"}),
        )
        .await;
    phone
        .record("helpdesk", &id.to_string())
        .await
        .expect_problem(404, "not-found", "");
    // Of telemetry too, whose identity has parts.
    let item = r#"{"event_id":"a/b ü","timestamp":"2026-03-01T10:00:00Z"}"#;
    phone.post("behavioral", &[item]).await.expect(200);
    let told = phone.pull("behavioral", "").await;
    let subject = told[0]["item_id"].as_str().expect("an id");
    assert_eq!(subject, "asha/a%2Fb%20%C3%BC");
    phone.record("behavioral", subject).await.expect(200);
    phone
        .record("behavioral", &subject.replace('%', "%25"))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_served_with_and_without_a_trailing_slash() {
    let phone = phone_of("slashes");
    let answer = phone.post("helpdesk", &tickets(1)).await.expect(200).json();
    let batch = answer["batch_id"].as_str().expect("an id");
    let id = answer["synced_items"][0]["mobile_id"].as_str().expect("an id");
    for path in [
        "helpdesk/changes".to_owned(),
        format!("helpdesk/records/{id}"),
        format!("sync/batches/{batch}"),
    ] {
        let bare = phone.get(&format!("/api/v1/{path}")).await.expect(200);
        let slash = phone.get(&format!("/api/v1/{path}/")).await.expect(200);
        assert_eq!(bare.json()["items"], slash.json()["items"]);
    }
    phone.get("/api/v1/helpdesk/changes/?limit=1").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_copy_of_a_session_replaces_the_earlier_and_other_telemetry_does_not() {
    let phone = phone_of("sessions");
    let session = |status: &str| json!({"session_id": "s-1", "status": status}).to_string();
    for status in ["open", "closed"] {
        let answer = phone
            .post("sessions", &[session(status)])
            .await
            .expect(200)
            .json();
        assert_eq!(answer["synced_items"], 1, "{answer}");
    }
    let told = phone.pull("sessions", "").await;
    assert_eq!(
        (told.len(), &told[0]["status"]),
        (1, &json!("closed")),
        "{told:?}"
    );
    let voice = |verified: bool| {
        json!({"verification_id": "v-1", "timestamp": "2026-03-01T10:00:00Z", "verified": verified})
            .to_string()
    };
    for verified in [true, false] {
        let answer = phone.post("voice", &[voice(verified)]).await.expect(200).json();
        assert_eq!(
            (&answer["synced_items"], &answer["failed_items"]),
            (&1.into(), &0.into()),
            "{answer}"
        );
    }
    let told = phone.pull("voice", "").await;
    assert_eq!((told.len(), &told[0]["verified"]), (1, &json!(true)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_phones_of_one_user_end_with_the_same_copy() {
    let phone = phone_of("two");
    let second = Phone::of(deployment(), &phone.tenant, "asha", "phone-2", Role::User);
    let (mut one, mut two) = (Replica::default(), Replica::default());
    for _ in 0..5 {
        phone.post("work-orders", &[order()]).await.expect(200);
        one.catch_up(&phone, "work-orders", 2).await;
        second.post("work-orders", &[order(), order()]).await.expect(200);
        two.catch_up(&second, "work-orders", 100).await;
    }
    eventually("both hold the same", async || {
        one.catch_up(&phone, "work-orders", 3).await;
        two.catch_up(&second, "work-orders", 1).await;
        (one.records == two.records && one.records.len() == 15).then_some(())
    })
    .await;
}

fn order() -> String {
    json!({"mobile_id": Uuid::new_v4(), "description": "Replace the seal"}).to_string()
}
