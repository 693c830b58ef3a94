//! Everything that a projection is made of, to compare two of them: the one that was built while phones worked, and one
//! that is folded again from the log.

use std::collections::BTreeMap;

use serde_json::Value;

use super::service::Deployment;

/// What only a gateway writes, and what migrations and operators' commands note of themselves.
const GATEWAYS: [&str; 4] = ["batches", "refinery_schema_history", "audit", "shadows"];

/// Every row of every table that the projection writes, with everything in it but who wrote it and when.
pub(crate) async fn projection(deployment: &Deployment) -> BTreeMap<String, Vec<String>> {
    let db = deployment.db().await;
    let tables = db
        .rows(
            "SELECT relname::text FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind = 'r'",
            &[&deployment.schema],
        )
        .await;
    let mut all = BTreeMap::new();
    for table in tables {
        let name: String = table.get(0);
        if GATEWAYS.contains(&name.as_str()) {
            continue;
        }
        let (without, whose) = match name.as_str() {
            "positions" => (
                "- '{epoch,owner,fold_version,applied_through,end_offset,updated_at}'::text[]",
                "",
            ),
            "idempotency_records" => ("", "WHERE scope = 'item'"),
            _ => ("", ""),
        };
        let sql = format!("SELECT (to_jsonb(t) {without})::text FROM \"{name}\" t {whose} ORDER BY 1");
        let rows = db.rows(&sql, &[]).await;
        all.insert(name, rows.iter().map(|row| row.get(0)).collect());
    }
    all
}

pub(crate) async fn next_offsets(deployment: &Deployment) -> Vec<Value> {
    let db = deployment.db().await;
    db.objects(
        "SELECT topic, partition, next_offset FROM positions ORDER BY topic, partition",
        &[],
    )
    .await
}
