//! A topic whose records have to be on two brokers, one of which is gone. A second broker is needed for that: one node alone
//! never asks for more copies than it can have.

use std::path::Path;
use std::process::Command;

use super::{deployment, folder};
use crate::checker::watch_positions;
use crate::faults;
use crate::field::Field;
use crate::run::{BRIEF, judge, run, without_on};
use crate::support::eventually_blocking;
use crate::support::own_stack::OwnStack;
use crate::support::process::Process;

/// Starts a second broker beside the one whose data is in `home`.
fn second_broker(home: &Path) -> Process {
    let read = |name: &str| std::fs::read_to_string(home.join(name)).expect("the first one runs");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listener = format!("PLAINTEXT://{}", port.local_addr().expect("an address"));
    drop(port);
    let mut settings = String::new();
    for line in read("server.properties").lines() {
        let changed = match line.split_once('=').map(|(name, _)| name) {
            Some("process.roles") => "process.roles=broker".into(),
            Some("node.id") => "node.id=2".into(),
            Some("log.dirs") => "log.dirs=second".into(),
            Some(name @ ("listeners" | "advertised.listeners")) => format!("{name}={listener}"),
            _ => line.to_owned(),
        };
        settings.push_str(&changed);
        settings.push('\n');
    }
    std::fs::write(home.join("second.properties"), settings).expect("the folder can be written");
    let cluster = read("data/meta.properties");
    let cluster = cluster
        .lines()
        .find_map(|line| line.strip_prefix("cluster.id="))
        .expect("a cluster id");
    // The same program as the first one's, with other settings.
    let running = format!("/proc/{}/cmdline", read("running.lock").trim());
    let running = std::fs::read_to_string(running).expect("it runs");
    let java = |args: &[&str]| {
        let mut command = Command::new(running.split('\0').next().expect("a program"));
        let own = running
            .split('\0')
            .skip(1)
            .take_while(|arg| *arg != "kafka.Kafka");
        command.args(own).args(args).current_dir(home);
        command
    };
    let format = ["format", "--cluster-id", cluster, "--config", "second.properties"];
    let formatted = java(&[&["kafka.tools.StorageTool"], &format[..]].concat()).output();
    let formatted = formatted.expect("Java runs");
    assert!(formatted.status.success(), "{formatted:?}");
    let mut process = Process::start("second", &java(&["kafka.Kafka", "second.properties"]), home);
    eventually_blocking("the second broker is up", || {
        assert!(process.ended().is_none(), "{}", process.last_words());
        process.log().contains("Kafka Server started").then_some(())
    });
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_enough_replicas() {
    let stack = OwnStack::start(&folder("replicas"), &["--backing-only"]);
    let second = second_broker(&stack.data.join("kafka"));
    let (held, broken) = (deployment("replicas", &stack), deployment("unheld", &stack));
    for deployment in [&held, &broken] {
        let twice = deployment.clone().with("TIDELOG_REPLICATION_FACTOR", "2");
        twice.prepare();
        watch_positions(deployment).await;
    }
    second.terminate();

    // Without the wait for delivery, what is taken then is gone with the gateway that took it.
    without_on(
        &broken,
        "delivery",
        &["a batch that was accepted"],
        async |field, _| {
            faults::too_few_replicas(field).await;
            0
        },
    )
    .await;
    let field = Field::start(&held, &held);
    let ended = run(field, u64::from(std::process::id()), BRIEF, async |field, _| {
        faults::too_few_replicas(field).await;
        0
    })
    .await;
    let said = std::fs::read_to_string(stack.data.join("kafka/server.log")).expect("a log");
    assert!(
        said.contains("NotEnoughReplicasException"),
        "the broker took everything"
    );
    judge(ended).await;
    assert_eq!(stack.process.terminate(), 0);
}
