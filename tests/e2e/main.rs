//! The product from outside: its binary, on a real Kafka and a real Postgres, as phones, analysts and operators meet
//! it. Each file holds the code to one promise, has a deployment of its own, and runs beside the others.

#[path = "../support/mod.rs"]
mod support;

mod bad_batches;
mod bad_items;
mod checksums;
mod commands;
mod conflicts;
mod dead_letters;
mod erasing;
mod exporting;
mod idempotency;
mod item_keys;
mod keeping;
mod legacy_cases;
mod long_identities;
mod mixed_bad_items;
mod mixed_batches;
mod mixed_items;
mod more_partitions;
mod nine_domains;
mod own_chain;
mod own_domain;
mod reading;
mod rebuilding;
mod resolving;
mod seal_secrets;
mod settings;
mod tailing;
mod tracing;
mod visibility;
mod watching;
