//! `GET /api/v1/{domain}/checksum`: the proof for a phone that it holds exactly what it should. Answers how many records
//! the caller has who stands at a cursor, and a sum over them; and by `prefix` the same of parts of them, down to the
//! records themselves, so that a phone whose sum differs gets again what is wrong and not everything.
//!
//! - A record's hash: the first eight bytes, big-endian, of SHA-256 over `<identity>:<version>` in UTF-8.
//! - The sum: of all hashes, modulo 2^64, in sixteen hexadecimal digits. No order counts, and a phone keeps its own by
//!   adding and subtracting as it takes a page.
//! - A range: the records whose SHA-256 over the identity, in hexadecimal digits, begins with a prefix.
//!
//! Must not know how the set at a cursor is made: that is the statements'.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use tidelog_events::domain::Domain;
use tidelog_events::ids::TenantId;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::cursor::{Cursor, Spot};
use crate::error::FeedError;
use crate::query::Query;
use crate::reading::Reading;
use crate::store::Parameter;

/// A range of so many records or fewer is answered by the records themselves.
const FEW: i64 = 200;

/// The longest prefix. Of two identities in a range as narrow as that nobody has ever heard; one identity under many
/// parents is possible, so what is listed there ends at `FEW`.
const LONGEST_PREFIX: usize = 16;

/// What a query asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Where the caller stands; none for where the projection does.
    cursor: Option<Cursor>,
    /// The range; none for a sum over everything, without its parts.
    prefix: Option<String>,
}

/// How many records, and the sum of their hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    count: i64,
    sum: u64,
}

/// What a statement of sums brings.
#[derive(Default)]
struct Sums {
    /// How far each partition is applied.
    places: BTreeMap<i32, i64>,
    /// Below which offset its feed may have gaps.
    floors: BTreeMap<i32, i64>,
    /// By the digit that follows the prefix; NUL where none was asked for.
    ranges: BTreeMap<char, Tally>,
}

/// What a statement of members brings.
#[derive(Default)]
struct Members {
    floors: BTreeMap<i32, i64>,
    /// How often each identity and version is in the set.
    held: BTreeMap<(String, i64), i64>,
}

/// A tally as it is told.
#[derive(Serialize)]
struct Told {
    count: i64,
    hash: String,
}

#[derive(Serialize)]
struct Range {
    prefix: String,
    #[serde(flatten)]
    told: Told,
}

#[derive(Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(flatten)]
    told: Told,
    cursor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranges: Option<Vec<Range>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<Value>>,
}

impl Asked {
    /// What a query about that domain asks for.
    pub(crate) fn of(query: &Query, tenant: &TenantId, domain: &Domain) -> Result<Asked, FeedError> {
        let cursor = query
            .parameter("cursor")?
            .map(|text| Cursor::open(text, tenant, &domain.name, domain.is_entity()))
            .transpose()
            .map_err(FeedError::Cursor)?;
        // Who has pulled by time or by filter holds a part, and would be told that the rest is missing.
        let partial = domain.filters.iter().map(|filter| filter.parameter());
        for name in partial.chain(["since"]) {
            if query.parameter(name)?.is_some() {
                return Err(FeedError::parameter(
                    name,
                    "cannot be used here: a checksum is of everything that the caller sees, at `cursor` or as it is now",
                ));
            }
        }
        let prefix = query.parameter("prefix")?.map(str::to_owned);
        let digits = |text: &String| {
            text.len() <= LONGEST_PREFIX && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !prefix.as_ref().is_none_or(digits) {
            return Err(FeedError::parameter(
                "prefix",
                format!("must be at most {LONGEST_PREFIX} digits of 0-9 and a-f"),
            ));
        }
        match cursor
            .as_ref()
            .is_some_and(|cursor| cursor.more || cursor.walk.is_some())
        {
            true => Err(FeedError::Unfinished),
            false => Ok(Asked { cursor, prefix }),
        }
    }
}

/// The answer's body.
pub(crate) async fn tell(
    reading: &Reading<'_>,
    tenant: &TenantId,
    asked: Asked,
) -> Result<String, FeedError> {
    let sums = sums(reading, &asked).await?;
    let cursor = match asked.cursor {
        Some(cursor) if is_ahead(&cursor, &sums.places) => return Err(FeedError::Ahead),
        Some(cursor) if is_gone(&cursor, &sums.floors) => return Err(FeedError::GoneCursor),
        Some(cursor) => cursor,
        None => standing(&sums.places),
    };
    let whole = sums
        .ranges
        .values()
        .fold(Tally::default(), |whole, part| whole.plus(*part));
    let (mut ranges, mut records) = (None, None);
    if let Some(prefix) = &asked.prefix {
        if whole.count <= FEW || prefix.len() == LONGEST_PREFIX {
            records = Some(members(reading, &cursor, prefix).await?);
        } else {
            ranges = Some(parts(prefix, &sums.ranges));
        }
    }
    let answer = Answer {
        prefix: asked.prefix,
        told: whole.told(),
        cursor: cursor.seal(tenant, &reading.from.domain.name),
        ranges,
        records,
    };
    // Texts and numbers under fixed names: this cannot fail.
    Ok(serde_json::to_string(&answer).unwrap_or_default())
}

/// The cursor's arrays, as the statements take them.
struct Places {
    partitions: Option<Vec<i32>>,
    offsets: Option<Vec<i64>>,
    after: Option<Vec<Option<Uuid>>>,
}

impl Places {
    fn of(cursor: Option<&Cursor>, child: bool) -> Places {
        let feed = cursor.map(|cursor| &cursor.feed);
        // Children are read after (offset, identity): the end of the offset before, or amid one.
        let ends_before = |after: Option<Uuid>| i64::from(child && after.is_none());
        Places {
            partitions: feed.map(|feed| feed.iter().map(|spot| spot.partition).collect()),
            offsets: feed.map(|feed| {
                feed.iter()
                    .map(|spot| spot.next - ends_before(spot.after))
                    .collect()
            }),
            after: feed.map(|feed| feed.iter().map(|spot| spot.after).collect()),
        }
    }

    fn values<'a>(&'a self, reading: &'a Reading<'_>) -> Vec<Parameter<'a>> {
        let mut values: Vec<Parameter<'a>> = vec![
            &reading.tenant,
            &reading.from.topic,
            &reading.reader,
            &self.partitions,
            &self.offsets,
        ];
        if reading.from.is_child() {
            values.push(&self.after);
        }
        values
    }
}

async fn sums(reading: &Reading<'_>, asked: &Asked) -> Result<Sums, FeedError> {
    let statements = &reading.from.statements.sums;
    let places = Places::of(asked.cursor.as_ref(), reading.from.is_child());
    let mut values = places.values(reading);
    let sql = match &asked.prefix {
        None => &statements.whole,
        Some(prefix) => {
            values.push(prefix);
            &statements.ranges
        }
    };
    reading
        .store
        .gather(sql, &values, |sums: &mut Sums, row: Row| sums.take(&row))
        .await
}

/// The records of a range, in the order of their identity. Where somebody stands at a cursor does not change as long
/// as the feed is kept from there, so this need not see what the sums saw.
async fn members(reading: &Reading<'_>, cursor: &Cursor, prefix: &str) -> Result<Vec<Value>, FeedError> {
    let places = Places::of(Some(cursor), reading.from.is_child());
    let mut values = places.values(reading);
    values.push(&prefix);
    let take = |members: &mut Members, row: Row| -> Result<(), FeedError> {
        let Some(adds) = row.try_get::<_, Option<bool>>(0)? else {
            let partition: &str = row.try_get(1)?;
            members
                .floors
                .insert(partition.parse().unwrap_or_default(), row.try_get(2)?);
            return Ok(());
        };
        *members
            .held
            .entry((row.try_get(1)?, row.try_get(2)?))
            .or_default() += if adds { 1 } else { -1 };
        Ok(())
    };
    let Members { floors, held } = reading
        .store
        .gather(&reading.from.statements.sums.members, &values, take)
        .await?;
    if is_gone(cursor, &floors) {
        return Err(FeedError::GoneCursor);
    }
    let id_column = reading.from.domain.id_column();
    let held = held.into_iter().filter(|(_, times)| *times > 0);
    let record = |((id, version), _): ((String, i64), i64)| {
        Value::from(Map::from_iter([
            (id_column.to_owned(), Value::from(id)),
            ("version".to_owned(), Value::from(version)),
        ]))
    };
    Ok(held.take(FEW.unsigned_abs() as usize).map(record).collect())
}

/// All sixteen, those without records too.
fn parts(prefix: &str, ranges: &BTreeMap<char, Tally>) -> Vec<Range> {
    let part = |digit: char| Range {
        told: ranges.get(&digit).copied().unwrap_or_default().told(),
        prefix: format!("{prefix}{digit}"),
    };
    "0123456789abcdef".chars().map(part).collect()
}

/// Whether somebody there has seen what is not applied: after the database was brought back from a backup.
fn is_ahead(cursor: &Cursor, places: &BTreeMap<i32, i64>) -> bool {
    let ahead = |spot: &Spot| spot.next > places.get(&spot.partition).copied().unwrap_or(0);
    cursor.feed.iter().any(ahead)
}

/// Whether what has changed since is not all there any more.
fn is_gone(cursor: &Cursor, floors: &BTreeMap<i32, i64>) -> bool {
    floors
        .iter()
        .any(|(partition, floor)| cursor.next_in(*partition) < *floor)
}

/// The cursor of somebody who has all that is applied.
fn standing(places: &BTreeMap<i32, i64>) -> Cursor {
    let mut cursor = Cursor::default();
    for (partition, next) in places {
        cursor.advance(*partition, *next);
    }
    cursor
}

impl Sums {
    fn take(&mut self, row: &Row) -> Result<(), FeedError> {
        if row.try_get(0)? {
            self.places.insert(row.try_get(1)?, row.try_get(2)?);
            self.floors.insert(row.try_get(1)?, row.try_get(4)?);
            return Ok(());
        }
        let (part, sum): (&str, &str) = (row.try_get(3)?, row.try_get(5)?);
        let part: u32 = part.parse().unwrap_or_default();
        let tally = Tally {
            count: row.try_get(4)?,
            // A sum of whatever many signed numbers of 64 bits stays in 128; of it the last 64 count.
            sum: sum.parse::<i128>().unwrap_or_default() as u64,
        };
        let digit = char::from_u32(part / 2).unwrap_or_default();
        let range = self.ranges.entry(digit).or_default();
        *range = match part % 2 {
            1 => range.plus(tally),
            _ => range.minus(tally),
        };
        Ok(())
    }
}

impl Tally {
    fn plus(self, other: Tally) -> Tally {
        Tally {
            count: self.count + other.count,
            sum: self.sum.wrapping_add(other.sum),
        }
    }

    fn minus(self, other: Tally) -> Tally {
        Tally {
            count: self.count - other.count,
            sum: self.sum.wrapping_sub(other.sum),
        }
    }

    fn told(self) -> Told {
        Told {
            count: self.count,
            hash: format!("{:016x}", self.sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_events::domain::Registry;

    fn asked(pairs: &[(&str, &str)]) -> Result<Asked, String> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let registry = Registry::shipped();
        let tenant = TenantId::parse("acme").expect("a tenant");
        let domain = registry.by_name("helpdesk").expect("a domain");
        Asked::of(&Query(pairs.collect()), &tenant, domain).map_err(|error| error.to_string())
    }

    #[test]
    fn a_prefix_is_lower_hexadecimal_digits_and_not_too_many() {
        for good in ["", "0", "3f", "0123456789abcdef"] {
            assert_eq!(
                asked(&[("prefix", good)]).map(|asked| asked.prefix),
                Ok(Some(good.to_owned()))
            );
        }
        for bad in ["3F", "g", "0123456789abcdef0", "%", "é", "\0"] {
            assert!(
                asked(&[("prefix", bad)]).is_err_and(|text| text.starts_with("prefix must")),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_part_of_what_there_is_has_no_checksum() {
        assert!(asked(&[("priority", "HIGH")]).is_err_and(|text| text.contains("priority cannot")));
        assert!(asked(&[("since", "2026-01-31T09:30:00Z")]).is_err_and(|text| text.contains("since cannot")));
        let tenant = TenantId::parse("acme").expect("a tenant");
        let cursor = Cursor {
            more: true,
            ..Cursor::default()
        };
        let cursor = cursor.seal(&tenant, "helpdesk");
        assert!(asked(&[("cursor", &cursor)]).is_err_and(|text| text.contains("has_more")));
        assert!(asked(&[("cursor", "x")]).is_err_and(|text| text.contains("starts anew")));
    }

    #[test]
    fn sums_go_round_at_two_to_the_sixty_fourth() {
        let (one, most) = (
            Tally { count: 1, sum: 1 },
            Tally {
                count: 2,
                sum: u64::MAX,
            },
        );
        assert_eq!(most.plus(one), Tally { count: 3, sum: 0 });
        assert_eq!(one.minus(most), Tally { count: -1, sum: 2 });
        assert_eq!(one.told().hash, "0000000000000001");
    }
}
