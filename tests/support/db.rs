//! Postgres as a test looks at it: questions in SQL, and whole tables as text to compare before and after.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

/// A connection whose search path is the deployment's schema.
pub(crate) struct Db {
    client: Client,
    schema: String,
}

/// Columns that change although nothing happened: heartbeats, and the count of hits.
const RESTLESS: [&str; 6] = [
    "applied_through",
    "updated_at",
    "end_offset",
    "hit_count",
    "last_hit_at",
    "owner",
];

impl Db {
    pub(crate) async fn connect(url: &str, schema: &str) -> Db {
        let mut config: tokio_postgres::Config = url.parse().expect("a URL");
        config.options(format!("-c search_path={schema}"));
        let (client, connection) = config.connect(NoTls).await.expect("Postgres answers");
        tokio::spawn(connection);
        Db {
            client,
            schema: schema.to_owned(),
        }
    }

    pub(crate) async fn rows(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.client
            .query(sql, values)
            .await
            .unwrap_or_else(|e| panic!("{e:?}: {sql}"))
    }

    /// The first column of the only row, a whole number.
    pub(crate) async fn count(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> i64 {
        self.rows(sql, values).await[0].get(0)
    }

    /// Rows as JSON objects.
    pub(crate) async fn objects(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<Value> {
        let sql = format!("SELECT to_jsonb(found) FROM ({sql}) found");
        self.rows(&sql, values)
            .await
            .iter()
            .map(|row| row.get(0))
            .collect()
    }

    /// Everything that the schema holds of a tenant, and the positions of topics with that name: by table, its rows
    /// as sorted text, without what moves by itself.
    pub(crate) async fn contents(&self, tenant: &str, topic: &str) -> BTreeMap<String, Vec<String>> {
        let tables = self
            .rows(
                "SELECT c.relname::text, bool_or(a.attname = 'tenant_id') AND c.relname <> 'dead_letters'
                 FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
                 WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r' GROUP BY c.relname",
                &[&self.schema],
            )
            .await;
        let mut contents = BTreeMap::new();
        for table in &tables {
            let (name, of_tenants): (String, bool) = (table.get(0), table.get(1));
            let whose = match (of_tenants, name.as_str()) {
                (true, _) => "tenant_id = $1 AND $2 = $2",
                (_, "positions") => "$1 = $1 AND topic = $2",
                _ => "$1 = $1 AND $2 = $2",
            };
            let restless: Vec<&str> = match name.as_str() {
                "positions" | "idempotency_records" => RESTLESS.to_vec(),
                _ => Vec::new(),
            };
            let sql =
                format!("SELECT (to_jsonb(t) - $3::text[])::text FROM \"{name}\" t WHERE {whose} ORDER BY 1");
            let rows = self.rows(&sql, &[&tenant, &topic, &restless]).await;
            contents.insert(name, rows.iter().map(|row| row.get(0)).collect());
        }
        contents
    }
}
