//! What a chunk leaves behind, written in one transaction with the position that it moves: either all of it stands and
//! the partition has moved on, or nothing does. One statement a table whatever the number of rows, all sent at once.

use crate::ProjectorError;
use crate::chunk::{ConflictRow, FeedRow, Results, World};
use crate::event::Arrived;
use crate::hits;
use crate::kept::resolutions;
use crate::merge::Kept;
use crate::rows::{feed_row, row, row_key};
use crate::session::Session;
use crate::sheet::Sheet;
use crate::state::{RecordKey, State};
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::drill;
use tidelog_events::ids::DeviceType;
use tidelog_events::outcome::Outcome;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// A partition's move, made only if it stands where the worker believes and is still the worker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) log_time: DateTime<Utc>,
}

/// A record of the log that no fold could take.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) tenant: Option<String>,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) log_time: DateTime<Utc>,
}

const MOVE: &str = "WITH moved AS (\
      UPDATE positions p SET next_offset = k.next, last_log_time = k.log_time, \
             applied_through = greatest(p.applied_through, k.log_time), updated_at = now() \
      FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[]) \
           AS k(topic, partition, epoch, expected, next, log_time) \
      WHERE p.topic = k.topic AND p.partition = k.partition AND p.epoch = k.epoch AND p.next_offset = k.expected \
      RETURNING 1\
    ) SELECT fence((SELECT count(*) FROM moved), $7)";

/// How a chunk's transaction begins, and its first statement; a test may have it do without either.
fn guards() -> (&'static str, Cow<'static, str>) {
    let begin = match drill::guarded("transaction") {
        true => "BEGIN",
        // Each statement for itself, the move first.
        false => "",
    };
    let moving = match drill::guarded("fence") {
        true => Cow::Borrowed(MOVE),
        // What a worker would do that trusts itself.
        false => MOVE
            .replace("AND p.epoch = k.epoch AND p.next_offset = k.expected", "")
            .into(),
    };
    (begin, moving)
}

/// SQLSTATE of `fence`.
const FENCED: &str = "TL001";

/// Writes a chunk.
pub(crate) async fn write(
    session: &mut Session,
    registry: &Registry,
    world: &World,
    results: &Results,
    topic: &str,
    moves: &[Move],
    dead: &[DeadLetter],
) -> Result<(), ProjectorError> {
    let sheets = sheets(registry, world, results, topic, dead);
    let (begin, moving) = guards();
    let moving = session.prepare(&moving).await?;
    let mut prepared = Vec::with_capacity(sheets.len());
    for (sql, sheet) in &sheets {
        prepared.push((session.prepare(sql).await?, sheet));
    }
    let client = session.client();
    let moved_to = Moved::of(moves);
    // Sent one after the other without waiting: the futures are polled in this order, and the server answers in it.
    // The move stands first, so that a worker that was fenced off fails before it writes.
    let writes = async {
        let rest = async {
            let inserts = join_all(prepared.iter().map(|(statement, sheet)| async move {
                let parameters = sheet.parameters();
                client.execute(statement, &parameters).await
            }));
            futures_util::join!(inserts, client.batch_execute("COMMIT"))
        };
        let parameters = moved_to.parameters();
        let first =
            async { futures_util::join!(client.batch_execute(begin), client.execute(&moving, &parameters)) };
        if drill::armed("project.moved") {
            let first = first.await;
            drill::reached("project.moved");
            (first, rest.await)
        } else {
            futures_util::join!(first, rest)
        }
    };
    drill::reached("project.writing");
    let ((begun, moved), (inserted, committed)) = writes.await;
    drill::reached("project.committed");
    begun?;
    moved.map_err(fenced)?;
    for result in inserted {
        result?;
    }
    committed?;
    Ok(())
}

/// Moves partitions, in a transaction that is under way.
pub(crate) async fn move_positions(session: &mut Session, moves: &[Move]) -> Result<(), ProjectorError> {
    let statement = session.prepare(MOVE).await?;
    let moved = Moved::of(moves);
    let done = session.client().execute(&statement, &moved.parameters()).await;
    done.map(|_| ()).map_err(fenced)
}

/// The parameters of `MOVE`.
struct Moved<'a> {
    topics: Vec<&'a str>,
    partitions: Vec<i32>,
    epochs: Vec<i64>,
    from: Vec<i64>,
    to: Vec<i64>,
    times: Vec<DateTime<Utc>>,
    count: i64,
}

impl<'a> Moved<'a> {
    fn of(moves: &'a [Move]) -> Moved<'a> {
        Moved {
            topics: moves.iter().map(|m| m.topic.as_str()).collect(),
            partitions: moves.iter().map(|m| m.partition).collect(),
            epochs: moves.iter().map(|m| m.epoch).collect(),
            from: moves.iter().map(|m| m.from).collect(),
            to: moves.iter().map(|m| m.to).collect(),
            times: moves.iter().map(|m| m.log_time).collect(),
            count: moves.len() as i64,
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 7] {
        [
            &self.topics,
            &self.partitions,
            &self.epochs,
            &self.from,
            &self.to,
            &self.times,
            &self.count,
        ]
    }
}

fn fenced(error: tokio_postgres::Error) -> ProjectorError {
    if error.code().is_some_and(|code| code.code() == FENCED) {
        ProjectorError::Fenced
    } else {
        error.into()
    }
}

fn sheets(
    registry: &Registry,
    world: &World,
    results: &Results,
    topic: &str,
    dead: &[DeadLetter],
) -> Vec<(String, Sheet)> {
    let mut sheets = Vec::new();
    let ended = results.changed();
    for domain in registry.iter() {
        let changed: Vec<(&RecordKey, &State)> = ended
            .iter()
            .filter(|key| *key.table == *domain.table)
            .filter_map(|key| Some((*key, world.records.get(*key)?.state.as_deref()?)))
            .collect();
        if !changed.is_empty() {
            sheets.push(rows(domain, &changed));
        }
        let feed: Vec<&FeedRow> = results
            .feed
            .iter()
            .filter(|row| *row.record.table == *domain.table)
            .collect();
        if !feed.is_empty() {
            sheets.push(feed_rows(domain, &feed));
        }
    }
    sheets.extend(others(results, topic, dead));
    sheets
}

/// What goes into the tables that all domains share.
pub(crate) fn others(results: &Results, topic: &str, dead: &[DeadLetter]) -> Vec<(String, Sheet)> {
    let mut sheets = Vec::new();
    if !results.outcomes.is_empty() {
        sheets.push(outcomes(results, topic));
        sheets.extend(hits::sheet(&hits::count(&results.outcomes), topic));
    }
    if !results.conflicts.is_empty() {
        sheets.push(conflicts(results, topic));
    }
    if !results.resolved.is_empty() {
        sheets.push(resolutions(&results.resolved));
    }
    if !dead.is_empty() {
        sheets.push(dead_letters(dead));
    }
    sheets
}

/// None where one side's state stands whole.
pub(crate) fn kept_text(kept: &Kept) -> Option<String> {
    let origins: Map<String, Value> = kept
        .iter()
        .map(|(path, origin)| (path.clone(), Value::from(origin.as_str())))
        .collect();
    (!kept.is_empty()).then(|| Value::Object(origins).to_string())
}

pub(crate) fn rows(domain: &Domain, changed: &[(&RecordKey, &State)]) -> (String, Sheet) {
    let mut sheet = Sheet::default();
    for (key, state) in changed {
        sheet.row(|cells| row(domain, key, state, cells));
    }
    let overwrite = sheet.overwrite(&row_key(domain));
    (sheet.insert(&domain.table, &overwrite), sheet)
}

fn feed_rows(domain: &Domain, feed: &[&FeedRow]) -> (String, Sheet) {
    let mut sheet = Sheet::default();
    for change in feed {
        sheet.row(|cells| feed_row(domain, change, cells));
    }
    (sheet.insert(&domain.changes_table(), ""), sheet)
}

fn status_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Applied { .. } => "applied",
        Outcome::NoEffect { .. } => "no_effect",
        Outcome::Conflict { .. } => "conflict",
        Outcome::Resolved { .. } => "resolved",
        Outcome::Duplicate { .. } => "duplicate",
        Outcome::Refused { .. } => "error",
    }
}

fn outcomes(results: &Results, topic: &str) -> (String, Sheet) {
    let mut sheet = Sheet::default();
    let rows = latest(&results.outcomes, |row| &row.arrived);
    let text = |outcome: &Outcome| serde_json::to_string(outcome).unwrap_or_else(|_| "null".into());
    sheet.column(
        "tenant_id",
        rows.iter()
            .map(|row| row.arrived.event.tenant.as_str().to_owned()),
    );
    sheet.column("batch_id", rows.iter().map(|row| row.arrived.event.batch.0));
    sheet.column(
        "batch_index",
        rows.iter().map(|row| row.arrived.event.index as i32),
    );
    sheet.column("domain", rows.iter().map(|row| row.arrived.domain.name.clone()));
    sheet.column(
        "subject",
        rows.iter().map(|row| row.arrived.event.subject.to_string()),
    );
    sheet.column(
        "user_id",
        rows.iter().map(|row| row.arrived.event.user.as_str().to_owned()),
    );
    sheet.column(
        "device_id",
        rows.iter()
            .map(|row| row.arrived.event.device.as_str().to_owned()),
    );
    sheet.column("topic", rows.iter().map(|_| topic.to_owned()));
    sheet.column("partition", rows.iter().map(|row| row.arrived.place.partition));
    sheet.column("offset", rows.iter().map(|row| row.arrived.place.offset));
    sheet.column("logged_at", rows.iter().map(|row| row.arrived.log_time));
    sheet.column("status", rows.iter().map(|row| status_name(&row.outcome)));
    let hash = |outcome: &Outcome, hash: Uuid| crate::chunk::repeatable(outcome).then_some(hash);
    sheet.column(
        "item_hash",
        rows.iter().map(|row| hash(&row.outcome, row.arrived.content)),
    );
    sheet.cast("detail", "jsonb", rows.iter().map(|row| text(&row.outcome)));
    let tail = match forgets(rows.iter().map(|row| &row.arrived)) {
        true => sheet.overwrite("tenant_id, batch_id, batch_index"),
        false => "ON CONFLICT DO NOTHING".into(),
    };
    (sheet.insert("outcomes", &tail), sheet)
}

/// Whether any of these events may be told twice, its first outcome forgotten: the later one stands then.
fn forgets<'a>(mut events: impl Iterator<Item = &'a Arc<Arrived>>) -> bool {
    events.any(|arrived| arrived.domain.history.is_some())
}

/// Each event's last row: a statement writes none twice.
fn latest<T>(rows: &[T], arrived: impl Fn(&T) -> &Arc<Arrived>) -> Vec<&T> {
    if !forgets(rows.iter().map(&arrived)) {
        return rows.iter().collect();
    }
    let key = |row: &T| (arrived(row).event.tenant.as_str().to_owned(), arrived(row).key());
    let last: HashMap<_, usize> = rows.iter().enumerate().map(|(at, row)| (key(row), at)).collect();
    let is_last = |(at, row): &(usize, &T)| last.get(&key(row)) == Some(at);
    rows.iter()
        .enumerate()
        .filter(is_last)
        .map(|(_, row)| row)
        .collect()
}

fn conflicts(results: &Results, topic: &str) -> (String, Sheet) {
    let mut sheet = Sheet::default();
    let rows = &latest(&results.conflicts, |row| &row.arrived);
    sheet.column("conflict_id", rows.iter().map(|row| row.conflict_id));
    sheet.column(
        "tenant_id",
        rows.iter()
            .map(|row| row.arrived.event.tenant.as_str().to_owned()),
    );
    sheet.column("domain", rows.iter().map(|row| row.arrived.domain.name.clone()));
    sheet.cast(
        "mobile_id",
        "uuid",
        rows.iter().map(|row| row.arrived.event.subject.to_string()),
    );
    sheet.column("topic", rows.iter().map(|_| topic.to_owned()));
    sheet.column("partition", rows.iter().map(|row| row.arrived.place.partition));
    sheet.column("offset", rows.iter().map(|row| row.arrived.place.offset));
    sheet.column("batch_id", rows.iter().map(|row| row.arrived.event.batch.0));
    sheet.column(
        "batch_index",
        rows.iter().map(|row| row.arrived.event.index as i32),
    );
    sheet.column("occurred_at", rows.iter().map(|row| row.arrived.log_time));
    sheet.column(
        "user_id",
        rows.iter().map(|row| row.arrived.event.user.as_str().to_owned()),
    );
    sheet.column(
        "device_id",
        rows.iter()
            .map(|row| row.arrived.event.device.as_str().to_owned()),
    );
    sheet.column(
        "operation",
        rows.iter().map(|row| row.arrived.event.operation.as_str()),
    );
    decisions(&mut sheet, rows);
    let tail = match forgets(rows.iter().map(|row| &row.arrived)) {
        true => format!("{}, {UNRESOLVED}", sheet.overwrite("conflict_id")),
        false => "ON CONFLICT DO NOTHING".into(),
    };
    (sheet.insert("conflicts", &tail), sheet)
}

/// What a conflict is that begins anew.
const UNRESOLVED: &str = "strategy = NULL, resolved_at = NULL, resolved_by = NULL, resolved_device_id = NULL, \
                          resolved_batch_id = NULL, resolved_batch_index = NULL, resolved_version = NULL, resolved_kept = NULL";

/// How each conflict was decided, and between what.
fn decisions(sheet: &mut Sheet, rows: &[&ConflictRow]) {
    sheet.column("policy", rows.iter().map(|row| row.arrived.event.policy.as_str()));
    sheet.column("winner", rows.iter().map(|row| row.conflict.winner.as_str()));
    sheet.column("client_version", rows.iter().map(|row| row.arrived.event.base));
    sheet.column(
        "server_version",
        rows.iter().map(|row| row.conflict.server_version),
    );
    sheet.column(
        "result_version",
        rows.iter().map(|row| row.conflict.result_version),
    );
    sheet.cast(
        "client_doc",
        "jsonb",
        rows.iter().map(|row| row.conflict.client_doc.text().to_owned()),
    );
    sheet.cast(
        "server_doc",
        "jsonb",
        rows.iter()
            .map(|row| row.conflict.server_doc.as_ref().map(|doc| doc.text().to_owned())),
    );
    sheet.column(
        "client_device_type",
        rows.iter()
            .map(|row| row.arrived.event.device_type.as_ref().map(DeviceType::to_string)),
    );
    sheet.column("client_time", rows.iter().map(|row| row.arrived.item_time()));
    sheet.column("server_time", rows.iter().map(|row| row.conflict.server_time));
    sheet.cast(
        "kept",
        "jsonb",
        rows.iter().map(|row| kept_text(&row.conflict.kept)),
    );
}

fn dead_letters(dead: &[DeadLetter]) -> (String, Sheet) {
    let mut sheet = Sheet::default();
    sheet.column("topic", dead.iter().map(|letter| letter.topic.clone()));
    sheet.column("partition", dead.iter().map(|letter| letter.partition));
    sheet.column("offset", dead.iter().map(|letter| letter.offset));
    sheet.column("tenant_id", dead.iter().map(|letter| letter.tenant.clone()));
    sheet.column(
        "reason",
        dead.iter().map(|letter| letter.reason.replace('\0', "\\0")),
    );
    sheet.cast(
        "headers",
        "jsonb",
        dead.iter().map(|letter| headers_text(&letter.headers)),
    );
    sheet.column("key", dead.iter().map(|letter| letter.key.clone()));
    sheet.column("value", dead.iter().map(|letter| letter.value.clone()));
    sheet.column("logged_at", dead.iter().map(|letter| letter.log_time));
    (sheet.insert("dead_letters", "ON CONFLICT DO NOTHING"), sheet)
}

/// Headers as a list of [name, value]; a value that is no text, or holds U+0000, as {"hex": its bytes}, so that the letter
/// can be appended again as it was.
fn headers_text(headers: &[(String, Option<Vec<u8>>)]) -> String {
    let pairs: Vec<Value> = headers
        .iter()
        .map(|(name, value)| {
            let shown = value.as_ref().map(|bytes| match std::str::from_utf8(bytes) {
                Ok(text) if !text.contains('\0') => Value::from(text),
                _ => serde_json::json!({"hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()}),
            });
            serde_json::json!([name.replace('\0', "\\0"), shown])
        })
        .collect();
    Value::Array(pairs).to_string()
}
