//! Folds the log into Postgres. Data comes from Kafka and ends in rows, feeds, outcomes, conflicts and positions; HTTP
//! and phones are unknown here, and so is every domain's name.
//!
//! - [`fold`], [`document`], [`state`], [`event`]: the meaning of an event, pure
//! - [`policy`], [`merge`], [`resolve`]: how a conflict is decided, by its policy or by a person, pure
//! - `seals`: sealed values made comparable, pure
//! - [`chunk`]: a stretch of the log folded in memory
//! - [`hits`]: items that came again, counted
//! - `load`, `pasts`, `kept`, `write`, `session`, `sheet`: the store
//! - `lane`, `reading`, `flight`: the worker that carries chunks from the log to the store, one written while the next
//!   is made ready
//! - `consumer`, `backlog`, `ownership`: which partitions are whose, and where they stand
//! - `notify`, `dead`: wake-ups for readers, and what could not be read
//! - `history`: what lies beyond the history that a domain keeps, removed
//! - `withheld`: partitions that cannot be read from where they stand; `figures`: what is counted
//! - [`keys`]: keys of sealed values, from their topic into their table
//! - [`log`], [`shadow`], `bulk`: a topic's log read outside the group, and folded again beside the live tables

mod backlog;
mod bulk;
pub mod chunk;
mod consumer;
mod copying;
mod dead;
pub mod document;
mod error;
pub mod event;
mod figures;
mod flight;
pub mod fold;
mod history;
pub mod hits;
mod kept;
pub mod keys;
mod lane;
mod load;
pub mod log;
pub mod merge;
mod notify;
mod ownership;
mod pasts;
pub mod policy;
mod reading;
pub mod record;
pub mod resolve;
mod retry;
mod rows;
mod seals;
mod session;
pub mod shadow;
mod sheet;
pub mod state;
mod withheld;
mod write;

pub use error::ProjectorError;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tidelog_events::domain::Registry;
use tidelog_events::{positions_channel, topic_name};
use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::Config;

/// What a projector needs.
#[derive(Debug, Clone)]
pub struct ProjectorConfig {
    /// `host:port,…` of Kafka.
    pub brokers: String,
    /// The consumer group, for sharing partitions among processes.
    pub group: String,
    /// What stands before every topic's name.
    pub topic_prefix: String,
    /// The schema that the service lives in; names the channel of wake-ups.
    pub schema: String,
    /// Postgres, with the search path set to the schema.
    pub database: Config,
    /// The domains.
    pub registry: Arc<Registry>,
    /// What this process is called in `positions.owner`.
    pub instance: String,
}

/// Runs until shutdown: a lane a topic, one consumer, one notifier.
pub async fn run(config: ProjectorConfig, mut outer: watch::Receiver<bool>) -> Result<(), ProjectorError> {
    // The parts stop together: when the process shuts down, and when one of them fails.
    let (stop, shutdown) = watch::channel(false);
    figures::begin(&config.registry, &config.topic_prefix);
    let progress = Arc::new(Mutex::new(HashMap::new()));
    let moved = Arc::new(Notify::new());
    let dead = Arc::new(dead::DeadLetterTopic::new(&config.brokers, &config.topic_prefix));
    let mut lanes = HashMap::new();
    let mut workers = tokio::task::JoinSet::new();
    for topic in config.registry.topics() {
        let topic = topic_name(&config.topic_prefix, topic);
        let (sender, inbox) = mpsc::channel(backlog::LANE_PARCELS);
        lanes.insert(topic.clone(), sender);
        let lane = lane::Lane::new(lane::LaneParts {
            topic,
            prefix: config.topic_prefix.clone(),
            registry: config.registry.clone(),
            database: config.database.clone(),
            inbox,
            progress: progress.clone(),
            moved: moved.clone(),
            dead: Some(dead.clone()),
            letters: None,
            shutdown: shutdown.clone(),
        });
        workers.spawn(lane.run());
    }
    let notifier = tokio::spawn(notify::run(
        config.database.clone(),
        positions_channel(&config.schema),
        moved,
        shutdown.clone(),
    ));
    let keeping = history::Keeping {
        brokers: config.brokers.clone(),
        topic_prefix: config.topic_prefix.clone(),
        schema: config.schema.clone(),
        database: config.database.clone(),
        registry: config.registry.clone(),
    };
    let keeping = tokio::spawn(history::run(keeping, shutdown.clone()));
    let parts = consumer::ConsumerParts {
        brokers: config.brokers,
        group: config.group,
        instance: config.instance,
        database: config.database,
        lanes,
        progress,
        shutdown,
    };
    let runtime = tokio::runtime::Handle::current();
    let mut consumer = tokio::task::spawn_blocking(move || consumer::run(parts, runtime));
    let mut failed = None;
    let ended = loop {
        tokio::select! {
            ended = &mut consumer => break ended,
            _ = outer.wait_for(|stop| *stop), if !*stop.borrow() => {
                stop.send_replace(true);
            }
            Some(lane) = workers.join_next() => {
                // A lane that has panicked: its topic would stand still without a word. One that ends well has no consumer
                // any more, which tells why.
                if let Err(why) = lane && !*stop.borrow() {
                    failed = Some(ProjectorError::Consumer(format!("a lane ended: {why}")));
                    stop.send_replace(true);
                }
            }
        }
    };
    while workers.join_next().await.is_some() {}
    notifier.abort();
    keeping.abort();
    let ended = ended.map_err(|error| ProjectorError::Consumer(error.to_string()))?;
    failed.map_or(ended, Err)
}
