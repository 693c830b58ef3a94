//! Rows that were changed, deleted and added by hand in every table are named, those and no others, and put right.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::crew;
use crate::support::db::Db;
use crate::support::items::{DOMAINS, Known};
use crate::support::phone::{Phone, tenant};
use crate::support::projection::projection;
use crate::support::service::{Deployment, Service};

/// A row that is damaged, as `verify` has to name it.
type Damage = BTreeSet<(String, String, String)>;

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_mended() {
    let service = Service::start("damage");
    let deployment = &service.deployment;
    crew::fill(deployment, &crew::tenants(), 4000).await;
    let whole = projection(deployment).await;
    deployment.run(&["verify"]).ok();
    let damage = damage(deployment).await;
    assert!(damage.len() >= 50, "{} rows are damaged", damage.len());

    let verified = deployment.run(&["verify", "--output", "json"]);
    assert_eq!(verified.code, 3, "{}", verified.stderr);
    assert_eq!(
        named(&serde_json::from_str(&verified.stdout).expect("JSON")),
        damage
    );
    // Looking changes nothing, and neither does a dry run.
    for known in topics() {
        deployment.run(&["replay", "--domain", known, "--dry-run"]).ok();
    }
    assert_eq!(deployment.run(&["verify"]).code, 3);

    let mut mended = 0;
    for known in topics() {
        let replayed = deployment
            .run(&["replay", "--domain", known, "--output", "json"])
            .json();
        assert_eq!(replayed["dry_run"], false);
        mended += replayed["rows_mended"].as_u64().expect("a number");
    }
    assert_eq!(mended as usize, damage.len());
    deployment.run(&["verify"]).ok();
    assert_eq!(projection(deployment).await, whole);
    // On healthy tables every event is in effect already.
    let again = deployment
        .run(&["replay", "--domain", "helpdesk", "--output", "json"])
        .json();
    assert_eq!(
        (&again["applied"], &again["different"], &again["rows_mended"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!(again["duplicates"], again["events"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stretch_is_replayed_alone() {
    let service = Service::start("stretch");
    let deployment = &service.deployment;
    crew::fill(deployment, &crew::tenants(), 2000).await;
    let db = deployment.db().await;
    let whole = projection(deployment).await;
    let table = format!("\"{}\".helpdesk_changes", deployment.schema);
    let place = db
        .rows(
            &format!(
                "SELECT partition, \"offset\" FROM {table} WHERE operation = 'create' ORDER BY 2 DESC LIMIT 2"
            ),
            &[],
        )
        .await;
    for row in &place {
        let (partition, offset): (i32, i64) = (row.get(0), row.get(1));
        db.rows(
            &format!("DELETE FROM {table} WHERE partition = {partition} AND \"offset\" = {offset}"),
            &[],
        )
        .await;
    }
    let (partition, offset): (i32, i64) = (place[0].get(0), place[0].get(1));
    let (from, to, partition) = (
        offset.to_string(),
        (offset + 1).to_string(),
        partition.to_string(),
    );
    let stretch = [
        "replay",
        "--domain",
        "helpdesk",
        "--partition",
        &partition,
        "--from",
        &from,
        "--to",
        &to,
        "--output",
        "json",
    ];
    let replayed = deployment.run(&stretch).json();
    assert_eq!(
        (&replayed["events"], &replayed["applied"]),
        (&json!(1), &json!(1)),
        "{replayed}"
    );
    assert_eq!(
        deployment.run(&["verify", "--domain", "helpdesk"]).code,
        3,
        "the other one is still gone"
    );
    deployment.run(&["replay", "--domain", "helpdesk"]).ok();
    assert_eq!(projection(deployment).await, whole);
    let wrong = deployment.run(&["replay", "--domain", "helpdesk", "--partition", "77"]);
    assert!(
        wrong.code == 1 && wrong.stderr.contains("no partition 77"),
        "{}",
        wrong.stderr
    );
    let wrong = deployment.run(&["verify", "--domain", "heldpesk"]);
    assert!(
        wrong.code == 1 && wrong.stderr.contains("helpdesk"),
        "{}",
        wrong.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_child_is_mended_with_its_parents_stretch() {
    let service = Service::start("child");
    let deployment = &service.deployment;
    let phone = Phone::new(deployment, &tenant("child"), "asha");
    let medium = (Known::of("journal-media").item)(1).text;
    for _ in 0..2 {
        phone
            .post_keyed("journal-media", &Uuid::new_v4().to_string(), &[&medium])
            .await
            .expect(200);
    }
    let whole = projection(deployment).await;
    let db = deployment.db().await;
    let damage = format!(
        "DELETE FROM \"{}\".outcomes WHERE domain = 'journal-media' RETURNING 1",
        deployment.schema
    );
    assert_eq!(db.rows(&damage, &[]).await.len(), 1, "the second was a duplicate");
    let replayed = deployment
        .run(&[
            "replay",
            "--domain",
            "journal-media",
            "--from",
            "1h",
            "--output",
            "json",
        ])
        .json();
    assert_eq!(
        (&replayed["applied"], &replayed["rows_mended"]),
        (&json!(1), &json!(1)),
        "{replayed}"
    );
    assert_eq!(projection(deployment).await, whole);
}

/// A domain of each topic.
fn topics() -> impl Iterator<Item = &'static str> {
    DOMAINS
        .iter()
        .map(|known| known.url)
        .filter(|url| *url != "journal-media")
}

fn named(verified: &Value) -> Damage {
    let topics = verified.as_array().expect("topics");
    let each = topics
        .iter()
        .flat_map(|topic| topic["differences"].as_array().expect("differences"));
    each.map(|difference| {
        let text = |name: &str| difference[name].as_str().expect("a text").to_owned();
        (text("table"), text("differs"), difference["key"].to_string())
    })
    .collect()
}

/// Damages rows of every table; answers which, as they have to be named.
async fn damage(deployment: &Deployment) -> Damage {
    let (db, schema) = (deployment.db().await, &deployment.schema);
    let mut damage = Damage::new();
    for known in &DOMAINS {
        let id = known.id_column();
        let key = match known.url {
            "journal-media" => {
                format!("jsonb_build_object('tenant_id', tenant_id, '{id}', {id}, 'parent_id', parent_id)")
            }
            _ => format!("jsonb_build_object('tenant_id', tenant_id, '{id}', {id})"),
        };
        let place = match known.url {
            "journal-media" => format!(
                "jsonb_build_object('tenant_id', tenant_id, 'partition', partition, 'offset', \"offset\", '{id}', {id})"
            ),
            _ => "jsonb_build_object('tenant_id', tenant_id, 'partition', partition, 'offset', \"offset\")"
                .to_owned(),
        };
        let (rows, feed) = (known.table.to_owned(), format!("{}_changes", known.table));
        let one =
            |table: &str| format!("ctid = (SELECT ctid FROM \"{schema}\".{table} ORDER BY random() LIMIT 1)");
        for (table, differs, sql) in [
            (
                &rows,
                "changed",
                format!(
                    "UPDATE \"{schema}\".{rows} SET doc = doc || '{{\"by\": \"hand\"}}' WHERE {} RETURNING {key}",
                    one(&rows)
                ),
            ),
            (
                &rows,
                "missing",
                format!(
                    "DELETE FROM \"{schema}\".{rows} WHERE {} RETURNING {key}",
                    one(&rows)
                ),
            ),
            (
                &feed,
                "changed",
                format!(
                    "UPDATE \"{schema}\".{feed} SET version = version + 7 WHERE {} RETURNING {place}",
                    one(&feed)
                ),
            ),
            (
                &feed,
                "missing",
                format!(
                    "DELETE FROM \"{schema}\".{feed} WHERE {} RETURNING {place}",
                    one(&feed)
                ),
            ),
        ] {
            note(&db, &mut damage, table, differs, &sql).await;
        }
        added(&db, schema, &mut damage, &rows, "tenant_id", &key).await;
        added(&db, schema, &mut damage, &feed, "tenant_id", &place).await;
    }
    let outcome =
        "jsonb_build_object('tenant_id', tenant_id, 'batch_id', batch_id, 'batch_index', batch_index)";
    let one =
        |table: &str| format!("ctid = (SELECT ctid FROM \"{schema}\".{table} ORDER BY random() LIMIT 1)");
    for (table, differs, sql) in [
        (
            "outcomes",
            "changed",
            format!(
                "UPDATE \"{schema}\".outcomes SET status = 'by hand' WHERE {} RETURNING {outcome}",
                one("outcomes")
            ),
        ),
        (
            "outcomes",
            "missing",
            format!(
                "DELETE FROM \"{schema}\".outcomes WHERE {} RETURNING {outcome}",
                one("outcomes")
            ),
        ),
        (
            "conflicts",
            "changed",
            format!(
                "UPDATE \"{schema}\".conflicts SET winner = 'hand' WHERE {} RETURNING jsonb_build_object('conflict_id', conflict_id)",
                one("conflicts")
            ),
        ),
        (
            "conflicts",
            "missing",
            format!(
                "DELETE FROM \"{schema}\".conflicts WHERE {} RETURNING jsonb_build_object('conflict_id', conflict_id)",
                one("conflicts")
            ),
        ),
    ] {
        note(&db, &mut damage, table, differs, &sql).await;
    }
    added(&db, schema, &mut damage, "outcomes", "batch_id", outcome).await;
    added(
        &db,
        schema,
        &mut damage,
        "conflicts",
        "conflict_id",
        "jsonb_build_object('conflict_id', conflict_id)",
    )
    .await;
    damage
}

async fn note(db: &Db, damage: &mut Damage, table: &str, differs: &str, sql: &str) {
    let rows = db.rows(sql, &[]).await;
    assert_eq!(rows.len(), 1, "{sql}");
    let key = rows[0].get::<_, Value>(0).to_string();
    // One row may be hit twice, and is then what it was made last.
    damage.retain(|(known, _, known_key)| known != table || *known_key != key);
    damage.insert((table.to_owned(), differs.to_owned(), key));
}

/// A copy of a row under another key.
async fn added(db: &Db, schema: &str, damage: &mut Damage, table: &str, by: &str, key: &str) {
    let other = match by {
        "tenant_id" => "tenant_id || '-'",
        _ => "gen_random_uuid()",
    };
    let columns = db
        .rows(
            "SELECT string_agg(format('%I', attname), ', ' ORDER BY attnum), \
                    string_agg(CASE WHEN attname = $2 THEN '{}' ELSE format('%I', attname) END, ', ' ORDER BY attnum) \
             FROM pg_attribute WHERE attrelid = ($1::text)::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
            &[&format!("\"{schema}\".{table}"), &by],
        )
        .await;
    let (names, values): (String, String) = (columns[0].get(0), columns[0].get(1));
    let values = values.replace("{}", other);
    let sql = format!(
        "INSERT INTO \"{schema}\".{table} ({names}) SELECT {values} FROM \"{schema}\".{table} \
         WHERE ctid = (SELECT ctid FROM \"{schema}\".{table} ORDER BY random() LIMIT 1) RETURNING {key}"
    );
    note(db, damage, table, "extra", &sql).await;
}
