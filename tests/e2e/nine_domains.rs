//! For every domain that ships: a batch of 100 is 100 CloudEvents, 100 rows, 100 changes; and posted again it changes
//! nothing but the count of hits, and is answered with the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog_events::partition::partition_of;
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::items::{DOMAINS, Known, Made, encoded, same};
use crate::support::kafka::{Record, read_topic};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{PARTITIONS, Service};

const ITEMS: usize = 100;

static SERVICE: OnceLock<Service> = OnceLock::new();

fn service() -> &'static Service {
    Service::shared(&SERVICE, "domains")
}

#[tokio::test(flavor = "multi_thread")]
async fn activity() {
    the_whole_way("activity").await;
    a_supervisors_event_says_so_and_a_wrong_clock_is_put_right().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_orders() {
    the_whole_way("work-orders").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attendance() {
    the_whole_way("attendance").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn helpdesk() {
    the_whole_way("helpdesk").await;
}

/// They share a topic, so they are not beside each other.
#[tokio::test(flavor = "multi_thread")]
async fn journal_and_its_media() {
    the_whole_way("journal").await;
    the_whole_way("journal-media").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voice() {
    the_whole_way("voice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behavioral() {
    the_whole_way("behavioral").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions() {
    the_whole_way("sessions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics() {
    the_whole_way("metrics").await;
}

async fn the_whole_way(url: &str) {
    let domain = Known::of(url);
    let deployment = &service().deployment;
    let (topic, db) = (deployment.topic(domain.topic), deployment.db().await);
    // Names that have to be encoded wherever they become part of a path.
    let phone = Phone::new(deployment, &tenant(url), "jürgen@x");
    let made: Vec<Made> = (0..ITEMS).map(domain.item).collect();
    let texts: Vec<&str> = made.iter().map(|made| made.text.as_str()).collect();

    let before = Utc::now();
    let first = phone.post(url, &texts).await.expect(200);
    let after = Utc::now();
    answer_tells_all(domain, &made, &phone, &first.json());
    let batch = first.json()["batch_id"].as_str().expect("a batch").to_owned();

    let of_tenant = || -> Vec<Record> {
        let key = format!("{}/", encoded(&phone.tenant));
        read_topic(&deployment.brokers, &topic)
            .into_iter()
            .filter(|record| record.key.starts_with(&key))
            .collect()
    };
    let records = of_tenant();
    assert_eq!(records.len(), ITEMS);
    let mut ids = BTreeSet::new();
    for record in &records {
        let index: usize = index_in(record.header("ce_batch"), &batch);
        event_is_as_specified(domain, &made[index], &phone, record, before, after);
        ids.insert(record.header("ce_id").to_owned());
    }
    assert_eq!(ids.len(), ITEMS, "every event has an id of its own");

    rows_hold_the_items(domain, &made, &phone, &db, &batch).await;
    changes_tell_the_items(domain, &made, &phone).await;

    let contents = db.contents(&phone.tenant, &topic).await;
    let hits = "SELECT hit_count FROM idempotency_records WHERE tenant_id = $1";
    let counted = db.count(hits, &[&phone.tenant]).await;
    let again = phone.post(url, &texts).await.expect(200);
    assert_eq!(again.body, first.body, "the same bytes");
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(db.count(hits, &[&phone.tenant]).await, counted + 1);
    assert_eq!(of_tenant().len(), ITEMS, "nothing more in the log");
    assert_eq!(
        db.contents(&phone.tenant, &topic).await,
        contents,
        "nothing changed in Postgres"
    );
}

fn answer_tells_all(domain: &Known, made: &[Made], phone: &Phone, answer: &Value) {
    assert_eq!(answer["status"], "complete", "{answer}");
    assert_eq!(answer["errors"], serde_json::json!([]), "{answer}");
    if !domain.is_entity() {
        assert_eq!(
            (&answer["synced_items"], &answer["failed_items"]),
            (&ITEMS.into(), &0.into()),
            "{answer}"
        );
        return;
    }
    assert_eq!(answer["conflicts"], serde_json::json!([]), "{answer}");
    let synced = answer["synced_items"].as_array().expect("a list");
    assert_eq!(synced.len(), ITEMS);
    for (index, (entry, made)) in synced.iter().zip(made).enumerate() {
        assert_eq!(entry["index"], index, "{entry}");
        assert_eq!(
            entry["mobile_id"],
            made.subject(&phone.user, &phone.device),
            "{entry}"
        );
        assert_eq!(
            (&entry["status"], &entry["server_version"]),
            (&"created".into(), &1.into()),
            "{entry}"
        );
    }
}

fn index_in(ce_batch: &str, batch: &str) -> usize {
    let (of, index) = ce_batch.split_once('/').expect("batch/index");
    assert_eq!(of, batch);
    index.parse().expect("an index")
}

fn event_is_as_specified(
    domain: &Known,
    made: &Made,
    phone: &Phone,
    record: &Record,
    before: DateTime<Utc>,
    after: DateTime<Utc>,
) {
    assert_eq!(record.value, made.text, "the bytes as they were sent");
    assert_eq!(record.key, made.key(&phone.tenant, &phone.user, &phone.device));
    assert_eq!(
        record.partition,
        partition_of(record.key.as_bytes(), PARTITIONS),
        "{}",
        record.key
    );
    let mut names = record.header_names();
    names.sort_unstable();
    let expected = [
        "ce_baseversion",
        "ce_batch",
        "ce_id",
        "ce_policy",
        "ce_source",
        "ce_specversion",
        "ce_subject",
        "ce_time",
        "ce_type",
        "content-type",
    ];
    assert_eq!(names, expected, "these headers and no others");
    let operation = if domain.is_entity() { "create" } else { "append" };
    let source = format!(
        "/tenants/{}/users/{}/devices/{}",
        encoded(&phone.tenant),
        encoded(&phone.user),
        phone.device
    );
    assert_eq!(record.header("ce_specversion"), "1.0");
    assert_eq!(
        record.header("ce_type"),
        format!("tidelog.{}.{operation}", domain.table)
    );
    assert_eq!(record.header("ce_source"), source);
    assert_eq!(
        record.header("ce_subject"),
        made.subject(&phone.user, &phone.device)
    );
    assert_eq!(record.header("ce_baseversion"), "0");
    assert_eq!(record.header("content-type"), "application/json");
    assert!(Uuid::try_parse(record.header("ce_id")).is_ok(), "{record:?}");
    if let Some(policy) = domain.policy {
        assert_eq!(record.header("ce_policy"), policy);
    }
    let time = DateTime::parse_from_rfc3339(record.header("ce_time")).expect("RFC 3339");
    match made.members().get("client_timestamp").and_then(Value::as_str) {
        Some(own) => assert_eq!(time, DateTime::parse_from_rfc3339(own).expect("RFC 3339")),
        None => assert!(
            (before..=after).contains(&time.to_utc()),
            "{time} is not the arrival"
        ),
    }
}

async fn rows_hold_the_items(
    domain: &Known,
    made: &[Made],
    phone: &Phone,
    db: &crate::support::db::Db,
    batch: &str,
) {
    let (table, id) = (domain.table, domain.id_column());
    let rows = db
        .objects(
            &format!("SELECT * FROM {table} WHERE tenant_id = $1"),
            &[&phone.tenant],
        )
        .await;
    assert_eq!(rows.len(), ITEMS);
    let rows: BTreeMap<&str, &Value> = rows
        .iter()
        .map(|row| (row[id].as_str().expect("an id"), row))
        .collect();
    let feed = db
        .objects(
            &format!("SELECT * FROM {table}_changes WHERE tenant_id = $1"),
            &[&phone.tenant],
        )
        .await;
    assert_eq!(feed.len(), ITEMS);
    let feed: BTreeMap<&str, &Value> = feed
        .iter()
        .map(|row| (row[id].as_str().expect("an id"), row))
        .collect();
    for (index, made) in made.iter().enumerate() {
        let subject = made.subject(&phone.user, &phone.device);
        let (row, change) = (rows[subject.as_str()], feed[subject.as_str()]);
        assert_eq!(
            (&row["version"], &row["deleted"]),
            (&1.into(), &false.into()),
            "{row}"
        );
        assert_eq!(
            (&row["owner_id"], &row["device_id"]),
            (&phone.user.as_str().into(), &"phone-1".into()),
            "{row}"
        );
        for (name, value) in &made.members() {
            assert!(same(value, &row["doc"][name]), "{name} is {value} and in {row}");
        }
        assert_eq!(
            (&change["version"], &change["operation"]),
            (&1.into(), &"create".into()),
            "{change}"
        );
        assert_eq!(
            (&change["batch_id"], &change["batch_index"]),
            (&batch.into(), &index.into()),
            "{change}"
        );
        let fields: BTreeSet<&str> = change["fields"]
            .as_array()
            .expect("names")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let all: BTreeSet<&str> = row["doc"]
            .as_object()
            .expect("a document")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(fields, all, "a creation touches all that the document has");
        assert_eq!(
            (&row["partition"], &row["offset"]),
            (&change["partition"], &change["offset"])
        );
    }
}

async fn changes_tell_the_items(domain: &Known, made: &[Made], phone: &Phone) {
    let told = phone.pull(domain.url, "limit=30").await;
    assert_eq!(told.len(), ITEMS);
    let told: BTreeMap<&str, &Value> = told
        .iter()
        .map(|item| (item[domain.id_column()].as_str().expect("an id"), item))
        .collect();
    for made in made {
        let item = told[made.subject(&phone.user, &phone.device).as_str()];
        assert_eq!(
            (&item["version"], &item["sync_status"]),
            (&1.into(), &"synced".into()),
            "{item}"
        );
        assert!(item["last_sync_timestamp"].is_string(), "{item}");
        for (name, value) in &made.members() {
            assert!(same(value, &item[name]), "{name} is {value} and in {item}");
        }
    }
}

/// The headers that are there only where they say something.
async fn a_supervisors_event_says_so_and_a_wrong_clock_is_put_right() {
    let deployment = &service().deployment;
    let phone = Phone::of(deployment, &tenant("skew"), "asha", "tablet-9", Role::Supervisor);
    let id = Uuid::new_v4();
    let now = Utc::now();
    // Two hours slow: what it did at `sent_at` less five minutes was done five minutes ago.
    let (sent_at, done_at) = (
        now - chrono::Duration::hours(2),
        now - chrono::Duration::minutes(125),
    );
    let body = serde_json::json!({
        "client_id": "tablet-9",
        "sent_at": sent_at.to_rfc3339(),
        "entries": [{"mobile_id": id, "version": 7, "jobdesc": "Of a phone with a slow clock", "client_timestamp": done_at.to_rfc3339()}],
    });
    let answer = phone
        .send_batch("activity", &[("prefer", "wait=30")], body.to_string())
        .await
        .expect(200);
    assert_eq!(
        answer.json()["synced_items"][0]["server_version"],
        1,
        "{}",
        answer.text()
    );
    let key = format!("{}/{id}", encoded(&phone.tenant));
    let records = read_topic(&deployment.brokers, &deployment.topic("sync.activity.v1"));
    let record = records
        .iter()
        .find(|record| record.key == key)
        .expect("the event");
    assert_eq!(record.header("ce_role"), "supervisor");
    assert_eq!(record.header("ce_type"), "tidelog.activity.update");
    assert_eq!(record.header("ce_baseversion"), "7");
    assert_eq!(record.headers.len(), 11, "{record:?}");
    let time = DateTime::parse_from_rfc3339(record.header("ce_time"))
        .expect("RFC 3339")
        .to_utc();
    let off = (time - (now - chrono::Duration::minutes(5))).num_milliseconds();
    assert!((0..5000).contains(&off), "{time} is off by {off} ms");
}

#[test]
fn all_domains_that_ship_are_tested() {
    let known: BTreeSet<&str> = DOMAINS.iter().map(|known| known.url).collect();
    let registry = tidelog_events::domain::Registry::shipped();
    let shipped: BTreeSet<&str> = registry.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(known, shipped);
}
