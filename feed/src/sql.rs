//! The statements of a domain, made once from its definition. Table and column names come from checked definitions;
//! everything a caller sends is a parameter. Knows which columns there are and what each statement's plan relies on,
//! but not when or in which order statements run.
//!
//! Parameters that several statements share: the tenant is always `$1`. A *reader* is an array, or null for somebody
//! who sees all of the tenant: audience entries where the domain stores an audience, else the owner's id. *Filters*
//! are an array with a value or null for each filter of the definition, or null for none at all.

use tidelog_events::domain::{Domain, FieldType, Filter, Visibility};

mod past;
mod sums;

pub(crate) use past::ConflictStatements;
pub(crate) use sums::SumStatements;

/// The texts for one domain.
#[derive(Debug)]
pub(crate) struct Statements {
    /// The first rows in the order of their identity. `$2` topic, `$3` reader, `$4` filters, `$5` how many.
    pub(crate) walk_first: String,
    /// The same after `$6`, an identity as text, and in a domain of children `$7`, the parent's.
    pub(crate) walk_next: String,
    /// The feed from a place in each partition, merged by log time. `$2` topic, `$3` reader, `$4` filters,
    /// `$5` partitions, `$6` offsets, `$7` how many a partition, `$8` how many together; in a domain of children
    /// `$9`, the identity last read at each offset. What is read lies after (offset, identity) there, else from the
    /// offset on.
    pub(crate) follow: String,
    /// For each partition the first offset at which the tenant has a change at or after a time, and whether some may be gone. `$2`
    /// topic, `$3` time.
    pub(crate) since: String,
    /// One record. `$2` the spellings of its identity, the preferred one first, `$3` reader.
    pub(crate) record: String,
    /// What became of one record, in a domain of entities; see `past`.
    pub(crate) history: Option<String>,
    /// What became of a batch's items, of those that applied to this domain. `$2` batch.
    pub(crate) outcomes: String,
    /// What a reader holds at a cursor; see `sums`.
    pub(crate) sums: SumStatements,
}

impl Statements {
    pub(crate) fn of(domain: &Domain) -> Statements {
        let names = Names::of(domain);
        Statements {
            walk_first: names.walk(""),
            walk_next: names.walk(&names.beyond()),
            follow: names.follow(),
            since: names.since(),
            record: names.record(),
            history: domain.is_entity().then(|| names.history()),
            outcomes: names.outcomes(),
            sums: SumStatements::of(&names),
        }
    }
}

/// The positions of a topic, in the columns that `walk` and `follow` share: whether it is a place, partition, offset,
/// time, identity, parent, version (of a place the floor), removed, last_sync_timestamp, doc.
const PLACES: &str = r#"SELECT true, p.partition, p.next_offset, p.applied_through,
       NULL::text, NULL::uuid, p.feed_floor, false, NULL::timestamptz, NULL::text"#;

/// What the pieces of a statement are called in one domain.
struct Names<'a> {
    domain: &'a Domain,
    rows: &'a str,
    changes: String,
    id: &'static str,
    /// Whether records hang on a parent, which is then part of their key.
    child: bool,
}

impl<'a> Names<'a> {
    fn of(domain: &'a Domain) -> Names<'a> {
        Names {
            domain,
            rows: &domain.table,
            changes: domain.changes_table(),
            id: domain.id_column(),
            child: domain.parent.is_some(),
        }
    }

    /// The row's key without the tenant.
    fn key(&self) -> String {
        match self.child {
            true => format!("{}, parent_id", self.id),
            false => self.id.to_owned(),
        }
    }

    fn parent(&self, table: &str) -> String {
        match self.child {
            true => format!("{table}.parent_id"),
            false => "NULL::uuid".to_owned(),
        }
    }

    /// Whether the reader sees row `r`, were it not deleted.
    fn sees(&self, reader: &str) -> String {
        match self.domain.visibility {
            Visibility::Tenant => format!("({reader}::text[] IS NULL)"),
            Visibility::Owner { .. } => format!("({reader}::text[] IS NULL OR r.owner_id = ANY ({reader}))"),
            Visibility::Scoped { .. } | Visibility::Parent => format!("(r.audience && {reader}::text[])"),
        }
    }

    /// Whether the change `s` took the record out of what the reader of `r` sees.
    fn lost(&self, reader: &str) -> String {
        match self.domain.visibility.stores_audience() {
            true => format!(
                "(coalesce(s.audience_before && {reader}::text[], false) AND NOT s.audience && {reader}::text[])"
            ),
            false => format!("(s.operation = 'delete' AND {})", self.sees(reader)),
        }
    }

    /// Whether row `r` passes the filters.
    fn passes(&self, filters: &str) -> String {
        let each = self.domain.filters.iter().enumerate().map(|(at, filter)| {
            let value = format!("({filters}::text[])[{}]", at + 1);
            format!(
                "\n            AND ({value} IS NULL OR {})",
                comparison(self.domain, filter, &value)
            )
        });
        format!(
            "({filters}::text[] IS NULL OR (true{}))",
            each.collect::<String>()
        )
    }

    /// Row `r`'s document. A telemetry item may hold a field that is called like its identity's column.
    fn document(&self) -> &'static str {
        match self.domain.is_entity() {
            true => "r.doc::text",
            false => "CASE WHEN r.doc ? 'item_id' THEN (r.doc - 'item_id')::text ELSE r.doc::text END",
        }
    }

    fn beyond(&self) -> String {
        match (self.child, self.domain.is_entity()) {
            (true, _) => format!(
                "\n        AND ({}, parent_id) > ($6::text::uuid, $7::uuid)",
                self.id
            ),
            (false, true) => format!("\n        AND {} > $6::text::uuid", self.id),
            (false, false) => format!("\n        AND {} > $6::text", self.id),
        }
    }

    /// Plan: index scan of the rows' key in its order, stopped by the limit; positions by their key.
    fn walk(&self, beyond: &str) -> String {
        format!(
            r#"{PLACES}
  FROM positions p
 WHERE p.topic = $2
UNION ALL
SELECT false, NULL::integer, NULL::bigint, NULL::timestamptz,
       r.{id}::text, {parent}, r.version, false, r.last_sync_timestamp,
       CASE WHEN NOT r.deleted AND {sees} AND {passes} THEN {document} END
  FROM (
    SELECT *
      FROM {rows}
     WHERE tenant_id = $1{beyond}
     ORDER BY {key}
     LIMIT $5
  ) r"#,
            id = self.id,
            parent = self.parent("r"),
            sees = self.sees("$3"),
            passes = self.passes("$4"),
            document = self.document(),
            rows = self.rows,
            key = self.key(),
        )
    }

    /// What `places` and its like say of a cursor's place `c`: where it starts, after what, and the third of the
    /// cursor's arrays with its name.
    fn place_columns(&self, after: &str) -> (&'static str, String, String, &'static str) {
        match self.child {
            true => (
                "coalesce(c.start, -1)",
                format!(", coalesce(c.after, '{}'::uuid) AS after", uuid::Uuid::max()),
                format!(", {after}::uuid[]"),
                ", after",
            ),
            false => ("coalesce(c.start, 0)", String::new(), String::new(), ""),
        }
    }

    /// That a change lies after place `p`.
    fn beyond_place(&self) -> String {
        match self.child {
            true => format!(r#"("offset", {}) > (p.start, p.after)"#, self.id),
            false => r#""offset" >= p.start"#.to_owned(),
        }
    }

    /// The places to read from, by the cursor's arrays. Children are read after (offset, identity), so their place
    /// without an identity is the end of the offset before.
    fn places(&self) -> String {
        let (start, after, array, name) = self.place_columns("$9");
        format!(
            r#"SELECT p.partition, p.next_offset, p.applied_through, p.feed_floor, {start} AS start{after}
      FROM positions p
      LEFT JOIN unnest($5::integer[], $6::bigint[]{array}) AS c (partition, start{name}) ON c.partition = p.partition
     WHERE p.topic = $2"#
        )
    }

    /// The next changes of all places, merged.
    fn scanned(&self) -> String {
        let (id, changes) = (self.id, &self.changes);
        let from = self.beyond_place();
        let order = match self.child {
            true => format!(r#""offset", {id}"#),
            false => r#""offset""#.to_owned(),
        };
        let parent = if self.child { ", parent_id" } else { "" };
        let audience = match self.domain.visibility.stores_audience() {
            true => ", audience_before, audience",
            false => "",
        };
        format!(
            r#"SELECT c.*
      FROM places p
     CROSS JOIN LATERAL (
        SELECT partition, "offset", changed_at, {id}, version, operation{parent}{audience}
          FROM {changes}
         WHERE tenant_id = $1 AND partition = p.partition AND {from}
         ORDER BY {order}
         LIMIT $7
     ) c
     WHERE p.start < p.next_offset
     ORDER BY c.changed_at, c.partition, c."offset", c.{id}
     LIMIT $8"#
        )
    }

    /// A document only at its record's last change; a removal only where the reader does not see the record now.
    /// Plan: for each place an index scan of the feed's key in its order, stopped by `$7`; a top-N sort over these;
    /// then one probe of the rows' key for each.
    fn follow(&self) -> String {
        format!(
            r#"WITH places AS MATERIALIZED (
    {places}
), scanned AS (
    {scanned}
)
{PLACES}
  FROM places p
UNION ALL
SELECT false, s.partition, s."offset", s.changed_at,
       s.{id}::text, {parent}, CASE WHEN now.hidden THEN s.version ELSE r.version END,
       coalesce(now.hidden AND {lost}, false), r.last_sync_timestamp,
       CASE WHEN NOT now.hidden AND r.partition = s.partition AND r."offset" = s."offset" AND {passes}
            THEN {document} END
  FROM scanned s
  LEFT JOIN {rows} r ON r.tenant_id = $1 AND r.{id} = s.{id}{same_parent}
 CROSS JOIN LATERAL (SELECT r.deleted OR NOT {sees} AS hidden) now"#,
            places = self.places(),
            scanned = self.scanned(),
            id = self.id,
            rows = self.rows,
            same_parent = if self.child {
                " AND r.parent_id = s.parent_id"
            } else {
                ""
            },
            parent = self.parent("s"),
            lost = self.lost("$3"),
            sees = self.sees("$3"),
            passes = self.passes("$4"),
            document = self.document(),
        )
    }

    /// A binary search in each partition above its floor, as log times never fall there. Each step asks for the tenant's first change
    /// at or after the middle. Plan: one probe of the feed's key a step.
    fn since(&self) -> String {
        format!(
            r#"WITH RECURSIVE search (partition, gone, low, high) AS (
    SELECT partition, feed_floor > 0 AND feed_floor_at > $3, feed_floor, next_offset
      FROM positions
     WHERE topic = $2
    UNION ALL
    SELECT s.partition, s.gone,
           CASE WHEN probe.changed_at < $3 THEN probe."offset" + 1 ELSE s.low END,
           CASE WHEN probe.changed_at < $3 THEN s.high ELSE s.middle END
      FROM (SELECT partition, gone, low, high, (low + high) / 2 AS middle FROM search WHERE low < high) s
      LEFT JOIN LATERAL (
        SELECT "offset", changed_at
          FROM {changes}
         WHERE tenant_id = $1 AND partition = s.partition AND "offset" >= s.middle
         ORDER BY "offset"
         LIMIT 1
      ) probe ON true
)
SELECT partition, max(low), bool_or(gone) FROM search GROUP BY partition"#,
            changes = self.changes,
        )
    }

    /// Plan: one probe of the rows' key for each spelling.
    fn record(&self) -> String {
        let (id, key_type) = (self.id, if self.domain.is_entity() { "uuid" } else { "text" });
        format!(
            r#"SELECT r.{id}::text, r.version, r.last_sync_timestamp, {document}
  FROM {rows} r
 WHERE r.tenant_id = $1 AND r.{id} = ANY ($2::text[]::{key_type}[]) AND NOT r.deleted AND {sees}
 ORDER BY array_position($2::text[], r.{id}::text), {key}
 LIMIT 1"#,
            document = self.document(),
            rows = self.rows,
            sees = self.sees("$3"),
            key = self.key(),
        )
    }

    /// Plan: index scan by batch. What a parent's event did to its children is no item of the batch.
    fn outcomes(&self) -> String {
        format!(
            r#"SELECT {name} AS domain, c.{id}::text AS subject, c.batch_index, c.user_id, c.operation, c.version,
       c.conflict_id, c.changed_at AS logged_at, NULL::jsonb AS detail
  FROM {changes} c
 WHERE c.batch_id = $2 AND c.tenant_id = $1 AND c.operation <> 'audience'"#,
            name = literal(&self.domain.name),
            id = self.id,
            changes = self.changes,
        )
    }
}

/// All outcomes of a batch: what applied, from the domains' own statements, and what did not. `$1` tenant, `$2` batch.
pub(crate) fn all_outcomes<'a>(domains: impl Iterator<Item = &'a Statements>) -> String {
    let applied: String = domains
        .map(|statements| format!("{}\nUNION ALL\n", statements.outcomes))
        .collect();
    format!(
        r#"SELECT o.domain, o.subject, o.batch_index, o.user_id, o.operation, o.version, o.logged_at, o.detail,
       o.conflict_id, k.policy, k.winner, k.result_version, k.client_version, k.strategy,
       coalesce(k.resolved_batch_id = $2, false) AS resolves
  FROM (
{applied}SELECT domain, subject, batch_index, user_id, NULL, NULL, NULL, logged_at, detail
  FROM outcomes
 WHERE tenant_id = $1 AND batch_id = $2
  ) o
  LEFT JOIN conflicts k ON k.conflict_id = o.conflict_id AND k.tenant_id = $1"#
    )
}

/// How row `r` compares with a filter's value, which is text in the form that the field is stored in.
fn comparison(domain: &Domain, filter: &Filter, value: &str) -> String {
    let (name, from) = match filter {
        Filter::Equals { field, .. } => (field, false),
        Filter::From { field, .. } => (field, true),
    };
    let stored = format!("(r.doc ->> {})", literal(name));
    let (column, kind) = match domain.field(name) {
        Some(field) => (field.column.then(|| format!("r.\"{name}\"")), Some(&field.kind)),
        None => (None, None),
    };
    match kind {
        _ if from => format!(
            "{} >= {value}::timestamptz",
            column.unwrap_or(format!("instant{stored}"))
        ),
        Some(FieldType::DateTime { .. }) => {
            format!(
                "{} = {value}::timestamptz",
                column.unwrap_or(format!("instant{stored}"))
            )
        }
        Some(FieldType::Number { .. }) => {
            format!(
                "{} = {value}::double precision",
                column.unwrap_or(format!("{stored}::double precision"))
            )
        }
        Some(FieldType::Uuid) => format!("lower({stored}) = {value}"),
        // A promoted whole number or boolean has another type than its text.
        Some(FieldType::Integer { .. } | FieldType::Boolean) => format!("{stored} = {value}"),
        _ => format!("{} = {value}", column.unwrap_or(stored)),
    }
}

/// A text as an SQL literal; only ever a name out of a definition.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
