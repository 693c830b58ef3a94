//! Tenants' settings in the log: a compacted topic with a record a tenant, so that a gateway learns of them without
//! Postgres.
//!
//! - `record`: one tenant's settings as a record, and back
//! - [`follow`]: the topic as a value that every gateway keeps, from its first record to its last
//! - [`change`]: writing to it
//! - [`write_partitions`]: how many partitions each topic was made with, which gateways keep to
//! - `routes`: `/api/v1/settings/sync`
//!
//! What settings mean is [`tidelog_events::settings`]. Must not know how events are stamped with what follows from them.

pub mod change;
pub mod follow;
mod partitions;
mod record;
pub(crate) mod routes;

pub use change::{Change, Changer, SettingsError};
pub use follow::{FollowConfig, follow};
pub use partitions::write_partitions;
