//! Every domain is rebuilt under live writes, killed twice on the way, while phones pull.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tidelog_http::auth::Role;

use crate::crew::{self, Crew};
use crate::support::eventually;
use crate::support::items::{DOMAINS, Known, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::projection::projection;
use crate::support::service::{Deployment, Service};

/// Bytes of what may be held, so that states are written, let go of and looked up again all the time.
const LITTLE_MEMORY: &str = "memory=60000";

#[tokio::test(flavor = "multi_thread")]
async fn every_domain_is_rebuilt_under_load_although_it_is_killed() {
    let service = Service::start("rebuild");
    let deployment = &service.deployment;
    let tenants = crew::tenants();
    crew::fill(deployment, &tenants, crew::events()).await;
    let crew = Crew::start(deployment, &tenants, 3, 5, Duration::from_millis(40));
    for known in DOMAINS.iter().filter(|known| known.url != "journal-media") {
        match crew::events() {
            0..=100_000 => {
                for step in ["project.writing@2", "project.committed@1", "project.moved@1"] {
                    killed(&service, known.url, step);
                }
            }
            // A build for speed has no steps to stop at.
            _ => {
                for share in [0.3, 0.8] {
                    killed_on_the_way(&service, known, share).await;
                }
            }
        }
        let mut command = deployment.command(&["rebuild", "--domain", known.url, "--output", "json"]);
        command.env("TIDELOG_DRILL_NUMBERS", LITTLE_MEMORY);
        let output = command.output().expect("tidelog can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        let rebuilt: Value = serde_json::from_slice(&output.stdout).expect(&said);
        assert_eq!(rebuilt["done"], "swapped", "{rebuilt}");
        assert_eq!(rebuilt["differences"], serde_json::json!([]), "{rebuilt}");
        println!("{}: waited {} ms", known.url, rebuilt["stood_still_ms"]);
    }
    let left = crew.end().await;
    assert_eq!(
        keyless(deployment).await,
        Vec::<String>::new(),
        "tables without a primary key"
    );
    let before = projection(deployment).await;
    let verified = deployment.run(&["verify", "--output", "json"]);
    assert_eq!(verified.code, 0, "{} {}", verified.stdout, verified.stderr);
    same(
        &projection(deployment).await,
        &before,
        "verifying changes nothing",
    );
    receipts_resolve(&service, &left).await;
    // The way back, and giving it up.
    let back = deployment
        .run(&["rebuild", "--domain", "helpdesk", "--back", "--output", "json"])
        .json();
    assert_eq!(back["done"], "swapped back", "{back}");
    same(
        &projection(deployment).await,
        &before,
        "swapping back changes nothing",
    );
    assert_eq!(
        deployment.run(&["rebuild", "--domain", "helpdesk"]).code,
        1,
        "what was swapped out is still there"
    );
    let unsure = deployment.run(&["rebuild", "--domain", "helpdesk", "--discard"]);
    assert_eq!(unsure.code, 2, "there is nobody to ask: {}", unsure.stderr);
    deployment
        .run(&["rebuild", "--domain", "helpdesk", "--discard", "--yes"])
        .ok();
    let audit = deployment.run(&["audit", "--output", "json"]).json();
    let commands = audit["rows"].as_array().expect("rows");
    let has = |result: &Value| {
        commands
            .iter()
            .any(|row| row["command"] == "rebuild" && row["result"] == *result)
    };
    assert!(
        has(&"done".into()) && has(&"refused".into()) && has(&Value::Null),
        "{audit}"
    );
    deployment.run(&["verify", "--domain", "helpdesk"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rebuilds_of_one_topic_refuse_each_other() {
    let service = Service::start("two");
    let deployment = &service.deployment;
    crew::fill(deployment, &crew::tenants(), 500).await;
    let mut first = deployment.command(&["rebuild", "--domain", "journal"]);
    first.env("TIDELOG_DRILL_STOP", "project.folded@1:wait=8000");
    let mut first = first
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("tidelog can be run");
    let db = deployment.db().await;
    eventually("the first is at work", async || {
        (db.count("SELECT count(*) FROM shadows", &[]).await == 1).then_some(())
    })
    .await;
    // The media of a journal are on the journal's topic.
    let second = deployment.run(&["rebuild", "--domain", "journal-media", "--no-swap"]);
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(
        second.stderr.contains("another run of this command is at work"),
        "{}",
        second.stderr
    );
    assert!(
        first.wait().expect("it ends").success(),
        "the first goes on to its end"
    );
    deployment.run(&["verify", "--domain", "journal"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_amid_a_fold_costs_no_row() {
    let service = Service::start("broken");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("broken"), "asha");
    for _ in 0..40 {
        phone.post("helpdesk", &tickets(100)).await.expect(200);
    }
    let mut command = deployment.command(&["rebuild", "--domain", "helpdesk", "--output", "json"]);
    command.env("TIDELOG_DRILL_STOP", "project.folded@2:wait=3000");
    let running = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("tidelog can be run");
    let db = deployment.db().await;
    // Whoever has written into the shadow's tables and not committed yet.
    let breaks = "SELECT DISTINCT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
                  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'helpdesk_changes' AND l.mode = 'RowExclusiveLock'";
    let schema = format!("{}_shadow_helpdesk", deployment.schema);
    eventually("a connection is broken", async || {
        (!db.rows(breaks, &[&schema]).await.is_empty()).then_some(())
    })
    .await;
    let output = running.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("gone on with step by step"), "{said}");
    let rebuilt: Value = serde_json::from_slice(&output.stdout).expect(&said);
    assert_eq!(rebuilt["done"], "swapped", "{rebuilt}");
    assert_eq!(rebuilt["differences"], serde_json::json!([]), "{rebuilt}");
    deployment.run(&["verify", "--domain", "helpdesk"]).ok();
}

/// Tables that have lost their primary key: a fill does without those of the feeds for a while.
async fn keyless(deployment: &Deployment) -> Vec<String> {
    const SQL: &str = "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace::regnamespace::text = $1 AND c.relkind = 'r' \
                       AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p')";
    let rows = deployment.db().await.rows(SQL, &[&deployment.schema]).await;
    rows.iter().map(|row| row.get(0)).collect()
}

/// Killed at a step, if it comes so far: a domain with few events may be done before.
fn killed(service: &Service, domain: &str, step: &str) {
    let mut command = service
        .deployment
        .command(&["rebuild", "--domain", domain, "--no-swap"]);
    command.env("TIDELOG_DRILL_STOP", format!("{step}:kill"));
    command.env("TIDELOG_DRILL_NUMBERS", LITTLE_MEMORY);
    let output = command.output().expect("tidelog can be run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_none_or(|code| code == 0), "{said}");
}

/// Killed once it has folded this share of what is applied.
async fn killed_on_the_way(service: &Service, known: &Known, share: f64) {
    let mut command = service
        .deployment
        .command(&["rebuild", "--domain", known.url, "--no-swap"]);
    let mut running = command.spawn().expect("tidelog can be run");
    let db = service.deployment.db().await;
    let schemas = "SELECT schema_name, topic FROM shadows WHERE state = 'loading'";
    let folded = loop {
        assert!(
            running.try_wait().expect("a child").is_none(),
            "{} was rebuilt before it could be killed",
            known.url
        );
        let folded = match db.rows(schemas, &[]).await.first() {
            None => 0.0,
            Some(row) => {
                let (schema, topic): (String, String) = (row.get(0), row.get(1));
                let sql = format!(
                    "SELECT coalesce(sum(s.next_offset), 0)::float8 / sum(l.next_offset) \
                     FROM positions l LEFT JOIN \"{schema}\".positions s USING (topic, partition) WHERE topic = '{topic}'"
                );
                db.rows(&sql, &[]).await[0].get(0)
            }
        };
        if folded >= share {
            break folded;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    running.kill().expect("it runs");
    running.wait().expect("it ends");
    println!("{}: killed after {:.0} %", known.url, folded * 100.0);
}

/// Table by table, row by row, so that a difference can be read.
fn same(now: &BTreeMap<String, Vec<String>>, before: &BTreeMap<String, Vec<String>>, what: &str) {
    for (table, rows) in now {
        let before = &before[table];
        assert_eq!(rows.len(), before.len(), "{what}: {table}");
        for (row, before) in rows.iter().zip(before) {
            assert_eq!(row, before, "{what}: {table}");
        }
    }
}

async fn receipts_resolve(service: &Service, left: &crew::Left) {
    let tenants = &left.tenants;
    let phones: Vec<Phone> = tenants
        .iter()
        .map(|tenant| Phone::of(&service.deployment, tenant, "sue", "desk", Role::Operator))
        .collect();
    let mut resolved = 0;
    for receipt in left.receipts.iter().rev().take(40) {
        for phone in &phones {
            let path = format!("/api/v1/sync/batches/{receipt}");
            let answer = phone.send(Method::GET, &path, &[], "").await;
            if answer.status == 200 {
                let answer: Value = answer.json();
                assert_eq!(answer["status"], "complete", "{answer}");
                resolved += 1;
                break;
            }
        }
    }
    assert!(resolved > 0, "no receipt resolves");
}
