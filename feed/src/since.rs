//! A time as the start of a pull: for each partition, the first offset at which the tenant has a change at or after
//! it. Found by search over the feed's key, as log times never fall within a partition, so no index serves times.

use chrono::{DateTime, Utc};

use crate::cursor::{Cursor, Spot};
use crate::error::FeedError;
use crate::reading::Reading;

/// The cursor from which everything at or after `since` follows.
pub(crate) async fn locate(reading: &Reading<'_>, since: DateTime<Utc>) -> Result<Cursor, FeedError> {
    let (tenant, topic) = (reading.tenant, &reading.from.topic);
    let rows = reading
        .store
        .query(&reading.from.statements.since, &[&tenant, topic, &since])
        .await?;
    if rows.iter().any(|row| row.try_get(2).unwrap_or(true)) {
        return Err(FeedError::GoneCursor);
    }
    let feed = rows
        .iter()
        .map(|row| {
            Ok(Spot {
                partition: row.try_get(0)?,
                next: row.try_get(1)?,
                after: None,
            })
        })
        .collect::<Result<Vec<Spot>, FeedError>>()?;
    Ok(Cursor {
        feed,
        ..Cursor::default()
    })
}
