//! (b) How many items a second the projector folds into Postgres: a topic filled beforehand, then `tidelog project`
//! started and timed by its positions, for new records and again for changes of them. Beside it the same rows, changes
//! and positions written by Postgres alone.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use super::Size;
use super::child::Child;
use super::ground::{Ground, Site};
use super::phone::{Posting, Wait, post_all};
use super::report::{Aim, Beside, Figure, Report};
use super::stats::median;
use super::tables::{self, CHUNK, Shape, Writer};
use super::tickets::{BATCH, TOPIC, Tickets};
use crate::progress::{during, grouped};

/// Phones that fill the topic.
const PHONES: usize = 8;
/// Between two looks at the positions.
const LOOK: Duration = Duration::from_millis(25);

/// Rates in items a second, and the projector's processor time.
#[derive(Default)]
struct Kind {
    projected: Vec<f64>,
    cpu_micros: Vec<f64>,
    /// By shape of the statement.
    alone: Vec<(Shape, Vec<f64>)>,
}

impl Kind {
    fn alone(&mut self, shape: Shape, rate: f64) {
        match self.alone.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, rates)) => rates.push(rate),
            None => self.alone.push((shape, vec![rate])),
        }
    }

    /// The fastest shape.
    fn best(&self) -> Option<(Shape, f64)> {
        let medians = self.alone.iter().map(|(shape, rates)| (*shape, median(rates)));
        medians.max_by(|one, other| one.1.total_cmp(&other.1))
    }
}

pub(super) async fn measure(ground: &Ground, size: Size, report: &mut Report) -> Result<()> {
    let (mut creates, mut updates) = (Kind::default(), Kind::default());
    for round in 1..=size.rounds {
        let seed = 100 + round as u64;
        let mut tickets = Tickets::new(ground, seed)?;
        let (site, alone) = (ground.site("b").await?, ground.site("b_alone").await?);
        let (postings, known) = tickets.creates(size.projected_batches);
        project(&site, postings, round, "creates", &mut creates, report).await?;
        let chunks = tables::read(&site.connect().await?, 1, CHUNK).await?;
        ensure!(
            tables::rows(&chunks) == size.projected_batches * BATCH,
            "not every item became a row and a change"
        );
        for shape in [Shape::Copy, Shape::Insert] {
            tables::empty(&alone.connect().await?).await?;
            write_alone(&alone, &chunks, shape, round, &mut creates).await?;
        }
        let postings = tickets.updates(&known);
        project(&site, postings, round, "updates", &mut updates, report).await?;
        let chunks = tables::read(&site.connect().await?, 2, CHUNK).await?;
        ensure!(
            tables::rows(&chunks) == size.projected_batches * BATCH,
            "not every change was applied"
        );
        write_alone(&alone, &chunks, Shape::Update, round, &mut updates).await?;
        site.discard().await?;
        alone.discard().await?;
    }
    tell("items projected a second: creates", &creates, report);
    tell("items projected a second: updates", &updates, report);
    report.note(format!(
        "(b) One topic of six partitions, filled with {} tickets by the gateway, which then stops; `tidelog project` is \
         timed from the first to the last position that it writes, as {LOOK:?} looks at the table tell. Postgres alone \
         writes the rows that the projector wrote, in its order, into the same tables with the same indexes and \
         constraints: {CHUNK} a transaction with their positions, values computed beforehand, one connection, the next \
         chunk travelling while one is written; the faster of one statement over arrays and COPY counts. Both commit to \
         disk. The projector's process takes {} µs of processor time a create and {} an update.",
        grouped((size.projected_batches * BATCH) as f64),
        grouped(median(&creates.cpu_micros)),
        grouped(median(&updates.cpu_micros)),
    ));
    Ok(())
}

/// Fills the topic, then has it projected.
async fn project(
    site: &Site<'_>,
    postings: Vec<Posting>,
    round: usize,
    what: &str,
    kind: &mut Kind,
    report: &mut Report,
) -> Result<()> {
    let items = postings.len() * BATCH;
    let (gateway, address) = site.gateway().await?;
    let done = Arc::new(AtomicU64::new(0));
    during(
        &format!("(b) round {round}: filling the topic with {what}"),
        items as u64,
        || done.load(Ordering::Relaxed) * BATCH as u64,
        post_all(address, postings, PHONES, Wait::No, &done),
    )
    .await?;
    gateway.stop().await?;
    site.ground.settle().await?;

    let client = site.connect().await?;
    let topic = site.topic(TOPIC);
    let before = applied(&client, &topic).await?;
    let now = Cell::new(before);
    let mut projector = site.projector().await?;
    let rate = during(
        &format!("(b) round {round}: projecting {what}"),
        items as u64,
        || (now.get() - before) as u64,
        follow(&client, &topic, before, items as i64, &now, &mut projector),
    )
    .await?;
    kind.projected.push(rate);
    kind.cpu_micros.push(projector.cpu()? * 1e6 / items as f64);
    report.memory("projector, (b)", projector.memory()?);
    projector.stop().await
}

/// The rate from the first move seen to the last.
async fn follow(
    client: &Client,
    topic: &str,
    before: i64,
    items: i64,
    now: &Cell<i64>,
    projector: &mut Child,
) -> Result<f64> {
    let mut first = None;
    loop {
        projector.alive()?;
        let (at, seen) = (applied(client, topic).await?, Instant::now());
        now.set(at);
        if at > before && first.is_none() {
            first = Some((at, seen));
        }
        if at >= before + items {
            let (from, began) = first.context("nothing moved")?;
            return Ok((at - from) as f64 / seen.duration_since(began).as_secs_f64());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many records of a topic are projected.
pub(super) async fn applied(client: &Client, topic: &str) -> Result<i64> {
    let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM positions WHERE topic = $1";
    Ok(client
        .query_one(sql, &[&topic])
        .await
        .map_err(crate::database::plain)?
        .get(0))
}

async fn write_alone(
    site: &Site<'_>,
    chunks: &[tables::Chunk],
    shape: Shape,
    round: usize,
    kind: &mut Kind,
) -> Result<()> {
    let writer = Writer::new(site.connect().await?, shape, "bench").await?;
    site.ground.settle().await?;
    let rows = tables::rows(chunks);
    let what = format!("(b) round {round}: Postgres alone, {}", name(shape));
    let elapsed = during(&what, rows as u64, || 0, writer.write_all(chunks)).await?;
    kind.alone(shape, rows as f64 / elapsed.as_secs_f64());
    Ok(())
}

fn name(shape: Shape) -> &'static str {
    match shape {
        Shape::Insert => "insert from arrays",
        Shape::Copy => "COPY",
        Shape::Update => "update from arrays",
    }
}

fn tell(what: &str, kind: &Kind, report: &mut Report) {
    let beside = kind
        .best()
        .map(|(shape, rate)| Beside::rate(&format!("Postgres alone, {}", name(shape)), rate));
    report.figure(Figure {
        part: "b",
        what: what.into(),
        value: median(&kind.projected),
        unit: "/s",
        beside,
        aim: Some(Aim::Ratio(0.4)),
    });
}
