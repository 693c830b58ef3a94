//! All faults mixed, those of the servers too, for as long as `TIDELOG_CHAOS_SECONDS` says (20 unless told), from the seed `TIDELOG_CHAOS_SEED`.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{folder, power_cut, prepared};
use crate::field::{ALL, Field, GATEWAYS, PROJECTORS};
use crate::run::{BRIEF, Load, judge, run};
use crate::support::own_stack::OwnStack;
use crate::support::proxy::Proxy;
use crate::support::{Dice, eventually};
use crate::workload::Progress;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

const STEPS: [&str; 11] = [
    "ingest.claimed",
    "ingest.handed_over",
    "ingest.delivered",
    "ingest.recorded",
    "ingest.taken",
    "ingest.answered",
    "project.fetched",
    "project.loaded",
    "project.folded",
    "project.writing",
    "project.committed",
];

#[tokio::test(flavor = "multi_thread")]
async fn all_faults_mixed() {
    let length = Duration::from_secs(number("TIDELOG_CHAOS_SECONDS", 20));
    let seed = number("TIDELOG_CHAOS_SEED", u64::from(std::process::id()));
    let load = Load {
        phones: number("TIDELOG_CHAOS_PHONES", 10),
        items: number("TIDELOG_CHAOS_ITEMS", 12) as usize,
        pause: 50,
        // While nothing is left in peace one phone may be unlucky for long; that the service as a whole is not is seen by `Breath`.
        patience: Duration::from_secs(300),
        forgets: true,
        ..BRIEF
    };
    let dir = folder("mixed");
    let mut stack = Some(OwnStack::start(&dir, &["--backing-only"]));
    let deployment = prepared("mixed", stack.as_ref().expect("started")).await;
    let (proxy, url) = Proxy::before_database(&deployment.database_url);
    let mut through = deployment.clone();
    through.database_url = url;
    let field = Field::start(&deployment, &through);
    let nemesis = async |field: &Field, progress: &Progress| {
        let (begun, mut told, mut dice) = (Instant::now(), Instant::now(), Dice::new(seed));
        let mut breath = Breath::default();
        while begun.elapsed() < length {
            breath.take(progress).await;
            let fault = match dice.roll(12) {
                n @ 0..2 => server_fault(&mut stack, &dir, ["kafka", "postgres"][n], &mut dice).await,
                _ => fault(field, &proxy, &mut dice).await,
            };
            println!("{:6.1} s: {fault}", begun.elapsed().as_secs_f64());
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let (items, refused) = (
                    progress.answered.load(Ordering::SeqCst),
                    progress.refused.load(Ordering::Relaxed),
                );
                let left = length.saturating_sub(begun.elapsed()).as_secs();
                let memory = field.peak_memory() >> 20;
                println!(
                    "{items} items answered, {refused} times told to come back, {memory} MiB at most, {left} s left"
                );
            }
        }
        0
    };
    judge(run(field, seed, load, nemesis).await).await;
    assert_eq!(stack.expect("it runs").process.terminate(), 0);
}

/// Faults without a pause may leave no moment in which anything can be done: a group that has lost a projector takes seconds to
/// settle, and so does a broker that was killed. So where nothing was answered for a while, nothing more is broken until
/// something is; and with nothing broken that has to be soon.
struct Breath {
    answered: usize,
    since: Instant,
}

impl Default for Breath {
    fn default() -> Breath {
        Breath {
            answered: 0,
            since: Instant::now(),
        }
    }
}

impl Breath {
    const NOTHING_FOR: Duration = Duration::from_secs(30);

    async fn take(&mut self, progress: &Progress) {
        let answered = || progress.answered.load(Ordering::SeqCst);
        if self.answered == answered() && self.since.elapsed() > Breath::NOTHING_FOR {
            let pause = Instant::now();
            eventually("something is answered while nothing is broken", async || {
                (answered() > self.answered).then_some(())
            })
            .await;
            println!("a breath of {:.1} s", pause.elapsed().as_secs_f64());
        }
        if answered() > self.answered {
            (self.answered, self.since) = (answered(), Instant::now());
        }
    }
}

/// A server is frozen for a while, or killed and started again with the data that it had, and the other one with it.
async fn server_fault(stack: &mut Option<OwnStack>, dir: &Path, server: &str, dice: &mut Dice) -> String {
    let running = stack.take().expect("it runs");
    if dice.roll(3) == 0 {
        *stack = Some(power_cut(running, dir, server));
        return format!("{server} killed");
    }
    running.signal(server, Signal::STOP);
    tokio::time::sleep(Duration::from_millis(500 + dice.roll(6000) as u64)).await;
    running.signal(server, Signal::CONT);
    *stack = Some(running);
    format!("{server} frozen")
}

/// Breaks something for a moment; answers what.
async fn fault(field: &Field, proxy: &Proxy, dice: &mut Dice) -> String {
    let pause = Duration::from_millis(200 + dice.roll(1500) as u64);
    let who = ALL[dice.roll(4)];
    let said = match dice.roll(9) {
        0 => {
            field.kill(who);
            format!("killed {who:?}")
        }
        1 => {
            field.terminate(who);
            format!("stopped {who:?}")
        }
        2 => {
            let step = STEPS[dice.roll(STEPS.len())];
            let n = dice.roll(2);
            let who = if step.starts_with("ingest") {
                GATEWAYS[n]
            } else {
                PROJECTORS[n]
            };
            let stop = format!("{step}@{}:kill", 1 + dice.roll(20));
            field.start_anew(who, &[("TIDELOG_DRILL_STOP", &stop)]);
            format!("{who:?} to be killed at {step}")
        }
        3 => {
            field.signal(who, Signal::STOP);
            let long = if dice.roll(4) == 0 { 14_000 } else { 2_000 };
            tokio::time::sleep(Duration::from_millis(dice.roll(long) as u64)).await;
            field.signal(who, Signal::CONT);
            format!("{who:?} asleep")
        }
        4 => {
            proxy.cut();
            tokio::time::sleep(pause).await;
            "Postgres cut off".into()
        }
        5 => {
            proxy.silence();
            tokio::time::sleep(pause).await;
            "Postgres silent".into()
        }
        6 => {
            proxy.slow(Duration::from_millis(dice.roll(60) as u64));
            tokio::time::sleep(pause).await;
            "Postgres slow".into()
        }
        7 => {
            proxy.cut();
            field.kill(who);
            tokio::time::sleep(pause).await;
            format!("Postgres cut off and {who:?} killed")
        }
        _ => {
            tokio::time::sleep(pause * 2).await;
            "nothing".into()
        }
    };
    proxy.mend();
    field.revive();
    tokio::time::sleep(pause / 2).await;
    said
}
