//! What can be set about taking batches. Every default is right for one gateway of a few cores; the names and units
//! stand in the settings table. Must not know where a value came from.

use std::time::Duration;
use tidelog_events::drill;

/// How batches are taken.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// What stands before every topic's name.
    pub topic_prefix: String,
    /// For how long a claim holds without being renewed. It is renewed while its gateway lives, so this is how long
    /// a key stays shut after a crash. Two gateways that append one batch do no harm (the events have the same ids),
    /// so it may be short.
    pub lease: Duration,
    /// For how long the log may take to acknowledge a batch; the producer's own setting.
    pub delivery_timeout: Duration,
    /// For how long a key and its answer are kept, where a tenant has set nothing else.
    pub key_ttl: Duration,
    /// How often expired keys are looked for and removed. Nobody is answered from an expired one, so this only says how
    /// much the table holds beyond what it has to.
    pub expiry_every: Duration,
    /// How long Postgres may take for one statement before a batch goes on without it. A refused connection is known at
    /// once; this is for one that hangs, and long enough that a busy Postgres is not taken for one that is away.
    pub claim_timeout: Duration,
    /// Bytes of bodies being worked on or waiting for it, each counted with 32 KiB at least; beyond that, 503. A tenant
    /// may hold as much as is still free.
    pub in_flight_bytes: usize,
    /// Bytes of records that wait for Postgres to come back; beyond that, the oldest are dropped.
    pub backlog_bytes: usize,
}

impl Default for IngestConfig {
    fn default() -> Self {
        IngestConfig {
            topic_prefix: String::new(),
            lease: Duration::from_millis(drill::number("lease_ms", 10_000).into()),
            delivery_timeout: Duration::from_secs(10),
            key_ttl: Duration::from_secs(24 * 3600),
            expiry_every: Duration::from_secs(10),
            claim_timeout: Duration::from_secs(3),
            in_flight_bytes: 64 << 20,
            backlog_bytes: 16 << 20,
        }
    }
}
