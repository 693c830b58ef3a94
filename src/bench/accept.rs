//! (a) How many items a second the gateway takes: batches of 100 over several keep-alive connections, `Prefer: wait=0`,
//! no projector running. Beside it a bare producer that sends the very same records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use super::Size;
use super::ground::{Ground, Site};
use super::log::{self, Record};
use super::phone::{Wait, post_all};
use super::report::{Aim, Beside, Figure, Report};
use super::stats::median;
use super::tickets::{BATCH, TOPIC, Tickets};
use crate::progress::{during, grouped};

/// Phones that post at once.
const PHONES: usize = 16;
/// Batches before the measuring.
const WARM_UP: usize = 64;
/// A topic of the same shape that nothing else is in.
const OTHER_TOPIC: &str = "sync.activity.v1";
/// Linger times that are tried for the bare producer beside none, in milliseconds.
const LINGERS: [u32; 3] = [5, 20, 100];

/// What one round gave.
#[derive(Default)]
struct Rates {
    gateway: Vec<f64>,
    cpu_micros: Vec<f64>,
    bare: Vec<f64>,
    lingering: [Vec<f64>; LINGERS.len()],
    value_bytes: f64,
    header_bytes: f64,
}

pub(super) async fn measure(ground: &Ground, size: Size, report: &mut Report) -> Result<()> {
    let site = ground.site("a").await?;
    let mut tickets = Tickets::new(ground, 1)?;
    let (mut gateway, address) = site.gateway().await?;
    let (warm_up, _) = tickets.creates(WARM_UP);
    post_all(address, warm_up, PHONES, Wait::No, &Arc::default()).await?;
    let mut rates = Rates::default();
    for round in 1..=size.rounds {
        ground.settle().await?;
        let (postings, _) = tickets.creates(size.accepted_batches);
        let (done, items) = (Arc::new(AtomicU64::new(0)), size.accepted_batches * BATCH);
        let (before, cpu) = (site.ends(&site.topic(TOPIC)).await?, gateway.cpu()?);
        let posted = during(
            &format!("(a) round {round}: accepting items"),
            items as u64,
            || done.load(Ordering::Relaxed) * BATCH as u64,
            post_all(address, postings, PHONES, Wait::No, &done),
        )
        .await?;
        rates.gateway.push(items as f64 / posted.elapsed.as_secs_f64());
        rates.cpu_micros.push((gateway.cpu()? - cpu) * 1e6 / items as f64);
        gateway.alive()?;
        let after = site.ends(&site.topic(TOPIC)).await?;
        let records = log::read(&site.kafka(), &site.topic(TOPIC), &before, &after).await?;
        beside(&site, Arc::new(records), round, &mut rates).await?;
    }
    report.memory("gateway, (a)", gateway.memory()?);
    gateway.stop().await?;
    site.discard().await?;
    tell(&rates, report);
    Ok(())
}

/// The same records by a bare producer.
async fn beside(
    site: &Site<'_>,
    records: Arc<Vec<Vec<Record>>>,
    round: usize,
    rates: &mut Rates,
) -> Result<()> {
    let (kafka, topic) = (site.kafka(), site.topic(OTHER_TOPIC));
    let items = records.iter().map(Vec::len).sum::<usize>() as f64;
    let bytes = |of: fn(&Record) -> usize| records.iter().flatten().map(of).sum::<usize>() as f64 / items;
    (rates.value_bytes, rates.header_bytes) =
        (bytes(|record| record.value.len()), bytes(Record::header_bytes));
    let what = |linger: u32| format!("(a) round {round}: bare producer, linger {linger} ms");
    let elapsed = during(
        &what(0),
        items as u64,
        || 0,
        log::produce(&kafka, &topic, &records, 0),
    )
    .await?;
    rates.bare.push(items / elapsed.as_secs_f64());
    for (linger, rates) in LINGERS.into_iter().zip(&mut rates.lingering) {
        let work = log::produce(&kafka, &topic, &records, linger);
        let elapsed = during(&what(linger), items as u64, || 0, work).await?;
        rates.push(items / elapsed.as_secs_f64());
    }
    Ok(())
}

fn tell(rates: &Rates, report: &mut Report) {
    let (gateway, bare) = (median(&rates.gateway), median(&rates.bare));
    let lingering = rates.lingering.iter().map(|rates| median(rates)).zip(LINGERS);
    let (best, linger) = lingering.fold((bare, 0), |best, next| if next.0 > best.0 { next } else { best });
    report.figure(Figure {
        part: "a",
        what: "items accepted a second, batches of 100".into(),
        value: gateway,
        unit: "/s",
        beside: Some(Beside::rate("bare producer, linger 0", bare)),
        aim: Some(Aim::Ratio(0.5)),
    });
    report.figure(Figure {
        part: "a",
        what: "the same".into(),
        value: gateway,
        unit: "/s",
        beside: Some(Beside::rate(
            &format!("bare producer, its best linger ({linger} ms)"),
            best,
        )),
        aim: None,
    });
    report.note(format!(
        "(a) {PHONES} keep-alive connections, each posting its next batch of {BATCH} once it has its answer (202); \
         tickets of {:.0} bytes, ten headers of {:.0} bytes. The bare producer sends the same records, read back from \
         the topic, into another of as many partitions: idempotent, acks=all, lz4, one thread handing over, headers \
         built for each record, the clock stopping at the last acknowledgement. The gateway's side includes the phones, \
         which run on the same cores. The gateway's process takes {} µs of processor time an item.",
        rates.value_bytes,
        rates.header_bytes,
        grouped(median(&rates.cpu_micros)),
    ));
}
