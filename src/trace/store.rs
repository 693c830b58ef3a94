//! What Postgres keeps of a tenant's batches, items and conflicts, by the indexes that there are: batches by tenant, feed
//! rows by batch or by the record's chain, outcomes by tenant and batch. Every statement has the tenant first; nothing
//! here reads the log.

use std::collections::HashMap;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog_events::answer::RefusedItem;
use tidelog_events::domain::{Domain, Registry};
use tidelog_events::ids::{DeviceId, TenantId};
use tidelog_events::item::encode_part;
use tidelog_events::outcome::Outcome;
use tidelog_events::topic_name;
use tokio_postgres::types::{Json, ToSql};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::entry::{Batch, Change, Conflict, InLog, Item};
use crate::database::plain;
use crate::look::became::{Became, Undecided};
use crate::look::outcomes::{APPLIED, ITS_CONFLICT, applied, detail};

/// Most items of a domain, of all batches together.
const ITEMS: usize = 5_000;
/// Most open or dealt-with letters that are looked at.
const LETTERS: i64 = 1000;
/// Most changes that are told of one conflict.
const CHANGES: i64 = 20;

/// One tenant's.
pub(super) struct Store<'a> {
    client: &'a Client,
    registry: &'a Registry,
    tenant: &'a str,
    /// What stands before every topic's name.
    prefix: &'a str,
}

const BATCHES: &str = "SELECT b.batch_id, b.received_at, b.domain, b.user_id, b.device_id, b.items, b.appended_items, b.appended, \
     b.refused FROM batches b WHERE b.tenant_id = $1";

impl<'a> Store<'a> {
    pub(super) fn new(
        client: &'a Client,
        registry: &'a Registry,
        tenant: &'a TenantId,
        prefix: &'a str,
    ) -> Store<'a> {
        Store {
            client,
            registry,
            tenant: tenant.as_str(),
            prefix,
        }
    }

    pub(super) fn client(&self) -> &Client {
        self.client
    }

    async fn rows(&self, sql: &str, rest: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&self.tenant];
        values.extend(rest);
        self.client.query(sql, &values).await.map_err(plain)
    }

    /// The newest batches of a device, and whether there are more. Reads the tenant's batches.
    pub(super) async fn of_device(
        &self,
        device: &DeviceId,
        since: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<(Vec<Batch>, bool)> {
        let sql = format!(
            "{BATCHES} AND b.device_id = $2 AND ($3::timestamptz IS NULL OR b.received_at >= $3) \
             ORDER BY b.received_at DESC LIMIT $4"
        );
        let rows = self.rows(&sql, &[&device.as_str(), &since, &(limit + 1)]).await?;
        let limit = usize::try_from(limit)?;
        let mut batches = self.batches(&rows[..rows.len().min(limit)]).await?;
        batches.reverse();
        Ok((batches, rows.len() > limit))
    }

    /// One batch.
    pub(super) async fn batch(&self, batch: Uuid) -> Result<Vec<Batch>> {
        let rows = self
            .rows(&format!("{BATCHES} AND b.batch_id = $2"), &[&batch])
            .await?;
        self.batches(&rows).await
    }

    /// Reads batches, and what is kept under their keys: the tenant's keys are those of a day.
    async fn batches(&self, rows: &[Row]) -> Result<Vec<Batch>> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        const KEYS: &str = "SELECT batch_id, key, hit_count FROM idempotency_records \
                            WHERE tenant_id = $1 AND scope = 'batch' AND batch_id = ANY ($2)";
        let keys = self.rows(KEYS, &[&ids]).await?;
        let keys: HashMap<Uuid, (String, i64)> = keys
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect();
        let batch = |row: &Row| {
            let batch_id: Uuid = row.get(0);
            let unreadable = || format!("what is kept of batch {batch_id} cannot be read");
            let (key, hits) = keys.get(&batch_id).cloned().unzip();
            Ok(Batch {
                batch_id,
                received_at: row.get(1),
                domain: row.get(2),
                user: row.get(3),
                device: row.get(4),
                items: row.get(5),
                appended_items: row.get(6),
                appended: row
                    .try_get::<_, Json<Vec<(String, i32, i64)>>>(7)
                    .with_context(unreadable)?
                    .0,
                refused: row
                    .try_get::<_, Json<Vec<RefusedItem>>>(8)
                    .with_context(unreadable)?
                    .0,
                key,
                hits,
            })
        };
        rows.iter().map(batch).collect()
    }

    /// What became of the items of these batches, and whether that is all of them.
    pub(super) async fn items_of(&self, batches: &[Uuid]) -> Result<(Vec<Item>, bool)> {
        let mut complete = true;
        let mut items = self
            .letters("b.batch = ANY ($3::text[])", &texts(batches))
            .await?;
        for domain in self.registry.iter() {
            let from = format!(
                "(SELECT * FROM {} f WHERE f.batch_id = ANY ($2) AND f.tenant_id = $1 AND f.operation <> 'audience' LIMIT {ITEMS}) c",
                domain.changes_table()
            );
            let rows = self.rows(&feed(domain, &from), &[&batches]).await?;
            complete &= rows.len() < ITEMS;
            self.add_applied(&mut items, domain, &rows)?;
        }
        let sql = format!("{OUTCOMES} AND o.batch_id = ANY ($2) LIMIT {ITEMS}");
        let rows = self.rows(&sql, &[&batches]).await?;
        complete &= rows.len() < ITEMS;
        self.add_others(&mut items, &rows)?;
        Ok((items, complete))
    }

    /// The newest attempts upon a record, and whether there are more. What applied is its chain; what did not is looked
    /// for among all of the tenant's outcomes.
    pub(super) async fn of_record(
        &self,
        domain: &Domain,
        id: &str,
        since: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<(Vec<Item>, bool)> {
        let mut items = self
            .letters("b.subject = ANY ($3::text[])", &[id.to_owned()])
            .await?;
        items.retain(|item| item.domain.as_deref() == Some(&domain.name));
        let most = limit + 1;
        let from = format!(
            "(WITH RECURSIVE {} SELECT * FROM past p WHERE p.operation <> 'audience' \
              AND ($3::timestamptz IS NULL OR p.changed_at >= $3) LIMIT $4) c",
            chain(domain, "$2::text", "true")
        );
        let rows = self.rows(&feed(domain, &from), &[&id, &since, &most]).await?;
        self.add_applied(&mut items, domain, &rows)?;
        let sql = format!(
            "{OUTCOMES} AND o.domain = $2 AND o.subject = $3 AND ($4::timestamptz IS NULL OR o.logged_at >= $4) \
             ORDER BY o.logged_at DESC LIMIT $5"
        );
        let rows = self.rows(&sql, &[&domain.name, &id, &since, &most]).await?;
        self.add_others(&mut items, &rows)?;
        items.retain(|item| since.is_none_or(|since| item.log_time >= since));
        items.sort_by(|a, b| b.order().cmp(&a.order()));
        let limit = usize::try_from(limit)?;
        let has_more = items.len() > limit;
        items.truncate(limit);
        Ok((items, has_more))
    }

    fn add_applied(&self, items: &mut Vec<Item>, domain: &Domain, rows: &[Row]) -> Result<()> {
        for row in rows {
            let mut item = item(row, Became::Decided(applied(row)?))?;
            item.domain = Some(domain.name.clone());
            // The feed names no topic: it is the domain's.
            item.topic = topic_name(self.prefix, &domain.topic);
            items.push(item);
        }
        Ok(())
    }

    fn add_others(&self, items: &mut Vec<Item>, rows: &[Row]) -> Result<()> {
        for row in rows {
            let mut item = item(row, Became::Decided(detail(row)?))?;
            item.domain = Some(row.get("domain"));
            item.topic = row.get("topic");
            // A letter says more.
            if !items.iter().any(|known| known.place() == item.place()) {
                items.push(item);
            }
        }
        Ok(())
    }

    /// Letters of the tenant whose headers say that they are of these batches, or about this record.
    async fn letters(&self, which: &str, names: &[String]) -> Result<Vec<Item>> {
        let sql = format!(
            "SELECT d.topic, d.partition, d.\"offset\", d.logged_at, d.reason, d.status, b.kind, b.subject, b.source, b.item \
             FROM dead_letters d CROSS JOIN LATERAL (\
               SELECT max(h ->> 1) FILTER (WHERE h ->> 0 = 'ce_source') AS source, max(h ->> 1) FILTER (WHERE h ->> 0 = 'ce_type') AS kind, \
                      max(h ->> 1) FILTER (WHERE h ->> 0 = 'ce_subject') AS subject, max(h ->> 1) FILTER (WHERE h ->> 0 = 'ce_batch') AS item, \
                      split_part(max(h ->> 1) FILTER (WHERE h ->> 0 = 'ce_batch'), '/', 1) AS batch \
               FROM jsonb_array_elements(d.headers) h) b \
             WHERE coalesce(d.tenant_id, $1) = $1 AND starts_with(b.source, $2) AND {which} ORDER BY d.logged_at DESC LIMIT {LETTERS}"
        );
        let source = format!("/tenants/{}/", encode_part(self.tenant));
        let rows = self.rows(&sql, &[&source, &names]).await?;
        Ok(rows.iter().map(|row| self.letter(row)).collect())
    }

    fn letter(&self, row: &Row) -> Item {
        let kind: Option<&str> = row.get("kind");
        let (table, operation) = kind
            .and_then(|kind| kind.strip_prefix("tidelog.")?.rsplit_once('.'))
            .unzip();
        let domain = table.and_then(|table| self.registry.by_table(table));
        let source: &str = row.get("source");
        let parts: Vec<&str> = source.split('/').collect();
        let (batch, index) = row
            .get::<_, Option<&str>>("item")
            .and_then(|item| item.split_once('/'))
            .unzip();
        Item {
            log_time: row.get("logged_at"),
            domain: domain.map(|domain| domain.name.clone()),
            record: row.get("subject"),
            user: parts.get(4).map(|part| (*part).to_owned()),
            device: parts.get(6).map(|part| (*part).to_owned()),
            batch_id: batch.and_then(|batch| batch.parse().ok()),
            batch_index: index.and_then(|index| index.parse().ok()),
            operation: operation.map(str::to_owned),
            base_version: None,
            topic: row.get("topic"),
            partition: row.get("partition"),
            offset: row.get("offset"),
            in_log: InLog::NotSeen,
            outcome: Became::Undecided(Undecided::DeadLetter {
                reason: row.get("reason"),
                status: row.get("status"),
            }),
            conflict: None,
        }
    }

    /// Adds to each conflict how it was decided, and who had changed the record.
    pub(super) async fn explain(&self, items: &mut [Item]) -> Result<()> {
        let ids: Vec<Uuid> = items
            .iter()
            .filter_map(|item| conflict_of(&item.outcome))
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        const SQL: &str = "SELECT conflict_id, domain, mobile_id::text, policy, winner, client_version, server_version, \
            result_version, kept, resolved_by, resolved_at, strategy FROM conflicts WHERE tenant_id = $1 AND conflict_id = ANY ($2)";
        let mut conflicts: HashMap<Uuid, Conflict> = HashMap::new();
        let mut asked: HashMap<String, Vec<(Uuid, String, i64, i64)>> = HashMap::new();
        for row in self.rows(SQL, &[&ids]).await? {
            let conflict = Conflict {
                conflict_id: row.get(0),
                policy: row.get(3),
                winner: row.get(4),
                client_version: row.get(5),
                server_version: row.get(6),
                result_version: row.get(7),
                kept: row.get::<_, Option<Value>>(8),
                changed_by: Vec::new(),
                resolved_by: row.get(9),
                resolved_at: row.get(10),
                strategy: row.get(11),
            };
            let question = (
                conflict.conflict_id,
                row.get(2),
                conflict.client_version,
                conflict.server_version,
            );
            asked.entry(row.get(1)).or_default().push(question);
            conflicts.insert(conflict.conflict_id, conflict);
        }
        for (domain, asked) in asked {
            if let Some(domain) = self.registry.by_name(&domain) {
                self.changes(domain, &asked, &mut conflicts).await?;
            }
        }
        for item in items {
            item.conflict = conflict_of(&item.outcome).and_then(|id| conflicts.get(&id).cloned());
        }
        Ok(())
    }

    /// Who made the versions after the one that the device knew, up to the one that the conflict met.
    async fn changes(
        &self,
        domain: &Domain,
        asked: &[(Uuid, String, i64, i64)],
        conflicts: &mut HashMap<Uuid, Conflict>,
    ) -> Result<()> {
        let sql = format!(
            "SELECT k.conflict, c.version, c.user_id, c.device_id, c.changed_at, c.fields \
             FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bigint[]) AS k(conflict, id, base, met) CROSS JOIN LATERAL (\
               WITH RECURSIVE {} SELECT * FROM past p WHERE p.version > k.base AND p.version <= k.met \
               AND p.operation <> 'audience' LIMIT {CHANGES}) c ORDER BY c.version",
            chain(domain, "k.id", "p.version > k.base + 1")
        );
        let ids: Vec<Uuid> = asked.iter().map(|asked| asked.0).collect();
        let records: Vec<&str> = asked.iter().map(|asked| asked.1.as_str()).collect();
        let bases: Vec<i64> = asked.iter().map(|asked| asked.2).collect();
        let met: Vec<i64> = asked.iter().map(|asked| asked.3).collect();
        for row in self.rows(&sql, &[&ids, &records, &bases, &met]).await? {
            if let Some(conflict) = conflicts.get_mut(&row.get(0)) {
                conflict.changed_by.push(Change {
                    version: row.get(1),
                    user: row.get(2),
                    device: row.get(3),
                    at: row.get(4),
                    fields: row.get(5),
                });
            }
        }
        Ok(())
    }
}

const OUTCOMES: &str = "SELECT o.domain, o.subject, o.topic, o.partition, o.\"offset\", o.logged_at, o.user_id, o.device_id, \
     o.batch_id, o.batch_index, NULL::text AS operation, NULL::bigint AS base_version, o.detail FROM outcomes o WHERE o.tenant_id = $1";

/// The feed rows `c` of a source, with their conflicts.
fn feed(domain: &Domain, from: &str) -> String {
    format!(
        "SELECT c.{id}::text AS subject, c.partition, c.\"offset\", c.changed_at AS logged_at, c.user_id, c.device_id, \
         c.batch_id, c.batch_index, c.base_version, {APPLIED} FROM {from} {ITS_CONFLICT}",
        id = domain.id_column(),
    )
}

/// A record's feed rows as `past`, newest first, each naming the one before. `id` is the record's, as text.
fn chain(domain: &Domain, id: &str, while_true: &str) -> String {
    let (rows, changes, column) = (&domain.table, domain.changes_table(), domain.id_column());
    let kind = if domain.is_entity() { "uuid" } else { "text" };
    format!(
        "past AS (SELECT c.* FROM {rows} r JOIN {changes} c ON c.tenant_id = r.tenant_id AND c.partition = r.partition \
           AND c.\"offset\" = r.\"offset\" AND c.{column} = r.{column} WHERE r.tenant_id = $1 AND r.{column} = ({id})::{kind} \
         UNION ALL SELECT c.* FROM past p JOIN {changes} c ON c.tenant_id = p.tenant_id AND c.partition = p.partition \
           AND c.\"offset\" = p.previous_offset AND c.{column} = p.{column} WHERE {while_true})"
    )
}

/// The columns that a feed row and an outcome have alike.
fn item(row: &Row, outcome: Became) -> Result<Item> {
    let index: i32 = row.get("batch_index");
    Ok(Item {
        log_time: row.get("logged_at"),
        domain: None,
        record: row.get("subject"),
        user: row.get("user_id"),
        device: row.get("device_id"),
        batch_id: row.get("batch_id"),
        batch_index: Some(u32::try_from(index)?),
        operation: row.get("operation"),
        base_version: row.get("base_version"),
        topic: String::new(),
        partition: row.get("partition"),
        offset: row.get("offset"),
        in_log: InLog::NotSeen,
        outcome,
        conflict: None,
    })
}

/// The conflict that an outcome tells of; a duplicate repeats its first one's.
fn conflict_of(outcome: &Became) -> Option<Uuid> {
    fn of(outcome: &Outcome) -> Option<Uuid> {
        match outcome {
            Outcome::Conflict { conflict_id, .. } | Outcome::Resolved { conflict_id, .. } => {
                Some(*conflict_id)
            }
            Outcome::Duplicate { first } => of(first),
            _ => None,
        }
    }
    match outcome {
        Became::Decided(outcome) => of(outcome),
        Became::Undecided(_) => None,
    }
}

fn texts(ids: &[Uuid]) -> Vec<String> {
    ids.iter().map(Uuid::to_string).collect()
}
