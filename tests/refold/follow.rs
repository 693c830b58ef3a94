//! `verify --follow`: a healthy store shows no difference and a time that moves on, damage shows until it is mended, Postgres may
//! go and come, and however it ends, nothing of it stays, or not for longer than until the next one begins.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::eventually;
use crate::support::http::Http;
use crate::support::items::tickets;
use crate::support::phone::{Phone, tenant};
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::service::{Deployment, Service};
use crate::support::stack;

/// A `verify --follow` of one domain, with its metrics.
struct Follower {
    process: Process,
    port: u16,
}

impl Follower {
    fn start(deployment: &Deployment, name: &str, every: &str) -> Follower {
        Follower::at_rate(deployment, name, every, "5000")
    }

    fn at_rate(deployment: &Deployment, name: &str, every: &str, rate: &str) -> Follower {
        let port = Deployment::new("follow-port").port;
        let listen = format!("127.0.0.1:{port}");
        let args = [
            "verify",
            "--follow",
            "--domain",
            "helpdesk",
            "--rate",
            rate,
            "--every",
            every,
            "--metrics-listen",
            &listen,
        ];
        let process = Process::start(name, &deployment.command(&args), &deployment.dir);
        Follower { process, port }
    }

    /// What the page says of each figure whose name begins so, labels and all; none while there is no page.
    async fn figures(&self, name: &str) -> Option<Vec<(String, f64)>> {
        let http = Http::new(format!("http://127.0.0.1:{}", self.port));
        let page = http
            .try_send(http::Method::GET, "/metrics", &[], bytes::Bytes::new())
            .await
            .ok()?;
        assert_eq!(page.status, 200);
        assert!(
            page.header("content-type")
                .is_some_and(|kind| kind.starts_with("text/plain"))
        );
        let figure = |line: &str| {
            let (figure, value) = line.rsplit_once(' ')?;
            let told = figure == name || figure.starts_with(&format!("{name}{{"));
            told.then(|| (figure.to_owned(), value.parse().expect("a number")))
        };
        Some(page.text().lines().filter_map(figure).collect())
    }

    async fn sum(&self, name: &str) -> Option<f64> {
        let figures = self.figures(name).await?;
        (!figures.is_empty()).then(|| figures.iter().map(|(_, value)| value).sum())
    }

    async fn becomes(&self, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let what = format!("{name} is as it should be");
        eventually(&what, async || {
            self.sum(name).await.filter(|value| wanted(*value))
        })
        .await
    }
}

async fn schemas(deployment: &Deployment) -> i64 {
    let db = deployment.db().await;
    let schema = format!("{}_verify_helpdesk", deployment.schema);
    db.count("SELECT count(*) FROM pg_namespace WHERE nspname = $1", &[&schema])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_store_shows_nothing_and_damage_until_it_is_mended() {
    const COMPLETED: &str = "tidelog_verify_last_completed_timestamp_seconds";
    let service = Service::start("follow");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("follow"), "asha");
    phone.post("helpdesk", &tickets(40)).await.expect(200);
    let follower = Follower::start(deployment, "verify", "300ms");
    let first = follower.becomes(COMPLETED, |at| at > 0.0).await;
    assert_eq!(follower.sum("tidelog_verify_differences").await, Some(0.0));
    assert_eq!(follower.sum("tidelog_verify_records").await, Some(40.0));
    assert_eq!(follower.sum("tidelog_verify_up").await, Some(1.0));
    // It goes on while phones write.
    phone.post("helpdesk", &tickets(20)).await.expect(200);
    follower.becomes(COMPLETED, |at| at > first).await;
    follower
        .becomes("tidelog_verify_records", |rows| rows == 60.0)
        .await;
    follower
        .becomes("tidelog_verify_events_total", |events| events >= 100.0)
        .await;
    assert_eq!(follower.sum("tidelog_verify_failed_runs_total").await, Some(0.0));

    let db = deployment.db().await;
    let one = format!(
        "ctid = (SELECT ctid FROM \"{}\".helpdesk LIMIT 1)",
        deployment.schema
    );
    let damaged = db
        .rows(
            &format!(
                "DELETE FROM \"{}\".helpdesk WHERE {one} RETURNING partition",
                deployment.schema
            ),
            &[],
        )
        .await;
    let partition: i32 = damaged[0].get(0);
    follower
        .becomes("tidelog_verify_differences", |rows| rows == 1.0)
        .await;
    let told = follower
        .figures("tidelog_verify_differences")
        .await
        .expect("a page");
    let label = format!("partition=\"{partition}\"");
    let where_it_is = |(figure, value): &(String, f64)| figure.contains(&label) == (*value == 1.0);
    assert!(told.iter().all(where_it_is), "{told:?}");
    let log = follower.process.log();
    for text in ["helpdesk missing: {", "tidelog replay --domain helpdesk"] {
        assert!(log.contains(text), "{text} in {log}");
    }
    deployment.run(&["replay", "--domain", "helpdesk"]).ok();
    follower
        .becomes("tidelog_verify_differences", |rows| rows == 0.0)
        .await;

    assert_eq!(follower.process.terminate(), 0);
    assert_eq!(schemas(deployment).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_go_and_come_and_a_killed_run_is_cleaned_up_after() {
    let service = Service::start("follow-away");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("away"), "asha");
    phone.post("helpdesk", &tickets(30)).await.expect(200);
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = deployment.clone();
    through.database_url = url;
    let follower = Follower::start(&through, "verify-away", "200ms");
    follower
        .becomes("tidelog_verify_records", |rows| rows == 30.0)
        .await;
    proxy.cut();
    follower.becomes("tidelog_verify_up", |up| up == 0.0).await;
    assert!(
        follower
            .becomes("tidelog_verify_failed_runs_total", |runs| runs > 0.0)
            .await
            > 0.0
    );
    let log = follower.process.log();
    assert!(
        log.contains("could not be looked at") && log.contains("Postgres"),
        "{log}"
    );
    proxy.mend();
    follower.becomes("tidelog_verify_up", |up| up == 1.0).await;
    assert_eq!(follower.sum("tidelog_verify_differences").await, Some(0.0));

    // Killed amid a fold: what it made is there, until the next one begins.
    eventually("a run is under way", async || {
        let there = async || schemas(deployment).await == 1;
        if !there().await {
            return None;
        }
        follower.process.signal_if_running(Signal::STOP);
        // What it asked for last may still be done.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let still = there().await;
        if !still {
            follower.process.signal_if_running(Signal::CONT);
        }
        still.then_some(())
    })
    .await;
    follower.process.kill9();
    assert_eq!(schemas(deployment).await, 1);
    let next = Follower::start(deployment, "verify-next", "1h");
    next.becomes("tidelog_verify_records", |rows| rows == 30.0).await;
    eventually("what was left is gone", async || {
        (schemas(deployment).await == 0).then_some(())
    })
    .await;
    // While it waits for its next round, too, it ends at once.
    let since = std::time::Instant::now();
    assert_eq!(next.process.terminate(), 0);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

/// The ports that a process speaks from.
fn ports(pid: i32) -> Vec<i32> {
    let socket = |entry: std::io::Result<std::fs::DirEntry>| {
        let link = std::fs::read_link(entry.ok()?.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    };
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process")
        .filter_map(socket)
        .collect();
    let port = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = sockets.iter().any(|inode| inode == words[9]);
        let (_, port) = words[1].rsplit_once(':').filter(|_| ours)?;
        i32::from_str_radix(port, 16).ok()
    };
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table of sockets");
    table.lines().skip(1).filter_map(port).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_amid_a_fold_count_nothing_that_was_not_read() {
    const BATCH: usize = 100;
    const EVENTS: f64 = 1500.0;
    /// A second; so that a fold lasts some seconds, and what is done again is not caught up with before it is counted.
    const RATE: &str = "300";
    const READ: &str = "tidelog_verify_events_total";
    const COMPLETED: &str = "tidelog_verify_last_completed_timestamp_seconds";
    /// Whoever has written into the look's tables and not committed yet: what it has folded has to be done again.
    const WRITERS: &str = "SELECT DISTINCT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
                           JOIN pg_namespace n ON n.oid = c.relnamespace \
                           WHERE n.nspname = $1 AND c.relname = 'helpdesk_changes' AND l.mode = 'RowExclusiveLock'";
    const ALL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY($1)";
    let service = Service::start("follow-broken");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("broken"), "asha");
    for _ in 0..EVENTS as usize / BATCH {
        phone.post("helpdesk", &tickets(BATCH)).await.expect(200);
    }
    let db = deployment.db().await;
    let follower = Follower::at_rate(deployment, "verify-broken", "200ms", RATE);
    let schema = format!("{}_verify_helpdesk", deployment.schema);
    let mut read = 0.0;
    let mut count = async || {
        let now = follower.sum(READ).await.expect("a page");
        // A look reads its events once, and what has to be done again once more; a whole one may lie between two counts.
        assert!(
            (0.0..=2.0 * EVENTS).contains(&(now - read)),
            "{read} and then {now}"
        );
        read = now;
        now
    };
    // Its writers, when some is counted: what they did is read again, and the look comes to its end.
    follower.becomes(READ, |events| events > 0.0).await;
    let broken = eventually("a writer's connection is broken", async || {
        let broken = db.rows(WRITERS, &[&schema]).await.len();
        (broken > 0).then_some(broken)
    })
    .await;
    eventually("the look is made", async || {
        count().await;
        follower.sum(COMPLETED).await
    })
    .await;
    let once = count().await;
    let log = follower.process.log();
    assert!(log.contains("gone on with step by step"), "{log}");
    assert_eq!(follower.sum("tidelog_verify_failed_runs_total").await, Some(0.0));
    assert_eq!(follower.sum("tidelog_verify_differences").await, Some(0.0));

    // All that it has: the look is given up, and another one is made.
    follower.becomes(READ, |events| events > once).await;
    let all = db.rows(ALL, &[&ports(follower.process.pid())]).await.len();
    follower
        .becomes("tidelog_verify_failed_runs_total", |runs| runs > 0.0)
        .await;
    let given_up = count().await;
    let last = follower.sum(COMPLETED).await.expect("a time");
    eventually("another look is made", async || {
        count().await;
        follower.sum(COMPLETED).await.filter(|at| *at > last)
    })
    .await;
    println!(
        "{broken} writers broken: {once} events read for a look of {EVENTS}; then all {all} connections: {given_up}, and {}",
        count().await
    );
    assert!((EVENTS..=2.0 * EVENTS).contains(&once), "{once}");
    follower.becomes("tidelog_verify_up", |up| up == 1.0).await;
    assert_eq!(follower.sum("tidelog_verify_differences").await, Some(0.0));
    assert_eq!(follower.sum("tidelog_verify_records").await, Some(EVENTS));
    assert_eq!(follower.process.terminate(), 0);
    assert_eq!(schemas(deployment).await, 0);
}

#[tokio::test]
async fn what_it_cannot_be_told_is_said() {
    let deployment = Deployment::new("follow-args");
    for (args, says) in [
        (vec!["verify", "--rate", "100"], "--follow"),
        (vec!["verify", "--every", "1h"], "--follow"),
        (vec!["verify", "--follow", "--rate", "0"], "--rate"),
        (vec!["verify", "--follow", "--every", "soon"], "20s, 15m"),
    ] {
        let ran = deployment.run(&args);
        assert!(
            ran.code == 2 && ran.stderr.contains(says),
            "{args:?}: {}",
            ran.stderr
        );
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ran = deployment.run(&["verify", "--follow", "--metrics-listen", &address]);
    assert!(
        ran.code == 1 && ran.stderr.contains("--metrics-listen"),
        "{}",
        ran.stderr
    );
}
