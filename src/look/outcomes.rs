//! What became of events of the log, found in Postgres for many at once: one statement a table, whatever the number.
//! What applied has its row in the domain's feed at its place, the rest in `outcomes` by batch and index, and what the
//! fold could not take in `dead_letters`. Only places that the position has passed may be asked for: whatever lies
//! before it is there, since position and rows are written in one transaction.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde_json::Value;
use tidelog_events::domain::{Policy, Registry};
use tidelog_events::outcome::{Change, Outcome, Winner};
use tidelog_events::position::{Positions, TopicPartition};
use tidelog_events::resolution::Strategy;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::became::{Became, Undecided};
use super::seen::Seen;
use crate::database::plain;
use crate::migrate::connected;
use crate::settings::DatabaseSettings;

/// Of a feed row `c` with its conflict `x`: what [`applied`] reads.
pub(crate) const APPLIED: &str = "c.operation, c.version, c.conflict_id, x.policy, x.winner, x.result_version, x.client_version, \
     x.strategy, coalesce(x.resolved_batch_id = c.batch_id AND x.resolved_batch_index = c.batch_index, false) AS resolves";
/// Joins the conflict.
pub(crate) const ITS_CONFLICT: &str =
    "LEFT JOIN conflicts x ON x.conflict_id = c.conflict_id AND x.tenant_id = c.tenant_id";

/// A connection whose statements keep to indexes, to a schema of this build.
pub(crate) async fn connect(
    database: &DatabaseSettings,
    registry: &Registry,
    use_of: &str,
) -> Result<Client> {
    connected(database, registry, use_of, &tidelog_feed::SESSION_SETTINGS).await
}

/// How far each partition has been applied.
pub(crate) async fn positions(client: &Client) -> Result<Positions> {
    let rows = client
        .query("SELECT topic, partition, next_offset FROM positions", &[])
        .await
        .map_err(plain)?;
    let position = |row: &Row| {
        let at = TopicPartition {
            topic: row.get(0),
            partition: row.get(1),
        };
        (at, row.get(2))
    };
    Ok(rows.iter().map(position).collect())
}

/// What became of each of these, in their order. All lie before their positions.
pub(crate) async fn of(client: &Client, registry: &Registry, seen: &[&Seen]) -> Result<Vec<Became>> {
    let mut found: HashMap<usize, Became> = letters(client, seen).await?;
    let mut tables: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (n, seen) in seen.iter().enumerate().filter(|(n, _)| !found.contains_key(n)) {
        if let Ok((_, domain)) = &seen.event {
            tables.entry(&domain.table).or_default().push(n);
        }
    }
    for (table, asked) in &tables {
        found.extend(in_feed(client, registry, table, seen, asked, true).await?);
    }
    let missing = |found: &HashMap<usize, Became>| -> Vec<usize> {
        let readable = |n: &usize| seen[*n].event.is_ok() && !found.contains_key(n);
        (0..seen.len()).filter(readable).collect()
    };
    found.extend(not_applied(client, seen, &missing(&found)).await?);
    // What is left was appended more than once: its first copy tells.
    for (table, asked) in tables {
        let asked: Vec<usize> = asked.into_iter().filter(|n| !found.contains_key(n)).collect();
        for (n, became) in in_feed(client, registry, table, seen, &asked, false).await? {
            found.insert(n, repeated(became));
        }
    }
    let none = || Became::Undecided(Undecided::NotKept);
    Ok((0..seen.len())
        .map(|n| found.remove(&n).unwrap_or_else(none))
        .collect())
}

/// The arrays that statements about events share: number, tenant, partition, offset, batch, index.
struct Asked<'a> {
    numbers: Vec<i32>,
    tenants: Vec<&'a str>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    batches: Vec<Uuid>,
    indexes: Vec<i32>,
}

impl<'a> Asked<'a> {
    fn of(seen: &[&'a Seen], asked: &[usize]) -> Asked<'a> {
        let events = || {
            asked
                .iter()
                .filter_map(|n| Some((*n, seen[*n], seen[*n].event.as_ref().ok()?)))
        };
        Asked {
            numbers: events().map(|(n, ..)| n as i32).collect(),
            tenants: events().map(|(_, _, (event, _))| event.tenant.as_str()).collect(),
            partitions: events().map(|(_, seen, _)| seen.at.partition).collect(),
            offsets: events().map(|(_, seen, _)| seen.offset).collect(),
            batches: events().map(|(_, _, (event, _))| event.batch.0).collect(),
            indexes: events().map(|(_, _, (event, _))| event.index as i32).collect(),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 6] {
        [
            &self.numbers,
            &self.tenants,
            &self.partitions,
            &self.offsets,
            &self.batches,
            &self.indexes,
        ]
    }
}

const ASKED: &str = "unnest($1::int[], $2::text[], $3::int[], $4::bigint[], $5::uuid[], $6::int[]) \
                     AS k(n, tenant, partition, place, batch, index)";

/// Those that applied: at their own places, or wherever the same item of the same batch did.
async fn in_feed(
    client: &Client,
    registry: &Registry,
    table: &str,
    seen: &[&Seen],
    asked: &[usize],
    at_place: bool,
) -> Result<Vec<(usize, Became)>> {
    let Some(domain) = registry.by_table(table).filter(|_| !asked.is_empty()) else {
        return Ok(Vec::new());
    };
    let place = match at_place {
        true => "f.partition = k.partition AND f.\"offset\" = k.place AND",
        false => "k.partition IS NOT NULL AND k.place IS NOT NULL AND",
    };
    let sql = format!(
        "SELECT k.n, {APPLIED} FROM {ASKED} CROSS JOIN LATERAL (\
           SELECT * FROM {changes} f WHERE f.tenant_id = k.tenant AND {place} f.batch_id = k.batch \
              AND f.batch_index = k.index AND f.operation <> 'audience' LIMIT 1) c {ITS_CONFLICT}",
        changes = domain.changes_table(),
    );
    let rows = client
        .query(&sql, &Asked::of(seen, asked).parameters())
        .await
        .map_err(plain)?;
    let each = rows
        .iter()
        .map(|row| Ok((number(row), Became::Decided(applied(row)?))));
    each.collect()
}

/// Those that did not apply. A row of another place is that of the item's first copy in the log.
async fn not_applied(client: &Client, seen: &[&Seen], asked: &[usize]) -> Result<Vec<(usize, Became)>> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT k.n, o.detail, o.partition = k.partition AND o.\"offset\" = k.place AS here FROM {ASKED} \
         JOIN outcomes o ON o.tenant_id = k.tenant AND o.batch_id = k.batch AND o.batch_index = k.index"
    );
    let rows = client
        .query(&sql, &Asked::of(seen, asked).parameters())
        .await
        .map_err(plain)?;
    let each = rows.iter().map(|row| {
        let became = Became::Decided(detail(row)?);
        let here: bool = row.get("here");
        Ok((number(row), if here { became } else { repeated(became) }))
    });
    each.collect()
}

/// Those that the fold could not take, by place.
async fn letters(client: &Client, seen: &[&Seen]) -> Result<HashMap<usize, Became>> {
    const SQL: &str = "SELECT k.n, d.reason, d.status \
                       FROM unnest($1::int[], $2::text[], $3::int[], $4::bigint[]) AS k(n, topic, partition, place) \
                       JOIN dead_letters d ON d.topic = k.topic AND d.partition = k.partition AND d.\"offset\" = k.place";
    let numbers: Vec<i32> = (0..seen.len() as i32).collect();
    let topics: Vec<&str> = seen.iter().map(|seen| seen.at.topic.as_str()).collect();
    let partitions: Vec<i32> = seen.iter().map(|seen| seen.at.partition).collect();
    let offsets: Vec<i64> = seen.iter().map(|seen| seen.offset).collect();
    let rows = client
        .query(SQL, &[&numbers, &topics, &partitions, &offsets])
        .await
        .map_err(plain)?;
    let letter = |row: &Row| {
        let letter = Undecided::DeadLetter {
            reason: row.get(1),
            status: row.get(2),
        };
        (number(row), Became::Undecided(letter))
    };
    Ok(rows.iter().map(letter).collect())
}

fn number(row: &Row) -> usize {
    row.get::<_, i32>(0).unsigned_abs() as usize
}

/// The same item of the same batch a second time.
fn repeated(first: Became) -> Became {
    match first {
        Became::Decided(first @ Outcome::Duplicate { .. }) => Became::Decided(first),
        Became::Decided(first) => Became::Decided(Outcome::Duplicate {
            first: Box::new(first),
        }),
        other => other,
    }
}

/// The column `detail`, of an item that did not apply.
pub(crate) fn detail(row: &Row) -> Result<Outcome> {
    let detail: Value = row.get("detail");
    serde_json::from_value(detail).context("an outcome that is kept cannot be read")
}

/// The columns of [`APPLIED`].
pub(crate) fn applied(row: &Row) -> Result<Outcome> {
    let version: i64 = row.try_get("version")?;
    let winner = row.try_get::<_, Option<&str>>("winner")?.and_then(Winner::parse);
    if let (Some(conflict_id), Some(winner)) = (row.try_get::<_, Option<Uuid>>("conflict_id")?, winner) {
        let strategy = row
            .try_get::<_, Option<&str>>("strategy")?
            .and_then(Strategy::parse);
        let policy = row.try_get::<_, Option<&str>>("policy")?.and_then(Policy::parse);
        match (row.try_get("resolves")?, strategy, policy) {
            (true, Some(strategy), _) => {
                return Ok(Outcome::Resolved {
                    conflict_id,
                    strategy,
                    winner,
                    version,
                });
            }
            (false, _, Some(policy)) => {
                return Ok(Outcome::Conflict {
                    conflict_id,
                    policy,
                    winner,
                    server_version: row.try_get("result_version")?,
                    client_version: row.try_get("client_version")?,
                });
            }
            _ => {}
        }
    }
    let change = match row.try_get("operation")? {
        "create" => Change::Created,
        "delete" => Change::Deleted,
        _ => Change::Updated,
    };
    Ok(Outcome::Applied { change, version })
}
