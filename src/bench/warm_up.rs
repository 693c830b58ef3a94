//! Work before the measuring. Kafka runs on a JVM, which interprets what it then compiles while it runs: in the first
//! seconds of load its compiler takes more of two cores than the load does, and whatever is measured first would pay
//! for it. Everything that is measured later writes to this broker and reads from it, so this does both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use super::ground::Ground;
use super::log;
use super::phone::{Wait, post_all};
use super::tickets::{BATCH, TOPIC, Tickets};
use crate::progress::during;

/// Batches by way of the gateway, and how often a bare producer sends their records again. Measured: the time that
/// the same batches take falls for 300,000 records, and stays.
const BATCHES: usize = 1500;
const AGAIN: usize = 2;
const PHONES: usize = 16;

pub(super) async fn run(ground: &Ground) -> Result<()> {
    let site = ground.site("warm").await?;
    let mut tickets = Tickets::new(ground, 7)?;
    let (gateway, address) = site.gateway().await?;
    let (postings, _) = tickets.creates(BATCHES);
    let topic = site.topic(TOPIC);
    let (before, done) = (site.ends(&topic).await?, Arc::new(AtomicU64::new(0)));
    let items = (BATCHES * BATCH) as u64;
    during(
        "warming up: accepting items",
        items,
        || done.load(Ordering::Relaxed) * BATCH as u64,
        post_all(address, postings, PHONES, Wait::No, &done),
    )
    .await?;
    gateway.stop().await?;
    let after = site.ends(&topic).await?;
    let kafka = site.kafka();
    let records = Arc::new(log::read(&kafka, &topic, &before, &after).await?);
    for _ in 0..AGAIN {
        let work = log::produce(&kafka, &topic, &records, 0);
        during("warming up: a bare producer", items, || 0, work).await?;
    }
    site.discard().await
}
