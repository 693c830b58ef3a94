//! All faults mixed, for as long as `TIDELOG_CHAOS_SECONDS` says (20 unless told), from the seed `TIDELOG_CHAOS_SEED`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cases::{Load, judge, prepared, run};
use crate::field::{ALL, Field, GATEWAYS, PROJECTORS};
use crate::support::proxy::Proxy;
use crate::support::{Dice, stack};
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
    };
    let deployment = prepared("mixed-faults").await;
    let (proxy, url) = Proxy::before_database(&stack::shared().database_url);
    let mut through = deployment.clone();
    through.database_url = url;
    let field = Field::start(&deployment, &through);
    let nemesis = async |field: &Field, progress: &Progress| {
        let (begun, mut told, mut dice) = (Instant::now(), Instant::now(), Dice::new(seed));
        while begun.elapsed() < length {
            let fault = fault(field, &proxy, &mut dice).await;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let (items, refused) = (
                    progress.answered.load(Ordering::SeqCst),
                    progress.refused.load(Ordering::Relaxed),
                );
                let left = length.saturating_sub(begun.elapsed()).as_secs();
                let memory = field.peak_memory() >> 20;
                println!(
                    "{items} items answered, {refused} times told to come back, {memory} MiB at most, {left} s left; last: {fault}"
                );
            }
        }
        0
    };
    judge(run(field, seed, load, nemesis).await).await;
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
