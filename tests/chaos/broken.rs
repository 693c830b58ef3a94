//! A check that cannot fail shows nothing: each of these takes a guard out and has to be noticed.

use crate::cases::{BRIEF, Load, prepared, run, zombie};
use crate::checker::check;
use crate::field::{Field, GATEWAYS};
use crate::workload::Progress;

/// Runs with a guard out; answers what was noticed.
async fn without(guard: &str, nemesis: impl AsyncFnOnce(&Field, &Progress) -> usize) -> String {
    let deployment = prepared(&format!("without-{guard}")).await;
    let field = Field::start_with(&deployment, &deployment, &[("TIDELOG_DRILL_WITHOUT", guard)]);
    let ended = run(field, 7, Load { pause: 50, ..BRIEF }, nemesis).await;
    check(&ended.field, &ended.left)
        .await
        .expect_err("it has to be noticed")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_fence_a_zombie_is_noticed() {
    let noticed = without("fence", async |field, _| {
        zombie(field).await;
        0
    })
    .await;
    println!("{noticed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_repeat_check_an_append_done_twice_is_noticed() {
    let noticed = without("repeat", async |field, _| {
        for time in [1, 2, 3] {
            for who in GATEWAYS {
                let stop = format!("ingest.delivered@{time}:kill");
                field.start_anew(who, &[("TIDELOG_DRILL_STOP", &stop)]);
                crate::support::eventually("it was killed", async || (!field.runs(who)).then_some(())).await;
                field.revive();
            }
        }
        0
    })
    .await;
    println!("{noticed}");
}
