//! Commands that fold a topic's log again beside the live tables: `rebuild` puts what comes of it in their place, `verify` says
//! where they differ, `replay` puts right what a stretch of the log is about. Each is a few steps over the projector's shadow,
//! which this file sets up and reports on; what folding means is the projector's.

mod exposed;
mod follow;
pub(crate) mod rebuild;
pub(crate) mod replay;
mod restoring;
mod shown;
pub(crate) mod verify;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use sha2::{Digest, Sha256};
use tidelog_events::domain::Registry;
use tidelog_projector::shadow::{Offsets, Passed, Selection, Shadow, ShadowConfig};
use tokio::sync::watch;
use tokio_postgres::Client;

use crate::migrate::connected;
use crate::progress::during;
use crate::serve::INSTANCE;
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings};
use crate::{database, domains};

/// Held in memory unless told.
const MEMORY_MB: u32 = 512;
/// The same beside a service that is not to feel it.
const GENTLE_MEMORY_MB: u32 = 64;

/// Where the log and the tables are, and how hard to work.
#[derive(Args, Clone, Debug)]
pub(crate) struct Ground {
    /// Partitions that are folded at once; by default as many as there are processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Megabytes of what is folded that may be held in memory before it is written: the more, the fewer rows are written twice
    /// [default: 512; with `verify --follow` 64]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    memory: Option<u32>,
    #[command(flatten)]
    pub(crate) kafka: KafkaSettings,
    #[command(flatten)]
    pub(crate) database: DatabaseSettings,
    #[command(flatten)]
    pub(crate) domains: DomainSettings,
}

/// What a shadow is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Kept until it is swapped in, and afterwards with what it replaced.
    Rebuild,
    /// Gone when the command ends.
    Scratch(&'static str),
}

impl Ground {
    /// As another command was told.
    pub(crate) fn new(
        jobs: Option<u16>,
        kafka: &KafkaSettings,
        database: &DatabaseSettings,
        domains: &DomainSettings,
    ) -> Ground {
        Ground {
            jobs,
            memory: None,
            kafka: kafka.clone(),
            database: database.clone(),
            domains: domains.clone(),
        }
    }

    /// Holds little in memory, unless it was told how much.
    pub(crate) fn gently(&mut self) {
        self.memory.get_or_insert(GENTLE_MEMORY_MB);
    }

    /// How much is done at once.
    pub(crate) fn jobs(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        self.jobs.map_or(processors, usize::from)
    }

    fn registry(&self) -> Result<Arc<Registry>> {
        domains::registry(&self.domains)
    }

    /// A connection to a schema of this build.
    pub(crate) async fn connect(&self, use_of: &str, registry: &Registry) -> Result<Client> {
        connected(&self.database, registry, use_of, &[("statement_timeout", "0")]).await
    }

    /// A shadow of one topic.
    pub(crate) fn shadow(
        &self,
        registry: &Arc<Registry>,
        topic: &str,
        purpose: Purpose,
        partitions: Option<BTreeSet<i32>>,
    ) -> Result<Shadow> {
        let (kind, scratch) = match purpose {
            Purpose::Rebuild => ("shadow", false),
            Purpose::Scratch(kind) => (kind, true),
        };
        Ok(Shadow::new(ShadowConfig {
            brokers: self.kafka.kafka_brokers.clone(),
            topic_prefix: self.kafka.topic_prefix.clone(),
            registry: registry.clone(),
            database: database::config(&self.database, kind, &[])?,
            live: self.database.schema.clone(),
            schema: schema_name(&self.database.schema, kind, topic),
            topic: topic.to_owned(),
            instance: INSTANCE.clone(),
            partitions,
            jobs: self.jobs(),
            memory: (self.memory.unwrap_or(MEMORY_MB) as usize) << 20,
            scratch,
        }))
    }
}

/// The schema of a shadow: after the live one, what it is for and its topic. A name that Postgres would cut off ends in a hash.
fn schema_name(live: &str, kind: &str, topic: &str) -> String {
    let plain: String = topic
        .trim_start_matches("sync.")
        .trim_end_matches(".v1")
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect();
    let name = format!("{live}_{kind}_{plain}");
    // While tables are swapped a schema of this name with five more letters is there for a moment.
    if name.len() <= 58 {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let hash: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}_{hash}", &name[..45])
}

/// The names of the domains on a shadow's topic.
pub(crate) fn names(shadow: &Shadow) -> Vec<String> {
    shadow
        .domains()
        .iter()
        .map(|domain| domain.name.clone())
        .collect()
}

/// Partitions of a topic that were asked for, checked.
async fn existing(shadow: &Shadow, wanted: &[i32]) -> Result<Option<BTreeSet<i32>>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let bounds = shadow.log().bounds().await?;
    if let Some(missing) = wanted.iter().find(|partition| !bounds.contains_key(partition)) {
        bail!(
            "{} has no partition {missing}: it has {} of them, numbered from 0",
            shadow.topic(),
            bounds.len()
        );
    }
    Ok(Some(wanted.iter().copied().collect()))
}

/// How much was folded, and how fast.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    events: u64,
    seconds: f64,
}

impl Pace {
    fn rate(&self) -> f64 {
        self.events as f64 / self.seconds.max(0.001)
    }
}

/// Folds up to where the service stands now (or, where it stands before the shadow, to the log's end), and shows how far it is. None where it was told to stop.
async fn fold(
    shadow: &Shadow,
    client: &Client,
    selection: &Arc<Selection>,
    stop: &watch::Receiver<bool>,
) -> Result<Option<Pace>> {
    let to = shadow.goals(client).await?;
    let from = shadow.positions().await?;
    let events = ahead(&from, &to);
    let (passed, began) = (Passed::default(), Instant::now());
    // More is read than the tables hold when it is broken off.
    let came = OnceLock::new();
    let folding = async {
        let ended = shadow.fold_to(&to, selection, &passed, stop).await;
        if matches!(ended, Ok(true)) {
            return Ok(());
        }
        if let Ok(at) = shadow.positions().await {
            came.get_or_init(|| ahead(&from, &at));
        }
        // That it was stopped is no failure, but its work is not done either.
        Err(ended.err())
    };
    let done = || came.get().copied().unwrap_or_else(|| passed.count());
    let folded = match events {
        0 => folding.await,
        _ => {
            let what = format!("folding {}", shadow.topic());
            during(&what, events, done, folding).await
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    match folded {
        Ok(()) => Ok(Some(Pace { events, seconds })),
        Err(None) => Ok(None),
        Err(Some(error)) => Err(error.into()),
    }
}

/// How many events lie between.
fn ahead(from: &Offsets, to: &Offsets) -> u64 {
    let each = to
        .iter()
        .map(|(partition, to)| to - from.get(partition).copied().unwrap_or(0));
    each.map(|events| events.max(0).unsigned_abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadows_schema_has_a_name_that_postgres_keeps() {
        assert_eq!(
            schema_name("tidelog", "shadow", "sync.work-orders.v1"),
            "tidelog_shadow_work_orders"
        );
        let long = schema_name(
            "a_schema_of_a_rather_long_name_indeed",
            "shadow",
            "sync.inspections-of-lifts.v1",
        );
        assert_eq!(long.len(), 58);
        assert_ne!(
            long,
            schema_name(
                "a_schema_of_a_rather_long_name_indeed",
                "shadow",
                "sync.inspections-of-lifts.v2"
            )
        );
    }
}
