//! What a nemesis does to the processes of a field, each by its name. A case does it with all guards in their places, and
//! another one without the guard that it tries.

use rustix::process::Signal;

use crate::field::{ALL, Field, GATEWAYS, PROJECTORS, Who};
use crate::run::seconds;
use crate::support::eventually;
use crate::trouble;

/// Has processes end at a step, each at another time that it comes there, and starts them again.
pub(crate) async fn end_at(field: &Field, ends: &[(Who, u32)], step: &str) {
    for (who, time) in ends {
        let stop = format!("{step}@{time}:kill");
        field.start_anew(*who, &[("TIDELOG_DRILL_STOP", &stop)]);
    }
    for (who, _) in ends {
        field.ends(*who).await;
    }
    field.revive();
}

pub(crate) async fn gateway_steps(field: &Field, steps: &[&str]) {
    for (n, step) in steps.iter().enumerate() {
        let (one, other) = (GATEWAYS[n % 2], GATEWAYS[1 - n % 2]);
        end_at(field, &[(one, 1), (other, 3)], &format!("ingest.{step}")).await;
    }
}

pub(crate) async fn projector_steps(field: &Field, steps: &[&str]) {
    for (n, step) in steps.iter().enumerate() {
        let (who, other) = (PROJECTORS[n % 2], PROJECTORS[1 - n % 2]);
        // Alone, so that it owns what there is to do; and both in order, so that the group need not miss anybody.
        field.terminate(other);
        field.terminate(who);
        let (step, time) = (format!("project.{step}"), 1 + n as u32 % 3);
        if step == "project.moved" {
            // Postgres has the first half of the transaction when the process ends.
            field.halt_at(who, &step, time, 1500).await;
            seconds(0.2).await;
            field.kill(who);
            field.revive();
        } else {
            end_at(field, &[(who, time)], &step).await;
        }
    }
}

/// SIGTERM to all, one after the other, twice; and to both gateways while each is in the middle of a batch, after which no
/// batch that was begun is left behind.
pub(crate) async fn stopped_in_order(field: &Field) {
    for who in ALL {
        field.terminate(who);
        field.start_anew(who, &[]);
        seconds(0.3).await;
    }
    tokio::join!(
        field.halt_at(GATEWAYS[0], "ingest.claimed", 3, 1000),
        field.halt_at(GATEWAYS[1], "ingest.claimed", 3, 1000),
    );
    GATEWAYS
        .into_iter()
        .for_each(|who| field.signal(who, Signal::TERM));
    for who in GATEWAYS {
        field.ends(who).await;
    }
    let begun = "SELECT count(*) FROM idempotency_records WHERE lease_owner IS NOT NULL AND receipt IS NULL";
    let left = field.deployment.db().await.count(begun, &[]).await;
    field.note(left > 0, || {
        format!("gateways that were told to stop left {left} batches behind")
    });
    field.revive();
}

/// Projectors told to stop while each waits to try a chunk again that Postgres refused, with the next one in hand; and the
/// next one would be taken.
pub(crate) async fn stopped_while_refused(field: &Field, times: usize) {
    for n in 0..times {
        let (who, other) = (PROJECTORS[n % 2], PROJECTORS[1 - n % 2]);
        field.terminate(other);
        // It has everything by now, and much to do.
        seconds(0.7).await;
        trouble::failing(&field.deployment, "40001", 1).await;
        seconds(1.0).await;
        trouble::mended(&field.deployment).await;
        field.terminate(who);
        field.revive();
        seconds(0.3).await;
    }
}

/// Stops a projector for longer than its session, so that the other takes over, and lets it go on.
pub(crate) async fn zombies(field: &Field, steps: &[&str]) {
    for (n, step) in steps.iter().enumerate() {
        // Alone it owns everything; the other comes when it sleeps.
        let (who, other) = (PROJECTORS[n % 2], PROJECTORS[1 - n % 2]);
        field.terminate(other);
        field.stop_at(who, step, 4).await;
        let before = applied(field).await;
        field.start_anew(other, &[]);
        eventually("the other has taken over", async || {
            (applied(field).await > before).then_some(())
        })
        .await;
        field.signal(who, Signal::CONT);
        seconds(2.5).await;
    }
}

/// How many records of the helpdesk topic are applied.
async fn applied(field: &Field) -> i64 {
    let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM positions WHERE topic = $1";
    let topic = field.deployment.topic("sync.helpdesk.v1");
    field.deployment.db().await.count(sql, &[&topic]).await
}

/// Freezes each gateway with a batch in hand for longer than its lease, so that the other appends the same batch.
pub(crate) async fn sleepers(field: &Field, steps: &[&str]) {
    for (n, step) in steps.iter().enumerate() {
        let who = GATEWAYS[n % 2];
        field.stop_at(who, step, 3).await;
        seconds(4.5).await;
        field.signal(who, Signal::CONT);
        seconds(1.0).await;
    }
}

/// A projector comes and goes, every second; and in the end comes while the other is in the middle of a chunk.
pub(crate) async fn rebalances(field: &Field, times: usize) {
    let (stays, comes) = (PROJECTORS[0], PROJECTORS[1]);
    for _ in 0..times {
        field.terminate(comes);
        seconds(1.0).await;
        field.start_anew(comes, &[]);
        seconds(1.0).await;
    }
    for _ in 0..2 {
        field.terminate(comes);
        field.halt_at(stays, "project.folded", 3, 2500).await;
        field.start_anew(comes, &[]);
        seconds(3.5).await;
    }
}

/// The broker takes nothing, and the gateways that wait for it are killed.
pub(crate) async fn too_few_replicas(field: &Field) {
    trouble::copies(&field.deployment, "2").await;
    seconds(1.5).await;
    GATEWAYS.into_iter().for_each(|who| field.kill(who));
    field.revive();
    // Longer than a delivery may take.
    seconds(4.5).await;
    trouble::copies(&field.deployment, "1").await;
    seconds(1.5).await;
}

/// What Postgres refuses, by SQLSTATE, some of the time or always.
pub(crate) async fn refusals(field: &Field, states: &[(&str, u32)]) {
    for (state, one_in) in states {
        trouble::failing(&field.deployment, state, *one_in).await;
        seconds(1.5).await;
        trouble::mended(&field.deployment).await;
        seconds(0.3).await;
    }
}

pub(crate) async fn poison(field: &Field, tenants: &[&str]) -> usize {
    let mut count = 0;
    for tenant in tenants {
        count += trouble::poison(&field.deployment, tenant);
        seconds(0.7).await;
    }
    count
}
