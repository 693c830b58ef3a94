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
