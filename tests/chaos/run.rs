//! The frame of every case: phones work and readers read while a nemesis does its part; then all is mended, everything is
//! applied, every key is asked again, and the checker looks. Knows no fault.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};

use crate::checker::{Left, check, watch_positions};
use crate::field::Field;
use crate::support::eventually;
use crate::support::phone::{Replica, tenant};
use crate::support::service::Deployment;
use crate::workload::{Caller, Progress, Told, read};

/// How much phones do.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Of both tenants.
    pub(crate) phones: u64,
    /// Items of a batch, at most.
    pub(crate) items: usize,
    /// Milliseconds between two batches of a phone, at most.
    pub(crate) pause: usize,
    /// However long something is broken, a phone's batch gets its final answer within this, and everything is applied within
    /// this once all is mended.
    pub(crate) patience: Duration,
    /// Postgres loses the last moments when it crashes: a key that was asked before is then answered with the same outcomes,
    /// and another receipt.
    pub(crate) forgets: bool,
    /// Some phones hang up and forget the key: what became of that batch nobody is told.
    pub(crate) hangs_up: bool,
}

/// Enough for a brief case.
pub(crate) const BRIEF: Load = Load {
    phones: 10,
    items: 12,
    pause: 200,
    patience: Duration::from_secs(60),
    forgets: false,
    hangs_up: true,
};

/// The same where a guard is out, so that something is to be noticed: nobody waits for long or forgets what it asked.
pub(crate) const BROKEN: Load = Load {
    pause: 50,
    patience: Duration::from_secs(10),
    hangs_up: false,
    ..BRIEF
};

/// How often a fault may miss.
const ATTEMPTS: usize = 5;

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
            let tenant = &tenants[number as usize % 2];
            let phone = Caller::new(&gateways, tenant, number, seed, &progress, load);
            tokio::spawn(phone.work())
        })
        .collect();
    let readers = follow(&gateways, &tenants, &progress);
    // Nothing is broken before everything works. A phone that ends by now has something to say.
    eventually("the first batches are answered", async || {
        let answered = progress.answered.load(Ordering::SeqCst) > 20;
        (answered || phones.iter().any(JoinHandle::is_finished)).then_some(())
    })
    .await;
    let poison = nemesis(&field, &progress).await;
    field.revive();
    progress.finish.store(true, Ordering::SeqCst);
    let (mut callers, mut told, mut seen) = (Vec::new(), Vec::new(), field.noted());
    for phone in phones {
        match phone.await {
            Ok((caller, mine)) => {
                callers.push((caller, told.len()));
                told.extend(mine);
            }
            Err(error) => seen.push(said(error)),
        }
    }
    if seen.is_empty() {
        seen.extend(settled_and_asked_again(&field, load, callers, &told).await);
    }
    progress.stop.store(true, Ordering::SeqCst);
    let mut held = Vec::new();
    for (tenant, reader) in readers {
        match reader.await {
            Ok(replica) => held.push((tenant, replica)),
            Err(error) => seen.push(said(error)),
        }
    }
    let left = Left {
        told,
        seen,
        readers: held,
        poison,
    };
    Ended { left, field }
}

/// Two readers of each tenant, with small pages and with large ones.
fn follow(
    gateways: &[Deployment; 2],
    tenants: &[String],
    progress: &Arc<Progress>,
) -> Vec<(String, JoinHandle<Replica>)> {
    let each = tenants
        .iter()
        .flat_map(|tenant| [7, 500].map(|limit| (tenant, limit)));
    each.map(|(tenant, limit)| {
        let reader = read(gateways.clone(), tenant.clone(), limit, progress.clone());
        (tenant.clone(), tokio::spawn(reader))
    })
    .collect()
}

/// Everything is applied, and then each phone asks again for what it was told; answers what went wrong.
async fn settled_and_asked_again(
    field: &Field,
    load: Load,
    callers: Vec<(Caller, usize)>,
    told: &[Told],
) -> Option<String> {
    if let Err(late) = field.settle(load.patience).await {
        return Some(late);
    }
    field.ready();
    let ends: Vec<usize> = callers.iter().skip(1).map(|(_, from)| *from).collect();
    let asking: Vec<_> = callers
        .into_iter()
        .zip(ends.into_iter().chain([told.len()]))
        .map(|((caller, from), to)| tokio::spawn(caller.ask_again(told[from..to].to_vec())))
        .collect();
    for asked in asking {
        if let Err(error) = asked.await {
            return Some(said(error));
        }
    }
    // A key that was forgotten has its batch appended again.
    match load.forgets {
        true => field.settle(load.patience).await.err(),
        false => None,
    }
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
pub(crate) async fn case(name: &str, nemesis: impl AsyncFnOnce(&Field, &Progress) -> usize) {
    let deployment = prepared(name).await;
    let field = Field::start(&deployment, &deployment);
    judge(run(field, u64::from(std::process::id()), BRIEF, nemesis).await).await;
}

/// The same with guards out, by their names with commas between; what is noticed has to be one of these.
pub(crate) async fn without(
    guards: &str,
    expected: &[&str],
    nemesis: impl AsyncFn(&Field, &Progress) -> usize,
) {
    until_noticed(expected, async || {
        let deployment = prepared(&format!("without-{}", guards.replace(',', "-"))).await;
        let field = Field::start_with(&deployment, &deployment, &[("TIDELOG_DRILL_WITHOUT", guards)]);
        run(field, 7, BROKEN, async |field, progress| {
            nemesis(field, progress).await
        })
        .await
    })
    .await;
}

/// The same on a deployment that is prepared.
pub(crate) async fn without_on(
    deployment: &Deployment,
    guards: &str,
    expected: &[&str],
    nemesis: impl AsyncFn(&Field, &Progress) -> usize,
) {
    until_noticed(expected, async || {
        let field = Field::start_with(deployment, deployment, &[("TIDELOG_DRILL_WITHOUT", guards)]);
        run(field, 7, BROKEN, async |field, progress| {
            nemesis(field, progress).await
        })
        .await
    })
    .await;
}

/// Something is noticed, and the right thing. A fault strikes by chance where it shows only between two things that are close
/// to each other, so there are several attempts; whatever is noticed wrongly ends them, but for a machine that was too slow.
pub(crate) async fn until_noticed(expected: &[&str], attempt: impl AsyncFn() -> Ended) {
    for _ in 0..ATTEMPTS {
        let ended = attempt().await;
        let Err(violation) = check(&ended.field, &ended.left).await else {
            println!("not noticed this time");
            continue;
        };
        println!("{violation}");
        if expected.iter().any(|rule| violation.starts_with(rule)) {
            return;
        }
        assert!(
            violation.contains("got no final answer"),
            "something else was noticed: {violation}"
        );
    }
    panic!("it has to be noticed");
}

pub(crate) async fn judge(ended: Ended) {
    let batches = ended.left.told.len();
    if let Err(violation) = check(&ended.field, &ended.left).await {
        panic!("{violation}");
    }
    assert!(batches > 10, "only {batches} batches: nothing was tried");
    println!("{batches} batches, no violation");
}

pub(crate) async fn seconds(count: f64) {
    tokio::time::sleep(Duration::from_secs_f64(count)).await;
}
