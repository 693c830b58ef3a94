//! What Postgres says of the projection: positions, dead letters, keys. Knows no Kafka.

use std::collections::BTreeMap;

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tidelog_events::position::TopicPartition;
use tokio_postgres::{Client, Row};

use crate::database::plain;

/// How far the projection has come.
#[derive(Clone, Default)]
pub(super) struct Projection {
    pub(super) positions: BTreeMap<TopicPartition, Applied>,
    /// Open ones, by where they lie.
    pub(super) letters: BTreeMap<TopicPartition, i64>,
}

/// One position.
#[derive(Clone)]
pub(super) struct Applied {
    pub(super) next_offset: i64,
    pub(super) owner: Option<String>,
    pub(super) applied_through: Option<DateTime<Utc>>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) fold_version: i32,
}

/// What the kept keys tell.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) hits: i64,
    pub(super) in_flight: InFlight,
}

/// Batches that a gateway holds a claim on: it appends them now, or was killed while it did.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct InFlight {
    /// How many.
    pub(crate) batches: i64,
    /// Since when the oldest is known, in seconds.
    pub(crate) oldest_seconds: Option<f64>,
    /// Claims whose lease has ended with no record of the batch: it waits for the phone's retry.
    pub(crate) abandoned: i64,
}

fn place(row: &Row) -> TopicPartition {
    TopicPartition {
        topic: row.get(0),
        partition: row.get(1),
    }
}

/// Positions and open dead letters.
pub(super) async fn read(client: &Client) -> Result<Projection> {
    const POSITIONS: &str = "SELECT topic, partition, next_offset, owner, nullif(applied_through, '1970-01-01T00:00:00Z'), \
                             updated_at, fold_version FROM positions";
    const LETTERS: &str =
        "SELECT topic, partition, count(*) FROM dead_letters WHERE status = 'open' GROUP BY 1, 2";
    let positions = client.query(POSITIONS, &[]).await.map_err(plain)?;
    let letters = client.query(LETTERS, &[]).await.map_err(plain)?;
    let applied = |row: &Row| Applied {
        next_offset: row.get(2),
        owner: row.get(3),
        applied_through: row.get(4),
        updated_at: row.get(5),
        fold_version: row.get(6),
    };
    Ok(Projection {
        positions: positions.iter().map(|row| (place(row), applied(row))).collect(),
        letters: letters.iter().map(|row| (place(row), row.get(2))).collect(),
    })
}

/// Reads all of the table, which holds a day of keys.
pub(super) async fn keys(client: &Client) -> Result<Keys> {
    const SQL: &str = "SELECT \
        coalesce(sum(hit_count) FILTER (WHERE last_hit_at > now() - interval '24 hours'), 0)::bigint, \
        count(*) FILTER (WHERE lease_until > now()), \
        extract(epoch FROM max(now() - created_at) FILTER (WHERE lease_until > now()))::double precision, \
        count(*) FILTER (WHERE lease_until <= now() AND receipt IS NULL AND answer IS NULL) \
        FROM idempotency_records WHERE expires_at > now()";
    let row = client.query_one(SQL, &[]).await.map_err(plain)?;
    let age: Option<f64> = row.get(2);
    Ok(Keys {
        hits: row.get(0),
        in_flight: InFlight {
            batches: row.get(1),
            oldest_seconds: age.map(|age| (age * 10.0).round() / 10.0),
            abandoned: row.get(3),
        },
    })
}
