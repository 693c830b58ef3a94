//! Single rows and feed rows as a projector would write them, of one tenant, and what refers to them.

use tidelog_events::batch::BatchId;
use tidelog_events::ids::{Role, TenantId};
use tidelog_events::position::{Appended, TopicPartition};
use tidelog_events::receipt::Receipt;

use super::{Asker, PREFIX, Stage, stage};

pub const TICKET: &str = "00000000-0000-0000-0000-00000000000a";
pub const BATCH: &str = "00000000-0000-0000-0000-0000000000b1";

pub fn ann() -> Asker {
    Asker::new("acme", "ann", Role::User)
}

/// A row and its feed row in a table that stores no audience.
pub fn record(table: &str, id: &str, owner: &str, doc: &str, offset: i64) -> String {
    let column = if table == "metrics" {
        "item_id"
    } else {
        "mobile_id"
    };
    format!(
        r#"INSERT INTO {table} (tenant_id, {column}, version, deleted, doc, last_sync_timestamp, updated_at, created_at,
               owner_id, user_id, device_id, run_from, ahead_base, partition, "offset")
        VALUES ('acme', '{id}', 1, false, '{doc}', '2026-01-31T09:30:00.123Z', now(), now(), '{owner}', '{owner}',
               'phone-1', 1, 0, 0, {offset});
        INSERT INTO {table}_changes (tenant_id, partition, "offset", {column}, version, operation, fields, changed_at,
               item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash)
        VALUES ('acme', 0, {offset}, '{id}', 1, 'create', '{{}}', '2026-01-31T09:30:00.123Z', now(), '{owner}', 'phone-1',
               '{BATCH}', {offset}, 0, '{BATCH}');"#
    )
}

pub fn position(topic: &str, next: i64) -> String {
    format!(
        "INSERT INTO positions (topic, partition, next_offset, applied_through)
         VALUES ('{PREFIX}{topic}', 0, {next}, '2026-01-31T10:00:00Z')
         ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset;"
    )
}

pub fn receipt(tenant: &str, items: u32, last: i64) -> String {
    let mut appended = Appended::default();
    appended.note(
        TopicPartition {
            topic: format!("{PREFIX}sync.helpdesk.v1"),
            partition: 0,
        },
        last,
    );
    let batch = BatchId(BATCH.parse().unwrap());
    Receipt {
        target: None,
        batch,
        appended_items: items,
        appended,
    }
    .seal(&TenantId::parse(tenant).unwrap())
}

/// A feed row besides a record's first, and the row as it is then.
pub fn change(id: &str, operation: &str, version: i64, partition: i32, offset: i64) -> String {
    format!(
        r#"INSERT INTO helpdesk_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields, changed_at,
               item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash)
        VALUES ('acme', {partition}, {offset}, '{id}', {version}, '{operation}', '{{}}',
               timestamptz '2026-01-31T09:30:01Z' + {offset} * interval '1 second', now(), 'ann', 'phone-1', '{BATCH}', 0, 0,
               '{BATCH}');
        UPDATE helpdesk SET version = {version}, deleted = '{operation}' = 'delete', partition = {partition},
               "offset" = {offset} WHERE mobile_id = '{id}';"#
    )
}

/// A schema with one ticket, applied.
pub async fn with_a_ticket() -> Stage {
    let stage = stage().await;
    let ticket = record(
        "helpdesk",
        TICKET,
        "ann",
        r#"{"ticketdesc": "The lift is stuck", "priority": "HIGH"}"#,
        0,
    );
    stage
        .execute(&format!("{ticket}{}", position("sync.helpdesk.v1", 1)))
        .await;
    stage
}

/// A kept attempt of tenant `acme`, at that offset and as many seconds after half past nine, from `phone-2`.
pub struct Clash<'a> {
    pub domain: &'a str,
    pub id: &'a str,
    pub user: &'a str,
    pub policy: &'a str,
    pub winner: &'a str,
    pub offset: i64,
    /// The version met, and the one made.
    pub versions: (i64, i64),
    pub client_doc: &'a str,
}

/// A conflict's id, by its offset.
pub fn clash_id(offset: i64) -> String {
    uuid::Uuid::from_u128(0xc000 + offset as u128).to_string()
}

impl Clash<'_> {
    pub fn sql(&self) -> String {
        let Clash {
            domain,
            id,
            user,
            policy,
            winner,
            offset,
            client_doc,
            ..
        } = self;
        let (met, made) = self.versions;
        format!(
            r#"INSERT INTO conflicts (conflict_id, tenant_id, domain, mobile_id, topic, partition, "offset", batch_id,
                   batch_index, occurred_at, user_id, device_id, operation, policy, winner, client_version, server_version,
                   result_version, client_doc, server_doc, client_time, server_time, kept)
            VALUES ('{conflict}', 'acme', '{domain}', '{id}', 't', 0, {offset}, '{BATCH}', {offset},
                   timestamptz '2026-01-31T09:30:00Z' + {offset} * interval '1 second', '{user}', 'phone-2', 'update',
                   '{policy}', '{winner}', 1, {met}, {made}, '{client_doc}', '{{"n": 1.50}}', '2026-01-31T09:00:00Z',
                   '2026-01-31T09:10:00Z', NULL);"#,
            conflict = clash_id(*offset),
        )
    }
}

/// The next version of a record in a table, in the chain after the one at offset `previous`.
pub fn version(table: &str, id: &str, operation: &str, version: i64, previous: i64, offset: i64) -> String {
    format!(
        r#"INSERT INTO {table}_changes (tenant_id, partition, "offset", mobile_id, version, operation, fields, before,
               changed_at, item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash, previous_offset)
        VALUES ('acme', 0, {offset}, '{id}', {version}, '{operation}', '{{remarks}}', '{{"remarks": {version}.10}}',
               timestamptz '2026-01-31T09:30:00Z' + {offset} * interval '1 second', '2026-01-31T09:00:00Z', 'ben', 'phone-2',
               '{BATCH}', {offset}, {version} - 1, '{BATCH}', {previous});
        UPDATE {table} SET version = {version}, deleted = '{operation}' = 'delete', "offset" = {offset}
         WHERE mobile_id = '{id}';"#
    )
}
