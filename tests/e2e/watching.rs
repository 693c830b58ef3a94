//! An operator sees how the projection stands and goes: what is behind, for how long, how fast it catches up, who has it
//! and what is wrong with it; on a terminal, in a pipe, and while Kafka or Postgres is away.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};

use crate::support::items::{ticket, tickets};
use crate::support::kafka::produce;
use crate::support::phone::{Phone, tenant};
use crate::support::proxy::Proxy;
use crate::support::service::{Deployment, Service};
use crate::support::{PATIENCE, eventually, stack};

/// The one partition of helpdesk that has what is asked for.
#[track_caller]
fn partition(status: &Value, has: impl Fn(&Value) -> bool) -> &Value {
    let mut found = status["partitions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|p| has(p));
    let one = found.next().unwrap_or_else(|| panic!("none: {status}"));
    assert!(found.next().is_none(), "several: {status}");
    one
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_what_is_behind_and_since_when() {
    let deployment = Deployment::new("watch-lag");
    deployment.prepare();
    let _ingest = deployment.start_listening("ingest", "/readyz");
    let phone = Phone::new(&deployment, &tenant("lag"), "asha");
    let first = [ticket(uuid::Uuid::new_v4(), "The lift is stuck again").to_string()];
    let (key, batch) = (uuid::Uuid::new_v4().to_string(), phone.batch(&first));
    for _ in 0..3 {
        let headers = [("prefer", "wait=0"), ("idempotency-key", key.as_str())];
        phone
            .send_batch("helpdesk", &headers, batch.clone())
            .await
            .expect(202);
    }
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let status = deployment.run(&["status", "--output", "json"]).json();
    let behind = partition(&status, |p| p["lag"] != 0);
    assert_eq!(
        (&behind["lag"], &behind["next_offset"]),
        (&json!(1), &json!(0)),
        "{status}"
    );
    let age = behind["lag_seconds"].as_f64().expect("an age");
    assert!(
        (1.5..600.0).contains(&age) && status["lag_seconds"] == behind["lag_seconds"],
        "{status}"
    );
    assert_eq!(
        (&behind["owner"], &behind["fold_version"]),
        (&Value::Null, &Value::Null),
        "{status}"
    );
    assert_eq!(status["idempotency_hits_24h"], 2, "{status}");
    let flight = json!({"batches": 0, "oldest_seconds": null, "abandoned": 0});
    assert_eq!(status["in_flight"], flight, "{status}");

    // A claim that a gateway holds, and one that a killed one left.
    let db = deployment.db().await;
    for (lease, key) in [("1 hour", "held"), ("-1 minute", "left")] {
        db.rows(
            "INSERT INTO idempotency_records (tenant_id, scope, user_id, device_id, key, fingerprint, batch_id, lease_owner, \
             lease_until, created_at, expires_at) VALUES ($1, 'batch', 'u', 'd', $2, '', gen_random_uuid(), gen_random_uuid(), \
             now() + $3::text::interval, now() - interval '90 seconds', now() + interval '1 day')",
            &[&phone.tenant, &key, &lease],
        )
        .await;
    }
    let flight = deployment.run(&["status", "--output", "json"]).json()["in_flight"].clone();
    assert_eq!(
        (&flight["batches"], &flight["abandoned"]),
        (&json!(1), &json!(1)),
        "{flight}"
    );
    assert!(
        flight["oldest_seconds"]
            .as_f64()
            .is_some_and(|age| (90.0..600.0).contains(&age)),
        "{flight}"
    );

    // The projection comes, with a record that is no event; nobody owns anything once it is killed.
    produce(
        &deployment.brokers,
        &deployment.topic("sync.helpdesk.v1"),
        "key",
        &[],
        "no event",
    );
    let project = deployment.start("project");
    let status = eventually("all is applied", async || {
        let status = deployment.run(&["status", "--output", "json"]).json();
        (status["lag"] == 0 && status["dead_letters"] == 1).then_some(status)
    })
    .await;
    let dead = partition(&status, |p| p["dead_letters"] == 1);
    assert_eq!(
        (&dead["lag_seconds"], &dead["fold_version"]),
        (&json!(0.0), &json!(2)),
        "{status}"
    );
    assert!(
        dead["owner"].is_string() && dead["owner_seen_seconds"].is_number(),
        "{status}"
    );
    let text = deployment.run(&["status"]).ok();
    assert!(
        text.contains("2 records applied, lag 0, 1 dead letter\n2 hits of keys in 24 h, 1 batch in flight"),
        "{text}"
    );
    drop(project);
}

/// A running `tidelog status --watch` in a pipe, an object a look.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(deployment: &Deployment) -> Watch {
        let mut command = deployment.command(&["status", "--watch", "0.2", "--output", "json"]);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("tidelog can be run");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let _ = out
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line));
        });
        Watch { child, lines }
    }

    /// Looks until one is as asked for.
    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let since = std::time::Instant::now();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("another look");
            let status: Value = serde_json::from_str(&line).expect("an object a line");
            if is(&status) {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "{what}: {line}");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_rates_and_goes_on_while_a_side_is_away() {
    let service = Service::start("watch-away");
    let (database, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = service.deployment.clone();
    through.database_url = url;
    let phone = Phone::new(&service.deployment, &tenant("away"), "asha");
    let watch = Watch::start(&through);
    watch.until("nothing is there", |status| {
        status["rate"] == json!(0.0) && status["applied"] == 0
    });
    phone.post("helpdesk", &tickets(30)).await.expect(200);
    watch.until("a rate", |status| {
        status["rate"].as_f64().is_some_and(|rate| rate > 1.0)
    });
    watch.until("30 applied", |status| {
        status["applied"] == 30 && status["away"] == json!([])
    });

    database.cut();
    let away = watch.until("Postgres is away", |status| status["away"] != json!([]));
    assert!(
        away["away"][0]
            .as_str()
            .is_some_and(|why| why.contains("Postgres")),
        "{away}"
    );
    assert_eq!(away["applied"], 30, "as seen last: {away}");
    // The log goes on, and that is seen.
    phone.post("helpdesk", &tickets(5)).await.expect(200);
    watch.until("the log grows", |status| status["lag"] == 5);
    database.mend();
    watch.until("Postgres is back", |status| {
        status["away"] == json!([]) && status["applied"] == 35
    });
}

/// A terminal with the command in it.
struct Terminal {
    child: Child,
    master: File,
    slave: File,
    shown: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Terminal {
    fn start(mut command: Command) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .expect("a terminal");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("text"))
            .expect("its other end");
        let size = Winsize {
            ws_row: 20,
            ws_col: 70,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).expect("a size");
        let end = || Stdio::from(slave.try_clone().expect("a file can be had twice"));
        let child = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("tidelog can be run");
        let master = File::from(master);
        let mut out = master.try_clone().expect("a file can be had twice");
        let shown = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let kept = shown.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut bytes) {
                kept.lock()
                    .expect("no panic")
                    .push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Terminal {
            child,
            master,
            slave,
            shown,
        }
    }

    async fn shows(&self, text: &str) {
        eventually(text, async || {
            self.shown.lock().expect("no panic").contains(text).then_some(())
        })
        .await;
    }

    async fn code(&mut self) -> Option<i32> {
        eventually("it ends", async || self.child.try_wait().expect("a child"))
            .await
            .code()
    }

    fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_it_is_a_screen_that_is_left_as_it_was() {
    use std::io::Write;
    let service = Service::start("watch-screen");
    let phone = Phone::new(&service.deployment, &tenant("screen"), "asha");
    phone.post("helpdesk", &tickets(3)).await.expect(200);
    let start = || Terminal::start(service.deployment.command(&["status", "--watch", "0.2"]));

    let mut terminal = start();
    terminal.shows("3 records applied, lag 0, 0 dead letters").await;
    // Eight topics of three partitions do not fit into twenty lines.
    terminal.shows(" more, 0 of them with something wrong").await;
    assert!(!terminal.echoes(), "keys are its own");
    terminal.master.write_all(b"q").expect("a key");
    assert_eq!(terminal.code().await, Some(0));
    terminal.shows("\x1b[?25h\x1b[?1049l").await;
    assert!(terminal.echoes(), "the keyboard is as it was");

    let mut terminal = start();
    terminal.shows("lag 0").await;
    let pid = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    assert_eq!(terminal.code().await, Some(0), "as Ctrl-C");
    terminal.shows("\x1b[?25h\x1b[?1049l").await;
    assert!(terminal.echoes(), "the keyboard is as it was");
}

#[test]
fn in_a_pipe_it_is_a_block_each_time() {
    let deployment = Deployment::new("watch-pipe");
    deployment.prepare();
    let mut child = deployment
        .command(&["status", "--watch", "0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("tidelog can be run");
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    let lines: Vec<String> = out.lines().map_while(Result::ok).take(40).collect();
    let blocks = lines
        .iter()
        .filter(|line| line.starts_with("0 records applied, lag 0"))
        .count();
    assert!(blocks >= 2 && !lines.concat().contains('\x1b'), "{lines:?}");
    // The reader is gone, which is no error.
    let ended = crate::support::eventually_blocking("it ends", || child.try_wait().expect("a child"));
    assert_eq!(ended.code(), Some(0));
    let ran = deployment.run(&["status", "--watch", "0"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("0.1 to 3600 seconds"),
        "{ran:?}"
    );
}
