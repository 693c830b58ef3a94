//! An operator who watches the log sees every event once, in order, with what became of it, and only what was asked for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::PATIENCE;
use crate::support::items::{ticket, tickets};
use crate::support::kafka::produce;
use crate::support::phone::{Phone, tenant};
use crate::support::proxy::Proxy;
use crate::support::service::{Deployment, Service};
use crate::support::stack;

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "tailing").deployment
}

/// A running `tidelog tail`, line by line.
struct Tail {
    child: Child,
    lines: Receiver<String>,
}

impl Tail {
    /// Starts one that has begun to read when this returns: it has shown an event that came before.
    fn start(deployment: &Deployment, args: &[&str]) -> Tail {
        let mut command = deployment.command(&[&["tail"], args].concat());
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("tidelog can be run");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Tail { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("another line")
    }

    fn json(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// Ctrl-C; answers the exit code.
    fn interrupt(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        self.child.wait().expect("a child can be waited for").code()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that there is of a tenant, to the log's end.
fn of_tenant(deployment: &Deployment, tenant: &str, args: &[&str]) -> Vec<Value> {
    let all = [
        "tail",
        "--from",
        "beginning",
        "--no-follow",
        "--output",
        "json",
        "--wait",
        "30s",
        "--tenant",
        tenant,
    ];
    let text = deployment.run(&[&all, args].concat()).ok();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect()
}

/// Two phones that do everything that has an outcome of its own; answers the record.
async fn history(deployment: &Deployment, tenant: &str) -> Uuid {
    let asha = Phone::new(deployment, tenant, "asha");
    let mut ben = Phone::new(deployment, tenant, "ben");
    ben.device = "phone-2".into();
    let id = Uuid::new_v4();
    asha.apply("helpdesk", ticket(id, "The lift is stuck again"))
        .await;
    ben.apply(
        "helpdesk",
        json!({"mobile_id": id, "version": 1, "comments": "ben's"}),
    )
    .await;
    let late = json!({"mobile_id": id, "version": 1, "comments": "asha's"}).to_string();
    asha.post("helpdesk", &[late]).await.expect(200);
    let wrong = json!({"mobile_id": id, "version": 3, "status": "CLOSED"}).to_string();
    asha.post("helpdesk", &[wrong]).await.expect(200);
    // The first item again, in another batch.
    let again = ticket(id, "The lift is stuck again").to_string();
    asha.post("helpdesk", &[again, tickets(1).remove(0)])
        .await
        .expect(200);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_shown_once_with_what_became_of_it() {
    let (mine, other) = (tenant("told"), tenant("told"));
    let (id, theirs) = (
        history(deployment(), &mine).await,
        history(deployment(), &other).await,
    );
    let shown = of_tenant(deployment(), &mine, &[]);
    let about: Vec<&Value> = shown.iter().filter(|line| line["record"] == json!(id)).collect();
    let outcomes: Vec<&Value> = about.iter().map(|line| &line["outcome"]["outcome"]).collect();
    assert_eq!(
        outcomes,
        ["applied", "applied", "conflict", "refused", "duplicate"],
        "{shown:?}"
    );
    assert_eq!(shown.len(), 6, "{shown:?}");
    assert_eq!(
        about[0]["outcome"],
        json!({"outcome": "applied", "change": "created", "version": 1})
    );
    let conflict = &about[2]["outcome"];
    assert_eq!(
        (
            &conflict["policy"],
            &conflict["winner"],
            &conflict["server_version"]
        ),
        (&json!("preserve_escalation"), &json!("merged"), &json!(3)),
    );
    assert_eq!(about[3]["outcome"]["error"]["error_code"], "INVALID_TRANSITION");
    assert_eq!(about[4]["outcome"]["first"]["version"], 1);
    let who: Vec<_> = about
        .iter()
        .map(|line| (&line["user"], &line["device"], &line["base_version"]))
        .collect();
    assert_eq!(who[1], (&json!("ben"), &json!("phone-2"), &json!(1)));
    let text = serde_json::to_string(&shown).expect("JSON");
    assert!(
        !text.contains(&other) && !text.contains(&theirs.to_string()),
        "another tenant's: {text}"
    );

    // Narrower.
    let of_record = of_tenant(deployment(), &mine, &["--record", &id.to_string().to_uppercase()]);
    assert_eq!(of_record.len(), 5, "{of_record:?}");
    let of_device = of_tenant(deployment(), &mine, &["--device", "phone-2", "--payload"]);
    assert_eq!(of_device.len(), 1, "{of_device:?}");
    assert_eq!(of_device[0]["payload"]["comments"], "ben's");
    assert_eq!(
        of_tenant(deployment(), &mine, &["--domain", "activity"]),
        [Value::Null; 0]
    );
    assert_eq!(of_tenant(deployment(), &mine, &["--limit", "2"]).len(), 2);
    let from = about[3]["log_time"].as_str().expect("a time");
    let later = deployment().run(&[
        "tail",
        "--from",
        from,
        "--no-follow",
        "--output",
        "json",
        "--record",
        &id.to_string(),
    ]);
    assert_eq!(later.ok().lines().count(), 2, "from the refused one's time on");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_shown_as_they_come_and_ctrl_c_is_a_good_end() {
    let tenant = tenant("live");
    let phone = Phone::new(deployment(), &tenant, "asha");
    phone.post("helpdesk", &tickets(1)).await.expect(200);
    let tail = Tail::start(
        deployment(),
        &["--tenant", &tenant, "--from", "1m", "--wait", "30s"],
    );
    assert!(tail.line().ends_with(" 0 → created, version 1"));
    phone
        .post(
            "metrics",
            &[r#"{"metric_name":"load","value":1,"timestamp":"2026-03-01T10:00:00Z"}"#],
        )
        .await
        .expect(200);
    let line = tail.line();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(
        (words[1], words[3], words[4], words[5], words[6]),
        ("metrics", tenant.as_str(), "asha", "phone-1", "append"),
        "{line}"
    );
    assert!(line.ends_with("→ created, version 1"), "{line}");
    // Each of several partitions in its order; between them, they come as they arrive.
    for batch in tickets(60).chunks(10) {
        phone.post("helpdesk", batch).await.expect(200);
    }
    let mut last_of = BTreeMap::new();
    for _ in 0..60 {
        let line = tail.line();
        let words: Vec<&str> = line.split(' ').collect();
        let (partition, offset) = words[2].split_once('/').expect("a place");
        let offset: i64 = offset.parse().unwrap_or_else(|_| panic!("an offset: {line}"));
        let before = last_of.insert(partition.to_owned(), offset);
        assert!(before.is_none_or(|before| before < offset), "{line}");
    }
    // What is there already is one log in one order: that of its times.
    let shown = of_tenant(deployment(), &tenant, &["--domain", "helpdesk"]);
    let times: Vec<_> = shown.iter().map(|line| line["log_time"].as_str()).collect();
    assert_eq!(times.len(), 61);
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(tail.interrupt(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_projection_has_not_come_to_is_pending() {
    let deployment = Deployment::new("tail-pending");
    deployment.prepare();
    let _ingest = deployment.start_listening("ingest", "/readyz");
    let tenant = tenant("pending");
    let phone = Phone::new(&deployment, &tenant, "asha");
    let body = phone.batch(&tickets(5));
    phone
        .send_batch("helpdesk", &[("prefer", "wait=0")], body)
        .await
        .expect(202);
    let args = [
        "tail",
        "--from",
        "beginning",
        "--no-follow",
        "--output",
        "json",
        "--wait",
        "200ms",
    ];
    let text = deployment.run(&args).ok();
    assert_eq!(
        text.matches(r#""outcome":{"outcome":"pending"}"#).count(),
        5,
        "{text}"
    );

    // A line waits for its outcome: it is printed once, and says what became of it.
    let tail = Tail::start(
        &deployment,
        &["--from", "beginning", "--output", "json", "--wait", "60s"],
    );
    let _project = deployment.start("project");
    for _ in 0..5 {
        assert_eq!(tail.json()["outcome"]["change"], "created");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_no_event_is_a_dead_letter_and_belongs_to_nobody() {
    let service = Service::start("tail-poison");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("poison"), "asha");
    phone.post("helpdesk", &tickets(1)).await.expect(200);
    produce(
        &deployment.brokers,
        &deployment.topic("sync.helpdesk.v1"),
        "key",
        &[],
        "no\u{1b}[2J event",
    );
    let all = [
        "tail",
        "--from",
        "beginning",
        "--no-follow",
        "--wait",
        "30s",
        "--payload",
    ];
    let text = deployment.run(&all).ok();
    assert!(
        text.contains("cannot be read: the header ce_specversion is missing → dead letter: the header ce_specversion is missing"),
        "{text}"
    );
    assert!(
        text.contains("no\\u{1b}[2J event") && !text.contains('\u{1b}'),
        "{text}"
    );
    let text = deployment
        .run(&[&all[..], &["--tenant", &phone.tenant]].concat())
        .ok();
    assert!(
        !text.contains("dead letter") && text.contains("created"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_away_outcomes_are_unknown_and_come_back_with_it() {
    let service = Service::start("tail-away");
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = service.deployment.clone();
    through.database_url = url;
    let tenant = tenant("away");
    let phone = Phone::new(&service.deployment, &tenant, "asha");
    phone.post("helpdesk", &tickets(1)).await.expect(200);
    let tail = Tail::start(
        &through,
        &["--from", "beginning", "--output", "json", "--wait", "30s"],
    );
    assert_eq!(tail.json()["outcome"]["outcome"], "applied");
    proxy.cut();
    phone.post("helpdesk", &tickets(1)).await.expect(200);
    assert_eq!(tail.json()["outcome"], json!({"outcome": "unknown"}));
    proxy.mend();
    crate::support::eventually("outcomes are told again", async || {
        phone.post("helpdesk", &tickets(1)).await.expect(200);
        (tail.json()["outcome"]["outcome"] == "applied").then_some(())
    })
    .await;
    assert_eq!(tail.interrupt(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let tenant = tenant("head");
    Phone::new(deployment(), &tenant, "asha")
        .post("helpdesk", &tickets(3))
        .await
        .expect(200);
    let mut tail = Tail::start(deployment(), &["--tenant", &tenant, "--from", "1m"]);
    tail.line();
    // Its end of the pipe is dropped with the thread that reads: the next line finds nobody.
    let (_, none) = channel();
    drop(std::mem::replace(&mut tail.lines, none));
    Phone::new(deployment(), &tenant, "asha")
        .post("helpdesk", &tickets(3))
        .await
        .expect(200);
    let ended = crate::support::eventually("it ends", async || tail.child.try_wait().expect("a child")).await;
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn what_cannot_be_shown_is_told() {
    let deployment = Deployment::new("tail-wrong");
    let ran = deployment.run(&["tail", "--domain", "helpdesks"]);
    assert!(
        ran.code == 1
            && ran
                .stderr
                .contains("there is no domain \"helpdesks\"; there are activity"),
        "{ran:?}"
    );
    let ran = deployment.run(&["tail"]);
    assert!(ran.code == 1 && ran.stderr.contains("tidelog topics"), "{ran:?}");
    let ran = deployment.run(&["tail", "--from", "yesterday"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("how long ago, like 15m"),
        "{ran:?}"
    );
}
