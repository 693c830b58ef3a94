//! Logs that lost their beginning: a snapshot that was taken under writes stands for it, whatever is killed on the way; a database that is
//! lost comes back from it; and a projector never reads on over what it has not applied.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::crew::{self, Crew};
use crate::support::eventually;
use crate::support::http::Http;
use crate::support::items::DOMAINS;
use crate::support::kafka::{delete_before, end_offsets};
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::projection::projection;
use crate::support::service::{Deployment, PARTITIONS, Service};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_writes_stands_for_the_logs_beginning() {
    let service = Service::start("bounded");
    let deployment = &service.deployment;
    let tenants = crew::tenants();
    crew::fill(deployment, &tenants, crew::events()).await;
    let crew = Crew::start(deployment, &tenants, 3, 3, Duration::from_millis(40));
    let dir = deployment.dir.join("snapshots");
    // One that is killed is never taken for one.
    drilled(
        deployment,
        "snapshot.written@3:kill",
        &["snapshot", "--domain", "helpdesk", "--to", &text(&dir)],
    );
    let none = rebuild(deployment, &["--snapshot", &text(&dir)]);
    assert!(none.1.contains("no finished snapshot"), "{none:?}");
    let taken = snapshot(deployment, "helpdesk", &dir);
    println!("taken: {taken}");
    let left = std::fs::read_dir(dir.join("sync.helpdesk.v1")).expect("a folder");
    assert_eq!(left.count(), 1, "what was killed is swept up");
    // Phones write a while longer, and then the log loses what the snapshot has.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let topic = deployment.topic("sync.helpdesk.v1");
    delete_before(&deployment.brokers, &topic, &positions(&taken)).await;

    let (code, said) = rebuild(deployment, &[]);
    assert!(code == 1 && said.contains("--snapshot"), "{said}");
    deployment
        .run(&["rebuild", "--domain", "helpdesk", "--discard", "--yes"])
        .ok();
    let verified = deployment.run(&["verify", "--domain", "helpdesk"]);
    assert!(
        verified.code == 1 && verified.stderr.contains("--snapshot"),
        "{verified:?}"
    );

    let with = ["--snapshot", &text(&dir)];
    let all = [&["rebuild", "--domain", "helpdesk"][..], &with].concat();
    drilled(deployment, "snapshot.loading@2:kill", &all);
    let (code, said) = rebuild(deployment, &[]);
    assert!(code == 1 && said.contains("was cut off"), "{said}");
    drilled(deployment, "project.committed@1:kill", &all);
    let rebuilt = deployment.run(&[&all[..], &["--output", "json"]].concat()).json();
    assert_eq!(rebuilt["done"], "swapped", "{rebuilt}");
    assert_eq!(rebuilt["differences"], json!([]), "{rebuilt}");
    // Readers hold what a new phone would be given, although their tables were swapped under them.
    crew.end().await;
    let verified = deployment.run(&[
        "verify",
        "--domain",
        "helpdesk",
        "--snapshot",
        &text(&dir),
        "--output",
        "json",
    ]);
    assert_eq!(verified.code, 0, "{} {}", verified.stdout, verified.stderr);
    let sampled = [&["verify", "--domain", "helpdesk", "--sample", "3"][..], &with].concat();
    deployment.run(&sampled).ok();
    damage_is_found(deployment, &dir).await;
}

async fn damage_is_found(deployment: &Deployment, dir: &Path) {
    let db = deployment.db().await;
    db.rows(
        "DELETE FROM helpdesk WHERE ctid IN (SELECT min(ctid) FROM helpdesk)",
        &[],
    )
    .await;
    let verify = ["verify", "--domain", "helpdesk", "--snapshot", &text(dir)];
    let verified = deployment.run(&verify);
    assert_eq!(verified.code, 3, "{verified:?}");
    assert!(
        verified.stdout.contains("rebuild --domain helpdesk --snapshot"),
        "{}",
        verified.stdout
    );
    deployment
        .run(&["rebuild", "--domain", "helpdesk", "--discard", "--yes"])
        .ok();
    let (code, said) = rebuild(deployment, &["--snapshot", &text(dir)]);
    assert_eq!(code, 3, "{said}");
    let (code, said) = rebuild(deployment, &["--snapshot", &text(dir), "--accept-differences"]);
    assert_eq!(code, 0, "{said}");
    deployment.run(&verify).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_gone_on_with_is_refused() {
    let service = Service::start("refused");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("refused"), "asha");
    let (dir, helpdesk) = (deployment.dir.join("snapshots"), &DOMAINS[3]);
    assert_eq!(helpdesk.url, "helpdesk");
    let mut posted = 0;
    let mut post = async || {
        let entries: Vec<String> = (posted..posted + 30).map(|n| (helpdesk.item)(n).text).collect();
        posted += 30;
        phone.post("helpdesk", &entries).await.expect(200);
    };
    post().await;
    let first = snapshot(deployment, "helpdesk", &dir);
    post().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = snapshot(deployment, "helpdesk", &dir);
    post().await;
    let folder = |taken: &Value| PathBuf::from(taken["folder"].as_str().expect("a folder"));
    let refused = |from: &Path, why: &str| {
        let (code, said) = rebuild(deployment, &["--snapshot", &text(from)]);
        assert!(code == 1 && said.contains(why), "{why}: {said}");
    };
    refused(&deployment.dir, "no finished snapshot");
    let topic = deployment.topic("sync.helpdesk.v1");
    delete_before(&deployment.brokers, &topic, &positions(&second)).await;
    refused(&folder(&first), &format!("use {}", folder(&second).display()));

    let (second, file) = (folder(&second), "helpdesk_changes.copy.zst");
    let whole = std::fs::read(second.join(file)).expect("a file");
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    std::fs::write(second.join(file), &damaged).expect("written");
    refused(&second, &format!("{file} is damaged"));
    std::fs::write(second.join(file), &whole[..middle]).expect("written");
    refused(&second, &format!("{file} is damaged"));
    std::fs::write(second.join(file), &whole).expect("written");

    let manifest = second.join("manifest.json");
    let honest = std::fs::read_to_string(&manifest).expect("a manifest");
    let mut told: Value = serde_json::from_str(&honest).expect("JSON");
    for (member, other, why) in [
        ("fold_version", json!(77), "it was folded by version 77"),
        (
            "definitions",
            json!("other"),
            "the definitions of helpdesk have changed",
        ),
        ("topic", json!("another.v1"), "it is of another.v1"),
        ("version", json!(99), "written by another release"),
    ] {
        let was = std::mem::replace(&mut told[member], other);
        std::fs::write(&manifest, told.to_string()).expect("written");
        refused(&second, why);
        told[member] = was;
    }
    std::fs::write(&manifest, honest).expect("written");
    let db = deployment.db().await;
    assert_eq!(
        db.count("SELECT count(*) FROM shadows", &[]).await,
        0,
        "nothing was begun"
    );
    let planned = deployment.run(&[
        "rebuild",
        "--domain",
        "helpdesk",
        "--dry-run",
        "--snapshot",
        &text(&dir),
        "--output",
        "json",
    ]);
    assert_eq!(planned.json()["events"], 30);
    let (code, said) = rebuild(deployment, &["--snapshot", &text(&dir), "--partitions", "0,1"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = rebuild(deployment, &["--snapshot", &text(&second)]);
    assert_eq!(code, 0, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_comes_back_from_snapshots_and_a_bounded_log() {
    let Service { deployment, process } = Service::start("lost");
    let tenants = crew::tenants();
    crew::fill(&deployment, &tenants, 1500).await;
    let dir = deployment.dir.join("snapshots");
    let taken = deployment
        .run(&["snapshot", "--to", &text(&dir), "--output", "json"])
        .json();
    crew::fill(&deployment, &tenants, 700).await;
    let phone = Phone::of(&deployment, &tenants[0], "sue", "desk-1", Role::Operator);
    let mut held = Replica::default();
    held.catch_up(&phone, "helpdesk", 100).await;
    let before = projection(&deployment).await;
    assert_eq!(process.terminate(), 0);
    for taken in taken.as_array().expect("topics") {
        let topic = taken["topic"].as_str().expect("a topic");
        delete_before(&deployment.brokers, topic, &positions(taken)).await;
    }
    let db = deployment.db().await;
    db.rows(&format!("DROP SCHEMA \"{}\" CASCADE", deployment.schema), &[])
        .await;
    deployment.run(&["migrate"]).ok();

    let figures = format!("127.0.0.1:{}", Deployment::new("bounded-figures").port);
    let deployment = deployment.with("TIDELOG_METRICS_LISTEN", figures.clone());
    // It serves, and takes what comes; and it does not pretend that the log begins where it does not.
    let process = deployment.start_listening("serve", "/readyz");
    eventually("it says so", async || {
        process
            .log()
            .contains("the log begins after the position")
            .then_some(())
    })
    .await;
    let entries = [(DOMAINS[3].item)(899).text];
    let status = deployment.run(&["status", "--all"]).ok();
    assert!(status.contains("partitions withheld"), "{status}");
    let status = deployment.run(&["status", "--output", "json"]).json();
    let helpdesk = status["partitions"].as_array().expect("partitions").iter();
    let mut helpdesk = helpdesk.filter(|partition| partition["domains"] == json!(["helpdesk"]));
    assert!(
        helpdesk
            .all(|partition| partition["withheld"] == "cut" && partition["begin_offset"].as_i64() > Some(0)),
        "{status}"
    );
    let page = format!("http://{figures}");
    let figure = async |topic: &str| {
        let http = Http::new(page.clone());
        let page = http.send(http::Method::GET, "/metrics", &[], bytes::Bytes::new());
        let line = format!("tidelog_withheld_partitions{{topic=\"{topic}\"}} ");
        let page = page.await.expect(200).text().to_owned();
        let line = page.lines().find_map(|told| told.strip_prefix(&line));
        line.map(|number| number.parse::<f64>().expect("a number"))
    };
    let helpdesk = deployment.topic("sync.helpdesk.v1");
    assert_eq!(figure(&helpdesk).await, Some(3.0));
    let answer = phone
        .send_batch("helpdesk", &[("prefer", "wait=0")], phone.batch(&entries))
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let applied = db
        .count(
            "SELECT coalesce(sum(next_offset), 0)::bigint FROM positions WHERE topic LIKE '%helpdesk%'",
            &[],
        )
        .await;
    let at_zero = positions(
        taken
            .as_array()
            .and_then(|all| all.iter().find(|taken| taken["domains"] == json!(["helpdesk"])))
            .expect("helpdesk"),
    );
    assert!(
        at_zero.iter().all(|(_, offset)| *offset > 0),
        "each partition has lost something"
    );
    assert_eq!(applied, 0, "nothing is passed over");
    let verified = deployment.run(&["verify", "--domain", "helpdesk", "--snapshot", &text(&dir)]);
    assert!(
        verified.code == 1 && verified.stderr.contains("brings them back"),
        "{verified:?}"
    );

    for known in DOMAINS.iter().filter(|known| known.url != "journal-media") {
        let args = [
            "rebuild",
            "--domain",
            known.url,
            "--snapshot",
            &text(&dir),
            "--output",
            "json",
        ];
        let restored = deployment.run(&args).json();
        assert_eq!(restored["done"], "restored", "{restored}");
        let (events, waited) = (&restored["events"], &restored["stood_still_ms"]);
        println!(
            "{}: {events} events after the snapshot, waited {waited} ms",
            known.url
        );
    }
    crew::all_applied(&deployment).await;
    eventually("nothing is withheld any more", async || {
        (figure(&helpdesk).await == Some(0.0)).then_some(())
    })
    .await;
    let mut now = projection(&deployment).await;
    for (table, rows) in &before {
        let now = now.remove(table).expect("a table");
        match table.as_str() {
            // One more was posted meanwhile.
            "helpdesk" | "helpdesk_changes" => assert!(rows.iter().all(|row| now.contains(row)), "{table}"),
            "positions" => assert_eq!(now.len(), rows.len()),
            _ => assert_eq!(&now, rows, "{table}"),
        }
    }
    let count = db.count("SELECT count(*) FROM shadows", &[]).await;
    assert_eq!(count, 0, "what was empty is not kept");
    // The phone's cursor goes on, and so does everything else.
    held.catch_up(&phone, "helpdesk", 100).await;
    phone
        .post("helpdesk", &[(DOMAINS[3].item)(898).text])
        .await
        .expect(200);
    held.catch_up(&phone, "helpdesk", 100).await;
    let mut fresh = Replica::default();
    fresh.catch_up(&phone, "helpdesk", 100).await;
    assert_eq!(held.records, fresh.records);
    deployment.run(&["verify", "--snapshot", &text(&dir)]).ok();
    assert_eq!(process.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_older_backup_are_replaced_only_by_whoever_says_so() {
    let Service { deployment, process } = Service::start("older");
    crew::fill(&deployment, &crew::tenants(), 800).await;
    let dir = deployment.dir.join("snapshots");
    let taken = snapshot(&deployment, "helpdesk", &dir);
    crew::fill(&deployment, &crew::tenants(), 400).await;
    let before = projection(&deployment).await;
    assert_eq!(process.terminate(), 0);
    let topic = deployment.topic("sync.helpdesk.v1");
    delete_before(&deployment.brokers, &topic, &positions(&taken)).await;
    let db = deployment.db().await;
    let older = "UPDATE positions SET next_offset = 3 WHERE topic = $1";
    db.rows(older, &[&topic]).await;
    for table in ["helpdesk", "helpdesk_changes", "outcomes"] {
        let sql = format!("DELETE FROM {table} WHERE \"offset\" >= 3 AND domain_of_test");
        let whose = if table == "outcomes" {
            format!("topic = '{topic}'")
        } else {
            "true".into()
        };
        db.rows(&sql.replace("domain_of_test", &whose), &[]).await;
    }
    let (code, said) = rebuild(&deployment, &["--snapshot", &text(&dir)]);
    assert!(code == 3 && said.contains("stand before"), "{said}");
    let (code, said) = rebuild(&deployment, &["--accept-differences"]);
    assert!(code == 0 && said.contains("restored"), "{said}");
    let (code, said) = rebuild(&deployment, &["--back"]);
    assert!(code == 1 && said.contains("begins at offset"), "{said}");
    deployment
        .run(&["rebuild", "--domain", "helpdesk", "--discard", "--yes"])
        .ok();
    let process = deployment.start_listening("serve", "/readyz");
    crew::all_applied(&deployment).await;
    assert_eq!(projection(&deployment).await, before);
    assert_eq!(process.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_never_reads_on_over_what_was_deleted_before_it_was_applied() {
    let deployment = Deployment::new("cut");
    deployment.prepare();
    let gateway = deployment.start_listening("ingest", "/readyz");
    let projector = deployment.start("project");
    let phone = Phone::new(&deployment, &tenant("cut"), "asha");
    let items =
        |from: usize| -> Vec<String> { (from..from + 20).map(|n| (DOMAINS[3].item)(n).text).collect() };
    phone.post("helpdesk", &items(0)).await.expect(200);
    let dir = deployment.dir.join("snapshots");
    snapshot(&deployment, "helpdesk", &dir);
    // What is appended while it stands still is deleted before it goes on.
    projector.signal(Signal::STOP);
    // What it had asked for is answered by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = phone
        .send_batch("helpdesk", &[("prefer", "wait=0")], phone.batch(&items(100)))
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let topic = deployment.topic("sync.helpdesk.v1");
    let ends: Vec<(i32, i64)> = (0..)
        .zip(end_offsets(&deployment.brokers, &topic, PARTITIONS))
        .collect();
    delete_before(&deployment.brokers, &topic, &ends).await;
    let db = deployment.db().await;
    let standing = async || {
        let sql = "SELECT sum(next_offset)::bigint FROM positions WHERE topic = $1";
        db.count(sql, &[&topic]).await
    };
    let stood = standing().await;
    projector.signal(Signal::CONT);
    phone
        .send_batch("helpdesk", &[("prefer", "wait=0")], phone.batch(&items(200)))
        .await;
    eventually("it says so", async || {
        projector
            .log()
            .contains("the log begins after the position")
            .then_some(())
    })
    .await;
    // Others go on.
    phone
        .post("activity", &[(DOMAINS[0].item)(1).text])
        .await
        .expect(200);
    assert_eq!(standing().await, stood, "nothing is passed over");
    // What is deleted is lost; a snapshot from before says that it does not reach so far, and nothing is done.
    let (code, said) = rebuild(&deployment, &["--snapshot", &text(&dir)]);
    assert!(
        code == 1 && said.contains("none of the 1 snapshots there reaches into the log"),
        "{said}"
    );
    // Whoever accepts the loss says so by hand, and it is read without a restart.
    let accept = "UPDATE positions SET next_offset = $2 WHERE topic = $1 AND partition = $3";
    for (partition, end) in &ends {
        db.rows(accept, &[&topic, end, partition]).await;
    }
    eventually("it is read again", async || {
        (standing().await > ends.iter().map(|(_, end)| end).sum()).then_some(())
    })
    .await;
    phone.post("helpdesk", &items(300)).await.expect(200);
    assert_eq!(projector.terminate(), 0, "it lets go of everything");
    assert_eq!(gateway.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_stays_so_in_an_old_snapshot() {
    let secret = "a secret for tests, of 32 bytes or more";
    let Service { deployment, process } =
        Service::of(Deployment::new("sealed").with("TIDELOG_SEAL_SECRET", secret));
    let tenant = tenant("sealed");
    let words = ["asha", "beth"].map(|user| (user, format!("words-of-{user}")));
    for (user, word) in &words {
        let phone = Phone::new(&deployment, &tenant, user);
        let ticket = json!({"mobile_id": Uuid::new_v4(), "ticketdesc": word, "priority": "HIGH"});
        phone.apply("helpdesk", ticket).await;
    }
    let dir = deployment.dir.join("snapshots");
    let taken = snapshot(&deployment, "helpdesk", &dir);
    deployment
        .run(&["erase", "--tenant", &tenant, "--user", "asha", "--yes"])
        .ok();
    assert_eq!(process.terminate(), 0);
    let topic = deployment.topic("sync.helpdesk.v1");
    delete_before(&deployment.brokers, &topic, &positions(&taken)).await;
    let db = deployment.db().await;
    db.rows(&format!("DROP SCHEMA \"{}\" CASCADE", deployment.schema), &[])
        .await;
    deployment.run(&["migrate"]).ok();
    let (code, said) = rebuild(&deployment, &["--snapshot", &text(&dir)]);
    assert!(code == 0 && said.contains("restored"), "{said}");

    let process = deployment.start_listening("serve", "/readyz");
    let desk = Phone::of(&deployment, &tenant, "sue", "desk-1", Role::Operator);
    // The keys come from the log, where the destroyed one is not any more.
    eventually("the other's words are read", async || {
        let items = desk.pull("helpdesk", "limit=10").await;
        assert_eq!(items.len(), 2, "{items:?}");
        let shown = Value::from(items).to_string();
        assert!(!shown.contains(&words[0].1), "{shown}");
        shown.contains(&words[1].1).then_some(())
    })
    .await;
    assert_eq!(process.terminate(), 0);
}

/// A domain's snapshot.
fn snapshot(deployment: &Deployment, domain: &str, dir: &Path) -> Value {
    let args = [
        "snapshot",
        "--domain",
        domain,
        "--to",
        &text(dir),
        "--output",
        "json",
    ];
    let all = deployment.run(&args).json();
    all[0].clone()
}

fn positions(taken: &Value) -> Vec<(i32, i64)> {
    let each = taken["positions"].as_array().expect("positions").iter();
    each.map(|at| {
        let partition = at["partition"].as_i64().expect("a partition");
        (partition as i32, at["next_offset"].as_i64().expect("an offset"))
    })
    .collect()
}

fn rebuild(deployment: &Deployment, args: &[&str]) -> (i32, String) {
    let ran = deployment.run(&[&["rebuild", "--domain", "helpdesk"], args].concat());
    (ran.code, format!("{}{}", ran.stdout, ran.stderr))
}

/// Runs a command that is killed at a step.
fn drilled(deployment: &Deployment, stop: &str, args: &[&str]) {
    let mut command = deployment.command(args);
    command.env("TIDELOG_DRILL_STOP", stop);
    let output = command.output().expect("tidelog can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), None, "it comes to {stop}: {said}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
