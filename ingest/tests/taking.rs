//! The write side against a real Kafka and a real Postgres, one promise a test; the stack is the one that all tests share.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use support::{Door, Fixture, batch, fixture, fixture_of, id, places, ticket, token};
use tidelog_events::domain::Registry;
use tidelog_events::envelope::Event;
use tidelog_ingest::ProducerConfig;
use tokio::task::JoinHandle;
use warp::http::Response;
use warp::hyper::body::Bytes;

const NOW: (&str, &str) = ("prefer", "wait=0");
const KEY: (&str, &str) = ("idempotency-key", "a-key-of-sixteen-characters");

fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).expect("JSON")
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().expect("text"))
}

const HELD: &str = "SELECT count(*) FROM idempotency_records WHERE lease_owner IS NOT NULL";

fn linger(producer: &mut ProducerConfig, milliseconds: &str) {
    producer.settings.push(("linger.ms".into(), milliseconds.into()));
}

fn post_in_background(fixture: &Arc<Fixture>, body: String) -> JoinHandle<Response<Bytes>> {
    let fixture = fixture.clone();
    tokio::spawn(async move { fixture.post(&body, &[NOW, KEY]).await })
}

async fn until_claimed(fixture: &Fixture) {
    while fixture.count(HELD).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn hits(fixture: &Fixture) -> i64 {
    fixture
        .count("SELECT sum(hit_count)::bigint FROM idempotency_records")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn items_become_events_whose_bytes_are_the_devices() {
    let fixture = fixture().await;
    let response = fixture.post(&batch(20), &[NOW, KEY]).await;
    assert_eq!(response.status(), 202);
    let log = fixture.log().await;
    assert_eq!(log.len(), 20);
    let registry = Registry::shipped();
    for record in &log {
        let headers = record
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(value.as_bytes())));
        let event = Event::from_headers(headers, &registry).expect("an event");
        assert_eq!(record.value, ticket(event.index));
        assert_eq!(record.key, format!("acme/{}", id(event.index)));
        assert_eq!((&*event.subject, event.base), (id(event.index).as_str(), 0));
        assert_eq!(event.id, event.batch.event_id(event.index));
        assert_eq!(
            record.header("ce_source"),
            "/tenants/acme/users/anna/devices/phone-1"
        );
        assert_eq!(record.header("ce_type"), "tidelog.helpdesk.create");
        assert_eq!(record.headers.len(), 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_batch_is_told_the_same_until_its_final_answer_and_that_from_then_on() {
    let fixture = fixture().await;
    let first = fixture.post(&batch(5), &[NOW, KEY]).await;
    assert_eq!(
        (first.status().as_u16(), header(&first, "preference-applied")),
        (202, Some("wait=0"))
    );
    let receipt = json(&first)["receipt"].as_str().expect("a receipt").to_owned();
    assert_eq!(
        header(&first, "location"),
        Some(format!("/api/v1/sync/batches/{receipt}").as_str())
    );
    assert_eq!(json(&first)["status"], "accepted");

    let again = fixture.post(&batch(5), &[NOW, KEY]).await;
    assert_eq!((again.status().as_u16(), again.body()), (202, first.body()));

    fixture.told.applied(5);
    fixture.project().await;
    let done = fixture.post(&batch(5), &[NOW, KEY]).await;
    assert_eq!(done.status(), 200);
    assert_eq!(json(&done)["synced_items"].as_array().map(Vec::len), Some(5));

    fixture.told.applied(4);
    let replayed = fixture.post(&batch(5), &[KEY]).await;
    assert_eq!((replayed.status().as_u16(), replayed.body()), (200, done.body()));
    assert_eq!(header(&replayed, "idempotent-replayed"), Some("true"));
    assert_eq!(fixture.log().await.len(), 5);
    assert_eq!(hits(&fixture).await, 3);
    assert_eq!(fixture.count("SELECT count(*) FROM batches").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_round_trip_ends_with_the_projection() {
    let fixture = Arc::new(fixture().await);
    fixture.told.applied(3);
    let posting = tokio::spawn({
        let fixture = fixture.clone();
        async move { fixture.post(&batch(3), &[("prefer", "wait=20")]).await }
    });
    while fixture.log().await.len() < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!posting.is_finished());
    fixture.project().await;
    let response = posting.await.expect("no panic");
    assert_eq!(
        (
            response.status().as_u16(),
            header(&response, "idempotent-replayed")
        ),
        (200, None)
    );
    assert_eq!(json(&response)["status"], "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_at_once_under_one_key_have_one_effect() {
    let fixture = Arc::new(fixture().await);
    let posts: Vec<_> = (0..30)
        .map(|_| {
            let fixture = fixture.clone();
            tokio::spawn(async move { fixture.post(&batch(50), &[NOW, KEY]).await })
        })
        .collect();
    let mut accepted = BTreeSet::new();
    for post in posts {
        let response = post.await.expect("no panic");
        match response.status().as_u16() {
            202 => drop(accepted.insert(response.body().clone())),
            409 => {
                assert_eq!(header(&response, "retry-after"), Some("1"));
                assert_eq!(json(&response)["type"], "/problems/request-in-flight");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(accepted.len(), 1, "every answer is the same");
    assert_eq!(fixture.log().await.len(), 50);
    assert_eq!(hits(&fixture).await, 29);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_serves_one_body_even_in_flight() {
    let fixture = fixture().await;
    assert_eq!(fixture.post(&batch(2), &[NOW, KEY]).await.status(), 202);
    let other = fixture.post(&batch(3), &[NOW, KEY]).await;
    assert_eq!(
        (other.status().as_u16(), &json(&other)["type"]),
        (422, &"/problems/idempotency-key-reused".into())
    );
    let sql = "UPDATE idempotency_records SET receipt = NULL, lease_owner = gen_random_uuid(), lease_until = now() + '1 h'";
    fixture.db.batch_execute(sql).await.expect("in flight");
    assert_eq!(fixture.post(&batch(3), &[NOW, KEY]).await.status(), 422);
    assert_eq!(fixture.post(&batch(2), &[NOW, KEY]).await.status(), 409);
    assert_eq!(hits(&fixture).await, 1, "another body is no hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_lease_is_taken_over_and_appends_the_same_events() {
    let fixture = fixture().await;
    fixture.post(&batch(2), &[NOW, KEY]).await;
    let sql = "UPDATE idempotency_records SET receipt = NULL, lease_owner = gen_random_uuid(), lease_until = now() - '1 s'::interval";
    fixture.db.batch_execute(sql).await.expect("crashed");
    assert_eq!(fixture.post(&batch(2), &[NOW, KEY]).await.status(), 202);
    let log = fixture.log().await;
    let ids: BTreeSet<&str> = log.iter().map(|record| record.header("ce_id")).collect();
    assert_eq!((log.len(), ids.len()), (4, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_appended_one_batch_tell_of_the_record_that_came_first() {
    let fixture = fixture_of(places(), |_, (_, producer)| linger(producer, "3000")).await;
    let fixture = Arc::new(fixture);
    fixture.told.applied(3);
    let post = || {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.post(&batch(3), &[("prefer", "wait=20"), KEY]).await })
    };
    let slept = post();
    until_claimed(&fixture).await;
    let sql = "UPDATE idempotency_records SET lease_until = now() - '1 s'::interval";
    fixture
        .db
        .batch_execute(sql)
        .await
        .expect("slept through its lease");
    let took_over = post();
    let both_appended = async {
        while fixture.log().await.len() < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), both_appended)
        .await
        .expect("both append it");
    fixture.project().await;
    let (slept, took_over) = (slept.await.expect("no panic"), took_over.await.expect("no panic"));
    assert_eq!((slept.status().as_u16(), took_over.status().as_u16()), (200, 200));
    assert_eq!(slept.body(), took_over.body(), "the receipt is in it");
    let again = fixture.post(&batch(3), &[KEY]).await;
    assert_eq!((again.status().as_u16(), again.body()), (200, slept.body()));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_time_a_key_is_as_if_it_had_never_been() {
    let fixture = fixture().await;
    fixture.post(&batch(2), &[NOW, KEY]).await;
    fixture.post(&batch(2), &[NOW, KEY]).await;
    fixture
        .db
        .batch_execute("UPDATE idempotency_records SET expires_at = now()")
        .await
        .expect("expired");
    let other = fixture.post(&batch(3), &[NOW, KEY]).await;
    assert_eq!(other.status(), 202);
    assert_eq!(other.headers().get("idempotent-replayed"), None);
    assert_eq!((fixture.log().await.len(), hits(&fixture).await), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_items_are_told_by_index_and_harm_nobody() {
    let fixture = fixture().await;
    let body = format!(
        r#"{{"client_id":"phone-1","entries":[{},{{"mobile_id":"nope"}},{{"mobile_id":"{}","ticketdesc":"a\u0000"}},7]}}"#,
        ticket(0),
        id(1)
    );
    let pending = fixture.post(&body, &[NOW]).await;
    assert_eq!(
        (
            pending.status().as_u16(),
            json(&pending)["errors"].as_array().map(Vec::len)
        ),
        (202, Some(3))
    );
    fixture.told.applied(1);
    fixture.project().await;
    let done = json(&fixture.post(&body, &[NOW]).await);
    assert_eq!(
        (&done["synced_items"][0]["index"], &done["errors"][0]["index"]),
        (&0.into(), &1.into())
    );
    assert_eq!(done["errors"][1]["rule"], "no_nul");

    let all_bad = r#"{"client_id":"phone-1","entries":[{},8]}"#;
    let first = fixture.post(all_bad, &[]).await;
    assert_eq!(
        (first.status().as_u16(), &json(&first)["status"]),
        (200, &"complete".into())
    );
    let again = fixture.post(all_bad, &[]).await;
    assert_eq!(
        (header(&again, "idempotent-replayed"), again.body()),
        (Some("true"), first.body())
    );
    assert_eq!(fixture.log().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_hangs_up_changes_nothing() {
    // The log takes its time, so that the handler is dropped between claim and append.
    let fixture = fixture_of(places(), |_, (_, producer)| linger(producer, "500")).await;
    let fixture = Arc::new(fixture);
    let posting = post_in_background(&fixture, batch(10));
    until_claimed(&fixture).await;
    posting.abort();
    assert!(posting.await.is_err());
    assert_eq!(fixture.log().await.len(), 0);
    assert!(fixture.ingest.drain(Duration::from_secs(10)).await);
    assert_eq!(fixture.log().await.len(), 10);
    assert_eq!(fixture.count("SELECT count(*) FROM batches").await, 1);
    assert_eq!(fixture.count(HELD).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_held_for_as_long_as_its_gateway_lives() {
    let fixture = fixture_of(places(), |_, (config, producer)| {
        config.lease = Duration::from_millis(600);
        linger(producer, "2500");
    })
    .await;
    let fixture = Arc::new(fixture);
    let posting = post_in_background(&fixture, batch(10));
    until_claimed(&fixture).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let other = fixture.post(&batch(10), &[NOW, KEY]).await;
    assert_eq!(
        (other.status().as_u16(), header(&other, "retry-after")),
        (409, Some("1"))
    );
    assert_eq!(posting.await.expect("no panic").status(), 202);
    assert_eq!(fixture.log().await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_away_batches_are_taken_and_recorded_later() {
    let places = places();
    let door = Door::before_postgres(&places).await;
    let fixture = fixture_of(places, |database, (config, _)| {
        door.lead_through(database);
        config.claim_timeout = Duration::from_millis(500);
    })
    .await;
    assert_eq!(fixture.post(&batch(1), &[NOW]).await.status(), 202);
    door.shut();
    let away = fixture.post(&batch(4), &[KEY]).await;
    assert_eq!(
        (away.status().as_u16(), &json(&away)["status"]),
        (202, &"accepted".into())
    );
    let started = std::time::Instant::now();
    assert_eq!(fixture.post(&batch(2), &[]).await.status(), 202);
    assert!(
        started.elapsed() < Duration::from_millis(400),
        "the outage is remembered"
    );
    assert_eq!(fixture.ingest.backlog(), (2, 0));
    assert_eq!(fixture.log().await.len(), 7);

    door.open();
    assert!(fixture.ingest.drain(Duration::from_secs(10)).await);
    assert_eq!(fixture.count("SELECT count(*) FROM batches").await, 3);
    let again = fixture.post(&batch(4), &[KEY, NOW]).await;
    assert_eq!((again.status().as_u16(), again.body()), (202, away.body()));
    assert_eq!(fixture.log().await.len(), 7, "the key is known again");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_kafka_away_nothing_is_acknowledged_and_nothing_stays_claimed() {
    let mut away = places();
    away.brokers = "127.0.0.1:1".into();
    let fixture = fixture_of(away, |_, (_, producer)| {
        producer.delivery_timeout = Duration::from_millis(700);
    })
    .await;
    for _ in 0..2 {
        let response = fixture.post(&batch(2), &[KEY]).await;
        assert_eq!(
            (response.status().as_u16(), header(&response, "retry-after")),
            (503, Some("2"))
        );
        assert_eq!(json(&response)["retryable"], true);
    }
    assert!(!fixture.producer.healthy());
    assert_eq!(fixture.count(HELD).await, 0);
    assert_eq!(fixture.count("SELECT count(*) FROM batches").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_missing_is_a_503() {
    let fixture = fixture_of(places(), |_, (_, producer)| {
        producer
            .settings
            .push(("topic.metadata.propagation.max.ms".into(), "500".into()));
        producer.delivery_timeout = Duration::from_secs(4);
    })
    .await;
    let body = batch(1).replace("ticketdesc", "jobdesc");
    let response = fixture.post_to("/api/v1/activity/sync", &body, &[]).await;
    assert_eq!(response.status(), 503);
    assert_eq!(
        fixture.post(&batch(1), &[NOW]).await.status(),
        202,
        "other topics are not concerned"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_batch_is_told_why_and_claims_nothing() {
    let fixture = fixture().await;
    let long = format!(r#"{{"client_id":"phone-1","entries":[{}0]}}"#, "0,".repeat(1000));
    for (body, status) in [
        ("{", 400),
        ("{}", 400),
        (r#"{"client_id":"phone-1","entries":[]}"#, 400),
        (r#"{"client_id":"x","entries":[1]}"#, 400),
        (r#"{"entries":[1]}"#, 400),
        (&long, 413),
    ] {
        assert_eq!(fixture.post(body, &[KEY]).await.status(), status, "{body:.40}");
    }
    let bound = format!("Bearer {}", token(Some("phone-2")));
    let post = |path: &'static str, headers: Vec<(&'static str, String)>| {
        let fixture = &fixture;
        async move {
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            fixture.post_to(path, &batch(1), &headers).await.status().as_u16()
        }
    };
    assert_eq!(post("/api/v1/nowhere/sync", vec![]).await, 404);
    assert_eq!(
        post("/api/v1/helpdesk/sync", vec![("idempotency-key", "short".into())]).await,
        400
    );
    assert_eq!(
        post(
            "/api/v1/helpdesk/sync",
            vec![("content-type", "text/plain".into())]
        )
        .await,
        415
    );
    assert_eq!(
        post("/api/v1/helpdesk/sync", vec![("authorization", bound)]).await,
        403
    );
    assert_eq!(
        post(
            "/api/v1/helpdesk/sync",
            vec![("authorization", "Bearer x".into())]
        )
        .await,
        401
    );
    assert_eq!(fixture.count("SELECT count(*) FROM idempotency_records").await, 0);
    assert_eq!(
        post("/api/v1/helpdesk/sync/", vec![("prefer", "wait=0".into())]).await,
        202
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_body_is_taken() {
    let fixture = fixture().await;
    let filler = "x".repeat(9_000);
    let items: Vec<String> = (0..1000)
        .map(|index| {
            format!(
                r#"{{"mobile_id":"{}","ticketdesc":"the lift is stuck","comments":"{filler}"}}"#,
                id(index)
            )
        })
        .collect();
    let body = format!(r#"{{"client_id":"phone-1","entries":[{}]}}"#, items.join(","));
    assert_eq!(fixture.post(&body, &[NOW]).await.status(), 202);
    assert_eq!(fixture.log().await.len(), 1000);
}
