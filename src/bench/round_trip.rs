//! (c) How long a phone waits: from posting a batch of 100 to the outcome of every item, in one round trip, for one phone
//! alone and for sixteen at once. Beside it the floor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Size;
use super::floor::{self, Work};
use super::ground::{Ground, Site};
use super::log;
use super::phone::{Posted, Wait, post_all};
use super::report::{Aim, Beside, Figure, Report};
use super::stats::{median, percentile};
use super::tables;
use super::tickets::{BATCH, PARTITIONS, TOPIC, Tickets};
use crate::progress::{during, grouped};

/// Phones at once.
const MANY: usize = 16;
/// Batches before the measuring.
const WARM_UP: usize = 48;

/// p50 and p99 of each round, in milliseconds.
#[derive(Default)]
struct Latency {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Latency {
    fn note(&mut self, latencies: &[Duration]) {
        self.p50.push(percentile(latencies, 50.0));
        self.p99.push(percentile(latencies, 99.0));
    }
}

#[derive(Default)]
struct Figures {
    one: Latency,
    many: Latency,
    many_rate: Vec<f64>,
    floor_one: Latency,
    floor_many: Latency,
}

pub(super) async fn measure(ground: &Ground, size: Size, report: &mut Report) -> Result<()> {
    let mut figures = Figures::default();
    let floor_topic = ground.make_topic("c-floor", MANY as i32).await?;
    for round in 1..=size.rounds {
        let site = ground.site("c").await?;
        served(&site, size, round, &mut figures, report).await?;
        let floor = ground.site("c_floor").await?;
        for (phones, batches) in [(1, size.one_phone_batches), (MANY, size.sixteen_phones_batches)] {
            let work = work(&site, batches).await?;
            ground.settle().await?;
            let what = format!("(c) round {round}: the floor, {phones} at once");
            let items = (work.len() * BATCH) as u64;
            let latencies = during(
                &what,
                items,
                || 0,
                floor::measure(&floor, &floor_topic, work, phones),
            )
            .await?;
            match phones {
                1 => figures.floor_one.note(&latencies),
                _ => figures.floor_many.note(&latencies),
            }
            tables::empty(&floor.connect().await?).await?;
        }
        site.discard().await?;
        floor.discard().await?;
    }
    ground.delete_topics(&floor_topic).await?;
    tell(&figures, report);
    Ok(())
}

/// Phones against a gateway and a projector.
async fn served(
    site: &Site<'_>,
    size: Size,
    round: usize,
    figures: &mut Figures,
    report: &mut Report,
) -> Result<()> {
    let mut tickets = Tickets::new(site.ground, 200 + round as u64)?;
    let mut projector = site.projector().await?;
    let (mut gateway, address) = site.gateway().await?;
    site.owned(&mut projector, &site.topic(TOPIC), PARTITIONS).await?;
    let (warm_up, _) = tickets.creates(WARM_UP);
    post_all(address, warm_up, MANY, Wait::ForOutcomes, &Arc::default()).await?;
    site.ground.settle().await?;
    for (phones, batches) in [(1, size.one_phone_batches), (MANY, size.sixteen_phones_batches)] {
        let (postings, _) = tickets.creates(batches);
        let done = Arc::new(AtomicU64::new(0));
        let Posted { elapsed, latencies } = during(
            &format!("(c) round {round}: posting items and waiting, {phones} at once"),
            (batches * BATCH) as u64,
            || done.load(Ordering::Relaxed) * BATCH as u64,
            post_all(address, postings, phones, Wait::ForOutcomes, &done),
        )
        .await?;
        gateway.alive()?;
        projector.alive()?;
        if phones == 1 {
            figures.one.note(&latencies);
        } else {
            figures.many.note(&latencies);
            figures
                .many_rate
                .push((batches * BATCH) as f64 / elapsed.as_secs_f64());
        }
    }
    report.memory("gateway, (c)", gateway.memory()?);
    report.memory("projector, (c)", projector.memory()?);
    gateway.stop().await?;
    projector.stop().await
}

/// So many batches of what was posted, as they lie in the log and in the tables.
async fn work(site: &Site<'_>, batches: usize) -> Result<Work> {
    let topic = site.topic(TOPIC);
    let mut records = log::read(&site.kafka(), &topic, &[], &site.ends(&topic).await?).await?;
    records.truncate(batches);
    let mut chunks = tables::read(&site.connect().await?, 1, BATCH).await?;
    chunks.truncate(batches);
    ensure!(
        records.len() == batches && chunks.len() == batches,
        "not every batch was projected"
    );
    Ok(records.into_iter().zip(chunks).collect())
}

fn tell(figures: &Figures, report: &mut Report) {
    let mut figure = |what: &str, values: &[f64], floor: &[f64], aim| {
        report.figure(Figure {
            part: "c",
            what: what.into(),
            value: median(values),
            unit: " ms",
            beside: Some(Beside::time("floor", median(floor))),
            aim,
        });
    };
    let Figures {
        one,
        many,
        floor_one,
        floor_many,
        ..
    } = figures;
    figure(
        "batch of 100 to its outcomes, one phone: p50",
        &one.p50,
        &floor_one.p50,
        Some(Aim::AtMost(15.0)),
    );
    figure("one phone: p99", &one.p99, &floor_one.p99, None);
    figure("sixteen phones at once: p50", &many.p50, &floor_many.p50, None);
    figure(
        "sixteen phones at once: p99",
        &many.p99,
        &floor_many.p99,
        Some(Aim::AtMost(300.0)),
    );
    report.note(format!(
        "(c) Each phone posts its next batch as soon as it has all outcomes of the one before (200 with 100 outcomes, \
         each answer checked); sixteen at once so put through {} items/s. The floor is the same records and rows in one \
         process: 100 records produced, consumed, and one commit of rows, changes and positions in one statement, with \
         a partition, a consumer and a connection for each phone.",
        grouped(median(&figures.many_rate)),
    ));
}
