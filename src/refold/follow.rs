//! `tidelog verify --follow`: looks at all topics again and again, at a rate that the service does not feel, and tells what it finds:
//! in lines on stdout, and as metrics. What fails is told and tried again. What a look is, is `verify`'s to know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tidelog_events::domain::Registry;
use tidelog_projector::shadow::{Passed, Rate, Selection, Shadow};
use tokio::sync::watch;
use tokio_postgres::Client;

use super::exposed::{Exposed, Named};
use super::verify::{self, Verified, VerifyArgs};
use super::{Pace, ahead};
use crate::figures;
use crate::output::{self, Output};
use crate::shutdown::stopped;

/// Waits after a look that failed: from, and doubling to.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// After a round with failures, the next begins this soon.
const AGAIN: Duration = Duration::from_secs(60);

/// For so long nothing may come from the log before that is told.
const STALL: Duration = Duration::from_secs(15);

/// Events that the log hands over at once, at most, or nearly.
const PARCEL: u64 = 2000;

/// So many seconds' worth of events may be left to fold when tables are compared: what the service writes meanwhile differs
/// until it is looked at again.
const NEAR: u64 = 2;

/// How to look without being felt.
pub(super) struct Gently {
    rate: Rate,
    per_second: u32,
    exposed: Exposed,
}

/// Goes on until `stop`, or until nobody reads stdout any more.
pub(super) async fn run(
    args: &VerifyArgs,
    registry: &Arc<Registry>,
    topics: &[String],
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let names: Vec<String> = topics.iter().map(|topic| args.in_the_log(topic)).collect();
    let gently = Gently {
        rate: Rate::per_second(args.rate),
        per_second: args.rate,
        exposed: Exposed::new(&names),
    };
    let Some(address) = args.metrics_listen else {
        return rounds(args, registry, topics, &gently, &stop).await;
    };
    let listener = figures::listen(address).await?;
    tracing::info!(%address, "metrics are under /metrics");
    tokio::select! {
        ended = rounds(args, registry, topics, &gently, &stop) => ended,
        // It ends by `stop`; what is under way is still to be put away.
        () = async { gently.exposed.serve(listener, stop.clone()).await; std::future::pending().await } => Ok(()),
    }
}

async fn rounds(
    args: &VerifyArgs,
    registry: &Arc<Registry>,
    topics: &[String],
    gently: &Gently,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let mut wait = FIRST_WAIT;
    loop {
        let (began, mut failures) = (Instant::now(), 0);
        for topic in topics {
            let (since, name) = (Instant::now(), args.in_the_log(topic));
            let looked = verify::verify(args, registry, topic, Some(gently), stop).await;
            if *stop.borrow() {
                if let Err(error) = looked {
                    tracing::info!("{error:#}");
                }
                return Ok(());
            }
            match looked {
                Ok(verified) => {
                    wait = FIRST_WAIT;
                    let domains = domains(registry, topic);
                    gently
                        .exposed
                        .verified(&name, &domains, &verified, since.elapsed().as_secs_f64());
                    if !told(verified, args.output.output)? {
                        return Ok(());
                    }
                }
                Err(error) => {
                    failures += 1;
                    gently.exposed.failed(&name);
                    tracing::warn!("{name} could not be looked at: {error:#}; going on in {wait:?}");
                    pause(wait, stop).await;
                    wait = LONGEST_WAIT.min(2 * wait);
                }
            }
        }
        let every = if failures > 0 {
            AGAIN.min(args.every)
        } else {
            args.every
        };
        pause(every.saturating_sub(began.elapsed()), stop).await;
        if *stop.borrow() {
            return Ok(());
        }
    }
}

impl Gently {
    /// Folds up to where the service stands, no faster than the rate. The service goes on meanwhile, so that is done again until
    /// little is left. None where it was told to stop.
    pub(super) async fn fold(
        &self,
        shadow: &Shadow,
        client: &Client,
        selection: &Arc<Selection>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Option<Pace>> {
        let (began, mut folded, mut before) = (Instant::now(), 0, u64::MAX);
        loop {
            let to = shadow.live_positions(client).await?;
            let left = ahead(&shadow.positions().await?, &to);
            if left == 0 || (folded > 0 && left <= NEAR * u64::from(self.per_second)) {
                break;
            }
            if left >= before {
                bail!(
                    "as many events come into {} as are folded again in that time, {} a second: raise --rate",
                    shadow.topic(),
                    self.per_second
                );
            }
            let passed = Passed::default();
            let folding = shadow.fold_gently(&to, selection, &passed, &self.rate, stop);
            let topic = shadow.topic();
            if !self
                .watched(&topic, &passed, async { Ok(folding.await?) })
                .await?
            {
                return Ok(None);
            }
            (folded, before) = (folded + left, left);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Some(Pace {
            events: folded,
            seconds,
        }))
    }

    /// Counts what was read while it is, and tells where nothing comes for long: the log and the tables are waited for for ever.
    async fn watched<T>(
        &self,
        topic: &str,
        passed: &Passed,
        folding: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut folding = std::pin::pin!(folding);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let patience = STALL + Duration::from_secs(PARCEL / u64::from(self.per_second));
        let (mut counted, mut moved, mut waiting) = (0, Instant::now(), false);
        loop {
            let ended = tokio::select! {
                ended = &mut folding => Some(ended),
                _ = ticks.tick() => None,
            };
            let now = passed.count();
            // Less than before where a part is done again.
            self.exposed.read(topic, now.saturating_sub(counted));
            if now > counted && waiting {
                waiting = false;
                self.exposed.up(true);
                tracing::info!("{topic} gets on again");
            }
            if now != counted {
                (counted, moved) = (now, Instant::now());
            }
            if let Some(ended) = ended {
                return ended;
            }
            if moved.elapsed() > patience && !waiting {
                waiting = true;
                self.exposed.up(false);
                tracing::warn!(
                    "nothing of {topic} was folded for {patience:?}: Kafka or Postgres is waited for"
                );
            }
        }
    }
}

fn domains(registry: &Registry, topic: &str) -> Vec<Named> {
    let on_topic = registry.on_topic(topic);
    let named = on_topic
        .iter()
        .map(|domain| (domain.name.clone(), domain.table.to_string()));
    named.collect()
}

/// Prints what a look found; answers whether somebody reads it.
fn told(verified: Verified, form: Output) -> Result<bool> {
    let shown = match form {
        Output::Json => format!("{}\n", serde_json::to_string(&verified)?),
        Output::Text => verify::text(&[verified]),
    };
    output::write(&shown)
}

async fn pause(wait: Duration, stop: &watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = stopped(stop.clone()) => {}
    }
}
