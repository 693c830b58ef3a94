//! The contract that every part of Tidelog shares. No I/O: what is here is data and pure functions, so that gateway,
//! projector and reader mean the same by the same words.
//!
//! - [`domain`]: definitions, their fields and tables
//! - [`target`], [`batch`], [`item`], [`mixed`], [`error`]: what a phone posts, and the judgement of it
//! - [`content`], [`doc`]: what an item says, and what a record holds
//! - [`envelope`]: the event on a topic
//! - [`partition`], [`position`], [`receipt`], [`token`]: places in the log, and what clients keep of them
//! - [`outcome`], [`answer`]: what became of an item, and how it is told
//! - [`resolution`]: how a person decided a conflict
//! - [`seal`]: personal values, sealed and opened
//! - [`settings`]: what a tenant has set for itself
//! - [`drill`]: steps at which tests stop a process, and guards that they take out
//! - [`ids`], [`json`]: names of who, and JSON that Postgres holds

pub mod answer;
pub mod batch;
pub mod content;
pub mod doc;
pub mod domain;
pub mod drill;
pub mod envelope;
pub mod error;
pub mod ids;
pub mod item;
pub mod json;
pub mod mixed;
pub mod outcome;
pub mod partition;
pub mod position;
pub mod receipt;
pub mod resolution;
pub mod seal;
pub mod settings;
pub mod target;
pub mod token;

/// A Kafka topic's name: the deployment's prefix before the domain's topic, as it is.
pub fn topic_name(prefix: &str, topic: &str) -> String {
    format!("{prefix}{topic}")
}

/// The topic for what the fold could not read, without a deployment's prefix.
pub const DEAD_LETTER_TOPIC: &str = "sync.dlq.v1";

/// The channel on which a projector says that positions moved: NOTIFY is a wake-up, the table is the truth.
pub fn positions_channel(schema: &str) -> String {
    format!("{schema}_positions")
}
