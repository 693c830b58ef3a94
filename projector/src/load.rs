//! What a chunk needs to know before it can be folded: the states of its records and their parents and children, and,
//! where an event may be a repeat, the record's past, which is `pasts`' to read. Reads by key only; what the rows mean is the fold's.

use crate::ProjectorError;
use crate::chunk::{World, child_domains, needed_pasts};
use crate::event::Arrived;
use crate::kept::load_conflicts;
use crate::pasts::load_pasts;
use crate::session::Session;
use crate::sheet::get;
use crate::state::{Doc, Identity, RecordKey, State};
use futures_util::future::try_join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidelog_events::domain::{Audience, Domain, Registry};
use tidelog_events::ids::DeviceType;
use tidelog_events::outcome::Outcome;
use tidelog_events::position::Place;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};
use uuid::Uuid;

/// Loads the world of a chunk. One round trip on the normal path; children and pasts only where needed.
pub(crate) async fn load(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
) -> Result<World, ProjectorError> {
    let parents = events.iter().map(|arrived| arrived.record().clone()).collect();
    let mut world = load_with_children(session, registry, events, parents).await?;
    load_rest(session, registry, events, &mut world).await?;
    Ok(world)
}

/// The records of a chunk with everything that hangs on the same parent, so that what the chunks after it do to any of them needs no
/// other look.
pub(crate) async fn load_families(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
) -> Result<World, ProjectorError> {
    let heads = events.iter().map(|arrived| arrived.head().clone()).collect();
    load_with_children(session, registry, events, heads).await
}

/// The records of a chunk, and what hangs on these parents.
async fn load_with_children(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
    parents: BTreeSet<RecordKey>,
) -> Result<World, ProjectorError> {
    let mut world = World::default();
    load_states(session, registry, events, &mut world).await?;
    load_children(session, registry, events, parents, &mut world).await?;
    Ok(world)
}

/// What the fold asks of the past of records whose states are known: the conflicts that are resolved, and where an event may be a
/// repeat or is behind, what its record was.
pub(crate) async fn load_rest(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
    world: &mut World,
) -> Result<(), ProjectorError> {
    load_conflicts(session, events, world).await?;
    let needed = needed_pasts(events, world);
    if !needed.is_empty() {
        load_pasts(session, registry, events, needed, world).await?;
    }
    Ok(())
}

/// What became of events that were folded before without applying.
pub(crate) async fn load_known(
    session: &mut Session,
    events: &[Arc<Arrived>],
    world: &mut World,
) -> Result<(), ProjectorError> {
    let known = known_events(session, events).await?;
    let found = known.ask(session.client()).await?;
    note_known(&found, events, world)
}

fn note_known(found: &[Row], events: &[Arc<Arrived>], world: &mut World) -> Result<(), ProjectorError> {
    for row in found {
        if let Some(arrived) = numbered(row, events)? {
            let outcome = read_outcome(&get::<String>(row, "detail")?)?;
            let record = world.records.entry(arrived.record().clone()).or_default();
            let at = get(row, "logged_at")?;
            record.past.note(arrived.key(), None, at, outcome);
        }
    }
    Ok(())
}

/// The states of the records and of those that they hang on, and what became of the same events before.
async fn load_states(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
    world: &mut World,
) -> Result<(), ProjectorError> {
    let mut keys: BTreeMap<Arc<str>, BTreeSet<RecordKey>> = BTreeMap::new();
    for arrived in events {
        for key in [Some(arrived.record()), arrived.parent_record()]
            .into_iter()
            .flatten()
        {
            keys.entry(key.table.clone()).or_default().insert(key.clone());
        }
    }
    let mut states = Vec::with_capacity(keys.len());
    for (table, keys) in keys {
        let Some(domain) = registry.by_table(&table) else {
            continue;
        };
        let keys: Vec<RecordKey> = keys.into_iter().collect();
        states.push((states_of(session, domain, &keys).await?, keys));
    }
    let known = known_events(session, events).await?;
    // Sent together: neither waits for the other's answer.
    let client = session.client();
    let (states_found, known_found) = futures_util::try_join!(
        try_join_all(states.iter().map(|(lookup, _)| lookup.ask(client))),
        known.ask(client),
    )?;
    for ((_, keys), rows) in states.iter().zip(&states_found) {
        for row in rows {
            if let Some(key) = numbered(row, keys)? {
                world.records.entry(key.clone()).or_default().state = Some(Arc::new(read_state(row)?));
            }
        }
    }
    note_known(&known_found, events, world)
}

fn state_columns(domain: &Domain) -> String {
    let audience = if domain.visibility.stores_audience() {
        "r.audience"
    } else {
        "NULL::text[] AS audience"
    };
    format!(
        "r.version, r.deleted, r.doc::text AS doc, r.owner_id, r.created_at, r.user_id, r.device_id, r.device_type, r.updated_at, \
         r.last_sync_timestamp, r.run_from, r.ahead_base, r.partition, r.\"offset\", {audience}"
    )
}

/// A statement with its parameters, ready to be sent beside others.
struct Lookup {
    statement: Statement,
    parameters: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Lookup {
    async fn ask(&self, client: &Client) -> Result<Vec<Row>, tokio_postgres::Error> {
        let parameters: Vec<&(dyn ToSql + Sync)> = self.parameters.iter().map(|p| p.as_ref() as _).collect();
        client.query(&self.statement, &parameters).await
    }
}

/// What a row's number `n` stands for in the list that was asked about.
pub(crate) fn numbered<'a, T>(row: &Row, asked: &'a [T]) -> Result<Option<&'a T>, ProjectorError> {
    let at: i64 = get(row, "n")?;
    Ok(usize::try_from(at).ok().and_then(|at| asked.get(at)))
}

async fn states_of(
    session: &mut Session,
    domain: &Domain,
    keys: &[RecordKey],
) -> Result<Lookup, ProjectorError> {
    let id = domain.id_column();
    let cast = if domain.is_entity() { "::uuid" } else { "" };
    let parent = if domain.parent.is_some() {
        "AND r.parent_id = k.parent"
    } else {
        ""
    };
    let sql = format!(
        "SELECT k.n, {columns} FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[]) AS k(n, tenant, subject, parent) \
         JOIN {table} r ON r.tenant_id = k.tenant AND r.{id} = k.subject{cast} {parent}",
        columns = state_columns(domain),
        table = domain.table,
    );
    let numbers: Vec<i64> = (0..keys.len() as i64).collect();
    let tenants: Vec<String> = keys.iter().map(|key| key.tenant.to_string()).collect();
    let subjects: Vec<String> = keys.iter().map(|key| key.subject.to_string()).collect();
    let parents: Vec<Option<Uuid>> = keys.iter().map(|key| key.parent).collect();
    Ok(Lookup {
        statement: session.prepare(&sql).await?,
        parameters: vec![
            Box::new(numbers),
            Box::new(tenants),
            Box::new(subjects),
            Box::new(parents),
        ],
    })
}

fn read_state(row: &Row) -> Result<State, ProjectorError> {
    let audience: Option<Vec<String>> = get(row, "audience")?;
    Ok(State {
        version: get(row, "version")?,
        deleted: get(row, "deleted")?,
        doc: read_doc(&get::<String>(row, "doc")?)?,
        owner: get::<&str>(row, "owner_id")?.into(),
        created_at: get(row, "created_at")?,
        user: get::<&str>(row, "user_id")?.into(),
        device: get::<&str>(row, "device_id")?.into(),
        device_type: read_device_type(row)?,
        item_time: get(row, "updated_at")?,
        changed_at: get(row, "last_sync_timestamp")?,
        run_from: get(row, "run_from")?,
        ahead_base: get(row, "ahead_base")?,
        audience: audience.map(Audience),
        place: Place {
            partition: get(row, "partition")?,
            offset: get(row, "offset")?,
        },
    })
}

pub(crate) fn read_device_type(row: &Row) -> Result<Option<DeviceType>, ProjectorError> {
    let Some(text) = get::<Option<&str>>(row, "device_type")? else {
        return Ok(None);
    };
    let read = DeviceType::parse(text);
    read.map(Some)
        .ok_or_else(|| ProjectorError::Stored(format!("the device type {text:?}")))
}

pub(crate) fn read_doc(text: &str) -> Result<Doc, ProjectorError> {
    Doc::parse(text).ok_or_else(|| ProjectorError::Stored("a document is no object".into()))
}

/// The children of parents that exist already: what becomes of these may reach them.
async fn load_children(
    session: &mut Session,
    registry: &Registry,
    events: &[Arc<Arrived>],
    parents: BTreeSet<RecordKey>,
    world: &mut World,
) -> Result<(), ProjectorError> {
    let Some(first) = events.first() else {
        return Ok(());
    };
    for domain in &registry.on_topic(&first.domain.topic) {
        for child in child_domains(registry, domain) {
            let of_domain = parents.iter().filter(|key| *key.table == *domain.table);
            let parents: Vec<RecordKey> = of_domain.cloned().collect();
            if !parents.is_empty() {
                load_children_of(session, child, &parents, world).await?;
            }
        }
    }
    Ok(())
}

async fn load_children_of(
    session: &mut Session,
    child: &Domain,
    parents: &[RecordKey],
    world: &mut World,
) -> Result<(), ProjectorError> {
    let sql = format!(
        "SELECT k.n, r.{id}::text AS subject, r.parent_id, {columns} FROM unnest($1::bigint[], $2::text[], $3::text[]) AS k(n, tenant, parent) \
         JOIN {table} r ON r.tenant_id = k.tenant AND r.parent_id = k.parent::uuid",
        id = child.id_column(),
        columns = state_columns(child),
        table = child.table,
    );
    let numbers: Vec<i64> = (0..parents.len() as i64).collect();
    let tenants: Vec<&str> = parents.iter().map(|key| &*key.tenant).collect();
    let subjects: Vec<&str> = parents.iter().map(|key| &*key.subject).collect();
    for row in session.query(&sql, &[&numbers, &tenants, &subjects]).await? {
        let at: i64 = get(&row, "n")?;
        let Some(parent) = usize::try_from(at).ok().and_then(|at| parents.get(at)) else {
            continue;
        };
        let key = RecordKey::new(Identity {
            table: child.table.clone(),
            tenant: parent.tenant.clone(),
            subject: get::<&str>(&row, "subject")?.into(),
            parent: Some(get(&row, "parent_id")?),
        });
        world.records.entry(key.clone()).or_default().state = Some(Arc::new(read_state(&row)?));
        world.children.entry(parent.clone()).or_default().insert(key);
    }
    Ok(())
}

/// Events that were folded before without applying: their outcome stands, whatever the record became since. The table
/// holds only what did not apply, so that this probe of every event is a probe of a small index.
async fn known_events(session: &mut Session, events: &[Arc<Arrived>]) -> Result<Lookup, ProjectorError> {
    const SQL: &str = "SELECT k.n, o.logged_at, o.detail::text AS detail FROM unnest($1::bigint[], $2::text[], $3::uuid[], $4::int[]) \
                       AS k(n, tenant, batch, index) JOIN outcomes o ON o.tenant_id = k.tenant AND o.batch_id = k.batch \
                       AND o.batch_index = k.index";
    let numbers: Vec<i64> = (0..events.len() as i64).collect();
    let tenants: Vec<String> = events
        .iter()
        .map(|arrived| arrived.event.tenant.as_str().to_owned())
        .collect();
    let batches: Vec<Uuid> = events.iter().map(|arrived| arrived.event.batch.0).collect();
    let indexes: Vec<i32> = events.iter().map(|arrived| arrived.event.index as i32).collect();
    Ok(Lookup {
        statement: session.prepare(SQL).await?,
        parameters: vec![
            Box::new(numbers),
            Box::new(tenants),
            Box::new(batches),
            Box::new(indexes),
        ],
    })
}

pub(crate) fn read_outcome(text: &str) -> Result<Outcome, ProjectorError> {
    serde_json::from_str(text).map_err(|error| ProjectorError::Stored(format!("an outcome: {error}")))
}
