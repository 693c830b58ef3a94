//! The projection's tables without Tidelog: what was projected read back, and written again by Postgres alone into the
//! same tables with the same indexes, in the fastest ways known: one statement a chunk over arrays, and COPY. Each chunk
//! is one transaction that also moves the positions. All values are computed beforehand.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{SinkExt, StreamExt, TryStreamExt, pin_mut, stream};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};
use uuid::Uuid;

use super::tickets::PARTITIONS;
use crate::database::plain;

/// The chunk that rates level off at.
pub(super) const CHUNK: usize = 500;
/// Chunks on their way at once: the next one travels while one is being written.
const AHEAD: usize = 2;

/// Columns that [`READ`] brings.
const COLUMNS: usize = 22;

/// The settings that the projector pins its plans with.
const PINNED: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; \
                      SET enable_mergejoin = off; SET jit = off";

/// One change with the row that it made, in the order in which the projector wrote them.
const READ: &str = r#"
SELECT f.tenant_id, f.mobile_id, f.version, r.doc::text, f.changed_at, f.item_time, r.created_at, r.owner_id,
       f.user_id, f.device_id, r.run_from, r.ahead_base, f.partition, f."offset", f.operation, f.fields::text,
       f.before::text, f.batch_id, f.batch_index, f.base_version, f.item_hash, f.previous_offset
  FROM helpdesk_changes f
  JOIN helpdesk r ON r.tenant_id = f.tenant_id AND r.mobile_id = f.mobile_id AND r.version = f.version
 WHERE f.version = $1
 ORDER BY f.ctid"#;

const GIVEN: &str = r#"
WITH d AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::timestamptz[], $6::timestamptz[],
                         $7::timestamptz[], $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[],
                         $13::integer[], $14::bigint[], $15::text[], $16::text[], $17::text[], $18::uuid[],
                         $19::integer[], $20::bigint[], $21::uuid[], $22::bigint[])
      AS d (tenant, id, version, doc, changed_at, item_time, created_at, owner, who, device, run_from, ahead_base,
            part, at, operation, fields, before, batch, item, base, hash, previous)
), "#;

const INSERT_ROWS: &str = r#"rows AS (
    INSERT INTO helpdesk (tenant_id, mobile_id, version, deleted, doc, last_sync_timestamp, updated_at, created_at,
                          owner_id, user_id, device_id, run_from, ahead_base, partition, "offset")
    SELECT tenant, id, version, false, doc::jsonb, changed_at, item_time, created_at, owner, who, device, run_from,
           ahead_base, part, at
      FROM d
), "#;

const UPDATE_ROWS: &str = r#"rows AS (
    UPDATE helpdesk r
       SET version = d.version, deleted = false, doc = d.doc::jsonb, last_sync_timestamp = d.changed_at,
           updated_at = d.item_time, user_id = d.who, device_id = d.device, run_from = d.run_from,
           ahead_base = d.ahead_base, partition = d.part, "offset" = d.at
      FROM d
     WHERE r.tenant_id = d.tenant AND r.mobile_id = d.id
), "#;

const INSERT_CHANGES: &str = r#"changes AS (
    INSERT INTO helpdesk_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields, before,
                                  changed_at, item_time, user_id, device_id, batch_id, batch_index, base_version,
                                  item_hash, previous_offset)
    SELECT tenant, part, at, id, version, operation, fields::text[], before::jsonb, changed_at, item_time, who, device,
           batch, item, base, hash, previous
      FROM d
)"#;

/// Its parameters follow on so many others.
fn moving(after: usize) -> String {
    let [partition, next, time, topic] = [1, 2, 3, 4].map(|number| format!("${}", after + number));
    format!(
        "UPDATE positions p
            SET next_offset = k.next, last_log_time = k.time, applied_through = greatest(p.applied_through, k.time),
                updated_at = now()
           FROM unnest({partition}::integer[], {next}::bigint[], {time}::timestamptz[]) AS k (partition, next, time)
          WHERE p.topic = {topic} AND p.partition = k.partition"
    )
}

const COPY_ROWS: &str = r#"COPY helpdesk (tenant_id, mobile_id, version, deleted, doc, last_sync_timestamp, updated_at,
    created_at, owner_id, user_id, device_id, run_from, ahead_base, partition, "offset") FROM STDIN"#;

const COPY_CHANGES: &str = r#"COPY helpdesk_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields,
    before, changed_at, item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash, previous_offset)
    FROM STDIN"#;

/// How a chunk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// New rows, one statement.
    Insert,
    /// New rows, COPY.
    Copy,
    /// Rows that are there, one statement.
    Update,
}

/// A column's values, boxed so that columns of all types are one list.
type Column = Box<dyn ToSql + Sync + Send>;

/// A part of what was projected.
pub(super) struct Chunk {
    columns: Vec<Column>,
    moves: Vec<Column>,
    /// The same as COPY takes it, for rows and for changes.
    copied: (Bytes, Bytes),
    size: usize,
}

/// Everything of one version that was projected, in chunks.
pub(super) async fn read(client: &Client, version: i64, chunk: usize) -> Result<Vec<Chunk>> {
    let rows = client.query(READ, &[&version]).await.map_err(plain)?;
    rows.chunks(chunk).map(Chunk::of).collect()
}

impl Chunk {
    fn of(rows: &[Row]) -> Result<Self> {
        let mut moves: Vec<(i32, i64, DateTime<Utc>)> = Vec::new();
        for row in rows {
            let (partition, next, time) = (row.get(12), row.get::<_, i64>(13) + 1, row.get(4));
            match moves.iter_mut().find(|known| known.0 == partition) {
                Some(known) => *known = (partition, next, time),
                None => moves.push((partition, next, time)),
            }
        }
        Ok(Self {
            columns: (0..COLUMNS).map(|at| column(rows, at)).collect(),
            moves: vec![
                Box::new(moves.iter().map(|known| known.0).collect::<Vec<_>>()),
                Box::new(moves.iter().map(|known| known.1).collect::<Vec<_>>()),
                Box::new(moves.iter().map(|known| known.2).collect::<Vec<_>>()),
            ],
            copied: (
                copied(rows, &[0, 1, 2, FALSE, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])?,
                copied(
                    rows,
                    &[0, 12, 13, 1, 2, 14, 15, 16, 4, 5, 8, 9, 17, 18, 19, 20, 21],
                )?,
            ),
            size: rows.len(),
        })
    }
}

fn column(rows: &[Row], at: usize) -> Column {
    fn all<T>(rows: &[Row], at: usize) -> Column
    where
        T: for<'a> tokio_postgres::types::FromSql<'a> + ToSql + Sync + Send + 'static,
    {
        Box::new(rows.iter().map(|row| row.get::<_, T>(at)).collect::<Vec<T>>())
    }
    match at {
        0 | 3 | 7 | 8 | 9 | 14 | 15 => all::<String>(rows, at),
        1 | 17 | 20 => all::<Uuid>(rows, at),
        2 | 10 | 11 | 13 | 19 => all::<i64>(rows, at),
        4..=6 => all::<DateTime<Utc>>(rows, at),
        12 | 18 => all::<i32>(rows, at),
        16 => all::<Option<String>>(rows, at),
        _ => all::<Option<i64>>(rows, at),
    }
}

/// Stands for a column that is no value of the row's: `deleted`.
const FALSE: usize = usize::MAX;

/// Rows in COPY's text format.
fn copied(rows: &[Row], columns: &[usize]) -> Result<Bytes> {
    let mut text = String::new();
    for row in rows {
        for (number, at) in columns.iter().enumerate() {
            if number > 0 {
                text.push('\t');
            }
            match at {
                &FALSE => text.push('f'),
                0 | 3 | 7 | 8 | 9 | 14 | 15 => escape(&mut text, row.get(*at)),
                16 => match row.get::<_, Option<&str>>(*at) {
                    Some(before) => escape(&mut text, before),
                    None => text.push_str("\\N"),
                },
                1 | 17 | 20 => write!(text, "{}", row.get::<_, Uuid>(*at))?,
                4..=6 => text.push_str(&row.get::<_, DateTime<Utc>>(*at).to_rfc3339()),
                12 | 18 => write!(text, "{}", row.get::<_, i32>(*at))?,
                21 => match row.get::<_, Option<i64>>(*at) {
                    Some(offset) => write!(text, "{offset}")?,
                    None => text.push_str("\\N"),
                },
                _ => write!(text, "{}", row.get::<_, i64>(*at))?,
            }
        }
        text.push('\n');
    }
    Ok(Bytes::from(text))
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            other => text.push(other),
        }
    }
}

/// A connection that writes chunks.
pub(super) struct Writer {
    client: Client,
    statement: Statement,
    moving: Statement,
    shape: Shape,
    /// Whose positions it moves.
    topic: String,
}

impl Writer {
    /// Writers of different topics never wait for each other's positions.
    pub(super) async fn new(client: Client, shape: Shape, topic: &str) -> Result<Self> {
        client.batch_execute(PINNED).await.map_err(plain)?;
        let positions = "INSERT INTO positions (topic, partition) SELECT $1, generate_series(0, $2 - 1) ON CONFLICT DO NOTHING";
        client
            .execute(positions, &[&topic, &(PARTITIONS as i32)])
            .await
            .map_err(plain)?;
        let rows = if shape == Shape::Update {
            UPDATE_ROWS
        } else {
            INSERT_ROWS
        };
        let statement = format!("{GIVEN}{rows}{INSERT_CHANGES} {}", moving(COLUMNS));
        Ok(Self {
            statement: client.prepare(&statement).await.map_err(plain)?,
            moving: client.prepare(&moving(0)).await.map_err(plain)?,
            client,
            shape,
            topic: topic.to_owned(),
        })
    }

    /// Writes a chunk and waits for its commit.
    pub(super) async fn write(&self, chunk: &Chunk) -> Result<()> {
        let moved = match self.shape {
            Shape::Copy => self.copy(chunk).await,
            _ => {
                self.client
                    .execute(
                        &self.statement,
                        &self.parameters(chunk.columns.iter().chain(&chunk.moves)),
                    )
                    .await
            }
        };
        let moved = moved.map_err(plain)?;
        if moved == 0 {
            bail!("no position was moved");
        }
        Ok(())
    }

    async fn copy(&self, chunk: &Chunk) -> Result<u64, tokio_postgres::Error> {
        let client = &self.client;
        client.batch_execute("BEGIN").await?;
        for (sql, bytes) in [(COPY_ROWS, &chunk.copied.0), (COPY_CHANGES, &chunk.copied.1)] {
            let sink = client.copy_in::<_, Bytes>(sql).await?;
            pin_mut!(sink);
            sink.send(bytes.clone()).await?;
            sink.close().await?;
        }
        let moves = self.parameters(chunk.moves.iter());
        let (moved, committed) = tokio::join!(
            client.execute(&self.moving, &moves),
            client.batch_execute("COMMIT")
        );
        committed?;
        moved
    }

    fn parameters<'a>(&'a self, columns: impl Iterator<Item = &'a Column>) -> Vec<&'a (dyn ToSql + Sync)> {
        let topic: &(dyn ToSql + Sync) = &self.topic;
        columns
            .map(|column| column.as_ref() as &(dyn ToSql + Sync))
            .chain([topic])
            .collect()
    }

    /// Writes all chunks one after the other.
    pub(super) async fn write_all(&self, chunks: &[Chunk]) -> Result<Duration> {
        // COPY takes the connection for itself.
        let ahead = if self.shape == Shape::Copy { 1 } else { AHEAD };
        let began = Instant::now();
        stream::iter(chunks)
            .map(|chunk| self.write(chunk))
            .buffered(ahead)
            .try_collect::<()>()
            .await?;
        Ok(began.elapsed())
    }
}

/// Empties the tables.
pub(super) async fn empty(client: &Client) -> Result<()> {
    client
        .batch_execute("TRUNCATE helpdesk, helpdesk_changes, positions")
        .await
        .map_err(plain)
}

/// Rows of the chunks together.
pub(super) fn rows(chunks: &[Chunk]) -> usize {
    chunks.iter().map(|chunk| chunk.size).sum()
}
