//! What the items of a mixed batch do: each is judged and folded as the item of a batch to its domain would be, its
//! data's bytes are the event.

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use super::mixed_batches::{deployment, phone_of};
use crate::support::items::{ENTITY_TYPES, Known, mixed};
use crate::support::kafka::{Record, read_topic};
use crate::support::phone::Phone;

/// A second user of a phone's tenant.
fn colleague(phone: &Phone) -> Phone {
    Phone::of(deployment(), &phone.tenant, "ben", "phone-2", Role::User)
}

fn events(domain: &str, id: Uuid) -> Vec<Record> {
    let topic = deployment().topic(Known::of(domain).topic);
    let mut records = read_topic(&deployment().brokers, &topic);
    records.retain(|record| record.header("ce_subject") == id.to_string());
    records
}

/// What became of an item: status, version, and error by code, field and rule.
pub(super) fn told(entry: &Value) -> (&str, Option<i64>, String) {
    let text = |name: &str| entry[name].as_str().unwrap_or_default();
    let error = [text("error_code"), text("field"), text("rule")].join(" ");
    (
        text("status"),
        entry["server_version"].as_i64(),
        error.trim().to_owned(),
    )
}

pub(super) fn done(status: &str, version: i64) -> (&str, Option<i64>, String) {
    (status, Some(version), String::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_operations_on_one_record_apply_in_their_order() {
    let phone = phone_of("order");
    let id = Uuid::new_v4();
    let of = |operation: &str, version, data: &str| mixed("ticket", operation, id, version, data);
    let results = phone
        .results(&[
            of("create", 0, r#"{"ticketdesc":"Made, edited, closed"}"#),
            of("update", 0, r#"{"comments":"first"}"#),
            of("update", 0, r#"{"status":"RESOLVED"}"#),
            of("update", 0, r#"{"status":"OPEN","comments":"second"}"#),
            format!(r#"{{"mobile_id":"{id}","entity_type":"ticket","operation":"delete","version":3}}"#),
            of("delete", 4, "null"),
        ])
        .await;
    let transition = "INVALID_TRANSITION data.status transition".to_owned();
    let all: Vec<_> = results.iter().map(told).collect();
    assert_eq!(
        all,
        [
            done("created", 1),
            done("updated", 2),
            ("error", None, transition),
            done("updated", 3),
            done("updated", 4),
            // Deleted already: nothing changes, so nothing has a version.
            done("updated", 4),
        ]
    );
    assert_eq!(results[2]["allowed"], json!(["OPEN"]), "{}", results[2]);
    phone.record("helpdesk", &id.to_string()).await.expect(404);
    assert_eq!(
        events("helpdesk", id)[4].value,
        "{}",
        "a deletion without data is an empty object"
    );

    // An item on the deletion's version brings the record back, as a new one.
    let back = phone
        .results(&[of("create", 4, r#"{"ticketdesc":"Brought back to life"}"#)])
        .await;
    assert_eq!(told(&back[0]), done("created", 5));
    let record = phone.record("helpdesk", &id.to_string()).await.expect(200).json();
    assert_eq!(
        (&record["ticketdesc"], record.get("comments")),
        (&json!("Brought back to life"), None)
    );
    // Deleting what never was is no error.
    let none = mixed("task", "delete", Uuid::new_v4(), 0, "{}");
    assert_eq!(
        told(&phone.results(&[none]).await[0]),
        ("updated", None, String::new())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_is_the_datas_bytes_and_the_envelope_its_headers() {
    let phone = phone_of("events");
    let time = "2026-03-01T11:30:00.250+02:00";
    let mut items = Vec::new();
    let mut expected = Vec::new();
    for (n, (entity_type, domain)) in ENTITY_TYPES.into_iter().enumerate() {
        let made = (Known::of(domain).item)(n);
        let id: Uuid = made.identity[0].parse().expect("an id");
        let timed = n % 2 == 0;
        let stamp = if timed {
            format!(r#","client_timestamp":"{time}""#)
        } else {
            String::new()
        };
        let item = format!(
            r#"{{"entity_type":"{entity_type}", "data" : {} ,"mobile_id":"{}","operation":"create"{stamp}}}"#,
            made.text,
            id.to_string().to_uppercase()
        );
        items.push(item);
        expected.push((domain, id, made, timed));
    }
    let key = Uuid::new_v4().to_string();
    let answer = phone.post_mixed(&key, &items).await.expect(200).json();
    let batch = answer["batch_id"].as_str().expect("a batch");
    for (index, (domain, id, made, timed)) in expected.iter().enumerate() {
        let known = Known::of(domain);
        let found = events(domain, *id);
        let [event] = found.as_slice() else {
            panic!("{domain}: {found:?}")
        };
        assert_eq!(event.value, made.text, "{domain}");
        assert_eq!(event.key, made.key(&phone.tenant, "asha", "phone-1"));
        let mut names = vec![
            "ce_specversion",
            "ce_id",
            "ce_type",
            "ce_source",
            "ce_subject",
            "ce_time",
            "ce_batch",
            "ce_baseversion",
            "ce_policy",
            "content-type",
        ];
        names.extend(timed.then_some("ce_clienttime"));
        assert_eq!(event.header_names(), names, "{domain}");
        let facts = [
            ("ce_type", format!("tidelog.{}.create", known.table)),
            ("ce_batch", format!("{batch}/{index}")),
            ("ce_baseversion", "0".into()),
            ("ce_policy", known.policy.expect("a policy").into()),
        ];
        for (name, value) in facts {
            assert_eq!(event.header(name), value, "{domain}");
        }
        if *timed {
            assert_eq!(event.header("ce_clienttime"), time);
            assert_eq!(event.header("ce_time"), "2026-03-01T09:30:00.250000Z");
        }
    }
    // The item of a domain's batch has its time in its value.
    let id = Uuid::new_v4();
    let item = json!({"mobile_id": id, "ticketdesc": "Of a domain's batch", "client_timestamp": time});
    phone.apply("helpdesk", item).await;
    let found = events("helpdesk", id);
    assert!(!found[0].header_names().contains(&"ce_clienttime"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_member_that_is_there_twice_the_last_counts() {
    let phone = phone_of("twice");
    let (other, id) = (Uuid::new_v4(), Uuid::new_v4());
    let data = r#"{"ticketdesc":"Said twice over","priority":"URGENT","priority":"LOW"}"#;
    let item = |first: &str| {
        format!(
            r#"{{"mobile_id":"{other}","entity_type":"lorry","operation":"delete","data":{first},
                "mobile_id":"{id}","entity_type":"ticket","operation":"create","data":{data}}}"#
        )
    };
    let key = Uuid::new_v4().to_string();
    let first = phone.post_mixed(&key, &[item("{}")]).await.expect(200);
    // Every value that is sent is judged, the last is what counts: as in a batch to the domain.
    let error = "VALIDATION_ERROR data.priority enum".to_owned();
    assert_eq!(told(&first.json()["results"][0]), ("error", None, error));
    let data = data.replace("URGENT", "HIGH");
    let good = item("{}").replace("URGENT", "HIGH");
    let results = phone.results(std::slice::from_ref(&good)).await;
    assert_eq!(told(&results[0]), done("created", 1));
    assert_eq!(results[0]["mobile_id"], json!(id));
    assert_eq!(events("helpdesk", id)[0].value, data);
    assert_eq!(
        phone.record("helpdesk", &id.to_string()).await.expect(200).json()["priority"],
        "LOW"
    );
    // What does not count tells no batch from another.
    let key = Uuid::new_v4().to_string();
    phone.post_mixed(&key, &[good]).await.expect(200);
    let again = item(r#"{"x":1}"#).replace("URGENT", "HIGH");
    let again = phone.post_mixed(&key, &[again]).await.expect(200);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_made_again_later_is_another_and_a_repeat_is_none() {
    let phone = phone_of("again");
    let id = Uuid::new_v4();
    let edit = |comments: &str, minute: u8| {
        let data = format!(r#"{{"comments":"{comments}"}}"#);
        let item = mixed("ticket", "update", id, 1, &data);
        item.replace(
            r#""data""#,
            &format!(r#""client_timestamp":"2026-03-01T10:{minute:02}:00Z","data""#),
        )
    };
    let create = mixed("ticket", "create", id, 0, r#"{"ticketdesc":"There and back"}"#);
    let items = [create, edit("A", 1), edit("B", 2), edit("A", 3)];
    let first = phone.results(&items).await;
    let all: Vec<_> = first.iter().map(told).collect();
    assert_eq!(
        all,
        [
            done("created", 1),
            done("updated", 2),
            done("updated", 3),
            done("updated", 4)
        ]
    );
    let record = phone.record("helpdesk", &id.to_string()).await.expect(200).json();
    assert_eq!(
        (&record["comments"], &record["version"]),
        (&json!("A"), &json!(4))
    );

    // The same items in another batch, under another key and in another order.
    let mut reversed = items.to_vec();
    reversed.reverse();
    let key = Uuid::new_v4().to_string();
    let again = phone.post_mixed(&key, &reversed).await.expect(200).json();
    let all: Vec<_> = again["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(told)
        .collect();
    assert_eq!(
        all,
        [
            done("duplicate", 4),
            done("duplicate", 3),
            done("duplicate", 2),
            done("duplicate", 1)
        ]
    );
    assert_eq!(
        phone.record("helpdesk", &id.to_string()).await.expect(200).json()["version"],
        4
    );
    // The repeats of a batch are told with its key as its answer tells them.
    let known = phone
        .get(&format!("/api/v1/sync/idempotency/{key}"))
        .await
        .expect(200);
    let record = &known.json()["records"][0];
    assert_eq!(record["repeated_items"], 4, "{record}");
    assert_eq!(record["items"], again["results"], "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_told_in_its_place_and_listed() {
    let phone = phone_of("behind");
    let ben = colleague(&phone);
    let (task, ticket) = (Uuid::new_v4(), Uuid::new_v4());
    phone
        .results(&[
            mixed("task", "create", task, 0, r#"{"jobdesc":"Check the pumps"}"#),
            mixed(
                "ticket",
                "create",
                ticket,
                0,
                r#"{"ticketdesc":"The lift is stuck"}"#,
            ),
        ])
        .await;
    ben.apply(
        "activity",
        json!({"mobile_id": task, "version": 1, "remarks": "ben's"}),
    )
    .await;
    ben.apply(
        "helpdesk",
        json!({"mobile_id": ticket, "version": 1, "status": "OPEN"}),
    )
    .await;
    let early = mixed("task", "update", task, 1, r#"{"remarks":"mine"}"#)
        .replace(r#""data""#, r#""client_timestamp":"2026-03-01T10:00:00Z","data""#);
    let items = [
        mixed(
            "ticket",
            "update",
            ticket,
            1,
            r#"{"comments":"mine","status":"NEW"}"#,
        ),
        early,
    ];
    let results = phone.results(&items).await;
    let conflict = |entry: &Value| {
        [
            "status",
            "resolution",
            "winner",
            "server_version",
            "client_version",
        ]
        .map(|name| entry[name].clone())
    };
    assert_eq!(
        conflict(&results[0]),
        [
            json!("conflict"),
            json!("preserve_escalation"),
            json!("merged"),
            json!(3),
            json!(1)
        ]
    );
    assert_eq!(
        conflict(&results[1]),
        [
            json!("conflict"),
            json!("most_recent_wins"),
            json!("server"),
            json!(2),
            json!(1)
        ]
    );
    for (at, domain) in ["helpdesk", "activity"].into_iter().enumerate() {
        let path = format!("/api/v1/conflicts?domain={domain}");
        let listed = ben.get(&path).await.expect(200).json();
        let listed = listed["items"].as_array().expect("items");
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0]["conflict_id"], results[at]["conflict_id"]);
        assert_eq!(listed[0]["user"], "asha");
    }
    // By the item's own time, and the attempt says it.
    let id = results[1]["conflict_id"].as_str().expect("an id");
    let one = ben
        .get(&format!("/api/v1/conflicts/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(one["client_timestamp"], "2026-03-01T10:00:00.000000Z", "{one}");
    // Again, it is a duplicate with the same conflict.
    let again = phone.results(&items).await;
    for (then, now) in results.iter().zip(&again) {
        assert_eq!(now["status"], "duplicate", "{now}");
        assert_eq!(now["conflict_id"], then["conflict_id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anothers_attendance_is_forbidden_and_says_nothing() {
    let phone = phone_of("owner");
    let ben = colleague(&phone);
    let id = Uuid::new_v4();
    let data = r#"{"deviceid":"handset-1","gpslocation":{"type":"Point","coordinates":[0,0]}}"#;
    phone.results(&[mixed("attendance", "create", id, 0, data)]).await;
    let results = ben
        .results(&[
            mixed("attendance", "update", id, 1, r#"{"reference":"not his"}"#),
            format!(r#"{{"mobile_id":"{id}","entity_type":"attendance","operation":"delete","version":1}}"#),
            mixed(
                "task",
                "create",
                Uuid::new_v4(),
                0,
                r#"{"jobdesc":"His own task"}"#,
            ),
        ])
        .await;
    for entry in &results[..2] {
        assert_eq!(
            told(entry),
            ("error", None, "FORBIDDEN owner".replace(' ', "  ")),
            "{entry}"
        );
        assert!(entry.get("server_version").is_none(), "{entry}");
    }
    assert_eq!(told(&results[2]), done("created", 1));
    ben.record("attendance", &id.to_string()).await.expect(404);
    assert_eq!(
        phone
            .record("attendance", &id.to_string())
            .await
            .expect(200)
            .json()["version"],
        1
    );
}

/// A document without what is each record's own.
fn without_own(mut doc: Value, names: &[&str]) -> Value {
    let members = doc.as_object_mut().expect("an object");
    for name in names {
        assert!(members.remove(*name).is_some(), "{name} is told");
    }
    doc
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_show_a_record_as_if_posted_to_its_domain() {
    let phone = phone_of("alike");
    let time = "2026-03-01T11:30:00+02:00";
    for (n, (entity_type, domain)) in ENTITY_TYPES.into_iter().enumerate() {
        let made = (Known::of(domain).item)(n);
        let Ok(Value::Object(mut item)) = serde_json::from_str(&made.text) else {
            panic!("no object: {}", made.text)
        };
        item.insert("client_timestamp".into(), json!(time));
        item.remove("version");
        phone.apply(domain, Value::Object(item.clone())).await;
        let id = Uuid::new_v4();
        for name in ["mobile_id", "client_timestamp", "sync_status"] {
            item.remove(name);
        }
        let posted = json!({"mobile_id": id, "entity_type": entity_type, "operation": "create", "client_timestamp": time, "data": item});
        phone.results(&[posted.to_string()]).await;

        let numbers: &[&str] = match domain {
            "helpdesk" => &["mobile_id", "last_sync_timestamp", "ticketno"],
            "work-orders" => &["mobile_id", "last_sync_timestamp", "wo_number"],
            _ => &["mobile_id", "last_sync_timestamp"],
        };
        let ids = [made.identity[0].clone(), id.to_string()];
        let mut documents = Vec::new();
        let mut pasts = Vec::new();
        for id in &ids {
            let record = phone.record(domain, id).await.expect(200).json();
            let pulled = phone.pull(domain, "").await;
            let pulled = pulled.iter().find(|doc| doc["mobile_id"] == id.as_str());
            assert_eq!(pulled, Some(&record), "{domain}: changes and records agree");
            documents.push(without_own(record, numbers));
            let past = phone.get(&format!("/api/v1/{domain}/records/{id}/history")).await;
            let past = past.expect(200).json()["items"][0].clone();
            pasts.push(
                ["operation", "version", "fields", "before", "client_timestamp"]
                    .map(|name| past[name].clone()),
            );
        }
        assert_eq!(documents[0], documents[1], "{domain}");
        assert_eq!(pasts[0], pasts[1], "{domain}");
    }
}
