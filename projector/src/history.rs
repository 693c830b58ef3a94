//! What lies beyond the history that a domain keeps is removed: changes, outcomes, tombstones, and conflicts that are settled.
//! The fold looks no further back than that (`Domain::horizon`), so what goes is what no event will ask for any more: each
//! partition is cut by the last log time that was applied, and later events are no earlier. Not by a clock: a partition that
//! stands still keeps what it has. Readers are told first: the floor moves in a commit of its own, and then rows go, in bites.
//! A topic that is folded again is left alone meanwhile (`lock_name`).

use crate::ProjectorError;
use crate::figures;
use crate::log::Log;
use crate::session::Session;
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::{drill, topic_name};
use tokio::sync::watch;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row};

/// Between two looks, in milliseconds; half of it at least, so that processes do not come at once.
const EVERY_MS: u32 = 300_000;

/// Most rows at a time: some milliseconds of Postgres.
const BITE: i64 = 2000;

/// Between two bites.
const PAUSE: Duration = Duration::from_millis(50);

/// What the work needs.
pub(crate) struct Keeping {
    pub(crate) brokers: String,
    pub(crate) topic_prefix: String,
    pub(crate) schema: String,
    pub(crate) database: Config,
    pub(crate) registry: Arc<Registry>,
}

/// Where one partition's feed begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) partition: i32,
    /// The first offset that is kept for certain.
    pub(crate) offset: i64,
    /// Its log time, or earlier.
    pub(crate) at: DateTime<Utc>,
}

/// How many rows went of each table; by its domain, or the topic's first where all domains share it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed(BTreeMap<(String, String), i64>);

impl Removed {
    fn add(&mut self, domain: &Domain, table: &str, rows: i64) {
        if rows > 0 {
            *self.0.entry((domain.name.clone(), table.to_owned())).or_default() += rows;
        }
    }

    /// Counts them, and says so.
    fn tell(&self, topic: &str) {
        for ((domain, table), rows) in &self.0 {
            figures::removed(domain, table, *rows);
        }
        let rows: i64 = self.0.values().sum();
        if rows > 0 {
            let of = self.0.iter().map(|((_, table), rows)| format!("{table} {rows}"));
            let of = of.collect::<Vec<_>>().join(", ");
            tracing::info!(topic, rows, of, "what is older than the history is gone");
        }
    }
}

/// Whoever folds a topic again holds this lock shared, and whoever removes from it holds it alone, for a bite.
pub(crate) fn lock_name(schema: &str, topic: &str) -> String {
    format!("tidelog history {schema} {topic}")
}

/// Until shutdown. Where Kafka or Postgres is away, which others say, there will be another time.
pub(crate) async fn run(keeping: Keeping, mut shutdown: watch::Receiver<bool>) {
    let topics = keeping.registry.topics().into_iter();
    let kept: Vec<(String, TimeDelta)> = topics
        .filter_map(|topic| Some((topic.to_owned(), keeping.registry.history_of(topic)?)))
        .collect();
    if kept.is_empty() {
        return;
    }
    for domain in kept
        .iter()
        .flat_map(|(topic, _)| keeping.registry.on_topic(topic))
    {
        figures::removed(&domain.name, &domain.table, 0);
        figures::removed(&domain.name, &domain.changes_table(), 0);
    }
    let every = Duration::from_millis(drill::number("history_ms", EVERY_MS).into());
    loop {
        tokio::select! {
            () = tokio::time::sleep(jittered(every)) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        for (topic, history) in &kept {
            let tidied = tokio::select! {
                tidied = keeping.tidy(topic, *history) => tidied,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            if let Err(error) = tidied {
                tracing::debug!(topic, %error, "nothing more is removed for now");
            }
        }
    }
}

fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    pause / 2 + pause / 2 * (nanos % 1000) / 1000
}

impl Keeping {
    /// Moves the floors of a topic, then removes what lies below them.
    async fn tidy(&self, topic: &str, history: TimeDelta) -> Result<(), ProjectorError> {
        let session = Session::connect(&self.database).await?;
        let client = session.client();
        let name = topic_name(&self.topic_prefix, topic);
        let lock = lock_name(&self.schema, &name);
        if !self.move_floors(client, &name, &lock, history).await? {
            return Ok(());
        }
        let removal = Removal {
            client,
            topic: &name,
            domains: &self.registry.on_topic(topic),
            floors: floors(client, "positions", &name).await?,
            lock: Some(&lock),
        };
        // What went before an error went all the same.
        let mut removed = Removed::default();
        let ended = removal.run(&mut removed).await;
        removed.tell(topic);
        ended
    }

    /// Answers whether the topic is to be gone on with.
    async fn move_floors(
        &self,
        client: &Client,
        topic: &str,
        lock: &str,
        history: TimeDelta,
    ) -> Result<bool, ProjectorError> {
        const TIMES: &str = "SELECT partition, last_log_time, feed_floor_at FROM positions WHERE topic = $1";
        const MOVE: &str = "UPDATE positions p SET feed_floor = greatest(p.feed_floor, least(k.floor, p.next_offset)), \
                                   feed_floor_at = greatest(p.feed_floor_at, k.at) \
                            FROM unnest($2::int[], $3::bigint[], $4::timestamptz[]) AS k(partition, floor, at) \
                            WHERE p.topic = $1 AND p.partition = k.partition AND least(k.floor, p.next_offset) > p.feed_floor";
        let mut cuts: BTreeMap<i32, DateTime<Utc>> = BTreeMap::new();
        for row in client.query(TIMES, &[&topic]).await? {
            let (last, at): (DateTime<Utc>, DateTime<Utc>) = (row.get(1), row.get(2));
            if let Some(cut) = last.checked_sub_signed(history).filter(|cut| *cut > at) {
                cuts.insert(row.get(0), cut);
            }
        }
        if cuts.is_empty() {
            return Ok(true);
        }
        let found = Log::new(&self.brokers, topic).at_times(cuts.clone()).await?;
        let found: Vec<(i32, i64, DateTime<Utc>)> = found
            .into_iter()
            .filter_map(|(partition, offset)| Some((partition, offset, *cuts.get(&partition)?)))
            .collect();
        let partitions: Vec<i32> = found.iter().map(|(partition, ..)| *partition).collect();
        let offsets: Vec<i64> = found.iter().map(|(_, offset, _)| *offset).collect();
        let times: Vec<DateTime<Utc>> = found.iter().map(|(.., at)| *at).collect();
        let moved = alone(client, Some(lock), MOVE, &[&topic, &partitions, &offsets, &times]).await?;
        drill::reached("history.floor");
        Ok(moved.is_some())
    }
}

/// The floors of a topic's partitions that have one. `positions` is the table, by its schema where need be.
pub(crate) async fn floors(
    client: &Client,
    positions: &str,
    topic: &str,
) -> Result<Vec<Floor>, ProjectorError> {
    let sql = format!(
        "SELECT partition, feed_floor, feed_floor_at FROM {positions} WHERE topic = $1 AND feed_floor > 0 ORDER BY partition"
    );
    let floor = |row: &Row| Floor {
        partition: row.get(0),
        offset: row.get(1),
        at: row.get(2),
    };
    Ok(client.query(&sql, &[&topic]).await?.iter().map(floor).collect())
}

/// Removes what lies below the floors, from the tables that the connection's unqualified names are.
pub(crate) struct Removal<'a> {
    pub(crate) client: &'a Client,
    /// With its prefix.
    pub(crate) topic: &'a str,
    pub(crate) domains: &'a [Arc<Domain>],
    pub(crate) floors: Vec<Floor>,
    /// Taken for each bite, with a pause between two; none where nobody else is at the tables.
    pub(crate) lock: Option<&'a str>,
}

impl Removal<'_> {
    /// Ends early where the topic begins to be folded again: what is left goes another time.
    pub(crate) async fn run(&self, removed: &mut Removed) -> Result<(), ProjectorError> {
        if self.floors.is_empty() {
            return Ok(());
        }
        let partitions: Vec<i32> = self.floors.iter().map(|floor| floor.partition).collect();
        let offsets: Vec<i64> = self.floors.iter().map(|floor| floor.offset).collect();
        let times: Vec<DateTime<Utc>> = self.floors.iter().map(|floor| floor.at).collect();
        for domain in self.domains {
            let sql = changes(domain);
            for tenant in self.client.query(&tenants(domain), &[]).await? {
                let tenant: String = tenant.get(0);
                let values: [&(dyn ToSql + Sync); 4] = [&partitions, &offsets, &BITE, &tenant];
                let changed = domain.changes_table();
                self.bites(&sql, &values, |changes, tombstones| {
                    removed.add(domain, &changed, changes);
                    removed.add(domain, &domain.table, tombstones);
                })
                .await?;
            }
        }
        let Some(first) = self.domains.first() else {
            return Ok(());
        };
        let values: [&(dyn ToSql + Sync); 4] = [&partitions, &offsets, &BITE, &self.topic];
        self.bites(OUTCOMES, &values, |rows, _| removed.add(first, "outcomes", rows))
            .await?;
        let values: [&(dyn ToSql + Sync); 5] = [&partitions, &offsets, &BITE, &self.topic, &times];
        self.bites(CONFLICTS, &values, |rows, _| {
            removed.add(first, "conflicts", rows)
        })
        .await
    }

    /// Bite by bite until there is no whole one left; each is told of.
    async fn bites(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
        mut gone: impl FnMut(i64, i64),
    ) -> Result<(), ProjectorError> {
        loop {
            let Some(rows) = alone(self.client, self.lock, sql, values).await? else {
                return Ok(());
            };
            let bite: (i64, i64) = rows.first().map_or((0, 0), |row| (row.get(0), row.get(1)));
            gone(bite.0, bite.1);
            if bite.0 < BITE {
                return Ok(());
            }
            if self.lock.is_some() {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Runs a statement under the lock, in a transaction of its own; none where somebody else has it.
async fn alone(
    client: &Client,
    lock: Option<&str>,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Option<Vec<Row>>, ProjectorError> {
    const LOCK: &str = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))";
    client.batch_execute("BEGIN").await?;
    let run = async {
        if let Some(lock) = lock
            && !client.query_one(LOCK, &[&lock]).await?.get::<_, bool>(0)
        {
            return Ok(None);
        }
        client.query(sql, values).await.map(Some)
    };
    let ran: Result<_, tokio_postgres::Error> = run.await;
    client
        .batch_execute(if ran.is_ok() { "COMMIT" } else { "ROLLBACK" })
        .await?;
    Ok(ran?)
}

/// Plan: one probe of the feed's key a tenant.
fn tenants(domain: &Domain) -> String {
    format!(
        "WITH RECURSIVE t AS (\
           (SELECT tenant_id FROM {feed} ORDER BY tenant_id LIMIT 1) \
           UNION ALL \
           SELECT (SELECT f.tenant_id FROM {feed} f WHERE f.tenant_id > t.tenant_id ORDER BY f.tenant_id LIMIT 1) \
           FROM t WHERE t.tenant_id IS NOT NULL\
         ) SELECT tenant_id FROM t WHERE tenant_id IS NOT NULL",
        feed = domain.changes_table(),
    )
}

/// Changes of a tenant, and the tombstones that are the last trace of their records: each lies at its deletion's place. One that
/// is made anew at this moment lies elsewhere, and stays. Plan: for each partition a range of the feed's key; then rows by place
/// in the table, and one probe of the rows' key for each deletion.
fn changes(domain: &Domain) -> String {
    let id = domain.id_column();
    let (parent, same_parent) = match domain.parent {
        Some(_) => (", parent_id", " AND r.parent_id = g.parent_id"),
        None => ("", ""),
    };
    format!(
        "WITH gone AS (\
           DELETE FROM {feed} WHERE ctid = ANY (ARRAY(\
             SELECT c.place FROM unnest($1::int[], $2::bigint[]) AS k(partition, floor) CROSS JOIN LATERAL (\
               SELECT f.ctid AS place FROM {feed} f \
               WHERE f.tenant_id = $4 AND f.partition = k.partition AND f.\"offset\" < k.floor \
               ORDER BY f.\"offset\" LIMIT $3) c LIMIT $3)) \
           RETURNING tenant_id, {id}{parent}, partition, \"offset\", operation\
         ), tombstones AS (\
           DELETE FROM {rows} r USING gone g \
           WHERE g.operation = 'delete' AND r.tenant_id = g.tenant_id AND r.{id} = g.{id}{same_parent} \
             AND r.deleted AND r.partition = g.partition AND r.\"offset\" = g.\"offset\" RETURNING 1\
         ) SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM tombstones)",
        feed = domain.changes_table(),
        rows = domain.table,
    )
}

/// Plan: for each partition a range of `outcomes_place`.
const OUTCOMES: &str = "WITH gone AS (\
      DELETE FROM outcomes WHERE ctid = ANY (ARRAY(\
        SELECT c.place FROM unnest($1::int[], $2::bigint[]) AS k(partition, floor) CROSS JOIN LATERAL (\
          SELECT o.ctid AS place FROM outcomes o \
          WHERE o.topic = $4 AND o.partition = k.partition AND o.\"offset\" < k.floor LIMIT $3) c LIMIT $3)) RETURNING 1\
    ) SELECT count(*), 0::bigint FROM gone";

/// Those that wait for a person stay. Plan: for each partition a range of `conflicts_place`, which passes over these.
const CONFLICTS: &str = "WITH gone AS (\
      DELETE FROM conflicts WHERE ctid = ANY (ARRAY(\
        SELECT c.place FROM unnest($1::int[], $2::bigint[], $5::timestamptz[]) AS k(partition, floor, at) CROSS JOIN LATERAL (\
          SELECT o.ctid AS place FROM conflicts o \
          WHERE o.topic = $4 AND o.partition = k.partition AND o.\"offset\" < k.floor \
            AND o.winner <> 'none' AND coalesce(o.resolved_at, o.occurred_at) < k.at LIMIT $3) c LIMIT $3)) RETURNING 1\
    ) SELECT count(*), 0::bigint FROM gone";
