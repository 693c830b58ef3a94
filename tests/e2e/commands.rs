//! The command line as scripts use it: what it makes, what it leaves alone, and what it says when something is wrong.

use serde_json::json;
use uuid::Uuid;

use crate::support::http::exchange;
use crate::support::items::{ticket, tickets};
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, PARTITIONS, Service};

#[test]
fn migrations_may_start_twice_at_once() {
    let deployment = Deployment::new("migrate");
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let deployment = deployment.clone();
            std::thread::spawn(move || deployment.run(&["migrate", "--output", "json"]).json())
        })
        .collect();
    let reports: Vec<serde_json::Value> = runs
        .into_iter()
        .map(|run| run.join().expect("no panic"))
        .collect();
    let made = reports
        .iter()
        .filter(|report| report["schema_created"] == true)
        .count();
    assert_eq!(made, 1, "{reports:?}");
    let tables: usize = reports
        .iter()
        .map(|r| r["tables_created"].as_array().map_or(0, Vec::len))
        .sum();
    assert_eq!(tables, 20, "{reports:?}");
    let again = deployment.run(&["migrate"]).ok();
    assert!(again.contains("was up to date"), "{again}");
}

#[test]
fn topics_are_made_once_and_never_altered() {
    let deployment = Deployment::new("topics");
    let own = deployment.topic("sync.helpdesk.v1");
    make_topic(&deployment, &own, PARTITIONS + 2);
    let check = deployment.run(&["topics", "--check", "--output", "json"]);
    assert_eq!(check.code, 3, "{check:?}");
    let report: serde_json::Value = serde_json::from_str(&check.stdout).expect("JSON");
    assert_eq!(report["created"], json!([]), "{report}");

    let first = deployment.run(&["topics", "--output", "json"]);
    assert_eq!(first.code, 3, "it differs: {first:?}");
    let report: serde_json::Value = serde_json::from_str(&first.stdout).expect("JSON");
    let created = report["created"].as_array().expect("a list");
    assert_eq!(
        created.len(),
        11,
        "eight domains', the dead letters', the settings' and the keys': {report}"
    );
    let difference = |report: &serde_json::Value, property: &str| {
        let list = report["differences"].as_array().expect("a list").clone();
        list.into_iter()
            .find(|difference| difference["property"] == property)
    };
    let expected = json!({"topic": own, "property": "partitions", "found": "5", "expected": "3"});
    assert_eq!(difference(&report, "partitions"), Some(expected));
    assert!(difference(&report, "retention.ms").is_some(), "{report}");

    let second = deployment.run(&["topics", "--output", "json"]);
    let again: serde_json::Value = serde_json::from_str(&second.stdout).expect("JSON");
    assert_eq!((second.code, &again["created"]), (3, &json!([])), "{again}");
    assert_eq!(again["differences"], report["differences"], "nothing was altered");
    assert_eq!(again["unchanged"].as_array().map(Vec::len), Some(11), "{again}");
}

#[test]
fn topics_that_were_just_made_can_be_read() {
    let deployment = Deployment::new("new-topics");
    deployment.run(&["migrate"]).ok();
    // Many, so that their leaders do not know it at once.
    deployment.run(&["topics", "--partitions", "24"]).ok();
    let status = deployment.run(&["status", "--output", "json"]).json();
    assert_eq!(status["missing_topics"], json!([]), "{status}");
}

fn make_topic(deployment: &Deployment, topic: &str, partitions: i32) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    let brokers = deployment.brokers.clone();
    let topic = topic.to_owned();
    let made = std::thread::spawn(move || {
        let admin: AdminClient<DefaultClientContext> = rdkafka::config::ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .create()
            .expect("a client");
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let options = AdminOptions::new().operation_timeout(Some(crate::support::PATIENCE));
        runtime
            .block_on(admin.create_topics([&new], &options))
            .expect("Kafka answers")
    });
    made.join().expect("no panic")[0].as_ref().expect("a topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_has_no_lag_once_everything_is_applied() {
    let service = Service::start("status");
    let phone = Phone::new(&service.deployment, &tenant("status"), "asha");
    for _ in 0..3 {
        phone.post("helpdesk", &tickets(10)).await.expect(200);
    }
    let status = service.deployment.run(&["status", "--output", "json"]).json();
    assert_eq!(
        (&status["lag"], &status["applied"], &status["dead_letters"]),
        (&0.into(), &30.into(), &0.into()),
        "{status}"
    );
    assert_eq!(status["missing_topics"], json!([]));
    let topic = service.deployment.topic("sync.helpdesk.v1");
    let partitions: Vec<&serde_json::Value> = status["partitions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|p| p["topic"] == topic.as_str())
        .collect();
    assert_eq!(partitions.len(), PARTITIONS as usize, "{status}");
    for partition in partitions {
        assert_eq!(partition["next_offset"], partition["end_offset"], "{partition}");
        assert_eq!(partition["lag"], 0, "{partition}");
    }
    let text = service.deployment.run(&["status"]).ok();
    assert!(
        text.contains("30 records applied, lag 0, 0 dead letters"),
        "{text}"
    );

    // Without a projector there is a lag, and status says how much.
    let deployment = service.deployment.clone();
    assert_eq!(service.process.terminate(), 0, "a signal is a good end");
    let ingest = deployment.start_listening("ingest", "/readyz");
    phone
        .send_batch("helpdesk", &[("prefer", "wait=0")], phone.batch(&tickets(7)))
        .await
        .expect(202);
    let status = deployment.run(&["status", "--output", "json"]).json();
    assert_eq!(
        (&status["lag"], &status["applied"]),
        (&7.into(), &30.into()),
        "{status}"
    );
    assert_eq!(ingest.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_command_opens_what_it_says() {
    let service = Service::start("token");
    let mut phone = Phone::new(&service.deployment, "acme", "asha");
    let args = [
        "token", "--tenant", "acme", "--user", "asha", "--device", "phone-1",
    ];
    phone.bearer = format!("Bearer {}", service.deployment.run(&args).ok().trim());
    phone
        .apply("helpdesk", ticket(Uuid::new_v4(), "With the command's token"))
        .await;
    let minted = service
        .deployment
        .run(&[&args[..], &["--ttl", "1s", "--output", "json"]].concat())
        .json();
    assert!(
        minted["expires_at"].is_string() && minted["token"].is_string(),
        "{minted}"
    );
    let ran = service
        .deployment
        .run(&["token", "--tenant", "acme", "--user", "asha", "--role", "king"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("user, supervisor or operator"),
        "{ran:?}"
    );
}

#[test]
fn a_wrong_setting_stops_the_boot_and_is_named() {
    let deployment = Deployment::new("settings");
    for (variable, value, says) in [
        ("TIDELOG_LISTEN", "nowhere", "--listen"),
        ("TIDELOG_KAFKA_BROKERS", "no-port", "--kafka-brokers"),
        (
            "TIDELOG_DATABASE_URL",
            "mysql://me:hunter2@db/x",
            "--database-url",
        ),
        (
            "TIDELOG_DATABASE_URL",
            "postgres://me:hunter2@db/x?sslmode=require",
            "TLS",
        ),
        ("TIDELOG_SCHEMA", "Quoted Name", "--schema"),
        ("TIDELOG_JWT_SECRET", "hunter2", "--jwt-secret"),
        ("TIDELOG_SHUTDOWN_DEADLINE", "soon", "--shutdown-deadline"),
        ("TIDELOG_DOMAINS_DIR", "/nowhere", "domains_dir"),
    ] {
        let ran = deployment.clone().with(variable, value).run(&["serve"]);
        assert_ne!(ran.code, 0, "{variable}: {ran:?}");
        assert!(ran.stderr.contains(says), "{variable}={value}: {ran:?}");
        assert!(
            !ran.stderr.contains("hunter2"),
            "a secret is not repeated: {ran:?}"
        );
    }
    // Of the file, the line is named too.
    std::fs::write(
        deployment.dir.join("tidelog.toml"),
        "schema = \"fine\"\nkafka_broker = \"a:1\"\n",
    )
    .expect("a file");
    let ran = deployment.run(&["serve"]);
    assert!(
        ran.code == 2
            && ran
                .stderr
                .contains("tidelog.toml:2: unknown setting \"kafka_broker\""),
        "{ran:?}"
    );
}

#[test]
fn a_service_without_its_tables_or_topics_says_what_to_run() {
    let deployment = Deployment::new("unprepared");
    let ran = deployment.run(&["serve"]);
    assert!(ran.code == 1 && ran.stderr.contains("tidelog topics"), "{ran:?}");
    deployment.run(&["topics"]).ok();
    let ran = deployment.run(&["serve"]);
    assert!(ran.code == 1 && ran.stderr.contains("tidelog migrate"), "{ran:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let deployment = Deployment::new("port");
    let _taken = std::net::TcpListener::bind(("127.0.0.1", deployment.port)).expect("a free port");
    let ran = deployment.run(&["serve"]);
    assert!(
        ran.code != 0 && ran.stderr.contains(&deployment.port.to_string()),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_the_requests_in_flight() {
    let deployment = Deployment::new("drain");
    deployment.prepare();
    // Nobody projects, so the answer would be waited for.
    let ingest = deployment.start_listening("ingest", "/readyz");
    let phone = Phone::new(&deployment, &tenant("drain"), "asha");
    let waiting = {
        let (body, bearer) = (phone.batch(&tickets(3)), phone.bearer.clone());
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("prefer", "wait=3"),
        ];
        let bytes =
            crate::support::http::bytes_of("POST", "/api/v1/helpdesk/sync", &headers, body.as_bytes());
        let port = deployment.port;
        std::thread::spawn(move || exchange(port, &bytes))
    };
    let db = deployment.db().await;
    crate::support::eventually("the batch is taken", async || {
        (db.count("SELECT count(*) FROM batches", &[]).await == 1).then_some(())
    })
    .await;
    assert_eq!(ingest.terminate(), 0);
    let answer = waiting.join().expect("no panic").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

#[test]
fn two_builds_of_one_release_differ_by_their_commits() {
    let deployment = Deployment::new("version");
    let told = deployment.run(&["--version"]).ok();
    let commit = told
        .trim()
        .strip_prefix(concat!("tidelog ", env!("CARGO_PKG_VERSION"), " ("))
        .and_then(|rest| rest.strip_suffix(')'));
    assert!(
        commit.is_some_and(|commit| commit == env!("TIDELOG_COMMIT")),
        "{told}"
    );
}

#[test]
fn what_is_missing_is_told_with_where_it_goes() {
    let bare = |args: &[&str]| {
        let ran = std::process::Command::new(env!("CARGO_BIN_EXE_tidelog"))
            .args(args)
            .env_clear()
            .current_dir(std::env::temp_dir())
            .output()
            .expect("tidelog can be run");
        String::from_utf8(ran.stderr).expect("text")
    };
    let place = |text: &str, part: &str| text.find(part).unwrap_or_else(|| panic!("no {part}: {text}"));
    let told = bare(&["status"]);
    let (tip, usage) = (place(&told, "a setting is a flag"), place(&told, "Usage:"));
    assert!(place(&told, "--kafka-brokers <") < tip && tip < usage, "{told}");
    // A file is no setting.
    let told = bare(&["check-domain"]);
    assert!(
        told.contains("<FILE>") && !told.contains("a setting is"),
        "{told}"
    );
}

#[test]
fn every_command_has_help_with_an_example() {
    let deployment = Deployment::new("help");
    for command in [
        "dev",
        "serve",
        "ingest",
        "project",
        "migrate",
        "topics",
        "status",
        "tail",
        "trace",
        "verify",
        "replay",
        "rebuild",
        "erase",
        "audit",
        "dead-letters",
        "export",
        "token",
        "check-domain",
    ] {
        let help = deployment.run(&[command, "--help"]).ok();
        assert!(help.contains("Example"), "{command}: {help}");
    }
}
