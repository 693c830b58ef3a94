//! A Kafka and a Postgres of one's own: frozen, killed with -9, started again with the data that they had.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::cases::{BRIEF, judge, run};
use crate::checker::watch_positions;
use crate::field::Field;
use crate::support::own_stack::OwnStack;
use crate::support::service::Deployment;
use crate::workload::Progress;

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

/// Kills a server; what runs both then stops the other too, as a power cut would. Starts both again.
fn power_cut(mut stack: OwnStack, dir: &Path, server: &str) -> OwnStack {
    tokio::task::block_in_place(|| {
        stack.signal(server, Signal::KILL);
        assert_eq!(stack.process.wait(), 1, "{}", stack.process.last_words());
        drop(stack);
        OwnStack::start(dir, &["--backing-only"])
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_and_postgres_frozen_and_killed() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-own-{}", std::process::id()));
    let stack = OwnStack::start(&dir, &["--backing-only"]);
    let env = stack.env();
    let deployment = Deployment::on(
        "own-servers",
        &env.kafka_brokers,
        &env.database_url,
        &env.jwt_secret,
    );
    deployment.prepare();
    watch_positions(&deployment).await;
    let field = Field::start(&deployment, &deployment);
    let mut running = None;
    let nemesis = async |_: &Field, _: &Progress| {
        let mut stack = stack;
        for (server, frozen) in [("kafka", 8), ("postgres", 4)] {
            stack.signal(server, Signal::STOP);
            seconds(frozen).await;
            stack.signal(server, Signal::CONT);
            seconds(3).await;
            stack = power_cut(stack, &dir, server);
            assert_eq!(
                stack.env().kafka_brokers,
                env.kafka_brokers,
                "the same place as before"
            );
            seconds(4).await;
        }
        running = Some(stack);
        0
    };
    judge(run(field, u64::from(std::process::id()), BRIEF, nemesis).await).await;
    let stack = running.expect("it was started again");
    assert_eq!(stack.process.terminate(), 0);
}
