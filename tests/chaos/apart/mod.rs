//! Cases that need a Kafka and a Postgres of their own, since what is broken there would break for everybody.
//!
//! - `killed`: both servers frozen, killed and started again · `replicas`: a topic that lacks a copy · `room`: no room on the
//!   disk, no connections · `wire`: the way to Kafka · `long`: all faults mixed

mod killed;
mod long;
mod replicas;
mod room;
mod wire;

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::checker::watch_positions;
use crate::support::own_stack::OwnStack;
use crate::support::service::Deployment;

/// Where a case's own servers have their data.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{name}-{}", std::process::id()))
}

/// A deployment on servers of one's own; not prepared.
fn deployment(name: &str, stack: &OwnStack) -> Deployment {
    let env = stack.env();
    Deployment::on(name, &env.kafka_brokers, &env.database_url, &env.jwt_secret)
}

/// The same with tables, topics and eyes on its positions.
async fn prepared(name: &str, stack: &OwnStack) -> Deployment {
    let deployment = deployment(name, stack);
    deployment.prepare();
    watch_positions(&deployment).await;
    deployment
}

/// Kills a server; what runs both then stops the other too, in order. Starts both again.
fn power_cut(mut stack: OwnStack, dir: &Path, server: &str) -> OwnStack {
    tokio::task::block_in_place(|| {
        let brokers = stack.env().kafka_brokers;
        stack.signal(server, Signal::KILL);
        assert_eq!(stack.process.wait(), 1, "{}", stack.process.last_words());
        drop(stack);
        let stack = OwnStack::start(dir, &["--backing-only"]);
        assert_eq!(stack.env().kafka_brokers, brokers, "the same place as before");
        stack
    })
}
