//! What is no batch, no token, no path or no page gets the answer that says so, as a problem document, and costs the
//! service nothing: every line of it against the running product.

use std::fmt::Write as _;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::json;
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::http::exchange;
use crate::support::items::{ticket, tickets};
use crate::support::phone::{Phone, tenant, token};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

const MAX_BODY: usize = 10 << 20;

fn service() -> &'static Service {
    Service::shared(&SERVICE, "bad-batches")
}

fn deployment() -> &'static Deployment {
    &service().deployment
}

fn phone_of(name: &str) -> Phone {
    Phone::new(deployment(), &tenant(name), "asha")
}

async fn post(phone: &Phone, body: impl Into<Bytes>) -> crate::support::http::Answer {
    phone.send_batch("helpdesk", &[("prefer", "wait=30")], body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_token_it_is_401() {
    let tenant = tenant("tokens");
    let secret = &deployment().jwt_secret;
    let good = token(secret, &tenant, "asha", None, Role::User, 60);
    let expired = token(secret, &tenant, "asha", None, Role::User, -60);
    let forged = token(
        "some other secret that is long enough",
        &tenant,
        "asha",
        None,
        Role::User,
        60,
    );
    let mut phone = Phone::new(deployment(), &tenant, "asha");
    let id = Uuid::new_v4();
    let paths = [
        (Method::POST, "/api/v1/helpdesk/sync".to_owned()),
        (Method::GET, "/api/v1/helpdesk/changes".to_owned()),
        (Method::GET, format!("/api/v1/helpdesk/records/{id}")),
        (Method::GET, format!("/api/v1/sync/batches/{id}")),
    ];
    for (bearer, says) in [
        (format!("Bearer {expired}"), "expired"),
        (format!("Bearer {forged}"), "signature"),
        (format!("Bearer {}x", good), "signature"),
        ("Bearer nonsense".to_owned(), "not a JWT"),
        ("Basic YTpi".to_owned(), "Bearer"),
    ] {
        phone.bearer = bearer;
        for (method, path) in &paths {
            let body = if *method == Method::POST {
                phone.batch(&tickets(1))
            } else {
                String::new()
            };
            let answer = phone.send(method.clone(), path, &[], body).await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
            answer.expect_problem(401, "unauthorized", says);
        }
    }
    for (method, path) in &paths {
        let answer = phone
            .http
            .send(
                method.clone(),
                path,
                &[("content-type", "application/json")],
                Bytes::new(),
            )
            .await;
        answer.expect_problem(401, "unauthorized", "missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_domain_is_404() {
    let phone = phone_of("unknown");
    for domain in ["nowhere", "HELPDESK", "work_orders", "journal_media"] {
        phone
            .post(domain, &tickets(1))
            .await
            .expect_problem(404, "not-found", "");
        phone
            .get(&format!("/api/v1/{domain}/changes"))
            .await
            .expect_problem(404, "not-found", "");
        phone
            .record(domain, &Uuid::new_v4().to_string())
            .await
            .expect_problem(404, "not-found", "");
    }
    phone
        .get("/api/v1/nothing/here/at/all")
        .await
        .expect_problem(404, "not-found", "");
    let answer = phone.get("/api/v1/helpdesk/sync").await;
    answer.expect_problem(405, "method-not-allowed", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_batch_is_400_and_named() {
    let phone = phone_of("no-batch");
    let entry = ticket(Uuid::new_v4(), "A good ticket");
    for (body, says) in [
        ("".to_owned(), "line 1"),
        ("not json".to_owned(), "line 1, column 2"),
        ("{\n  \"entries\": [\n    {]\n".to_owned(), "line 3"),
        (r#"{"client_id":"phone-1","entries":[{}"#.to_owned(), "line 1"),
        (
            r#"{"client_id":"phone-1","entries":[{}]} and more"#.to_owned(),
            "line 1",
        ),
        ("[]".to_owned(), "line 1"),
        (format!(r#"["phone-1",null,null,[{entry}]]"#), "line 1"),
        ("17".to_owned(), "line 1"),
        (r#"{"client_id":"phone-1"}"#.to_owned(), "entries is missing"),
        (r#"{"client_id":"phone-1","entries":null}"#.to_owned(), "entries"),
        (
            r#"{"client_id":"phone-1","entries":{}}"#.to_owned(),
            "entries must be a list",
        ),
        (
            r#"{"client_id":"phone-1","entries":[]}"#.to_owned(),
            "entries is empty",
        ),
        (
            json!({"client_id": "x", "entries": [entry]}).to_string(),
            "client_id",
        ),
        (
            json!({"client_id": "with spaces", "entries": [entry]}).to_string(),
            "client_id",
        ),
        (
            json!({"client_id": 17, "entries": [entry]}).to_string(),
            "client_id",
        ),
        (json!({"entries": [entry]}).to_string(), "client_id is missing"),
        (
            json!({"client_id": "phone-1", "sent_at": "noon", "entries": [entry]}).to_string(),
            "sent_at",
        ),
        (
            json!({"client_id": "phone-1", "device_type": "watch", "entries": [entry]}).to_string(),
            "device_type",
        ),
    ] {
        let headers = [("content-type", "application/json")];
        let answer = phone.send_batch("helpdesk", &headers, body.clone()).await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
        answer.expect_problem(400, "bad-request", says);
    }
    let problem = post(&phone, "{\n \"client_id\": }")
        .await
        .expect_problem(400, "bad-request", "");
    assert_eq!(
        (&problem["line"], &problem["column"]),
        (&2.into(), &15.into()),
        "{problem}"
    );
    let mut latin = phone.batch(&tickets(1)).into_bytes();
    latin[30] = 0xFC;
    post(&phone, latin)
        .await
        .expect_problem(400, "bad-request", "UTF-8 at byte 30");
    assert!(phone.pull("helpdesk", "limit=10").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_a_thousand_items_at_most() {
    let phone = phone_of("many");
    let answer = post(&phone, phone.batch(&tickets(1001))).await;
    answer.expect_problem(413, "payload-too-large", "1001");
    post(&phone, phone.batch(&tickets(1000))).await.expect(200);
    assert_eq!(phone.pull("helpdesk", "limit=1000").await.len(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_than_the_tokens_is_403() {
    let mut phone = phone_of("device");
    let bound = token(
        &deployment().jwt_secret,
        &phone.tenant,
        "asha",
        Some("phone-1"),
        Role::User,
        60,
    );
    phone.bearer = format!("Bearer {bound}");
    phone.post("helpdesk", &tickets(1)).await.expect(200);
    // Whoever has a bound token need not repeat the device.
    let nameless = json!({"entries": [ticket(Uuid::new_v4(), "From the token's device")]}).to_string();
    post(&phone, nameless).await.expect(200);
    phone.device = "phone-2".into();
    phone
        .post("helpdesk", &tickets(1))
        .await
        .expect_problem(403, "forbidden", "another device");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_kind_is_415() {
    let phone = phone_of("kind");
    let body = phone.batch(&tickets(1));
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin1",
        "application/*",
    ] {
        let answer = phone
            .send_batch("helpdesk", &[("content-type", kind)], body.clone())
            .await;
        answer.expect_problem(415, "unsupported-media-type", "");
    }
    let bare = phone
        .http
        .send(
            Method::POST,
            "/api/v1/helpdesk/sync",
            &[("authorization", &phone.bearer)],
            body.clone().into(),
        )
        .await;
    bare.expect_problem(415, "unsupported-media-type", "");
    let answer = phone
        .send_batch("helpdesk", &[("content-encoding", "br")], body.clone())
        .await;
    answer.expect_problem(415, "unsupported-media-type", "");
    let charset = [("content-type", "application/json; charset=UTF-8")];
    phone.send_batch("helpdesk", &charset, body).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_413() {
    let phone = phone_of("large");
    // Spaces before the brace are part of a body that is JSON.
    let padded = |size: usize| {
        let batch = phone.batch(&tickets(1));
        format!("{}{batch}", " ".repeat(size - batch.len()))
    };
    post(&phone, padded(MAX_BODY)).await.expect(200);
    post(&phone, padded(MAX_BODY + 1))
        .await
        .expect_problem(413, "payload-too-large", "");
    // By its length alone, before a byte of it is read.
    let head = format!(
        "POST /api/v1/helpdesk/sync HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n",
        phone.bearer
    );
    let answer = exchange(deployment().port, head.as_bytes()).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_is_taken_and_over_the_limit_413() {
    let phone = phone_of("chunked");
    let chunked = |body: &str| {
        let mut bytes = format!(
            "POST /api/v1/helpdesk/sync HTTP/1.1\r\nhost: x\r\nconnection: close\r\nprefer: wait=30\r\nauthorization: {}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            phone.bearer
        );
        for chunk in body.as_bytes().chunks(64 * 1024) {
            let chunk = std::str::from_utf8(chunk).expect("ASCII");
            let _ = write!(bytes, "{:x}\r\n{chunk}\r\n", chunk.len());
        }
        bytes.push_str("0\r\n\r\n");
        exchange(deployment().port, bytes.as_bytes()).expect("an answer")
    };
    let answer = chunked(&phone.batch(&tickets(2)));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = chunked(&" ".repeat(MAX_BODY + 1));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(phone.pull("helpdesk", "limit=10").await.len(), 2);
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gzip_body_is_taken_and_is_the_same_batch() {
    let phone = phone_of("gzip");
    let body = phone.batch(&tickets(100));
    let gzipped = [("content-encoding", "gzip"), ("prefer", "wait=30")];
    let first = phone
        .send_batch("helpdesk", &gzipped, gzip(&body))
        .await
        .expect(200);
    assert_eq!(first.json()["synced_items"].as_array().map(Vec::len), Some(100));
    assert_eq!(
        post(&phone, body.clone()).await.expect(200).body,
        first.body,
        "with or without gzip"
    );
    let mut cut = gzip(&body);
    cut.truncate(cut.len() / 2);
    phone
        .send_batch("helpdesk", &gzipped, cut)
        .await
        .expect_problem(400, "bad-request", "");
    phone
        .send_batch("helpdesk", &gzipped, body)
        .await
        .expect_problem(400, "bad-request", "gzip");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gzip_bomb_is_413_and_costs_bounded_memory() {
    // 400 MB of zeros in 400 KB, by the system's gzip, which is quick where a test build is not.
    let zeros = Command::new("head")
        .args(["-c", "400000000", "/dev/zero"])
        .stdout(Stdio::piped())
        .spawn();
    let zeros = zeros.expect("head is everywhere").stdout.expect("a pipe");
    let bomb = Command::new("gzip")
        .arg("-c")
        .stdin(zeros)
        .output()
        .expect("gzip is everywhere")
        .stdout;
    assert!(bomb.len() < 1 << 20);
    let phone = phone_of("bomb");
    let before = service().process.peak_memory();
    let gzipped = [("content-encoding", "gzip")];
    for _ in 0..4 {
        phone
            .send_batch("helpdesk", &gzipped, bomb.clone())
            .await
            .expect_problem(413, "payload-too-large", "");
    }
    let grown = service().process.peak_memory().saturating_sub(before);
    assert!(grown < 100 << 20, "{} MB more", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_16_kib_are_431() {
    let phone = phone_of("headers");
    let answer = phone
        .send_batch(
            "helpdesk",
            &[("x-long", &"x".repeat(20_000))],
            phone.batch(&tickets(1)),
        )
        .await;
    assert_eq!(answer.status, 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_asked_for_as_it_has_to_be() {
    let phone = phone_of("pages");
    phone.post("helpdesk", &tickets(3)).await.expect(200);
    let cursor = phone.page("helpdesk", "limit=1").await["cursor"]
        .as_str()
        .expect("a cursor")
        .to_owned();
    let flipped: String = cursor.chars().rev().collect();
    let foreign = phone_of("pages");
    foreign.post("helpdesk", &tickets(1)).await.expect(200);
    let foreign = foreign.page("helpdesk", "").await["cursor"]
        .as_str()
        .expect("a cursor")
        .to_owned();
    let of_domain = phone.page("activity", "").await["cursor"]
        .as_str()
        .expect("a cursor")
        .to_owned();
    for bad in [
        "nonsense",
        "",
        &cursor[1..],
        &flipped,
        &format!("{cursor}A"),
        &foreign,
        &of_domain,
        "%00",
        "null",
    ] {
        let answer = phone.get(&format!("/api/v1/helpdesk/changes?cursor={bad}")).await;
        answer.expect_problem(400, "bad-cursor", "");
    }
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=",
        "limit=1&limit=2",
        "since=yesterday",
        "since=2026-13-01T00:00:00Z",
        "priority=URGENT",
        "wait_for=nonsense",
        &format!("cursor={cursor}&since=2026-01-01T00:00:00Z"),
    ] {
        phone
            .get(&format!("/api/v1/helpdesk/changes?{bad}"))
            .await
            .expect_problem(400, "bad-request", "");
    }
    for good in [
        "limit=1",
        "limit=1000",
        "unknown=1",
        "since=2026-01-01T00:00:00%2B05:30",
    ] {
        phone.page("helpdesk", good).await;
    }
}
