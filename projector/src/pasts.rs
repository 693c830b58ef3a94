//! The pasts of records, for events that may be repeats or are behind: what their feed rows say was done, each chain walked from its
//! latest row back as far as is asked, and what did not apply, found by its content. When a past is needed is `chunk`'s to say.

use crate::ProjectorError;
use crate::chunk::{OUTCOMES_ALONE, World, repeatable};
use crate::document::Touched;
use crate::event::Arrived;
use crate::load::{read_device_type, read_doc, read_outcome};
use crate::session::Session;
use crate::sheet::get;
use crate::state::{Past, PastChange, RecordKey};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tidelog_events::batch::BatchId;
use tidelog_events::domain::{Domain, Policy, Registry};
use tidelog_events::outcome::{Change, Outcome, Winner};
use tidelog_events::position::Place;
use tidelog_events::resolution::Strategy;
use tokio_postgres::Row;
use uuid::Uuid;

/// Pasts, from the feed (what applied) and from the outcomes (what did not, by content).
pub(crate) async fn load_pasts(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
    needed: HashMap<RecordKey, i64>,
    world: &mut World,
) -> Result<(), ProjectorError> {
    let mut chains: BTreeMap<Arc<str>, Vec<Chain>> = BTreeMap::new();
    for (key, after) in needed.iter().filter(|(_, after)| **after < OUTCOMES_ALONE) {
        if let Some(state) = world.records.get(key).and_then(|record| record.state.as_ref()) {
            let chain = Chain {
                key: key.clone(),
                place: state.place,
                after: *after,
            };
            chains.entry(key.table.clone()).or_default().push(chain);
        }
    }
    for (table, chains) in chains {
        if let Some(domain) = registry.by_table(&table) {
            walk_feed(session, domain, &chains, world).await?;
        }
    }
    let asking: Vec<&Arc<Arrived>> = events
        .iter()
        .filter(|arrived| needed.contains_key(arrived.record()))
        .collect();
    find_same_items(session, &asking, world).await
}

/// A record's feed rows, walked from the latest one back.
struct Chain {
    key: RecordKey,
    place: Place,
    after: i64,
}

async fn walk_feed(
    session: &mut Session,
    domain: &Domain,
    chains: &[Chain],
    world: &mut World,
) -> Result<(), ProjectorError> {
    let sql = past_of(domain);
    let numbers: Vec<i64> = (0..chains.len() as i64).collect();
    let tenants: Vec<&str> = chains.iter().map(|chain| &*chain.key.tenant).collect();
    let subjects: Vec<&str> = chains.iter().map(|chain| &*chain.key.subject).collect();
    let partitions: Vec<i32> = chains.iter().map(|chain| chain.place.partition).collect();
    let offsets: Vec<i64> = chains.iter().map(|chain| chain.place.offset).collect();
    let afters: Vec<i64> = chains.iter().map(|chain| chain.after).collect();
    for row in session
        .query(
            &sql,
            &[&numbers, &tenants, &subjects, &partitions, &offsets, &afters],
        )
        .await?
    {
        let at: i64 = get(&row, "n")?;
        let Some(chain) = usize::try_from(at).ok().and_then(|at| chains.get(at)) else {
            continue;
        };
        let Some(change) = change_of(&row)? else {
            continue;
        };
        let event = (
            BatchId(get(&row, "batch_id")?),
            get::<i32>(&row, "batch_index")? as u32,
        );
        let content: Uuid = get(&row, "item_hash")?;
        let past = &mut world.records.entry(chain.key.clone()).or_default().past;
        let at = get(&row, "changed_at")?;
        past.note(event, Some(content), at, applied_outcome(&row, change)?);
        if domain.is_entity() {
            past.note_change(read_change(&row, change)?);
        }
    }
    Ok(())
}

/// The feed rows of records, each chain from its latest row back to the first that is no later than the version asked
/// for; answered oldest first.
fn past_of(domain: &Domain) -> String {
    let id = domain.id_column();
    let cast = if domain.is_entity() { "::uuid" } else { "" };
    let columns = format!(
        "c.tenant_id, c.{id}, c.partition, c.\"offset\", c.previous_offset, c.version, c.operation, c.batch_id, \
         c.batch_index, c.item_hash, c.conflict_id, c.fields, c.before, c.user_id, c.device_id, c.device_type, c.item_time, c.changed_at"
    );
    format!(
        "WITH RECURSIVE past AS (\
           SELECT k.n, k.after, {columns} \
           FROM unnest($1::bigint[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bigint[]) \
                AS k(n, tenant, subject, partition, at, after) \
           JOIN {feed} c ON c.tenant_id = k.tenant AND c.partition = k.partition AND c.\"offset\" = k.at AND c.{id} = k.subject{cast} \
           UNION ALL \
           SELECT p.n, p.after, {columns} \
           FROM past p JOIN {feed} c ON c.tenant_id = p.tenant_id AND c.partition = p.partition \
                AND c.\"offset\" = p.previous_offset AND c.{id} = p.{id} \
           WHERE p.version > p.after\
         ) SELECT p.n, p.version, p.operation, p.batch_id, p.batch_index, p.item_hash, p.conflict_id, p.fields, \
                  p.before::text AS before, p.user_id, p.device_id, p.device_type, p.item_time, p.changed_at, \
                  x.policy, x.winner, x.result_version, x.client_version, \
                  x.strategy, x.resolved_batch_id \
         FROM past p LEFT JOIN conflicts x ON x.conflict_id = p.conflict_id ORDER BY p.n, p.\"offset\"",
        feed = domain.changes_table(),
    )
}

/// What an event did, as its feed row says; none for a row that no item made.
fn change_of(row: &Row) -> Result<Option<Change>, ProjectorError> {
    Ok(match get::<&str>(row, "operation")? {
        "create" => Some(Change::Created),
        "delete" => Some(Change::Deleted),
        "update" => Some(Change::Updated),
        _ => None,
    })
}

fn read_change(row: &Row, change: Change) -> Result<PastChange, ProjectorError> {
    let before: Option<&str> = get(row, "before")?;
    Ok(PastChange {
        version: get(row, "version")?,
        change,
        touched: Arc::new(Touched {
            fields: get::<Vec<&str>>(row, "fields")?.into_iter().collect(),
            before: before.map(read_doc).transpose()?.unwrap_or_default(),
        }),
        user: get::<&str>(row, "user_id")?.into(),
        device: get::<&str>(row, "device_id")?.into(),
        device_type: read_device_type(row)?,
        item_time: get(row, "item_time")?,
        log_time: get(row, "changed_at")?,
    })
}

/// What an applied event's feed row says became of its item.
fn applied_outcome(row: &Row, change: Change) -> Result<Outcome, ProjectorError> {
    let conflict_id: Option<Uuid> = get(row, "conflict_id")?;
    let policy = get::<Option<&str>>(row, "policy")?.and_then(Policy::parse);
    let resolved_by: Option<Uuid> = get(row, "resolved_batch_id")?;
    if let Some(conflict_id) = conflict_id
        && resolved_by == Some(get(row, "batch_id")?)
    {
        return resolved_outcome(row, conflict_id);
    }
    Ok(match (conflict_id, policy) {
        (Some(conflict_id), Some(policy)) => Outcome::Conflict {
            conflict_id,
            policy,
            winner: winner(get::<Option<&str>>(row, "winner")?.unwrap_or_default())?,
            server_version: get(row, "result_version")?,
            client_version: get(row, "client_version")?,
        },
        _ => Outcome::Applied {
            change,
            version: get(row, "version")?,
        },
    })
}

/// What the feed row of a resolution says.
fn resolved_outcome(row: &Row, conflict_id: Uuid) -> Result<Outcome, ProjectorError> {
    let strategy: Option<&str> = get(row, "strategy")?;
    Ok(Outcome::Resolved {
        conflict_id,
        strategy: strategy
            .and_then(Strategy::parse)
            .ok_or_else(|| ProjectorError::Stored(format!("the strategy {strategy:?}")))?,
        winner: winner(get::<Option<&str>>(row, "winner")?.unwrap_or_default())?,
        version: get(row, "version")?,
    })
}

fn winner(text: &str) -> Result<Winner, ProjectorError> {
    Winner::parse(text).ok_or_else(|| ProjectorError::Stored(format!("the winner {text:?}")))
}

async fn find_same_items(
    session: &mut Session,
    asking: &[&Arc<Arrived>],
    world: &mut World,
) -> Result<(), ProjectorError> {
    const SQL: &str = "SELECT k.n, o.batch_id, o.batch_index, o.logged_at, o.detail::text AS detail \
                       FROM unnest($1::bigint[], $2::text[], $3::uuid[]) AS k(n, tenant, hash) \
                       JOIN outcomes o ON o.tenant_id = k.tenant AND o.item_hash = k.hash ORDER BY k.n, o.\"offset\"";
    let numbers: Vec<i64> = (0..asking.len() as i64).collect();
    let tenants: Vec<&str> = asking
        .iter()
        .map(|arrived| arrived.event.tenant.as_str())
        .collect();
    let hashes: Vec<Uuid> = asking.iter().map(|arrived| arrived.content).collect();
    for row in session.query(SQL, &[&numbers, &tenants, &hashes]).await? {
        let at: i64 = get(&row, "n")?;
        let Some(arrived) = usize::try_from(at).ok().and_then(|at| asking.get(at)) else {
            continue;
        };
        let outcome = read_outcome(&get::<String>(&row, "detail")?)?;
        let event = (
            BatchId(get(&row, "batch_id")?),
            get::<i32>(&row, "batch_index")? as u32,
        );
        let content = repeatable(&outcome).then_some(arrived.content);
        note_by_content(
            &mut world.records.entry(arrived.record().clone()).or_default().past,
            event,
            content,
            get(&row, "logged_at")?,
            outcome,
        );
    }
    Ok(())
}

fn note_by_content(
    past: &mut Past,
    event: (BatchId, u32),
    content: Option<Uuid>,
    at: DateTime<Utc>,
    outcome: Outcome,
) {
    if content.is_some() {
        past.note(event, content, at, outcome);
    }
}
