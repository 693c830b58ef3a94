//! A large projection made by Postgres itself: rows, changes and positions as the projector would have written them,
//! without a log. Records arrive in runs of twenty from one tenant after another, so that a tenant's rows lie scattered
//! as they do in a table that grew; every fifth record was changed once. Half of the tenants have three times as many
//! records as the others.

use std::cell::Cell;

use anyhow::Result;
use tokio_postgres::Client;

use super::ground::{Ground, Site};
use super::tickets::{TOPIC, Tickets};
use crate::database::plain;
use crate::progress::during;

/// Slices that a table is filled in, for progress.
const SLICES: i64 = 20;
/// Different texts.
const PHRASES: usize = 500;

/// The log as it would be: what happened to which record of whom, and where it would lie. A cycle of tenants has two
/// slots for each, of which the small tenants leave one to a large one.
const LOG: &str = r#"
CREATE UNLOGGED TABLE bench_log AS
SELECT e.seq, e.record, e.changes, md5(e.record::text)::uuid AS id,
       CASE WHEN slot < 3 * $TENANTS / 2 THEN 2 * (slot / 3) ELSE 2 * (slot - 3 * $TENANTS / 2) + 1 END AS tenant,
       part, row_number() OVER (PARTITION BY part ORDER BY seq) - 1 AS at,
       timestamptz '2026-01-01T00:00:00Z' + seq * interval '1 millisecond' AS time
  FROM (
    SELECT seq, seq AS record, false AS changes FROM generate_series(0, $ROWS - 1) seq
    UNION ALL
    SELECT $ROWS + seq, seq * 5, true FROM generate_series(0, $ROWS / 5 - 1) seq
  ) e
 CROSS JOIN LATERAL (SELECT ((e.record / 20) * 7919) % (2 * $TENANTS) AS slot,
                            (hashint8(e.record) & 2147483647) % 6 AS part) l"#;

const ROWS: &str = r#"
INSERT INTO helpdesk (tenant_id, mobile_id, version, deleted, doc, last_sync_timestamp, updated_at, created_at, owner_id,
                      user_id, device_id, run_from, ahead_base, partition, "offset")
SELECT 'tenant-' || to_char(l.tenant, 'FM0000'), l.id, 1, false,
       jsonb_build_object('ticketdesc', d.text, 'comments', c.text, 'priority', 'MEDIUM', 'identifier', 'TICKET',
                          'assignedtopeople', 'people-' || l.record % 5000, 'bu', 'site-' || l.record % 300,
                          'cuser', who.name, 'client_timestamp', '2026-01-01T00:00:00Z', 'status', 'NEW',
                          'ticketno', 'TKT-' || l.at || '-' || l.part),
       l.time, l.time - interval '1 minute', l.time, who.name, who.name, who.device, 0, 0, l.part, l.at
  FROM bench_log l
  JOIN bench_phrases d ON d.number = l.record % 499
  JOIN bench_phrases c ON c.number = l.record % 491
 CROSS JOIN LATERAL (SELECT 'user-' || to_char(l.tenant, 'FM0000') AS name,
                            'phone-' || to_char(l.tenant, 'FM0000') AS device) who
 WHERE NOT l.changes AND l.seq >= $1 AND l.seq < $2
 ORDER BY l.seq"#;

const CHANGED_ROWS: &str = r#"
UPDATE helpdesk r
   SET version = 2, doc = r.doc || jsonb_build_object('status', 'OPEN', 'comments', c.text, 'muser', r.owner_id),
       last_sync_timestamp = l.time, updated_at = l.time - interval '1 minute', partition = l.part, "offset" = l.at
  FROM bench_log l
  JOIN bench_phrases c ON c.number = l.record % 487
 WHERE l.changes AND l.seq >= $1 AND l.seq < $2
   AND r.tenant_id = 'tenant-' || to_char(l.tenant, 'FM0000') AND r.mobile_id = l.id"#;

const CHANGES: &str = r#"
INSERT INTO helpdesk_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields, before, changed_at,
                              item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash,
                              previous_offset)
SELECT 'tenant-' || to_char(l.tenant, 'FM0000'), l.part, l.at, l.id,
       CASE WHEN l.changes THEN 2 ELSE 1 END, CASE WHEN l.changes THEN 'update' ELSE 'create' END,
       CASE WHEN l.changes THEN '{comments,muser,status}'::text[]
            ELSE '{assignedtopeople,bu,client_timestamp,comments,cuser,identifier,priority,status,ticketdesc,ticketno}' END,
       CASE WHEN l.changes THEN jsonb_build_object('status', 'NEW', 'comments', c.text) END,
       l.time, l.time - interval '1 minute', 'user-' || to_char(l.tenant, 'FM0000'),
       'phone-' || to_char(l.tenant, 'FM0000'), md5('batch' || l.seq / 20)::uuid, l.seq % 20,
       CASE WHEN l.changes THEN 1 ELSE 0 END, md5('item' || l.seq)::uuid, before.at
  FROM bench_log l
  JOIN bench_phrases c ON c.number = l.record % 491
  LEFT JOIN bench_log before ON l.changes AND before.seq = l.record
 WHERE l.seq >= $1 AND l.seq < $2
 ORDER BY l.seq"#;

const POSITIONS: &str = r#"
INSERT INTO positions (topic, partition, next_offset, epoch, owner, last_log_time, applied_through, end_offset)
SELECT $1, part, max(at) + 1, 1, 'bench', max(time), max(time), max(at) + 1 FROM bench_log GROUP BY part"#;

/// Fills a site's helpdesk with so many rows of so many tenants.
pub(super) async fn fill(ground: &Ground, site: &Site<'_>, rows: i64, tenants: i64) -> Result<()> {
    // One connection fills the rows while the other fills the feed.
    let (client, other) = (connect(site).await?, connect(site).await?);
    phrases(ground, &client).await?;
    let log = LOG
        .replace("$TENANTS", &tenants.to_string())
        .replace("$ROWS", &format!("{rows}::bigint"));
    client.batch_execute(&log).await.map_err(plain)?;
    client
        .batch_execute("CREATE UNIQUE INDEX ON bench_log (seq); ANALYZE bench_log, bench_phrases")
        .await
        .map_err(plain)?;
    let events = rows + rows / 5;
    let done = Cell::new(0);
    let filling = async {
        let rows = async {
            slices(&client, ROWS, events, &done).await?;
            slices(&client, CHANGED_ROWS, events, &done).await
        };
        let (rows, changes) = tokio::join!(rows, slices(&other, CHANGES, events, &done));
        rows.and(changes)
    };
    // Each of the three statements goes once through all events.
    let told = || (done.get() * rows / (3 * events)) as u64;
    during(
        &format!("(d) filling tables of {tenants} tenants with rows"),
        rows as u64,
        told,
        filling,
    )
    .await?;
    client
        .execute(POSITIONS, &[&site.topic(TOPIC)])
        .await
        .map_err(plain)?;
    // As autovacuum would, but before the measuring.
    for sql in [
        "DROP TABLE bench_log, bench_phrases",
        "VACUUM (ANALYZE) helpdesk, helpdesk_changes",
    ] {
        client.batch_execute(sql).await.map_err(plain)?;
    }
    ground.settle().await
}

async fn connect(site: &Site<'_>) -> Result<Client> {
    let client = site.connect().await?;
    client
        .batch_execute("SET synchronous_commit = off; SET jit = off")
        .await
        .map_err(plain)?;
    Ok(client)
}

async fn phrases(ground: &Ground, client: &Client) -> Result<()> {
    let mut tickets = Tickets::new(ground, 300)?;
    let texts: Vec<String> = (0..PHRASES).map(|_| tickets.text(8)).collect();
    client
        .batch_execute("CREATE UNLOGGED TABLE bench_phrases (number bigint PRIMARY KEY, text text)")
        .await
        .map_err(plain)?;
    let sql = "INSERT INTO bench_phrases SELECT k.number - 1, k.text FROM unnest($1::text[]) WITH ORDINALITY k (text, number)";
    client.execute(sql, &[&texts]).await.map_err(plain)?;
    Ok(())
}

async fn slices(client: &Client, sql: &str, events: i64, done: &Cell<i64>) -> Result<()> {
    let statement = client.prepare(sql).await.map_err(plain)?;
    for slice in 0..SLICES {
        let (from, to) = (events * slice / SLICES, events * (slice + 1) / SLICES);
        client.execute(&statement, &[&from, &to]).await.map_err(plain)?;
        done.set(done.get() + to - from);
    }
    Ok(())
}
