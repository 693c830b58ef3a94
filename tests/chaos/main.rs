//! What is promised, held to while things break: phones work against two gateways and two projectors, a nemesis breaks one
//! thing at a time or several, and a checker compares what every phone was told, what the topics hold, what Postgres holds
//! and what every reader saw.
//!
//! - `field`: the processes, how they are ended, stopped and started
//! - `workload`: the phones and the readers
//! - `trouble`: what can be done to a topic and to a database
//! - `checker`: the rules
//! - `cases`: each fault, briefly · `broken`: guards taken out, which the checker has to notice · `long`: all mixed, for as
//!   long as `TIDELOG_CHAOS_SECONDS` says (`make chaos`)

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod cases;
mod checker;
mod field;
mod long;
mod servers;
mod trouble;
mod workload;
