//! The first sync's walk: the rows in the order of their identity, without what was deleted. The place in each
//! partition is pinned with the first page, in its snapshot, and followed once the walk is through: what changes
//! meanwhile is told again, so the walk itself needs no snapshot of its own across pages.

use crate::cursor::{Cursor, Passed};
use crate::error::FeedError;
use crate::page::Page;
use crate::reading::{Batch, Effort, Place, Reading};
use crate::store::Parameter;

/// How far a walk came with one page.
pub(crate) enum Walked {
    /// The page ended first; the cursor says after which row.
    Partly,
    /// Through; the places as they were then.
    Through(Batch),
}

/// Fills the page with the rows after the cursor's, and moves it.
pub(crate) async fn walk(
    reading: &Reading<'_>,
    cursor: &mut Cursor,
    page: &mut Page,
) -> Result<Walked, FeedError> {
    let mut effort = Effort::new();
    loop {
        let most = effort.next(page.room());
        let mut batch = fetch(reading, cursor.walk.as_ref(), most).await?;
        if cursor.walk.is_none() {
            pin(cursor, &batch.places);
        }
        // A walk that takes longer than the feed is kept cannot be followed up.
        batch.reaches(cursor)?;
        let told = page.len();
        for row in &mut batch.rows {
            if row.tells() {
                if page.room() == 0 {
                    return Ok(Walked::Partly);
                }
                row.tell(page)?;
            }
            cursor.walk = Some(Passed {
                id: row.id()?.to_owned(),
                parent: row.parent()?,
            });
        }
        effort.note(batch.rows.len(), page.len() - told);
        if batch.rows.len() < most {
            cursor.walk = None;
            return Ok(Walked::Through(batch));
        }
        if effort.is_enough() || page.room() == 0 {
            return Ok(Walked::Partly);
        }
    }
}

fn pin(cursor: &mut Cursor, places: &[Place]) {
    for place in places {
        cursor.advance(place.partition, place.next_offset);
    }
}

async fn fetch(reading: &Reading<'_>, after: Option<&Passed>, most: usize) -> Result<Batch, FeedError> {
    let (tenant, topic, most) = (reading.tenant, &reading.from.topic, most as i64);
    let statements = &reading.from.statements;
    let mut values: Vec<Parameter<'_>> = vec![&tenant, topic, &reading.reader, &reading.filters, &most];
    let Some(after) = after else {
        return Batch::fetch(reading, &statements.walk_first, &values).await;
    };
    values.push(&after.id);
    if reading.from.is_child() {
        values.push(&after.parent);
    }
    Batch::fetch(reading, &statements.walk_next, &values).await
}
