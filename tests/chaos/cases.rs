//! Each fault by its name, briefly, with all guards in their places.

use std::time::Duration;

use crate::faults;
use crate::field::Field;
use crate::run::{BRIEF, case, judge, prepared, run, seconds};
use crate::support::proxy::Proxy;
use crate::support::stack;
use crate::trouble;
use crate::workload::Progress;

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_between_any_two_steps() {
    case("gateway-steps", async |field, _| {
        let steps = [
            "claimed",
            "handed_over",
            "delivered",
            "recorded",
            "taken",
            "answered",
        ];
        faults::gateway_steps(field, &steps).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_killed_between_any_two_steps() {
    case("projector-steps", async |field, _| {
        let steps = ["fetched", "loaded", "folded", "writing", "moved", "committed"];
        faults::projector_steps(field, &steps).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_told_to_stop_and_started_again() {
    case("sigterm", async |field, _| {
        faults::stopped_in_order(field).await;
        faults::stopped_while_refused(field, 1).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_that_sleeps_past_its_session_writes_nothing_when_it_wakes() {
    case("zombie", async |field, _| {
        faults::zombies(field, &["project.folded", "project.loaded"]).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_sleeps_past_its_leases() {
    case("asleep", async |field, _| {
        faults::sleepers(field, &["ingest.delivered", "ingest.claimed"]).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_rebalanced_at_every_second() {
    case("rebalanced", async |field, _| {
        faults::rebalances(field, 4).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_devices_hours_off() {
    // The phones of every case have such clocks; here nothing else is wrong.
    case("clocks", async |_, _| {
        seconds(2.0).await;
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_to_postgres_that_is_cut_silent_or_slow() {
    let (proxy, field) = behind_a_wire("wire", &[]).await;
    let nemesis = async |_: &Field, _: &Progress| {
        for _ in 0..2 {
            proxy.cut();
            seconds(0.8).await;
            proxy.mend();
            seconds(0.3).await;
            proxy.silence();
            seconds(2.0).await;
            proxy.mend();
            seconds(0.3).await;
        }
        lose_answers(&proxy).await;
        0
    };
    judge(run(field, u64::from(std::process::id()), BRIEF, nemesis).await).await;
}

/// A field whose processes reach Postgres through a proxy.
pub(crate) async fn behind_a_wire(name: &str, variables: &[(&str, &str)]) -> (Proxy, Field) {
    let deployment = prepared(name).await;
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = deployment.clone();
    through.database_url = url;
    let field = Field::start_with(&deployment, &through, variables);
    (proxy, field)
}

/// Cut half-way: what Postgres is told it does, and nobody hears of it. Slow before, so that much is on its way then.
pub(crate) async fn lose_answers(proxy: &Proxy) {
    for _ in 0..6 {
        seconds(0.5).await;
        proxy.slow(Duration::from_millis(30));
        seconds(0.3).await;
        proxy.deafen();
        seconds(0.2).await;
        proxy.cut();
        seconds(0.1).await;
        proxy.mend();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_nobody_can_read() {
    case("poison", async |field, _| {
        faults::poison(field, &["north", "south/of", "nobody"]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_refuses_locks_and_has_no_room() {
    case("refusing", async |field, _| {
        // A serialisation failure, a deadlock, a full disk, too many connections, an operator's stop.
        let states = [
            ("40001", 2),
            ("40P01", 2),
            ("53100", 1),
            ("53300", 1),
            ("57P01", 2),
        ];
        faults::refusals(field, &states).await;
        // Longer than a gateway waits for its claim.
        trouble::locked(&field.deployment, 3.5).await;
        seconds(0.5).await;
        0
    })
    .await;
}
