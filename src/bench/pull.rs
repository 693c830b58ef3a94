//! (d) How long a pull takes over HTTP: 100 and 1000 changes after a cursor, and a page of a first sync, from a small
//! and a large projection. Each request is another tenant's, so nothing is served from what the one before has warmed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::Size;
use super::fill::fill;
use super::ground::{Ground, Site};
use super::phone::Phone;
use super::report::{Aim, Beside, Figure, Report};
use super::stats::percentile;
use super::tickets::{Person, bearer};
use crate::progress::{during, grouped};

/// Requests before the measuring, in each kind.
const WARM_UP: usize = 20;
/// A time before all changes.
const BEGINNING: &str = "since=2000-01-01T00:00:00Z&limit=1";

/// Latencies of one filling.
#[derive(Default)]
struct Pulls {
    changes_100: Vec<Duration>,
    changes_1000: Vec<Duration>,
    first_1000: Vec<Duration>,
    bytes_1000: usize,
}

pub(super) async fn measure(ground: &Ground, size: Size, report: &mut Report) -> Result<()> {
    let mut measured = Vec::new();
    for (name, (rows, tenants)) in [("d_small", size.small_fill), ("d_large", size.large_fill)] {
        let site = ground.site(name).await?;
        fill(ground, &site, rows as i64, tenants as i64).await?;
        measured.push(pulls(&site, tenants, size.pulls, report).await?);
        site.discard().await?;
    }
    if let [small, large] = measured.as_slice() {
        tell(size, small, large, report);
    }
    Ok(())
}

async fn pulls(site: &Site<'_>, tenants: usize, count: usize, report: &mut Report) -> Result<Pulls> {
    let (gateway, address) = site.gateway().await?;
    let mut phone = Phone::connect(address).await?;
    // The tenants with an even number have enough.
    let tenants: Vec<HeaderValue> = (0..tenants)
        .step_by(2)
        .map(|number| bearer(site.ground, &Person::numbered(number)?))
        .collect::<Result<_>>()?;
    let mut cursors = Vec::new();
    for tenant in &tenants {
        let (_, _, page) = pull(&mut phone, BEGINNING, tenant).await?;
        cursors.push(
            page["cursor"]
                .as_str()
                .context("a page without a cursor")?
                .to_owned(),
        );
    }
    let after = |limit| move |cursor: &str| format!("cursor={cursor}&limit={limit}");
    let first = |_: &str| "limit=1000".to_owned();
    let mut pulls = Pulls::default();
    let what = format!("(d) pulling, {} tenants", 2 * tenants.len());
    let work = async {
        pulls.changes_100 = timed(&mut phone, &tenants, &cursors, after(100), 100, count)
            .await?
            .0;
        (pulls.changes_1000, pulls.bytes_1000) =
            timed(&mut phone, &tenants, &cursors, after(1000), 1000, count).await?;
        pulls.first_1000 = timed(&mut phone, &tenants, &cursors, first, 1000, count).await?.0;
        anyhow::Ok(())
    };
    during(&what, 3 * count as u64, || 0, work).await?;
    report.memory("gateway, (d)", gateway.memory()?);
    gateway.stop().await?;
    Ok(pulls)
}

/// So many pulls, of one tenant after another.
async fn timed(
    phone: &mut Phone,
    tenants: &[HeaderValue],
    cursors: &[String],
    query: impl Fn(&str) -> String,
    expected: usize,
    count: usize,
) -> Result<(Vec<Duration>, usize)> {
    let (mut latencies, mut bytes) = (Vec::with_capacity(count), 0);
    for number in 0..WARM_UP + count {
        let at = number % tenants.len();
        let (took, length, page) = pull(phone, &query(&cursors[at]), &tenants[at]).await?;
        let found = page["items"].as_array().map_or(0, Vec::len);
        ensure!(found == expected, "a page of {found} items instead of {expected}");
        if number >= WARM_UP {
            latencies.push(took);
            bytes += length;
        }
    }
    Ok((latencies, bytes / count))
}

async fn pull(phone: &mut Phone, query: &str, bearer: &HeaderValue) -> Result<(Duration, usize, Value)> {
    let asked = Instant::now();
    let (status, body) = phone
        .get(&format!("/api/v1/helpdesk/changes?{query}"), Some(bearer))
        .await?;
    let took = asked.elapsed();
    let page: Value = serde_json::from_slice(&body)?;
    ensure!(status == StatusCode::OK, "the gateway answered {status}: {page}");
    Ok((took, body.len(), page))
}

fn tell(size: Size, small: &Pulls, large: &Pulls, report: &mut Report) {
    let (rows, tenants) = size.large_fill;
    let beside = format!(
        "{} rows, {} tenants",
        grouped(size.small_fill.0 as f64),
        grouped(size.small_fill.1 as f64)
    );
    let mut figure = |what: String, percent, large: &[Duration], small: &[Duration], aim| {
        report.figure(Figure {
            part: "d",
            what,
            value: percentile(large, percent),
            unit: " ms",
            beside: Some(Beside::time(&beside, percentile(small, percent))),
            aim,
        });
    };
    let from = format!(
        "from {} rows of {} tenants",
        grouped(rows as f64),
        grouped(tenants as f64)
    );
    figure(
        format!("pull of 100 changes {from}: p50"),
        50.0,
        &large.changes_100,
        &small.changes_100,
        None,
    );
    let aim = Some(Aim::AtMost(10.0));
    figure(
        "pull of 1000 changes: p50".into(),
        50.0,
        &large.changes_1000,
        &small.changes_1000,
        aim,
    );
    figure(
        "pull of 1000 changes: p99".into(),
        99.0,
        &large.changes_1000,
        &small.changes_1000,
        None,
    );
    figure(
        "first sync, page of 1000: p50".into(),
        50.0,
        &large.first_1000,
        &small.first_1000,
        None,
    );
    report.note(format!(
        "(d) One keep-alive connection, {} pulls of each kind, each by another tenant than the one before; a page of 1000 \
         is {:.0} kB of JSON, not compressed. The tables are filled by SQL as the projector fills them: tenants' records \
         in runs of twenty among those of all others, every fifth changed once, so a tenant's rows lie scattered. \
         Beside it is the same from a tenth of the rows and tenants: flat is 1.0.",
        size.pulls,
        large.bytes_1000 as f64 / 1000.0,
    ));
}
