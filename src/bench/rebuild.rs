//! (f) How many events a second a rebuild folds into tables, indexes made: a topic filled and projected, then `tidelog rebuild`
//! beside the service's tables. Beside it the same rows and changes, ready-made, by COPY into the same tables, and the same
//! indexes, by Postgres alone. Must not know how a rebuild works.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt, pin_mut};
use serde_json::Value;
use tidelog_events::domain::{Domain, Registry, create_bare_tables, create_indexes, feed_key};
use tokio_postgres::Client;

use super::Size;
use super::ground::{Ground, Site};
use super::phone::{Posting, Wait, post_all};
use super::project::applied;
use super::report::{Aim, Beside, Figure, Report};
use super::stats::median;
use super::tickets::{BATCH, TOPIC, Tickets};
use crate::database::plain;
use crate::progress::{during, grouped};

/// Phones that fill the topic.
const PHONES: usize = 8;
/// Connections that copy at once, as many as a rebuild has lanes here; the faster of one and these counts.
const CONNECTIONS: [i32; 2] = [1, 2];
/// Rows of a domain are this domain's.
const DOMAIN: &str = "helpdesk";

/// Rates in events a second.
#[derive(Default)]
struct Rates {
    rebuilt: Vec<f64>,
    /// With the comparison, and the start of the command.
    whole: Vec<f64>,
    /// By number of connections.
    alone: [Vec<f64>; CONNECTIONS.len()],
    /// Over as many as there may be, the feed's key made when its rows are there.
    keyed_after: Vec<f64>,
}

pub(super) async fn measure(ground: &Ground, size: Size, report: &mut Report) -> Result<()> {
    let registry = Registry::shipped();
    let domain = registry.by_name(DOMAIN).context("the domain is built in")?;
    let site = ground.site("f").await?;
    let mut tickets = Tickets::new(ground, 600)?;
    let (creates, known) = tickets.creates(size.projected_batches);
    let updates = tickets.updates(&known);
    let events = (creates.len() + updates.len()) * BATCH;
    fill(&site, [creates, updates], events).await?;
    let rows = Ready::read(&site.connect().await?, domain).await?;
    ensure!(rows.changes == events as i64, "not every event became a change");
    let mut rates = Rates::default();
    for round in 1..=size.rounds {
        ground.settle().await?;
        let what = format!("(f) round {round}: rebuilding");
        let began = Instant::now();
        let rebuilt = during(&what, events as u64, || 0, rebuild(&site)).await?;
        rates.whole.push(events as f64 / began.elapsed().as_secs_f64());
        rates.rebuilt.push(events as f64 / seconds(&rebuilt)?);
        for (number, connections) in CONNECTIONS.into_iter().enumerate() {
            ground.settle().await?;
            let what = format!("(f) round {round}: Postgres alone, {connections} connection(s)");
            let copying = copy(&site, domain, &rows, connections, Key::First);
            let taken = during(&what, events as u64, || 0, copying).await?;
            rates.alone[number].push(events as f64 / taken);
        }
        ground.settle().await?;
        let what = format!("(f) round {round}: Postgres alone, the feed's key made last");
        let copying = copy(&site, domain, &rows, CONNECTIONS[1], Key::Last);
        let taken = during(&what, events as u64, || 0, copying).await?;
        rates.keyed_after.push(events as f64 / taken);
    }
    tell(&rates, events, report);
    site.discard().await
}

/// Fills the topic while it is projected.
async fn fill(site: &Site<'_>, stages: [Vec<Posting>; 2], events: usize) -> Result<()> {
    let (gateway, address) = site.gateway().await?;
    let mut projector = site.projector().await?;
    let done = Arc::new(AtomicU64::new(0));
    let posting = async {
        for postings in stages {
            post_all(address, postings, PHONES, Wait::No, &done).await?;
        }
        gateway.stop().await
    };
    let count = || done.load(Ordering::Relaxed) * BATCH as u64;
    during("(f) filling the topic", events as u64, count, posting).await?;
    let client = site.connect().await?;
    let topic = site.topic(TOPIC);
    let done = async {
        loop {
            projector.alive()?;
            if applied(&client, &topic).await? >= events as i64 {
                return anyhow::Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    during("(f) waiting until it is projected", 0, || 0, done).await?;
    projector.stop().await
}

/// Rebuilds beside the live tables, and leaves nothing behind.
async fn rebuild(site: &Site<'_>) -> Result<Value> {
    let rebuilt = site
        .run(&[
            "rebuild",
            "--domain",
            DOMAIN,
            "--no-swap",
            "--as",
            "bench",
            "--output",
            "json",
        ])
        .await?;
    ensure!(
        rebuilt["differences"].as_array().is_some_and(Vec::is_empty),
        "the rebuild differs: {rebuilt}"
    );
    site.run(&[
        "rebuild",
        "--domain",
        DOMAIN,
        "--discard",
        "--yes",
        "--as",
        "bench",
        "--output",
        "json",
    ])
    .await?;
    Ok(rebuilt)
}

/// How long tables and indexes took.
fn seconds(rebuilt: &Value) -> Result<f64> {
    let of = |name: &str| rebuilt[name].as_f64().with_context(|| format!("no {name}"));
    Ok(of("folding_seconds")? + of("indexing_seconds")?)
}

/// What was projected, as COPY takes it: of each table, the bytes for each way to share them among connections.
struct Ready {
    changes: i64,
    tables: Vec<ReadyTable>,
}

struct ReadyTable {
    name: String,
    columns: String,
    /// By whether the partition is even or odd.
    halves: [Bytes; 2],
}

impl Ready {
    async fn read(client: &Client, domain: &Domain) -> Result<Self> {
        const COLUMNS: &str = "SELECT string_agg(format('%I', attname), ', ' ORDER BY attnum) FROM pg_attribute \
                               WHERE attrelid = ($1::text)::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''";
        let mut tables = Vec::new();
        for name in [domain.table.to_string(), domain.changes_table()] {
            let columns: String = client.query_one(COLUMNS, &[&name]).await.map_err(plain)?.get(0);
            let mut halves = [Bytes::new(), Bytes::new()];
            for (odd, half) in halves.iter_mut().enumerate() {
                // In the order of the log, as a rebuild writes.
                let sql = format!(
                    "COPY (SELECT {columns} FROM {name} WHERE partition % 2 = {odd} ORDER BY \"offset\", partition) TO STDOUT (FORMAT binary)"
                );
                let chunks = client.copy_out(&sql).await.map_err(plain)?;
                let mut bytes = BytesMut::new();
                pin_mut!(chunks);
                while let Some(chunk) = chunks.try_next().await.map_err(plain)? {
                    bytes.extend_from_slice(&chunk);
                }
                *half = bytes.freeze();
            }
            tables.push(ReadyTable {
                name,
                columns,
                halves,
            });
        }
        let count = format!("SELECT count(*) FROM {}", domain.changes_table());
        let changes = client.query_one(&count, &[]).await.map_err(plain)?.get(0);
        Ok(Self { changes, tables })
    }
}

/// When the feed has its primary key made: rows come in another order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    First,
    Last,
}

/// The same tables in a schema of their own, filled by COPY over so many connections, and indexed. Answers the seconds it took.
async fn copy(site: &Site<'_>, domain: &Domain, ready: &Ready, connections: i32, key: Key) -> Result<f64> {
    let schema = format!("{}_copy", site.schema);
    let client = site.ground.connect(&schema).await?;
    let make = format!(
        "CREATE SCHEMA \"{schema}\"; SET search_path = \"{schema}\", \"{}\";\n{}",
        site.schema,
        create_bare_tables(domain)
    );
    client.batch_execute(&make).await.map_err(plain)?;
    let feed = domain.changes_table();
    if key == Key::Last {
        let without = format!("ALTER TABLE {feed} DROP CONSTRAINT {feed}_pkey");
        client.batch_execute(&without).await.map_err(plain)?;
    }
    let began = Instant::now();
    let mut copying = Vec::new();
    for number in 0..connections {
        let client = site.ground.connect(&schema).await?;
        let path = format!(
            "SET search_path = \"{schema}\", \"{}\"; SET synchronous_commit = off",
            site.schema
        );
        client.batch_execute(&path).await.map_err(plain)?;
        let halves = match connections {
            1 => 0..2,
            _ => number as usize..number as usize + 1,
        };
        copying.push(copy_halves(client, ready, halves));
    }
    futures_util::future::try_join_all(copying).await?;
    if key == Key::Last {
        let with = format!("ALTER TABLE {feed} ADD {}", feed_key(domain));
        client.batch_execute(&with).await.map_err(plain)?;
    }
    client
        .batch_execute(&create_indexes(domain))
        .await
        .map_err(plain)?;
    let taken = began.elapsed().as_secs_f64();
    client
        .batch_execute(&format!("DROP SCHEMA \"{schema}\" CASCADE"))
        .await
        .map_err(plain)?;
    Ok(taken)
}

async fn copy_halves(client: Client, ready: &Ready, halves: std::ops::Range<usize>) -> Result<()> {
    for half in halves {
        for table in &ready.tables {
            let sql = format!(
                "COPY {} ({}) FROM STDIN (FORMAT binary)",
                table.name, table.columns
            );
            let sink = client.copy_in::<_, Bytes>(&sql).await.map_err(plain)?;
            pin_mut!(sink);
            for chunk in table.halves[half].chunks(1 << 16) {
                let sent = sink.send(table.halves[half].slice_ref(chunk)).await;
                sent.map_err(plain)?;
            }
            sink.close().await.map_err(plain)?;
        }
    }
    Ok(())
}

fn tell(rates: &Rates, events: usize, report: &mut Report) {
    let alone = rates.alone.iter().map(|rates| median(rates)).zip(CONNECTIONS);
    let best = alone.max_by(|one, other| one.0.total_cmp(&other.0));
    report.figure(Figure {
        part: "f",
        what: "events rebuilt a second, indexes made".into(),
        value: median(&rates.rebuilt),
        unit: "/s",
        beside: best
            .map(|(rate, connections)| Beside::rate(&format!("Postgres alone, COPY by {connections}"), rate)),
        aim: Some(Aim::Ratio(0.5)),
    });
    report.figure(Figure {
        part: "f",
        what: "the same".into(),
        value: median(&rates.rebuilt),
        unit: "/s",
        beside: Some(Beside::rate(
            "Postgres alone, COPY by 2, the feed's key made last",
            median(&rates.keyed_after),
        )),
        aim: None,
    });
    report.note(format!(
        "(f) One topic of six partitions with {} events, a creation and a change of each ticket, all applied; `tidelog rebuild --no-swap` folds \
         it into tables beside those of the service and makes their indexes. Postgres alone takes the same rows and changes, ready-made, by \
         binary COPY in the order of the log into the same tables, with their primary keys, and makes the same indexes; over one connection \
         or two, the faster counts; and once more with the primary key of the changes made when they are there, as a rebuild makes it. ANALYZE is in neither. Neither waits for the disk at a commit. With the start of the command and the comparison of every row with the \
         live tables a rebuild goes through {} events a second.",
        grouped(events as f64),
        grouped(median(&rates.whole)),
    ));
}
