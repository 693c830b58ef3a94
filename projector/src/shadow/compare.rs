//! The live tables beside the shadow's: first sums over stretches of records, then, only where these differ, row by row. What
//! differs there is a candidate, since the service goes on writing meanwhile; `mend` looks at candidates once more while the
//! partitions stand still. Reads only.

use super::tables::quoted;
use super::{Selection, Shadow};
use crate::ProjectorError;
use crate::history::Floor;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_events::domain::Domain;
use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

/// Stretches that a partition's records are parted into, by a hash of their keys.
const STRETCHES: i32 = 256;
/// Candidates of one table that are looked at; more are counted as "and more".
const MOST_CANDIDATES: i64 = 200_000;

/// What is wrong with a live row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Differs {
    /// The log says that there is one.
    Missing,
    /// The log knows nothing of it.
    Extra,
    /// It says something else.
    Changed,
}

impl Differs {
    /// For people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Differs::Missing => "missing",
            Differs::Extra => "extra",
            Differs::Changed => "changed",
        }
    }
}

/// A live row that is not what the log says.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The table.
    pub table: String,
    /// In what way.
    pub differs: Differs,
    /// The row's primary key.
    pub key: Value,
    /// Where the event lies that made it, as far as either side says.
    pub partition: Option<i32>,
    /// The event's offset.
    pub offset: Option<i64>,
    /// The columns that say something else.
    pub columns: Vec<String>,
}

/// The rows of one partition in one table: how many, and a sum over all of them, of both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionSum {
    /// The partition.
    pub partition: i32,
    /// Live rows.
    pub rows: i64,
    /// The sum of their hashes, in decimal.
    pub sum: String,
    /// Rows by the log.
    pub expected_rows: i64,
    /// The sum of theirs.
    pub expected_sum: String,
}

/// A table's sums.
#[derive(Debug, Clone)]
pub struct TableSum {
    /// The table.
    pub table: String,
    /// By number.
    pub partitions: Vec<PartitionSum>,
}

/// A table as it is compared.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    pub(super) table: String,
    /// Whether other topics' rows are in it as well.
    pub(super) shared: bool,
    pub(super) key: Vec<String>,
    /// All that the fold writes, the key too.
    pub(super) columns: Vec<String>,
    /// Which rows of either side are meant, of `t`.
    condition: String,
}

impl Compared {
    /// The row `t` as one value.
    pub(super) fn row(&self, t: &str) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| format!("{t}.\"{column}\""))
            .collect();
        format!("ROW({})", columns.join(", "))
    }

    /// `l.key = k.key AND …`.
    pub(super) fn same_key(&self, left: &str, right: &str) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .map(|column| format!("{left}.\"{column}\" = {right}.\"{column}\""))
            .collect();
        parts.join(" AND ")
    }

    fn key_object(&self, t: &str) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .map(|column| format!("'{column}', {t}.\"{column}\""))
            .collect();
        format!("jsonb_build_object({})", parts.join(", "))
    }

    fn stretch(&self) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .map(|column| format!("t.\"{column}\"::text"))
            .collect();
        format!(
            "(hashtextextended(concat_ws('/', {}), 0) & {})::int",
            parts.join(", "),
            STRETCHES - 1
        )
    }
}

/// Rows that may differ.
#[derive(Debug, Clone)]
pub struct Candidates {
    pub(super) table: Compared,
    pub(super) keys: Vec<Value>,
    /// There are more than these.
    pub(super) more: bool,
}

impl Shadow {
    /// Compares; answers each table's sums, and the rows that may differ.
    pub async fn compare(
        &self,
        client: &mut Client,
        selection: &Selection,
    ) -> Result<(Vec<TableSum>, Vec<Candidates>), ProjectorError> {
        let tables = self.compared(client, selection).await?;
        let look = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        let (mut sums, mut candidates) = (Vec::new(), Vec::new());
        for table in tables {
            let live = self.sums(&look, &table, &self.config.live).await?;
            let shadow = self.sums(&look, &table, &self.config.schema).await?;
            let stretches = differing(&live, &shadow);
            sums.push(TableSum {
                table: table.table.clone(),
                partitions: by_partition(&live, &shadow),
            });
            if !stretches.is_empty() {
                candidates.push(self.candidates(&look, table, &stretches).await?);
            }
        }
        Ok((sums, candidates))
    }

    /// The tables that the topic's events write, and which rows and columns of them.
    pub(super) async fn compared(
        &self,
        client: &Client,
        selection: &Selection,
    ) -> Result<Vec<Compared>, ProjectorError> {
        let numbers = self.config.partitions.as_ref().map(|numbers| {
            let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
            format!("t.partition IN ({})", numbers.join(", "))
        });
        // What has been forgotten may be gone from either side, or not yet.
        let floors = self.floors(client).await?;
        let mut compared = Vec::new();
        for domain in &self.domains {
            let condition = [selection.of_rows(domain, &self.config.schema), numbers.clone()];
            for (table, which) in [
                (domain.table.to_string(), "t.deleted"),
                (domain.changes_table(), "true"),
            ] {
                let [selected, numbers] = condition.clone();
                let condition = all_of([selected, numbers, remembered(&floors, which)]);
                compared.push(self.described(client, table, false, condition).await?);
            }
        }
        // The rule of a topic's name leaves nothing to escape.
        let topic = format!("t.topic = '{}'", self.topic());
        for (table, subject, key) in [
            ("outcomes", "subject", "tenant_id, batch_id, batch_index"),
            ("conflicts", "mobile_id", "conflict_id"),
            (
                "idempotency_records",
                "subject",
                "tenant_id, key, scope, user_id, device_id",
            ),
        ] {
            let kept = match table {
                "outcomes" => remembered(&floors, "true"),
                "conflicts" => remembered_conflict(&floors),
                _ => None,
            };
            let expiry = (table == "idempotency_records")
                .then(|| "t.scope = 'item' AND t.expires_at > now() + interval '1 minute'".to_owned());
            let in_shadow = format!(
                "(t.{}) IN (SELECT {key} FROM {})",
                key.replace(", ", ", t."),
                quoted(&self.config.schema, table)
            );
            let selected = self.of_shared(selection, subject, &in_shadow);
            let condition = all_of([Some(topic.clone()), numbers.clone(), expiry, kept, selected]);
            compared.push(self.described(client, table.into(), true, condition).await?);
        }
        if matches!(selection, Selection::All) {
            let condition = all_of([Some(topic), numbers]);
            let mut letters = self
                .described(client, "dead_letters".into(), true, condition)
                .await?;
            // What an operator has done about a letter is not in the log.
            let told = ["tenant_id", "headers", "key", "value", "logged_at"];
            letters
                .columns
                .retain(|column| told.contains(&column.as_str()) || letters.key.contains(column));
            compared.push(letters);
        }
        Ok(compared)
    }

    /// Which rows of a shared table are selected, by their domain.
    fn of_shared(&self, selection: &Selection, subject: &str, in_shadow: &str) -> Option<String> {
        let each = |domain: &std::sync::Arc<Domain>| {
            let of_domain = format!("t.domain = '{}'", domain.name);
            all_of([
                Some(of_domain),
                selection.of_shared(domain, &self.config.schema, subject, in_shadow),
            ])
        };
        match selection {
            Selection::All => None,
            _ => Some(format!(
                "({})",
                self.domains.iter().map(each).collect::<Vec<_>>().join(" OR ")
            )),
        }
    }

    async fn described(
        &self,
        client: &Client,
        table: String,
        shared: bool,
        condition: String,
    ) -> Result<Compared, ProjectorError> {
        const SQL: &str = "SELECT a.attname::text, coalesce(array_position(i.indkey::int2[], a.attnum), -1) AS at \
                           FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
                           WHERE a.attrelid = ($1::text)::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''";
        let name = quoted(&self.config.schema, &table);
        let live = quoted(&self.config.live, &table);
        let ours = client.query(SQL, &[&name]).await?;
        let theirs = client.query(SQL, &[&live]).await?;
        let known: BTreeSet<String> = theirs.iter().map(|row| row.get(0)).collect();
        let mut key: Vec<(i32, String)> = ours
            .iter()
            .map(|row| (row.get(1), row.get(0)))
            .filter(|(at, _)| *at >= 0)
            .collect();
        key.sort_unstable();
        Ok(Compared {
            table,
            shared,
            key: key.into_iter().map(|(_, column)| column).collect(),
            columns: ours
                .iter()
                .map(|row| row.get::<_, String>(0))
                .filter(|column| known.contains(column))
                .collect(),
            condition,
        })
    }

    async fn sums(
        &self,
        look: &Transaction<'_>,
        table: &Compared,
        schema: &str,
    ) -> Result<Sums, ProjectorError> {
        let sql = format!(
            "SELECT t.partition, {stretch}, count(*), sum(hashtextextended({row}::text, 0)::numeric)::text \
             FROM {name} t WHERE {condition} GROUP BY 1, 2",
            stretch = table.stretch(),
            row = table.row("t"),
            name = quoted(schema, &table.table),
            condition = table.condition,
        );
        let rows = look.query(&sql, &[]).await?;
        let sum = |row: &Row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)));
        Ok(rows.iter().map(sum).collect())
    }

    /// Keys of the rows that differ in these stretches.
    async fn candidates(
        &self,
        look: &Transaction<'_>,
        table: Compared,
        stretches: &BTreeSet<i32>,
    ) -> Result<Candidates, ProjectorError> {
        let side = |schema: &str| {
            format!(
                "(SELECT t.* FROM {} t WHERE {} AND {} = ANY($1))",
                quoted(schema, &table.table),
                table.condition,
                table.stretch()
            )
        };
        let sql = format!(
            "SELECT coalesce({of_live}, {of_shadow}) FROM {live} l FULL JOIN {shadow} s ON {same} \
             WHERE l.\"{first}\" IS NULL OR s.\"{first}\" IS NULL OR {live_row} IS DISTINCT FROM {shadow_row} LIMIT {limit}",
            of_live = format_args!(
                "CASE WHEN l.\"{}\" IS NOT NULL THEN {} END",
                table.key[0],
                table.key_object("l")
            ),
            of_shadow = table.key_object("s"),
            live = side(&self.config.live),
            shadow = side(&self.config.schema),
            same = table.same_key("l", "s"),
            first = table.key[0],
            live_row = table.row("l"),
            shadow_row = table.row("s"),
            limit = MOST_CANDIDATES + 1,
        );
        let stretches: Vec<i32> = stretches.iter().copied().collect();
        let rows = look.query(&sql, &[&stretches]).await?;
        let mut keys: Vec<Value> = rows.iter().map(|row| row.get(0)).collect();
        let most = usize::try_from(MOST_CANDIDATES).unwrap_or(usize::MAX);
        let more = keys.len() > most;
        keys.truncate(most);
        Ok(Candidates { table, keys, more })
    }
}

impl Candidates {
    /// How many rows may differ.
    pub fn count(&self) -> usize {
        self.keys.len()
    }
}

/// That a row `t` is none of `which` below its partition's floor; none where there are no floors.
fn remembered(floors: &[Floor], which: &str) -> Option<String> {
    let each = |floor: &Floor| format!(" WHEN {} THEN {}", floor.partition, floor.offset);
    let cases: String = floors.iter().map(each).collect();
    (!floors.is_empty())
        .then(|| format!("NOT ({which} AND t.\"offset\" < CASE t.partition{cases} ELSE 0 END)"))
}

/// The same of conflicts, which are forgotten after they were settled.
fn remembered_conflict(floors: &[Floor]) -> Option<String> {
    let each = |floor: &Floor| {
        format!(
            " WHEN {} THEN '{}'::timestamptz",
            floor.partition,
            floor.at.to_rfc3339()
        )
    };
    let cases: String = floors.iter().map(each).collect();
    (!floors.is_empty()).then(|| {
        format!("NOT (t.winner <> 'none' AND coalesce(t.resolved_at, t.occurred_at) < CASE t.partition{cases} ELSE '-infinity' END)")
    })
}

fn all_of<const N: usize>(conditions: [Option<String>; N]) -> String {
    let given: Vec<String> = conditions.into_iter().flatten().collect();
    match given.is_empty() {
        true => "true".into(),
        false => given.join(" AND "),
    }
}

/// By partition and stretch: how many rows, and the sum of their hashes.
type Sums = BTreeMap<(i32, i32), (i64, String)>;

fn differing(live: &Sums, shadow: &Sums) -> BTreeSet<i32> {
    let places = live.keys().chain(shadow.keys());
    places
        .filter(|place| live.get(place) != shadow.get(place))
        .map(|(_, stretch)| *stretch)
        .collect()
}

fn by_partition(live: &Sums, shadow: &Sums) -> Vec<PartitionSum> {
    let total = |sums: &Sums, partition: i32| {
        let of = sums.range((partition, i32::MIN)..=(partition, i32::MAX));
        // 19 digits a hash; a sum of whatever many rows stays in 128 bits.
        of.fold((0, 0_i128), |(rows, sum), (_, (count, text))| {
            (rows + count, sum.wrapping_add(text.parse().unwrap_or_default()))
        })
    };
    let partitions: BTreeSet<i32> = live.keys().chain(shadow.keys()).map(|(p, _)| *p).collect();
    let each = partitions.into_iter().map(|partition| {
        let ((rows, sum), (expected_rows, expected_sum)) = (total(live, partition), total(shadow, partition));
        PartitionSum {
            partition,
            rows,
            sum: sum.to_string(),
            expected_rows,
            expected_sum: expected_sum.to_string(),
        }
    });
    each.collect()
}
