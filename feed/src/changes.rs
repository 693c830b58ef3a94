//! `GET /api/v1/{domain}/changes`: one page, from nothing, a cursor or a time. Puts walk, scan and search together;
//! each of them answers for its own exactness.
//!
//! What a page promises: whoever follows the cursor until `has_more` is false holds everything that was applied and
//! theirs to see when the last page was made; and a pull since `next_timestamp` misses nothing that this page, and
//! those before it, have not told.

use chrono::DateTime;

use crate::cursor::Cursor;
use crate::error::FeedError;
use crate::page::Page;
use crate::query::{Pull, Start};
use crate::reading::Reading;
use crate::scan::{self, End};
use crate::since;
use crate::snapshot::{self, Walked};

/// A page with its end, and where the next one begins.
pub(crate) struct Pulled {
    pub(crate) page: Page,
    pub(crate) end: End,
    pub(crate) cursor: Cursor,
}

/// Makes one page.
pub(crate) async fn pull(reading: &Reading<'_>, asked: Pull) -> Result<Pulled, FeedError> {
    let mut page = Page::new(asked.limit);
    let (mut cursor, anew, since) = match asked.start {
        Start::Anew => (Cursor::default(), true, None),
        Start::Cursor(cursor) => (cursor, false, None),
        Start::Since(since) => (since::locate(reading, since).await?, false, Some(since)),
    };
    if anew || cursor.walk.is_some() {
        match snapshot::walk(reading, &mut cursor, &mut page).await? {
            // Of what is left of the walk no time can be told: a pull by time starts from the first change.
            Walked::Partly => {
                let end = End {
                    has_more: true,
                    next_timestamp: DateTime::UNIX_EPOCH,
                };
                return Ok(Pulled { page, end, cursor });
            }
            Walked::Through(batch) => {
                let spots = &mut cursor;
                let ahead =
                    |place: &crate::reading::Place| place.next_offset > spots.spot(place.partition).next;
                if !batch.places.iter().any(ahead) {
                    let end = End {
                        has_more: false,
                        next_timestamp: batch.applied_through(),
                    };
                    return Ok(Pulled { page, end, cursor });
                }
            }
        }
    }
    let end = scan::follow(reading, &mut cursor, &mut page, since).await?;
    Ok(Pulled { page, end, cursor })
}
