//! `tidelog dev`: everything on one machine, by what it prints itself; and however it ends, nothing of it is left but
//! the data.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::eventually_blocking;
use crate::support::items::tickets;
use crate::support::own_stack::{OwnStack, processes_of};
use crate::support::phone::Phone;
use crate::support::service::Deployment;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-0", std::process::id()))
}

/// A phone of the tenant that the greeting uses, at a running dev.
fn phone(stack: &OwnStack) -> Phone {
    let env = stack.env();
    let mut deployment = Deployment::on("dev", &env.kafka_brokers, &env.database_url, &env.jwt_secret);
    let (_, port) = env.url.rsplit_once(':').expect("a URL with a port");
    deployment.port = port.parse().expect("a port");
    Phone::new(&deployment, "acme", "asha")
}

fn nothing_runs(dir: &Path) {
    let mut left = Vec::new();
    eventually_blocking("nothing of it runs any more", || {
        left = processes_of(&dir.join("data"));
        left.is_empty().then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_prints_works_and_it_goes_on_with_the_data_it_had() {
    let dir = folder("dev");
    let mut stack = OwnStack::start(&dir, &["--listen", "127.0.0.1:0"]);
    let env = stack.env();
    assert!(env.url.starts_with("http://127.0.0.1:"), "{}", env.url);
    assert_eq!(env.kafka_brokers.split(':').count(), 2);

    // The lines that it prints, pasted into another terminal.
    let log = stack.process.log();
    let (_, lines) = log
        .split_once("A first batch, from another terminal:")
        .unwrap_or_else(|| panic!("{log}"));
    let (lines, _) = lines.split_once("Ctrl-C").expect("the greeting's end");
    let pasted = Command::new("sh")
        .arg("-c")
        .arg(lines)
        .current_dir(&dir)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&pasted.stdout);
    assert!(
        pasted.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&pasted.stderr)
    );
    assert!(
        said.contains(r#""status":"created""#) && said.contains("Pump 3 is leaking oil"),
        "{said}"
    );

    phone(&stack).post("helpdesk", &tickets(9)).await.expect(200);
    let cursor = phone(&stack).page("helpdesk", "").await["cursor"]
        .as_str()
        .expect("a cursor")
        .to_owned();
    stack.process.signal(Signal::INT);
    assert_eq!(stack.process.wait(), 0, "{}", stack.process.last_words());
    assert!(!dir.join("data/env").exists(), "env is there while dev is");
    nothing_runs(&dir);

    let mut stack = OwnStack::start(&dir, &["--listen", "127.0.0.1:0"]);
    let phone = phone(&stack);
    assert_eq!(phone.pull("helpdesk", "").await.len(), 10, "with the data it had");
    phone.post("helpdesk", &tickets(1)).await.expect(200);
    assert_eq!(
        phone.pull("helpdesk", &format!("cursor={cursor}")).await.len(),
        1,
        "cursors too"
    );
    // A second one on the same folder is told so.
    let second = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .args(["dev", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.join("data"))
        .output()
        .expect("tidelog can be run");
    assert!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("already runs"));

    a_copy_is_refused(&dir);
    phone.post("helpdesk", &tickets(1)).await.expect(200);

    // If a server dies, dev ends and says which.
    stack.signal("kafka", Signal::KILL);
    assert_eq!(stack.process.wait(), 1);
    assert!(
        stack.process.log().contains("Kafka ended"),
        "{}",
        stack.process.last_words()
    );
    nothing_runs(&dir);
}

/// Where the cluster is elsewhere, because another user runs it, a copy of the folder would work on the very same one.
fn a_copy_is_refused(dir: &Path) {
    if !dir.join("data/postgres/cluster").is_symlink() {
        return;
    }
    let copied = Command::new("cp")
        .args(["-a", "data", "copy"])
        .current_dir(dir)
        .status();
    assert!(copied.expect("cp can be run").success());
    let copy = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .args(["dev", "--backing-only", "--data-dir"])
        .arg(dir.join("copy"))
        .output()
        .expect("tidelog can be run");
    let said = String::from_utf8_lossy(&copy.stderr);
    assert!(
        !copy.status.success() && said.contains("copy of another data folder"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_leaves_no_orphans_and_its_data_whole() {
    let dir = folder("dev-killed");
    let stack = OwnStack::start(&dir, &["--listen", "127.0.0.1:0"]);
    phone(&stack).post("helpdesk", &tickets(10)).await.expect(200);
    assert!(
        processes_of(&dir.join("data")).len() >= 3,
        "dev's servers are seen"
    );
    stack.process.kill9();
    nothing_runs(&dir);
    let stack = OwnStack::start(&dir, &["--listen", "127.0.0.1:0"]);
    assert_eq!(phone(&stack).pull("helpdesk", "").await.len(), 10);
    assert_eq!(stack.process.terminate(), 0);
    nothing_runs(&dir);
}
