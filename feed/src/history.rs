//! `GET /api/v1/{domain}/records/{mobile_id}/history`: every version of a record, and every conflicting attempt that
//! made none, in the order in which the log has them. A record's past is a chain that is walked from its end, so pages
//! go back in time: the first holds the latest entries, each is told oldest first, and the cursor leads to the one
//! before. Must not know who may see what: the statement asks the reader that it is given.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidelog_events::ids::TenantId;
use tidelog_events::token;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::FeedError;
use crate::opening::Closed;
use crate::page::instant;
use crate::query::Query;
use crate::reading::Reading;
use crate::records::ABSENT;

/// Where the page before begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Entries from this offset on have been told.
    #[serde(rename = "b")]
    before: i64,
    /// The next row of the chain; none where all of it has been told.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    chain: Option<i64>,
}

/// No row has this offset.
const NOWHERE: i64 = -1;

/// A row of the statement, with what puts it in order.
struct Found {
    offset: i64,
    applied: bool,
    row: Row,
}

#[derive(Serialize)]
struct Entry<'a> {
    /// The version that it made; for an attempt that made none, the one that it met.
    version: i64,
    applied: bool,
    operation: &'a str,
    user: &'a str,
    device: &'a str,
    /// What it changed, or wanted to.
    fields: Vec<&'a str>,
    before: &'a RawValue,
    changed_at: String,
    client_timestamp: String,
    batch_id: Uuid,
    batch_index: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    conflict_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    winner: Option<&'a str>,
}

#[derive(Serialize)]
struct Page<'a> {
    mobile_id: Uuid,
    items: Vec<Entry<'a>>,
    has_more: bool,
    cursor: Option<String>,
    /// What was before the first of these is not kept any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    forgotten: bool,
}

/// One page of a record's history.
pub(crate) async fn page(
    reading: &Reading<'_>,
    tenant: &TenantId,
    identity: &str,
    query: &Query,
) -> Result<String, FeedError> {
    let limit = query.limit()?;
    let statement = reading.from.statements.history.as_deref().ok_or(ABSENT)?;
    let id = Uuid::try_parse(identity).map_err(|_| ABSENT)?;
    let context = [
        "history",
        tenant.as_str(),
        &reading.from.domain.name,
        &id.to_string(),
    ];
    let place: Option<Place> = query
        .parameter("cursor")?
        .map(|text| token::open(&context, text))
        .transpose()
        .map_err(FeedError::PageCursor)?;
    let chain = place.map(|place| place.chain.unwrap_or(NOWHERE));
    let before = place.map_or(i64::MAX, |place| place.before);
    let most = limit as i64 + 1;
    let values: [crate::store::Parameter<'_>; 6] =
        [&reading.tenant, &id, &reading.reader, &chain, &before, &most];
    let rows = reading.store.query(statement, &values).await?;
    let found = newest_first(rows)?;
    // A record that is there has a past, unless that is forgotten, and a cursor was given out only where there was more.
    if found.is_empty() && !is_there(reading, &id).await? {
        return Err(ABSENT);
    }
    let next = next_place(&found, limit);
    let told = &found[..found.len().min(limit)];
    let befores = befores(reading, &id.to_string(), told).await?;
    let page = Page {
        mobile_id: id,
        // A row that no item made says that its parent is seen by others now, which is no version.
        items: told
            .iter()
            .zip(&befores)
            .rev()
            .filter_map(|(found, before)| entry(found, before).transpose())
            .collect::<Result<_, _>>()?,
        has_more: next.is_some(),
        forgotten: next.is_none() && begins_amid(&found)?,
        cursor: next.map(|place| token::seal(&context, &place)),
    };
    serde_json::to_string(&page).map_err(|error| unreadable(&error))
}

/// Whether the record is there for the reader although nothing is left of its past.
async fn is_there(reading: &Reading<'_>, id: &Uuid) -> Result<bool, FeedError> {
    if reading.from.domain.history.is_none() {
        return Ok(false);
    }
    let spellings = vec![id.to_string()];
    let values: [crate::store::Parameter<'_>; 3] = [&reading.tenant, &spellings, &reading.reader];
    let rows = reading
        .store
        .query(&reading.from.statements.record, &values)
        .await?;
    Ok(!rows.is_empty())
}

/// Whether the first entry that there is names one before it.
fn begins_amid(found: &[Found]) -> Result<bool, FeedError> {
    match found.iter().rev().find(|found| found.applied) {
        Some(first) => Ok(first.row.try_get::<_, Option<i64>>("previous_offset")?.is_some()),
        None => Ok(found.is_empty()),
    }
}

fn newest_first(rows: Vec<Row>) -> Result<Vec<Found>, FeedError> {
    let mut found = rows
        .into_iter()
        .map(|row| {
            Ok(Found {
                applied: row.try_get("applied")?,
                offset: row.try_get("offset")?,
                row,
            })
        })
        .collect::<Result<Vec<_>, FeedError>>()?;
    found.sort_by_key(|found| std::cmp::Reverse(found.offset));
    Ok(found)
}

/// Where to go on, if more was found than the page holds.
fn next_place(found: &[Found], limit: usize) -> Option<Place> {
    let rest = found.get(limit..).filter(|rest| !rest.is_empty())?;
    Some(Place {
        before: found.get(limit.checked_sub(1)?)?.offset,
        chain: rest.iter().find(|found| found.applied).map(|found| found.offset),
    })
}

/// What each row says was there before, opened.
async fn befores(reading: &Reading<'_>, id: &str, told: &[Found]) -> Result<Vec<String>, FeedError> {
    let text = |found: &Found| -> Result<String, FeedError> {
        let before: Option<&str> = found.row.try_get("before")?;
        Ok(before.unwrap_or("{}").to_owned())
    };
    let mut befores = told.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if let Some(opener) = reading.opener {
        let closed = befores.iter_mut().map(|json| Closed {
            domain: &reading.from.domain,
            subject: id.to_owned(),
            json,
        });
        opener.open(reading.tenant, closed.collect()).await?;
    }
    Ok(befores)
}

fn entry<'a>(found: &'a Found, before: &'a str) -> Result<Option<Entry<'a>>, FeedError> {
    let row = &found.row;
    let operation: &str = row.try_get("operation")?;
    if operation == "audience" {
        return Ok(None);
    }
    let mut fields: Vec<&str> = row.try_get("fields")?;
    fields.sort_unstable();
    Ok(Some(Entry {
        version: row.try_get("version")?,
        applied: found.applied,
        operation,
        user: row.try_get("user_id")?,
        device: row.try_get("device_id")?,
        fields,
        before: serde_json::from_str(before).map_err(|error| unreadable(&error))?,
        changed_at: instant(row.try_get("changed_at")?),
        client_timestamp: instant(row.try_get("item_time")?),
        batch_id: row.try_get("batch_id")?,
        batch_index: row.try_get("batch_index")?,
        conflict_id: row.try_get("conflict_id")?,
        resolution: row.try_get("policy")?,
        winner: row.try_get("winner")?,
    }))
}

fn unreadable(error: &serde_json::Error) -> FeedError {
    tracing::error!(%error, "a change cannot be told");
    FeedError::Statement
}
