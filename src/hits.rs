//! `tidelog status --idempotency`: who sends again what was taken already, so that a phone that retries too much is
//! found. From the keys that are kept, so of the last 24 hours; knows nothing of how they got there.

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde::Serialize;
use tidelog_events::domain::Registry;
use tidelog_http::auth::TenantId;

use crate::database::plain;
use crate::migrate::connected;
use crate::output::table;
use crate::settings::DatabaseSettings;

/// Whose hits, and how many.
#[derive(Args, Clone, Debug)]
pub(crate) struct HitsArgs {
    /// With --idempotency: of this tenant alone
    #[arg(long, requires = "idempotency", value_parser = |text: &str| TenantId::parse(text))]
    tenant: Option<TenantId>,
    /// With --idempotency: most devices to show
    #[arg(long, requires = "idempotency", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
}

/// Devices with hits, the most first.
#[derive(Debug, Serialize)]
pub(crate) struct AllHits {
    /// A line each.
    devices: Vec<DeviceHits>,
    /// Whether there are more than were asked for.
    has_more: bool,
}

/// What one device of one user sent again.
#[derive(Debug, Serialize)]
struct DeviceHits {
    tenant: String,
    user: String,
    device: String,
    /// In both scopes.
    hits: i64,
    /// Batches that came again under their key.
    batch_hits: i64,
    /// Items that came again, in whatever batch.
    item_hits: i64,
    /// Keys that are kept of it, of both scopes.
    keys: i64,
    /// Those of them that were hit.
    keys_hit: i64,
    /// RFC 3339.
    last_hit_at: Option<String>,
}

/// Reads the whole table, which holds a day of keys.
const HITS: &str = "
SELECT tenant_id, user_id, device_id, sum(hit_count)::bigint AS hits,
    coalesce(sum(hit_count) FILTER (WHERE scope = 'batch'), 0)::bigint,
    coalesce(sum(hit_count) FILTER (WHERE scope = 'item'), 0)::bigint,
    count(*), count(*) FILTER (WHERE hit_count > 0), max(last_hit_at)
FROM idempotency_records
WHERE expires_at > now() AND ($1::text IS NULL OR tenant_id = $1)
GROUP BY tenant_id, user_id, device_id
HAVING sum(hit_count) > 0
ORDER BY hits DESC, tenant_id, user_id, device_id
LIMIT $2";

/// Asks Postgres alone.
pub(crate) async fn hits(
    database: &DatabaseSettings,
    registry: &Registry,
    args: &HitsArgs,
) -> Result<AllHits> {
    let client = connected(database, registry, "status", &[]).await?;
    let tenant = args.tenant.as_ref().map(TenantId::as_str);
    let rows = client
        .query(HITS, &[&tenant, &(args.limit + 1)])
        .await
        .map_err(plain)?;
    // The limit is at most a thousand.
    let limit = args.limit as usize;
    let device = |row: &tokio_postgres::Row| DeviceHits {
        tenant: row.get(0),
        user: row.get(1),
        device: row.get(2),
        hits: row.get(3),
        batch_hits: row.get(4),
        item_hits: row.get(5),
        keys: row.get(6),
        keys_hit: row.get(7),
        last_hit_at: row
            .get::<_, Option<DateTime<Utc>>>(8)
            .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
    };
    Ok(AllHits {
        devices: rows.iter().take(limit).map(device).collect(),
        has_more: rows.len() > limit,
    })
}

/// For people.
pub(crate) fn text(hits: &AllHits) -> String {
    if hits.devices.is_empty() {
        return "Nobody sent anything again.".into();
    }
    let heading = [
        "tenant", "user", "device", "hits", "batches", "items", "keys", "keys hit", "last hit",
    ];
    let right = [false, false, false, true, true, true, true, true, false];
    let rows: Vec<[String; 9]> = hits.devices.iter().map(row).collect();
    let more = if hits.has_more {
        "There are more: see --limit\n"
    } else {
        ""
    };
    format!("{}{more}", table(heading, right, &rows))
}

fn row(device: &DeviceHits) -> [String; 9] {
    [
        device.tenant.clone(),
        device.user.clone(),
        device.device.clone(),
        device.hits.to_string(),
        device.batch_hits.to_string(),
        device.item_hits.to_string(),
        device.keys.to_string(),
        device.keys_hit.to_string(),
        device.last_hit_at.clone().unwrap_or_else(|| "-".into()),
    ]
}
