//! What is promised, held to while things break: phones work against two gateways and two projectors, a nemesis breaks one
//! thing at a time or several, and a checker compares what every phone was told, what the topics hold, what Postgres holds
//! and what every reader saw.
//!
//! - `field`: the processes, how they are ended, stopped and started
//! - `workload`: the phones and the readers
//! - `faults`, `trouble`: what can be done to processes, to a topic and to a database
//! - `run`: the frame of every case
//! - `checker`: the rules
//! - `versions`: an old projector beside a new one
//! - `cases`: each fault, briefly · `apart`: those that need servers of their own, and all mixed, for as long as
//!   `TIDELOG_CHAOS_SECONDS` says (`make chaos`) · `broken`: guards taken out, which the checker has to notice

#[path = "../support/mod.rs"]
mod support;

mod apart;
mod broken;
mod cases;
mod checker;
mod faults;
mod field;
mod handed_back;
mod run;
mod trouble;
mod versions;
mod workload;
