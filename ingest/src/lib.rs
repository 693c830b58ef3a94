//! The gateway's write side: claim a batch's key, append its items to the log, answer what became of them.
//!
//! A batch goes through the files in this order:
//!
//! - [`mod@routes`]: HTTP in and out, and nothing else
//! - [`service`]: the order of steps, and which of them outlive the phone that asked
//! - `admission`: which batches are taken now, which wait and which are refused; `pace`: how many at once
//! - `incoming`: the body as a batch of a device, its fingerprint and its id
//! - `terms`: what its tenant has set
//! - `claim`: who may append under a key, in one statement
//! - `resolution`: the decision of a conflict, which is posted and appended like a batch of one
//! - `judge`: items taken and refused, and the time of each, corrected for the device's clock
//! - [`seals`]: what is personal in them, sealed, where the deployment has a secret for that
//! - `append`: items as events, to the [`producer`], whose reports one `delivery` a batch counts
//! - `record`: what the gateway keeps of a batch; `backlog` keeps it while Postgres is away
//! - `answer`: waits for the projection, composes the final answer, stores its bytes
//!
//! Beside that, [`mod@lookup`] tells what is known of a key, and `expiry` removes those whose time is over.
//!
//! [`settings`] are what tenants have set for themselves, followed and changed in a topic of their own.
//!
//! `ledger` is Postgres as claims and records see it, with a deadline and a `breaker`, so that an outage costs little.
//! [`error`] is why a batch is not taken. Must not know how a fold decides or how rows and feeds look: it meets them
//! in the log, in positions, and through [`tidelog_events::outcome::FindOutcomes`].

mod admission;
mod answer;
mod append;
mod backlog;
mod breaker;
mod claim;
mod config;
mod delivery;
pub mod error;
mod expiry;
mod incoming;
mod judge;
mod ledger;
mod listener;
pub mod lookup;
mod pace;
pub mod producer;
mod record;
mod resolution;
pub mod routes;
pub mod seals;
pub mod service;
pub mod settings;
mod terms;

pub use config::IngestConfig;
pub use error::IngestError;
pub use producer::{Producer, ProducerConfig};
pub use routes::routes;
pub use service::{Ingest, IngestParts};
