//! A wire to Kafka that is slow, silent, and cut while acknowledgements are on their way. A client goes where the broker sends
//! it, so this broker sends its clients to the proxy.

use std::time::Duration;

use super::{folder, prepared};
use crate::broken::TWICE;
use crate::field::Field;
use crate::run::{BRIEF, judge, run, seconds, without_on};
use crate::support::own_stack::OwnStack;
use crate::support::proxy::Proxy;

/// Slow, then cut half-way: what the broker has taken nobody is told.
async fn cut_half_way(proxy: &Proxy, times: usize) {
    for _ in 0..times {
        proxy.slow(Duration::from_millis(30));
        seconds(0.5).await;
        proxy.deafen();
        seconds(0.3).await;
        proxy.cut();
        seconds(0.2).await;
        proxy.mend();
        seconds(0.8).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_to_kafka_that_is_cut_half_way_silent_or_slow() {
    let proxy = Proxy::before("127.0.0.1:1");
    let through = format!("127.0.0.1:{}", proxy.port);
    let args = ["--backing-only", "--kafka-advertised", &through];
    let stack = OwnStack::start(&folder("wire"), &args);
    proxy.leads_to(&stack.env().kafka_brokers);

    // A producer that is not idempotent sends again what the broker has; the fold's check for repeats holds that too.
    let deployment = prepared("wire-without", &stack).await;
    without_on(&deployment, "idempotence,repeat", &TWICE, async |_, _| {
        cut_half_way(&proxy, 5).await;
        0
    })
    .await;

    let deployment = prepared("wire-kafka", &stack).await;
    let field = Field::start(&deployment, &deployment);
    let ended = run(field, u64::from(std::process::id()), BRIEF, async |_, _| {
        cut_half_way(&proxy, 3).await;
        // Longer than a delivery may take.
        proxy.silence();
        seconds(4.0).await;
        proxy.mend();
        seconds(1.0).await;
        proxy.slow(Duration::from_millis(60));
        seconds(2.0).await;
        proxy.mend();
        0
    })
    .await;
    judge(ended).await;
    assert_eq!(stack.process.terminate(), 0);
}
