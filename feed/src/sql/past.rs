//! The statements about what became of records: a record's history, and the conflicts of a tenant. Like their
//! neighbours they are made once from the definitions, and everything a caller sends is a parameter.
//!
//! A *reader* is here an array or null as elsewhere, but null sees all of the tenant in domains with an audience too.

use tidelog_events::domain::{Domain, Visibility};

use super::{Names, literal};

/// The texts about conflicts. They are one table for all domains, but who sees a record is each domain's to say.
///
/// Parameters that both share: `$1` tenant, `$2` the caller's user, `$3` the domains of which the caller sees all,
/// `$4` the caller's audience entries.
#[derive(Debug)]
pub(crate) struct ConflictStatements {
    /// The next conflicts in the order of time, each with whether it is for the page. After `$5` (time) and `$6`
    /// (id), before the time `$7`, `$8` how many; of domain `$9`, device `$10`, and open or not `$11`, each null for
    /// any.
    pub(crate) list: String,
    /// One with both its documents. `$5` its id.
    pub(crate) one: String,
}

const COLUMNS: &str =
    "k.conflict_id, k.domain, k.mobile_id, k.policy, k.winner, k.client_version, k.server_version,
       k.result_version, k.user_id, k.device_id, k.operation, k.occurred_at, k.client_time, k.server_time,
       k.strategy, k.resolved_at, k.resolved_by, k.resolved_device_id, k.resolved_version";

impl ConflictStatements {
    pub(crate) fn of<'a>(domains: impl Iterator<Item = &'a Domain>) -> ConflictStatements {
        let domains: Vec<&Domain> = domains.collect();
        let (visible, standing) = (visible(&domains), standing(&domains));
        ConflictStatements {
            // Plan: index scan by time, stopped by the limit; then, for who does not see all, at most one probe of
            // a table's key for each row.
            list: format!(
                r#"SELECT {COLUMNS},
       ($9::text IS NULL OR k.domain = $9) AND ($10::text IS NULL OR k.device_id = $10)
       AND ($11::boolean IS NULL OR (k.winner = 'none') = $11) AND {visible} AS told
  FROM (
    SELECT *
      FROM conflicts
     WHERE tenant_id = $1 AND (occurred_at, conflict_id) > ($5, $6) AND occurred_at < $7
     ORDER BY occurred_at, conflict_id
     LIMIT $8
  ) k"#
            ),
            // Plan: one probe of the conflicts' key, and of a table's.
            one: format!(
                r#"SELECT {COLUMNS}, k.client_doc::text AS client_doc, k.server_doc::text AS server_doc, k.kept::text AS kept,
       k.resolved_kept::text AS resolved_kept, {standing} AS record_version
  FROM conflicts k
 WHERE k.conflict_id = $5 AND k.tenant_id = $1 AND {visible}"#
            ),
        }
    }
}

/// Whether the caller may see conflict `k`: their own attempt, or one on a record whose past they see. The look-up is
/// a scalar on purpose: an EXISTS could be planned as one scan of the whole table.
fn visible(domains: &[&Domain]) -> String {
    let each: String = domains
        .iter()
        .filter(|domain| domain.is_entity())
        .filter_map(|domain| {
            let reader = match &domain.visibility {
                Visibility::Tenant => return None,
                Visibility::Owner { .. } => "ARRAY[$2]",
                Visibility::Scoped { .. } | Visibility::Parent => "$4",
            };
            let names = Names::of(domain);
            Some(format!(
                "\n            WHEN {name} THEN coalesce((SELECT {sees} FROM {rows} r \
                 WHERE r.tenant_id = $1 AND r.{id} = k.mobile_id{same_parent}), false)",
                name = literal(&domain.name),
                sees = names.sees_past(reader),
                rows = names.rows,
                id = names.id,
                same_parent = names.same_parent_as("r"),
            ))
        })
        .collect();
    // Nobody is without audience entries. Said in this way the parameter has a type even where no domain asks for it.
    let none = "$4::text[] IS NULL";
    let by_domain = match each.is_empty() {
        true => none.to_owned(),
        false => format!("CASE k.domain{each}\n            ELSE {none} END"),
    };
    format!("(k.user_id = $2 OR k.domain = ANY ($3::text[]) OR {by_domain})")
}

/// The version at which the record of conflict `k` is now.
fn standing(domains: &[&Domain]) -> String {
    let each: String = domains
        .iter()
        .filter(|domain| domain.is_entity())
        .map(|domain| {
            let names = Names::of(domain);
            format!(
                "\n            WHEN {name} THEN (SELECT r.version FROM {rows} r WHERE r.tenant_id = $1 AND r.{id} = k.mobile_id{same_parent})",
                name = literal(&domain.name),
                rows = names.rows,
                id = names.id,
                same_parent = names.same_parent_as("r"),
            )
        })
        .collect();
    match each.is_empty() {
        true => "NULL::bigint".to_owned(),
        false => format!("CASE k.domain{each} END"),
    }
}

impl Names<'_> {
    /// Whether the reader sees the past of row `r`: who sees the record, and if it is deleted, who saw it until then,
    /// which are those whom its removal was told to.
    fn sees_past(&self, reader: &str) -> String {
        let sees = self.sees(reader);
        match self.domain.visibility.stores_audience() {
            false => sees,
            true => format!(
                r#"({reader}::text[] IS NULL OR {sees} OR r.deleted AND coalesce((
            SELECT d.audience_before && {reader}::text[] FROM {changes} d
             WHERE d.tenant_id = r.tenant_id AND d.partition = r.partition AND d."offset" = r."offset"
               AND d.{id} = r.{id}), false))"#,
                changes = self.changes,
                id = self.id,
            ),
        }
    }

    /// That conflict `k` is about a child of the same parent as the row `of`. The table knows identities only, and the
    /// same one under another parent is another record; which parent it was is in the item, as the device spelled it.
    fn same_parent_as(&self, of: &str) -> String {
        let Some(parent) = &self.domain.parent else {
            return String::new();
        };
        let spelled = format!("lower(k.client_doc ->> {})", literal(&parent.field));
        format!(
            " AND replace({of}.parent_id::text, '-', '') = translate(replace({spelled}, 'urn:uuid:', ''), '{{}}-', '')"
        )
    }

    /// Newest first: what a record's versions were, from the place `$4` in its chain back, or from its latest one, and
    /// the attempts before the offset `$5` that made no version. `$2` identity, `$3` reader, `$6` how many of each.
    /// All events of a record lie in one partition, so the offset puts both in one order.
    ///
    /// Plan: one probe of the rows' key; one of the feed's key a step, each row naming the offset of the one before;
    /// index scan of the conflicts by record, all of them, and a top-N sort over these.
    pub(super) fn history(&self) -> String {
        let columns = format!(
            r#"c.partition, c."offset", c.previous_offset, c.{}, c.version, c.operation, c.fields, c.before,
           c.user_id, c.device_id, c.changed_at, c.item_time, c.batch_id, c.batch_index, c.conflict_id"#,
            self.id
        );
        format!(
            r#"WITH RECURSIVE seen AS MATERIALIZED (
    SELECT r.{id}, r.partition, r."offset", {parent} AS parent_id
      FROM {rows} r
     WHERE r.tenant_id = $1 AND r.{id} = $2 AND {sees}
     ORDER BY {key}
     LIMIT 1
), past AS (
    SELECT {columns}, 1 AS n
      FROM seen s
      JOIN {changes} c ON c.tenant_id = $1 AND c.partition = s.partition AND c."offset" = coalesce($4::bigint, s."offset")
           AND c.{id} = s.{id}{of_parent}
    UNION ALL
    SELECT {columns}, p.n + 1
      FROM past p
      JOIN {changes} c ON c.tenant_id = $1 AND c.partition = p.partition AND c."offset" = p.previous_offset
           AND c.{id} = p.{id}
     WHERE p.n < $6::bigint
)
SELECT true AS applied, p."offset", p.version, p.operation, p.fields, p.before::text AS before, p.user_id, p.device_id,
       p.changed_at, p.item_time, p.batch_id, p.batch_index, p.conflict_id,
       CASE WHEN k.resolved_batch_id = p.batch_id THEN k.strategy ELSE k.policy END AS policy, k.winner, p.previous_offset
  FROM past p
  LEFT JOIN conflicts k ON k.conflict_id = p.conflict_id AND k.tenant_id = $1
UNION ALL
SELECT false, a."offset", a.server_version, a.operation, ARRAY(SELECT jsonb_object_keys(a.client_doc)), NULL,
       a.user_id, a.device_id, a.occurred_at, a.client_time, a.batch_id, a.batch_index, a.conflict_id, a.policy, a.winner, NULL::bigint
  FROM seen s
 CROSS JOIN LATERAL (
    SELECT *
      FROM conflicts k
     WHERE k.tenant_id = $1 AND k.mobile_id = s.{id} AND k.domain = {name} AND k.partition = s.partition
       AND k.result_version = k.server_version AND k."offset" < $5{attempt_of_parent}
     ORDER BY k."offset" DESC
     LIMIT $6
  ) a"#,
            id = self.id,
            parent = self.parent("r"),
            rows = self.rows,
            sees = self.sees_past("$3"),
            key = self.key(),
            changes = self.changes,
            of_parent = if self.child {
                " AND c.parent_id = s.parent_id"
            } else {
                ""
            },
            name = literal(&self.domain.name),
            attempt_of_parent = self.same_parent_as("s"),
        )
    }
}
