//! The statements about what a reader holds: sums over the records that somebody who stands at a cursor has, and the
//! records of one range of them. Knows how the set at a cursor is made from the rows and the feed, and how a sum is
//! made; `checksum` says what the figures mean to a phone.
//!
//! The set at a cursor is what the rows are now, without the records that have a change after the cursor, and these as
//! the first such change found them: the change says which version it made and who saw the record before. So every
//! statement lists the set in three parts, each with whether it adds to the set or takes from it.
//!
//! Parameters: `$1` tenant, `$2` topic, `$3` reader, `$4` partitions and `$5` offsets of the cursor, null for one that
//! stands where the projection does; in a domain of children `$6`, the identity last read at each offset. The last one
//! is the prefix, but for `whole`.

use super::Names;

/// The texts for one domain.
#[derive(Debug)]
pub(crate) struct SumStatements {
    /// The positions, and the sums of the whole set.
    pub(crate) whole: String,
    /// The positions, and the sums of the sixteen ranges that a prefix is parted into.
    pub(crate) ranges: String,
    /// The records of one range.
    pub(crate) members: String,
}

impl SumStatements {
    pub(super) fn of(names: &Names<'_>) -> SumStatements {
        let last = if names.child { 7 } else { 6 };
        let within = format!("starts_with({PATH}, ${last}::text)");
        let next = format!("substr({PATH}, length(${last}::text) + 1, 1)");
        SumStatements {
            whole: names.sums("''", "true"),
            ranges: names.sums(&next, &within),
            // The floors first, as they are in its own snapshot. Plan: as of the sums.
            members: format!(
                "{}\nSELECT NULL::boolean, p.partition::text, p.feed_floor\n  FROM places p\nUNION ALL\nSELECT h.adds, h.id, h.version\n  FROM held h\n WHERE {within}",
                names.held()
            ),
        }
    }
}

/// Where record `h` lies in the tree of ranges: by a hash, so that the ranges are about equal whatever identities are.
const PATH: &str = "encode(sha256(convert_to(h.id, 'UTF8')), 'hex')";

/// What record `h` adds to a sum.
const HASH: &str = "('x' || encode(substr(sha256(convert_to(h.id || ':' || h.version, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint";

impl Names<'_> {
    /// Positions and sums in the columns that both statements share: whether it is a place, partition, next offset, part,
    /// count (of a place the floor), sum. A part is the digit after the prefix (its character's number, 0 for none), times two, and one more
    /// where the sum adds. Values of the type `xid` cannot be sorted, so they are grouped by a hash table of a few dozen
    /// entries even where the planner, for want of rows, believes that sorting is cheaper.
    ///
    /// Plan: one index scan of the tenant's rows; one of the feed's key from each place on, and one sort of what that
    /// brings; twice one probe of the rows' key for each record found there. OFFSET 0 keeps the latter two by themselves.
    fn sums(&self, digit: &str, within: &str) -> String {
        let part = format!("(ascii({digit}) * 2 + h.adds::integer)::text::xid");
        format!(
            r#"{held}
SELECT true AS place, p.partition, p.next_offset, NULL::text AS part, p.feed_floor AS count, NULL::text AS sum
  FROM places p
UNION ALL
SELECT false, NULL, NULL, ({part})::text, count(*), sum({HASH})::text
  FROM held h
 WHERE {within}
 GROUP BY {part}"#,
            held = self.held(),
        )
    }

    fn held(&self) -> String {
        let (id, row) = (self.id, self.row_of_change());
        format!(
            r#"WITH places AS MATERIALIZED (
    {places}
), later AS MATERIALIZED (
    {later}
), held AS (
    SELECT true AS adds, r.{id}::text AS id, r.version
      FROM {rows} r
     WHERE r.tenant_id = $1 AND NOT r.deleted AND {sees}
    UNION ALL
    SELECT false, r.{id}::text, r.version
      FROM later s
     CROSS JOIN LATERAL ({row}) r
     WHERE NOT r.deleted AND {sees}
    UNION ALL
    SELECT true, r.{id}::text, s.version - CASE s.operation WHEN 'audience' THEN 0 ELSE 1 END
      FROM later s
     CROSS JOIN LATERAL ({row}) r
     WHERE {saw}
)"#,
            places = self.stands(),
            later = self.later(),
            rows = self.rows,
            sees = self.sees("$3"),
            saw = self.saw("$3"),
        )
    }

    /// The cursor's places; one that it doesn't name is at the beginning, as for whoever follows the feed.
    fn stands(&self) -> String {
        let (start, after, array, name) = self.place_columns("$6");
        format!(
            r#"SELECT p.partition, p.next_offset, p.feed_floor,
           CASE WHEN $4::integer[] IS NULL THEN p.next_offset ELSE {start} END AS start{after}
      FROM positions p
      LEFT JOIN unnest($4::integer[], $5::bigint[]{array}) AS c (partition, start{name}) ON c.partition = p.partition
     WHERE p.topic = $2"#
        )
    }

    /// Of each record that has changed since, the first change. All changes of a record lie in one partition.
    fn later(&self) -> String {
        let (key, from) = (self.key(), self.beyond_place());
        let key_of_change: Vec<String> = key.split(", ").map(|column| format!("c.{column}")).collect();
        let key_of_change = key_of_change.join(", ");
        let audience = match self.domain.visibility.stores_audience() {
            true => ", audience_before",
            false => "",
        };
        format!(
            r#"SELECT DISTINCT ON ({key_of_change}) c.*
      FROM places p
     CROSS JOIN LATERAL (
        SELECT partition, "offset", {key}, version, operation, previous_offset{fields}{audience}
          FROM {changes}
         WHERE tenant_id = $1 AND partition = p.partition AND {from}
        OFFSET 0
     ) c
     WHERE p.start < p.next_offset
     ORDER BY {key_of_change}, c."offset""#,
            changes = self.changes,
            fields = if self.domain.history.is_some() {
                ", fields"
            } else {
                ""
            },
        )
    }

    /// Whether the reader of `r` saw the record before the change `s`. A person may decide that a record be deleted
    /// which is so already: what was there before such a change is told by the one before it, or, if that is kept no longer, by
    /// whether it removed anything.
    fn saw(&self, reader: &str) -> String {
        if self.domain.visibility.stores_audience() {
            return format!("coalesce(s.audience_before && {reader}::text[], false)");
        }
        format!(
            r#"{sees} AND CASE s.operation
            WHEN 'create' THEN false
            WHEN 'delete' THEN coalesce((
                SELECT d.operation <> 'delete'
                  FROM {changes} d
                 WHERE d.tenant_id = $1 AND d.partition = s.partition AND d."offset" = s.previous_offset
                   AND d.{id} = s.{id}), {removes})
            ELSE true END"#,
            sees = self.sees(reader),
            changes = self.changes,
            id = self.id,
            removes = if self.domain.history.is_some() {
                "cardinality(s.fields) > 0"
            } else {
                "true"
            },
        )
    }

    /// The row of change `s`.
    fn row_of_change(&self) -> String {
        let parent = match self.child {
            true => " AND parent_id = s.parent_id",
            false => "",
        };
        format!(
            "SELECT * FROM {} WHERE tenant_id = $1 AND {id} = s.{id}{parent} OFFSET 0",
            self.rows,
            id = self.id
        )
    }
}
