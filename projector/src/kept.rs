//! Conflicts in the store, as resolutions need them: read by the ids that these name, and written with what was decided.
//! What a decision is, is not known here.

use crate::ProjectorError;
use crate::chunk::{ResolvedRow, World};
use crate::event::Arrived;
use crate::load::{numbered, read_device_type, read_doc};
use crate::session::Session;
use crate::sheet::{Sheet, get};
use crate::state::{KeptAttempt, Standing};
use crate::write::kept_text;
use std::sync::Arc;
use tidelog_events::batch::BatchId;
use tokio_postgres::Row;
use uuid::Uuid;

/// By key; that it is the record's own keeps a resolution from reaching into another one.
const SQL: &str = "SELECT k.n, c.conflict_id, c.operation, c.winner, c.client_version, c.client_doc::text AS client_doc, \
                          c.user_id, c.device_id, c.client_device_type AS device_type, c.client_time, \
                          c.resolved_batch_id, c.resolved_batch_index, coalesce(c.resolved_at, c.occurred_at) AS at \
                   FROM unnest($1::bigint[], $2::text[], $3::uuid[], $4::text[], $5::text[]) AS k(n, tenant, id, domain, subject) \
                   JOIN conflicts c ON c.conflict_id = k.id AND c.tenant_id = k.tenant AND c.domain = k.domain \
                        AND c.mobile_id = k.subject::uuid";

/// Reads the conflicts that the chunk's resolutions are about. Where there are none, nothing is asked.
pub(crate) async fn load_conflicts(
    session: &mut Session,
    events: &[Arc<Arrived>],
    world: &mut World,
) -> Result<(), ProjectorError> {
    let asking: Vec<(&Arc<Arrived>, Uuid)> = events
        .iter()
        .filter_map(|arrived| Some((arrived, arrived.resolution.as_ref()?.conflict_id)))
        .collect();
    if asking.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = (0..asking.len() as i64).collect();
    let column = |read: fn(&Arrived) -> &str| {
        asking
            .iter()
            .map(|(arrived, _)| read(arrived))
            .collect::<Vec<&str>>()
    };
    let tenants = column(|arrived| arrived.event.tenant.as_str());
    let domains = column(|arrived| &arrived.domain.name);
    let subjects = column(|arrived| &arrived.event.subject);
    let ids: Vec<Uuid> = asking.iter().map(|(_, id)| *id).collect();
    let rows = session
        .query(SQL, &[&numbers, &tenants, &ids, &domains, &subjects])
        .await?;
    for row in &rows {
        if let Some((arrived, id)) = numbered(row, &asking)? {
            let record = world.records.entry(arrived.record().clone()).or_default();
            record.conflicts.insert(*id, read(row)?);
        }
    }
    Ok(())
}

fn read(row: &Row) -> Result<KeptAttempt, ProjectorError> {
    let by: Option<Uuid> = get(row, "resolved_batch_id")?;
    let index: Option<i32> = get(row, "resolved_batch_index")?;
    Ok(KeptAttempt {
        base: get(row, "client_version")?,
        deletes: get::<&str>(row, "operation")? == "delete",
        patch: read_doc(get::<Option<&str>>(row, "client_doc")?.unwrap_or("{}"))?,
        user: get(row, "user_id")?,
        device: get(row, "device_id")?,
        device_type: read_device_type(row)?,
        item_time: get(row, "client_time")?,
        standing: match (by, get::<&str>(row, "winner")?) {
            (Some(by), _) => Standing::Resolved((BatchId(by), index.unwrap_or_default() as u32)),
            (None, "none") => Standing::Open,
            (None, _) => Standing::Decided,
        },
        at: get(row, "at")?,
    })
}

/// What was decided, into the rows of its conflicts; these are there, or stand in a sheet before this one.
pub(crate) fn resolutions(rows: &[ResolvedRow]) -> (String, Sheet) {
    let mut sheet = Sheet::default();
    let events = || rows.iter().map(|row| &row.arrived.event);
    sheet.column("conflict_id", rows.iter().map(|row| row.resolved.conflict_id));
    sheet.column(
        "tenant_id",
        events().map(|event| event.tenant.as_str().to_owned()),
    );
    sheet.column("winner", rows.iter().map(|row| row.resolved.winner.as_str()));
    sheet.column("strategy", rows.iter().map(|row| row.resolved.strategy.as_str()));
    sheet.column("resolved_at", rows.iter().map(|row| row.arrived.log_time));
    sheet.column(
        "resolved_by",
        events().map(|event| event.user.as_str().to_owned()),
    );
    sheet.column(
        "resolved_device_id",
        events().map(|event| event.device.as_str().to_owned()),
    );
    sheet.column("resolved_batch_id", events().map(|event| event.batch.0));
    sheet.column("resolved_batch_index", events().map(|event| event.index as i32));
    sheet.column("resolved_version", rows.iter().map(|row| row.resolved.version));
    sheet.cast(
        "resolved_kept",
        "jsonb",
        rows.iter().map(|row| kept_text(&row.resolved.kept)),
    );
    (sheet.update("conflicts", &["conflict_id", "tenant_id"]), sheet)
}
