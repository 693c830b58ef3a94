//! The tables of a domain, from its definition: one row a record, one feed row an applied event. The columns that
//! every domain has are written here once; promoted fields are generated columns over the document, so that the
//! write path is the same for all. Knows nothing of connections; table names are checked by the parser and quoted.

use super::{Domain, Field, FieldType};

/// What a reader of an older database must be told when a promoted column is missing.
pub const ADDED_LATER: &str = "a promoted column was added to the definition after the table was made";

/// `CREATE TABLE IF NOT EXISTS …` for the rows and the feed of a domain, in the current schema, with their indexes.
pub fn create_tables(domain: &Domain) -> String {
    format!("{}\n{}", create_bare_tables(domain), create_indexes(domain))
}

/// The same tables with those indexes alone that the fold looks things up by.
pub fn create_bare_tables(domain: &Domain) -> String {
    format!("{}\n{}", rows_table(domain), feed_table(domain))
}

/// The indexes that only readers need: cheaper to make once a table is full.
pub fn create_indexes(domain: &Domain) -> String {
    format!(
        "CREATE INDEX IF NOT EXISTS {0}_changes_batch ON {0}_changes (batch_id);",
        domain.table
    )
}

/// Name and Postgres type of each promoted column, for a check of an existing table.
pub fn expected_columns(domain: &Domain) -> Vec<(&str, &'static str)> {
    domain
        .columns()
        .map(|field| (field.name.as_str(), column_type(&field.kind)))
        .collect()
}

fn id_type(domain: &Domain) -> &'static str {
    if domain.is_entity() { "uuid" } else { "text" }
}

fn rows_table(domain: &Domain) -> String {
    let id = domain.id_column();
    let parent = if domain.parent.is_some() {
        "\n    parent_id uuid NOT NULL,"
    } else {
        ""
    };
    let audience = if domain.visibility.stores_audience() {
        "\n    audience text[] NOT NULL,"
    } else {
        ""
    };
    let promoted: String = domain
        .columns()
        .map(|field| format!("\n    {},", generated(field)))
        .collect();
    // Children are found by their parent when its visibility changes; and one mobile_id under two parents is two
    // records, so that what a partition's fold says never depends on another partition.
    let (key, by_parent) = if domain.parent.is_some() {
        let index = format!(
            "\nCREATE INDEX IF NOT EXISTS {0}_parent ON {0} (tenant_id, parent_id);",
            domain.table
        );
        (format!("tenant_id, {id}, parent_id"), index)
    } else {
        (format!("tenant_id, {id}"), String::new())
    };
    format!(
        r#"CREATE TABLE IF NOT EXISTS {table} (
    tenant_id text NOT NULL,
    {id} {id_type} NOT NULL,{parent}
    version bigint NOT NULL,
    deleted boolean NOT NULL,
    doc jsonb NOT NULL,
    sync_status text NOT NULL DEFAULT 'synced',
    last_sync_timestamp timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    owner_id text NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    device_type text,
    run_from bigint NOT NULL,
    ahead_base bigint NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,{audience}{promoted}
    PRIMARY KEY ({key})
) WITH (fillfactor = 85);{by_parent}"#,
        table = domain.table,
        id_type = id_type(domain),
    )
}

/// The primary key of a domain's feed, as a table's definition has it.
pub fn feed_key(domain: &Domain) -> String {
    let tail = match domain.parent {
        Some(_) => format!(", {}", domain.id_column()),
        None => String::new(),
    };
    format!("PRIMARY KEY (tenant_id, partition, \"offset\"{tail})")
}

/// The primary key is the scan of a pull; the index on the batch answers receipts and is appended to batch by batch.
/// A record's history needs no index: each row names the offset of the record's previous one.
fn feed_table(domain: &Domain) -> String {
    let id = domain.id_column();
    let parent = if domain.parent.is_some() {
        "\n    parent_id uuid NOT NULL,"
    } else {
        ""
    };
    let audience = if domain.visibility.stores_audience() {
        "\n    audience_before text[],\n    audience text[] NOT NULL,"
    } else {
        ""
    };
    format!(
        r#"CREATE TABLE IF NOT EXISTS {table}_changes (
    tenant_id text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    {id} {id_type} NOT NULL,{parent}
    version bigint NOT NULL,
    operation text NOT NULL,
    fields text[] NOT NULL,
    before jsonb,
    changed_at timestamptz NOT NULL,
    item_time timestamptz NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    device_type text,
    batch_id uuid NOT NULL,
    batch_index integer NOT NULL,
    base_version bigint NOT NULL,
    item_hash uuid NOT NULL,
    conflict_id uuid,
    previous_offset bigint,{audience}
    {key}
);"#,
        key = feed_key(domain),
        table = domain.table,
        id_type = id_type(domain),
    )
}

fn column_type(kind: &FieldType) -> &'static str {
    match kind {
        FieldType::Integer { .. } => "bigint",
        FieldType::Number { .. } => "double precision",
        FieldType::Boolean => "boolean",
        FieldType::DateTime { .. } => "timestamp with time zone",
        _ => "text",
    }
}

/// `instant(text)` is the migration's immutable cast: an RFC 3339 time says its own offset, so no setting changes it.
fn generated(field: &Field) -> String {
    let name = &field.name;
    let text = format!("(doc ->> '{name}')");
    let expression = match column_type(&field.kind) {
        "text" => text,
        "timestamp with time zone" => format!("instant{text}"),
        other => format!("{text}::{other}"),
    };
    format!(
        "\"{name}\" {} GENERATED ALWAYS AS ({expression}) STORED",
        column_type(&field.kind)
    )
}
