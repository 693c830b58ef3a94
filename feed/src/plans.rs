//! Tests that every statement keeps the one plan that it was written for, on empty tables and on filled ones. They
//! run on the Postgres that all tests share.

#[path = "../../tests/support/stack.rs"]
#[allow(dead_code)] // these tests need no Kafka
mod stack;

use tidelog_events::domain::{Domain, Registry, create_tables};
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

use crate::SESSION_SETTINGS;
use crate::sql::{ConflictStatements, Statements, all_outcomes};

/// A schema of its own with all tables, and a connection as the pool's are.
async fn schema(registry: &Registry) -> (Client, String) {
    let url = &stack::shared().database_url;
    let schema = format!("plans_{}", Uuid::new_v4().simple());
    let settings: String = SESSION_SETTINGS
        .iter()
        .map(|(name, value)| format!(" -c {name}={value}"))
        .collect();
    let mut config: Config = url.parse().expect("a URL");
    config.options(format!("-c search_path={schema}{settings}"));
    let (client, connection) = config.connect(NoTls).await.expect("a connection");
    tokio::spawn(connection);
    let tables: String = registry.iter().map(|domain| create_tables(domain)).collect();
    let core = stack::MIGRATIONS.concat();
    client
        .batch_execute(&format!("CREATE SCHEMA {schema};{core};{tables}"))
        .await
        .expect("tables");
    (client, schema)
}

/// The generic plan of a statement, as text.
async fn plan(client: &Client, sql: &str) -> String {
    let parameters = (1..20).take_while(|n| sql.contains(&format!("${n}"))).count();
    let nulls = vec!["NULL"; parameters].join(", ");
    client
        .batch_execute(&format!("DEALLOCATE ALL; PREPARE s AS {sql}"))
        .await
        .expect("a statement");
    let rows = client
        .simple_query(&format!("EXPLAIN EXECUTE s({nulls})"))
        .await
        .expect("a plan");
    let line = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(|line| format!("{line}\n")),
        _ => None,
    };
    rows.iter().filter_map(line).collect()
}

fn holds(domain: &str, what: &str, plan: &str, sorts: usize) {
    for never in ["Seq Scan", "Bitmap", "Hash Join", "Merge Join"] {
        assert!(!plan.contains(never), "{domain} {what}: {never} in\n{plan}");
    }
    assert_eq!(
        plan.matches("Sort Key").count(),
        sorts,
        "{domain} {what}: sorts in\n{plan}"
    );
}

async fn all_hold(client: &Client, registry: &Registry) {
    for domain in registry.iter() {
        let Statements {
            walk_first,
            walk_next,
            follow,
            since,
            record,
            history,
            outcomes,
            sums,
        } = Statements::of(domain);
        // The feed's places are merged by one sort, a record's spellings put in order by another; nothing else sorts.
        let each = [
            ("walk_first", walk_first, 0),
            ("walk_next", walk_next, 0),
            ("follow", follow, 1),
            ("since", since, 0),
            ("record", record, 1),
            ("outcomes", outcomes, 0),
            // What has changed after the cursor is put in order, to find each record's first change.
            ("sums.whole", sums.whole, 1),
            ("sums.ranges", sums.ranges, 1),
            ("sums.members", sums.members, 1),
        ];
        for (what, sql, sorts) in each {
            holds(&domain.name, what, &plan(client, &sql).await, sorts);
        }
        if let Some(history) = history {
            // The attempts on a record are put in the order of the log.
            let plan = plan(client, &history).await;
            holds(&domain.name, "history", &plan, 1);
            assert!(plan.contains("conflicts_by_record"), "{}: {plan}", domain.name);
        }
    }
    let ConflictStatements { list, one } = ConflictStatements::of(registry.iter().map(AsRef::as_ref));
    let list = plan(client, &list).await;
    holds("all", "conflicts", &list, 0);
    assert!(
        list.contains("conflicts_by_time") && !list.contains("hashed"),
        "{list}"
    );
    holds("all", "conflict", &plan(client, &one).await, 0);
    let each: Vec<Statements> = registry.iter().map(|domain| Statements::of(domain)).collect();
    holds(
        "all",
        "outcomes",
        &plan(client, &all_outcomes(each.iter())).await,
        0,
    );
}

/// Some thousand rows and changes of few tenants, so that an index is not the obvious choice.
fn fill(domain: &Domain) -> String {
    let (table, id) = (&domain.table, domain.id_column());
    let (parent, made) = match domain.parent {
        Some(_) => (", parent_id", ", md5(s::text)::uuid"),
        None => ("", ""),
    };
    let (audience, public) = if domain.visibility.stores_audience() {
        (", audience", ", ARRAY['*']")
    } else {
        ("", "")
    };
    let identity = if domain.is_entity() {
        "md5(s::text)::uuid"
    } else {
        "md5(s::text)"
    };
    format!(
        r#"INSERT INTO {table} (tenant_id, {id}, version, deleted, doc, last_sync_timestamp, updated_at, created_at,
               owner_id, user_id, device_id, run_from, ahead_base, partition, "offset"{parent}{audience})
        SELECT 't' || s % 2, {identity}, 1, false, '{{}}', now(), now(), now(), 'u', 'u', 'd', 0, 0, s % 3, s{made}{public}
          FROM generate_series(1, 3000) s;
        INSERT INTO {table}_changes (tenant_id, partition, "offset", {id}, version, operation, fields, changed_at,
               item_time, user_id, device_id, batch_id, batch_index, base_version, item_hash{parent}{audience})
        SELECT 't' || s % 2, s % 3, s, {identity}, 1, 'create', '{{}}', now(), now(), 'u', 'd', md5((s / 50)::text)::uuid,
               s % 50, 0, md5(s::text)::uuid{made}{public}
          FROM generate_series(1, 3000) s;
        ANALYZE {table};
        ANALYZE {table}_changes;"#
    )
}

#[tokio::test]
async fn plans_are_the_same_on_empty_and_on_filled_tables() {
    let registry = Registry::shipped();
    let (client, schema) = schema(&registry).await;
    all_hold(&client, &registry).await;
    for domain in registry.iter() {
        client.batch_execute(&fill(domain)).await.expect("rows");
    }
    let positions =
        "INSERT INTO positions (topic, partition) SELECT 'topic' || s % 9, s FROM generate_series(1, 500) s;
        ANALYZE positions";
    client.batch_execute(positions).await.expect("positions");
    let conflicts = "INSERT INTO conflicts (conflict_id, tenant_id, domain, mobile_id, topic, partition, \"offset\", batch_id,
               batch_index, occurred_at, user_id, device_id, operation, policy, winner, client_version, server_version,
               result_version, client_time, server_time)
        SELECT md5(s::text)::uuid, 't' || s % 2, 'helpdesk', md5((s % 50)::text)::uuid, 't', s % 3, s, md5(s::text)::uuid,
               0, now(), 'u', 'd', 'update', 'merge', 'merged', 1, 2, 2, now(), now() FROM generate_series(1, 3000) s;
        ANALYZE conflicts";
    client.batch_execute(conflicts).await.expect("conflicts");
    all_hold(&client, &registry).await;
    client
        .batch_execute(&format!("DROP SCHEMA {schema} CASCADE"))
        .await
        .expect("gone");
}
