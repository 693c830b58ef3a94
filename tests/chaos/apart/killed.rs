//! Both servers frozen, killed with -9, started again with the data that they had; each time the other is stopped in order.

use rustix::process::Signal;

use super::{folder, power_cut, prepared};
use crate::field::Field;
use crate::run::{BRIEF, Load, judge, run, seconds};
use crate::support::own_stack::OwnStack;
use crate::workload::Progress;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_and_postgres_frozen_and_killed() {
    let dir = folder("killed");
    let stack = OwnStack::start(&dir, &["--backing-only"]);
    let deployment = prepared("killed", &stack).await;
    let field = Field::start(&deployment, &deployment);
    let mut running = None;
    let nemesis = async |_: &Field, _: &Progress| {
        let mut stack = stack;
        // Longer than a session and a delivery of Kafka's, and longer than a gateway waits for Postgres.
        for (server, frozen) in [("kafka", 5.0), ("postgres", 4.0)] {
            stack.signal(server, Signal::STOP);
            seconds(frozen).await;
            stack.signal(server, Signal::CONT);
            seconds(2.0).await;
            stack = power_cut(stack, &dir, server);
            seconds(2.0).await;
        }
        running = Some(stack);
        0
    };
    let load = Load {
        forgets: true,
        ..BRIEF
    };
    judge(run(field, u64::from(std::process::id()), load, nemesis).await).await;
    let stack = running.expect("it was started again");
    assert_eq!(stack.process.terminate(), 0);
}
