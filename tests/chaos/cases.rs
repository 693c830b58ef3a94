//! Each fault by its name, briefly: while phones work and readers read, one thing breaks, and again; then all is mended,
//! everything is applied, and the checker looks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinError;

use crate::checker::{Left, check, watch_positions};
use crate::field::{ALL, Field, GATEWAYS, PROJECTORS, Who};
use crate::support::phone::tenant;
use crate::support::proxy::Proxy;
use crate::support::service::Deployment;
use crate::support::{eventually, stack};
use crate::trouble;
use crate::workload::{Caller, Progress, read};

/// How much phones do.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Of both tenants.
    pub(crate) phones: u64,
    /// Items of a batch, at most.
    pub(crate) items: usize,
    /// Milliseconds between two batches of a phone, at most.
    pub(crate) pause: usize,
}

/// Enough for a brief case.
pub(crate) const BRIEF: Load = Load {
    phones: 10,
    items: 12,
    pause: 200,
};

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) left: Left,
    pub(crate) field: Arc<Field>,
}

/// Lets phones and readers of two tenants work while `nemesis` does its part; answers what is left when all is mended
/// and applied. `nemesis` answers how many records it put onto the topic by hand.
pub(crate) async fn run(
    field: Field,
    seed: u64,
    load: Load,
    nemesis: impl AsyncFnOnce(&Field, &Progress) -> usize,
) -> Ended {
    let (field, progress) = (Arc::new(field), Arc::new(Progress::default()));
    let tenants = [tenant("north"), tenant("south")];
    let gateways = field.gateways();
    println!("seed {seed}");
    let phones: Vec<_> = (0..load.phones)
        .map(|number| {
            let mut phone = Caller::new(&gateways, &tenants[number as usize % 2], number, seed, &progress);
            phone.load = load;
            tokio::spawn(phone.work())
        })
        .collect();
    let readers: Vec<_> = tenants
        .iter()
        .flat_map(|tenant| [7, 500].map(|limit| (tenant.clone(), limit)))
        .map(|(tenant, limit)| {
            (
                tenant.clone(),
                tokio::spawn(read(gateways.clone(), tenant, limit, progress.clone())),
            )
        })
        .collect();

    // Nothing is broken before everything works.
    eventually("the first batches are answered", async || {
        (progress.answered.load(Ordering::SeqCst) > 20).then_some(())
    })
    .await;
    let poison = nemesis(&field, &progress).await;
    field.revive();
    progress.finish.store(true, Ordering::SeqCst);
    let (mut told, mut seen) = (Vec::new(), Vec::new());
    for phone in phones {
        match phone.await {
            Ok(mine) => told.extend(mine),
            Err(error) => seen.push(said(error)),
        }
    }
    field.settle().await;
    progress.stop.store(true, Ordering::SeqCst);
    let mut held = Vec::new();
    for (tenant, reader) in readers {
        match reader.await {
            Ok(replica) => held.push((tenant, replica)),
            Err(error) => seen.push(said(error)),
        }
    }
    field.ready();
    let left = Left {
        told,
        seen,
        readers: held,
        poison,
    };
    Ended { left, field }
}

/// What somebody who looked all along has seen go wrong.
fn said(error: JoinError) -> String {
    let panic = error.into_panic();
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
        .to_owned()
}

/// A deployment on the shared stack, with tables, topics and eyes on its positions.
pub(crate) async fn prepared(name: &str) -> Deployment {
    let deployment = Deployment::new(name);
    deployment.prepare();
    watch_positions(&deployment).await;
    deployment
}

/// The whole of a case: a deployment of its own on the shared stack.
async fn case(name: &str, nemesis: impl AsyncFnOnce(&Field, &Progress) -> usize) {
    let deployment = prepared(name).await;
    let field = Field::start(&deployment, &deployment);
    judge(run(field, u64::from(std::process::id()), BRIEF, nemesis).await).await;
}

pub(crate) async fn judge(ended: Ended) {
    let batches = ended.left.told.len();
    assert!(batches > 10, "only {batches} batches: nothing was tried");
    if let Err(violation) = check(&ended.field, &ended.left).await {
        panic!("{violation}");
    }
    println!("{batches} batches, no violation");
}

async fn seconds(count: f64) {
    tokio::time::sleep(Duration::from_secs_f64(count)).await;
}

/// Has a process end at a step, and starts it again. A projector is alone for that, so that it owns what there is to do.
async fn ends_at(field: &Field, who: Who, step: &str, time: u32) {
    if let Who::Projector(n) = who {
        field.terminate(Who::Projector(1 - n));
    }
    let stop = format!("{step}@{time}:kill");
    field.start_anew(who, &[("TIDELOG_DRILL_STOP", &stop)]);
    eventually(&format!("{who:?} has come to {step}"), async || {
        (!field.runs(who)).then_some(())
    })
    .await;
    field.revive();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_between_any_two_steps() {
    case("gateway-steps", async |field, _| {
        for (n, step) in [
            "claimed",
            "handed_over",
            "delivered",
            "recorded",
            "taken",
            "answered",
        ]
        .into_iter()
        .enumerate()
        {
            let who = GATEWAYS[n % 2];
            for time in [1, 3] {
                ends_at(field, who, &format!("ingest.{step}"), time).await;
            }
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_killed_between_any_two_steps() {
    case("projector-steps", async |field, _| {
        for (n, step) in ["fetched", "loaded", "folded", "writing", "committed"]
            .into_iter()
            .enumerate()
        {
            ends_at(
                field,
                PROJECTORS[n % 2],
                &format!("project.{step}"),
                1 + n as u32 % 3,
            )
            .await;
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_told_to_stop_and_started_again() {
    case("sigterm", async |field, _| {
        for who in ALL.into_iter().chain(ALL) {
            field.terminate(who);
            field.start_anew(who, &[]);
            seconds(0.5).await;
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_that_sleeps_past_its_session_writes_nothing_when_it_wakes() {
    case("zombie", async |field, _| {
        zombie(field).await;
        0
    })
    .await;
}

/// Stops a projector for longer than its session, so that the other takes over, and lets it go on.
pub(crate) async fn zombie(field: &Field) {
    for (n, who) in PROJECTORS.into_iter().enumerate() {
        // Alone it owns everything; the other comes when it sleeps.
        let other = PROJECTORS[1 - n];
        field.terminate(other);
        field
            .stop_at(who, ["project.folded", "project.loaded"][n], 4)
            .await;
        field.start_anew(other, &[]);
        seconds(10.0).await;
        field.signal(who, Signal::CONT);
        seconds(4.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_sleeps_past_its_leases() {
    case("asleep", async |field, _| {
        for who in GATEWAYS {
            field.signal(who, Signal::STOP);
            seconds(11.0).await;
            field.signal(who, Signal::CONT);
            seconds(1.0).await;
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_rebalanced_at_every_second() {
    case("rebalanced", async |field, _| {
        for _ in 0..6 {
            field.terminate(Who::Projector(1));
            seconds(1.0).await;
            field.start_anew(Who::Projector(1), &[]);
            seconds(1.0).await;
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wire_to_postgres_that_is_cut_silent_or_slow() {
    let deployment = prepared("wire").await;
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = deployment.clone();
    through.database_url = url;
    let field = Field::start(&deployment, &through);
    let nemesis = async |_: &Field, _: &Progress| {
        for _ in 0..3 {
            proxy.cut();
            seconds(1.0).await;
            proxy.mend();
            seconds(0.5).await;
            proxy.silence();
            seconds(2.0).await;
            proxy.mend();
            seconds(0.5).await;
            proxy.slow(Duration::from_millis(40));
            seconds(2.0).await;
            proxy.mend();
            seconds(0.5).await;
        }
        0
    };
    judge(run(field, u64::from(std::process::id()), BRIEF, nemesis).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_nobody_can_read() {
    case("poison", async |field, _| {
        let mut count = 0;
        for tenant in ["north", "south/of", "nobody"] {
            count += trouble::poison(&field.deployment, tenant);
            seconds(1.0).await;
        }
        count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_enough_replicas() {
    case("replicas", async |field, _| {
        for _ in 0..2 {
            trouble::copies(&field.deployment, "2").await;
            seconds(3.0).await;
            trouble::copies(&field.deployment, "1").await;
            seconds(2.0).await;
        }
        0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_refuses_locks_and_has_no_room() {
    case("refusing", async |field, _| {
        // A serialisation failure, a deadlock, a full disk, too many connections, an operator's stop.
        for (state, one_in) in [
            ("40001", 2),
            ("40P01", 2),
            ("53100", 1),
            ("53300", 1),
            ("57P01", 2),
        ] {
            trouble::failing(&field.deployment, state, one_in).await;
            seconds(2.5).await;
            trouble::mended(&field.deployment).await;
            seconds(0.5).await;
        }
        trouble::locked(&field.deployment, 4.0).await;
        seconds(1.0).await;
        0
    })
    .await;
}
