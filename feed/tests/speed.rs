//! How long a pull takes from a million rows of a thousand tenants, over HTTP on one connection. No promise is
//! checked; the figures are printed. Run with
//! `cargo test --release -p tidelog-feed --test speed -- --ignored --nocapture`; `TIDELOG_TEST_SCHEMA` keeps the
//! filled schema of that name from one run to the next.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use support::{Asker, PREFIX, Stage};
use tidelog_events::ids::Role;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Tenants and their changes lie interleaved, as they arrive: batch by batch, of so many items. One of 1 is the worst
/// there is: every neighbour of a tenant's row is another tenant's.
fn fill(tenants: usize, each: usize, batch: usize) -> String {
    format!(
        r#"CREATE TEMP TABLE made AS
        SELECT s, 'tenant-' || lpad((s / {batch} % {tenants})::text, 5, '0') AS tenant_id, md5(s::text)::uuid AS mobile_id,
               part AS partition, row_number() OVER (PARTITION BY part ORDER BY s) - 1 AS "offset",
               timestamptz '2026-01-01' + s * interval '10 milliseconds' AS at
          FROM (SELECT s, (hashint4(s) & 2147483647) % 6 AS part FROM generate_series(0, {total} - 1) s) x;
        INSERT INTO helpdesk (tenant_id, mobile_id, version, deleted, doc, last_sync_timestamp, updated_at, created_at,
               owner_id, user_id, device_id, run_from, ahead_base, partition, "offset")
        SELECT tenant_id, mobile_id, 1, false, jsonb_build_object('ticketdesc', repeat('The lift is stuck. ', 8),
               'status', 'NEW', 'priority', (ARRAY['HIGH','MEDIUM','LOW'])[1 + s % 3], 'identifier', 'TICKET',
               'ticketno', 'TKT-' || s, 'assignedtopeople', s % 97, 'bu', s % 13, 'client', 7, 'cuser', 'user-' || s % 50,
               'comments', md5(s::text) || md5((s + 1)::text)), at, at, at, 'ann', 'ann', 'phone-1', 1, 0, partition, "offset"
          FROM made ORDER BY s;
        INSERT INTO helpdesk_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields, changed_at,
               item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash)
        SELECT tenant_id, partition, "offset", mobile_id, 1, 'create', ARRAY['ticketdesc','status','priority'], at, at,
               'ann', 'phone-1', md5((s / 100)::text)::uuid, s % 100, 0, mobile_id
          FROM made ORDER BY s;
        INSERT INTO positions (topic, partition, next_offset, applied_through)
        SELECT '{PREFIX}sync.helpdesk.v1', partition, max("offset") + 1, max(at) FROM made GROUP BY partition;
        DROP TABLE made;
        VACUUM ANALYZE helpdesk;
        VACUUM ANALYZE helpdesk_changes;"#,
        total = tenants * each
    )
}

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    async fn get(&mut self, who: &Asker, path: &str) -> String {
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n",
            who.bearer()
        );
        self.stream.get_mut().write_all(head.as_bytes()).await.unwrap();
        let (mut line, mut length) = (String::new(), 0);
        loop {
            line.clear();
            self.stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        String::from_utf8(body).unwrap()
    }
}

fn percentiles(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |p: f64| times[((times.len() - 1) as f64 * p) as usize];
    format!(
        "p50 {:.2} ms   p99 {:.2} ms   ({} pulls)",
        at(0.5),
        at(0.99),
        times.len()
    )
}

/// Has the statements prepared while the tables are empty, as in a service that starts before its first batch.
async fn prepare_early(stage: &Stage) {
    let who = Asker::new("tenant-00001", "ann", Role::User);
    for path in [
        "changes?since=2026-01-01T00:00:00Z",
        "changes?limit=1",
        "records/00000000-0000-0000-0000-000000000000",
    ] {
        for _ in 0..4 {
            stage.ask(&who, &format!("/api/v1/helpdesk/{path}"), &[]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "fills a million rows; prints figures"]
async fn a_pull_from_a_million_rows() {
    let url = std::env::var("TIDELOG_TEST_DATABASE_URL").expect("TIDELOG_TEST_DATABASE_URL");
    let kept = std::env::var("TIDELOG_TEST_SCHEMA").ok();
    let schema = kept
        .clone()
        .unwrap_or_else(|| format!("speed_{}", std::process::id()));
    let (direct, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let exists = direct
        .query_opt("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[&schema])
        .await
        .unwrap();
    let stage = support::stage_in(&url, &schema, exists.is_none()).await;
    let tenants = std::env::var("TIDELOG_TEST_TENANTS").map_or(1000, |n| n.parse().unwrap());
    let batch = std::env::var("TIDELOG_TEST_BATCH").map_or(100, |n| n.parse().unwrap());
    if exists.is_none() {
        prepare_early(&stage).await;
        direct
            .batch_execute(&format!("SET search_path = {schema}"))
            .await
            .unwrap();
        for statement in fill(tenants, 1000, batch).split(";\n") {
            direct.batch_execute(statement).await.unwrap();
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(tidelog_http::serve(
        listener,
        stage.routes.clone(),
        tidelog_http::Limits::default(),
        std::future::pending(),
    ));
    let mut client = Client {
        stream: BufReader::new(TcpStream::connect(address).await.unwrap()),
    };
    for (what, first, query) in [
        (
            "1000 changes since a time",
            "",
            "limit=1000&since=2026-01-01T00:00:00Z",
        ),
        (
            "100 changes since a time",
            "",
            "limit=100&since=2026-01-01T00:00:00Z",
        ),
        ("1000 rows, first sync", "", "limit=1000"),
        ("100 rows, first sync", "", "limit=100"),
        ("100 rows, filtered", "", "limit=100&priority=high"),
        (
            "1000 changes by cursor",
            "limit=1&since=2026-01-01T00:00:00Z",
            "limit=1000",
        ),
        (
            "100 changes by cursor",
            "limit=1&since=2026-01-01T00:00:00Z",
            "limit=100",
        ),
        ("nothing new", "limit=1000", "limit=1000"),
    ] {
        measure(&mut client, tenants, what, first, query).await;
    }
    if kept.is_none() {
        stage.strike().await;
    }
}

/// Pulls for one tenant after the other; where `first` is a query, from the cursor that it ends with.
async fn measure(client: &mut Client, tenants: usize, what: &str, first: &str, query: &str) {
    let mut times = Vec::new();
    for n in 0..300 {
        let who = Asker::new(&format!("tenant-{:05}", n * 37 % tenants), "ann", Role::User);
        let query = match first {
            "" => query.to_owned(),
            first => format!("{query}&cursor={}", cursor(client, &who, first).await),
        };
        let started = Instant::now();
        let body = client
            .get(&who, &format!("/api/v1/helpdesk/changes?{query}"))
            .await;
        let time = started.elapsed().as_secs_f64() * 1e3;
        assert!(body.starts_with("{\"items\":["), "{body}");
        if n >= 50 {
            times.push(time);
        }
    }
    println!("{what:28} {}", percentiles(times));
}

async fn cursor(client: &mut Client, who: &Asker, query: &str) -> String {
    let body = client
        .get(who, &format!("/api/v1/helpdesk/changes?{query}"))
        .await;
    serde_json::from_str::<serde_json::Value>(&body).unwrap()["cursor"]
        .as_str()
        .unwrap()
        .to_owned()
}
