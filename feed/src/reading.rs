//! What one read works with: which domain, whose eyes, which filters; and the rows that walk and scan both get. The
//! one place that says who sees what of a domain, for the statements in `sql`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tidelog_events::domain::{Domain, Reader, Visibility};
use tidelog_events::ids::Role;
use tidelog_http::auth::Caller;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::cursor::Cursor;
use crate::error::FeedError;
use crate::filter::Values;
use crate::opening::{Closed, Opener};
use crate::page::{self, Document, Page};
use crate::sql::Statements;
use crate::store::{Parameter, Store};

/// The most rows that one statement brings.
const MOST_ROWS: usize = 4000;

/// The rows that one request looks at before it answers with what it has.
const ENOUGH_ROWS: usize = 20_000;

/// A domain as it is read.
#[derive(Debug)]
pub(crate) struct Readable {
    pub(crate) domain: Arc<Domain>,
    /// Its topic, with the deployment's prefix.
    pub(crate) topic: String,
    pub(crate) statements: Statements,
}

/// One read.
pub(crate) struct Reading<'a> {
    pub(crate) store: &'a Store,
    /// What opens sealed values; none where nothing is sealed.
    pub(crate) opener: Option<&'a Opener>,
    pub(crate) from: &'a Readable,
    pub(crate) tenant: &'a str,
    /// Whose eyes, as the statements take them; `None` sees all of the tenant.
    pub(crate) reader: Option<Vec<String>>,
    pub(crate) filters: Option<Values>,
}

/// How far one partition of the topic has been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    pub(crate) next_offset: i64,
    /// Everything in the partition with an earlier log time is applied.
    pub(crate) applied_through: DateTime<Utc>,
    /// Below it the feed may have gaps.
    pub(crate) floor: i64,
}

/// What one statement brought, out of one snapshot.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) places: Vec<Place>,
    pub(crate) rows: Vec<Found>,
}

/// A row, or a change with its row: something for the page, or something to pass over.
pub(crate) struct Found {
    row: Row,
    /// What it puts on the page, if anything.
    entry: Option<String>,
}

/// The order in which changes are told: by log time, then by their place in the log.
pub(crate) type Order = (DateTime<Utc>, i32, i64, Uuid);

impl Readable {
    /// The eyes of a caller.
    pub(crate) fn reader(&self, caller: &Caller) -> Option<Vec<String>> {
        match &self.domain.visibility {
            Visibility::Tenant => None,
            Visibility::Owner { readers } if readers.contains(&caller.role) => None,
            Visibility::Owner { .. } => Some(vec![caller.user.as_str().to_owned()]),
            Visibility::Scoped { .. } | Visibility::Parent => Some(
                Reader {
                    user: &caller.user,
                    role: caller.role,
                }
                .tokens()
                .to_vec(),
            ),
        }
    }

    /// The eyes of a caller on what became of records: their own, and supervisors see it of all.
    pub(crate) fn past_reader(&self, caller: &Caller) -> Option<Vec<String>> {
        match caller.role {
            Role::Supervisor => None,
            _ => self.reader(caller),
        }
    }

    pub(crate) fn is_child(&self) -> bool {
        self.domain.parent.is_some()
    }
}

/// The eyes of a caller on the conflicts of all domains.
pub(crate) struct Sight {
    pub(crate) user: String,
    /// The domains of which they see every conflict.
    pub(crate) whole: Vec<String>,
    /// The audience entries that admit them.
    pub(crate) tokens: Vec<String>,
}

impl Sight {
    /// Supervisors and operators, who may resolve any conflict, see them all.
    pub(crate) fn of<'a>(caller: &Caller, domains: impl Iterator<Item = &'a Readable>) -> Sight {
        let all = matches!(caller.role, Role::Supervisor | Role::Operator);
        let reader = Reader {
            user: &caller.user,
            role: caller.role,
        };
        Sight {
            user: caller.user.as_str().to_owned(),
            whole: domains
                .filter(|from| all || from.past_reader(caller).is_none())
                .map(|from| from.domain.name.clone())
                .collect(),
            tokens: reader.tokens().to_vec(),
        }
    }
}

impl Batch {
    /// What a statement of `walk` or `follow` brings.
    pub(crate) async fn fetch(
        reading: &Reading<'_>,
        sql: &str,
        values: &[Parameter<'_>],
    ) -> Result<Batch, FeedError> {
        let id_column = reading.from.domain.id_column();
        let take = |batch: &mut Batch, row: Row| batch.take(row, id_column);
        let mut batch = reading.store.gather(sql, values, take).await?;
        if let Some(opener) = reading.opener {
            batch.open(reading, opener).await?;
        }
        Ok(batch)
    }

    fn take(&mut self, row: Row, id_column: &str) -> Result<(), FeedError> {
        if row.try_get(0)? {
            self.places.push(Place {
                partition: row.try_get(1)?,
                next_offset: row.try_get(2)?,
                applied_through: row.try_get(3)?,
                floor: row.try_get(6)?,
            });
        } else {
            self.rows.push(Found::of(row, id_column)?);
        }
        Ok(())
    }

    /// Opens the documents. What the server says of them in front is no part of a document, and never sealed.
    async fn open(&mut self, reading: &Reading<'_>, opener: &Opener) -> Result<(), FeedError> {
        let mut closed = Vec::new();
        for found in &mut self.rows {
            let subject = found.id()?.to_owned();
            if let Some(json) = &mut found.entry {
                closed.push(Closed {
                    domain: &reading.from.domain,
                    subject,
                    json,
                });
            }
        }
        opener.open(reading.tenant, closed).await?;
        Ok(())
    }

    /// Refuses a cursor of before what the feed keeps. Of what its statement missed the floor is in the same snapshot.
    pub(crate) fn reaches(&self, cursor: &Cursor) -> Result<(), FeedError> {
        let gone = |place: &Place| cursor.next_in(place.partition) < place.floor;
        match self.places.iter().any(gone) {
            true => Err(FeedError::GoneCursor),
            false => Ok(()),
        }
    }

    /// Every change with an earlier log time is applied, in all partitions. A partition that is missing below
    /// another one has not been applied at all; that one is missing after the last cannot be seen from here.
    pub(crate) fn applied_through(&self) -> DateTime<Utc> {
        let highest = self.places.iter().map(|place| place.partition).max();
        let all = highest.is_some_and(|highest| self.places.len() == highest as usize + 1);
        let least = self.places.iter().map(|place| place.applied_through).min();
        least.filter(|_| all).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

impl Found {
    /// Partition and offset of a change.
    pub(crate) fn spot(&self) -> Result<(i32, i64), FeedError> {
        Ok((self.row.try_get(1)?, self.row.try_get(2)?))
    }

    /// A change's log time.
    pub(crate) fn changed_at(&self) -> Result<DateTime<Utc>, FeedError> {
        Ok(self.row.try_get(3)?)
    }

    pub(crate) fn id(&self) -> Result<&str, FeedError> {
        Ok(self.row.try_get(4)?)
    }

    pub(crate) fn parent(&self) -> Result<Option<Uuid>, FeedError> {
        Ok(self.row.try_get(5)?)
    }

    /// Where a change stands in the order told. Only children can share an offset.
    pub(crate) fn order(&self, child: bool) -> Result<Order, FeedError> {
        let (partition, offset) = self.spot()?;
        let id = if child {
            Uuid::try_parse(self.id()?).unwrap_or_default()
        } else {
            Uuid::nil()
        };
        Ok((self.changed_at()?, partition, offset, id))
    }

    fn of(row: Row, id_column: &str) -> Result<Found, FeedError> {
        let id: &str = row.try_get(4)?;
        let entry = if row.try_get(7)? {
            Some(page::removal(id_column, id, row.try_get(6)?))
        } else if let Some(doc) = row.try_get(9)? {
            let document = Document {
                id,
                version: row.try_get(6)?,
                synced_at: row.try_get(8)?,
                doc,
            };
            Some(document.to_json(id_column))
        } else {
            None
        };
        Ok(Found { row, entry })
    }

    /// Whether it is something for the page.
    pub(crate) fn tells(&self) -> bool {
        self.entry.is_some()
    }

    /// Puts what it tells on the page.
    pub(crate) fn tell(&mut self, page: &mut Page) -> Result<(), FeedError> {
        if let Some(entry) = self.entry.take() {
            page.put(self.id()?, self.parent()?, entry);
        }
        Ok(())
    }
}

/// How many rows the next statement is to bring. Most rows are for the page in most domains, but where a caller sees
/// few of many, or a record changed often, it takes more rows to fill one; and a request's work has a bound.
pub(crate) struct Effort {
    rows: usize,
    told: usize,
}

impl Effort {
    pub(crate) fn new() -> Effort {
        Effort { rows: 0, told: 0 }
    }

    /// Rows to ask for, where the page has room for so many entries: one more than fit, to see whether more follows.
    pub(crate) fn next(&self, room: usize) -> usize {
        let expected = match self.rows {
            0 => room,
            rows => (room + 1) * rows / self.told.max(1),
        };
        expected.clamp(room, MOST_ROWS) + 1
    }

    /// Notes what a statement brought and how much of it was for the page.
    pub(crate) fn note(&mut self, rows: usize, told: usize) {
        self.rows += rows;
        self.told += told;
    }

    /// Whether the request has looked at enough.
    pub(crate) fn is_enough(&self) -> bool {
        self.rows >= ENOUGH_ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(places: &[(i32, i64)]) -> Batch {
        let places = places.iter().map(|(partition, seconds)| Place {
            partition: *partition,
            next_offset: 0,
            floor: 0,
            applied_through: DateTime::from_timestamp(*seconds, 0).expect("a time"),
        });
        Batch {
            places: places.collect(),
            rows: Vec::new(),
        }
    }

    #[test]
    fn all_is_applied_only_as_far_as_the_partition_furthest_behind() {
        assert_eq!(batch(&[(0, 9), (1, 5), (2, 7)]).applied_through().timestamp(), 5);
        assert_eq!(batch(&[(0, 9), (2, 7)]).applied_through(), DateTime::UNIX_EPOCH);
        assert_eq!(batch(&[]).applied_through(), DateTime::UNIX_EPOCH);
    }

    #[test]
    fn effort_grows_with_what_had_to_be_passed_over_up_to_its_bound() {
        let mut effort = Effort::new();
        assert_eq!(effort.next(100), 101);
        effort.note(101, 10);
        assert_eq!(effort.next(90), 91 * 101 / 10 + 1);
        effort.note(9_000, 0);
        assert_eq!(effort.next(90), MOST_ROWS + 1);
        assert!(!effort.is_enough());
        effort.note(20_000, 0);
        assert!(effort.is_enough());
    }
}
