//! A definition with one more promoted column is rolled out while phones write, and rolled back; grants and views of analysts
//! follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::crew::all_applied;
use crate::support::eventually;
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::{Deployment, Service};

const BEFORE: &str = r#"domain = "inspections"
kind = "entity"
topic = "sync.inspections.v1"
[fields]
place = { type = "string", min = 3, max = 80, required = true, column = true }
score = { type = "integer", min = 0, max = 100 }
"#;

fn define(deployment: &Deployment, text: &str) {
    let folder = deployment.dir.join("domains");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("inspections.toml"), text).expect("a file");
}

async fn columns(deployment: &Deployment) -> i64 {
    let sql = "SELECT count(*) FROM information_schema.columns WHERE table_schema = $1 AND table_name = 'inspections' AND column_name = 'score'";
    deployment.db().await.count(sql, &[&deployment.schema]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_column_is_rolled_out_and_back_under_load() {
    let deployment = Deployment::new("column");
    define(&deployment, BEFORE);
    let folder = deployment.dir.join("domains").display().to_string();
    let service = Service::of(deployment.with("TIDELOG_DOMAINS_DIR", folder));
    let deployment = &service.deployment;
    let tenant = tenant("column");
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (phone, stop) = (Phone::new(deployment, &tenant, "asha"), stop.clone());
        tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                let item = json!({"mobile_id": Uuid::new_v4(), "place": "Lobby", "score": count % 100});
                phone.apply("inspections", item).await;
                count += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            count
        })
    };
    let db = deployment.db().await;
    let view = format!(
        "CREATE VIEW \"{0}\".lobbies AS SELECT mobile_id, place FROM \"{0}\".inspections",
        deployment.schema
    );
    db.rows(&view, &[]).await;
    db.rows(
        &format!("GRANT SELECT ON \"{}\".inspections TO PUBLIC", deployment.schema),
        &[],
    )
    .await;

    define(
        deployment,
        &BEFORE.replace("max = 100 }", "max = 100, column = true }"),
    );
    let rebuilt = deployment.run(&["rebuild", "--domain", "inspections", "--output", "json"]);
    println!("{}", rebuilt.stderr);
    let rebuilt = rebuilt.json();
    assert_eq!(rebuilt["done"], "swapped", "{rebuilt}");
    assert_eq!(rebuilt["views"].as_array().map(Vec::len), Some(1), "{rebuilt}");
    assert_eq!(columns(deployment).await, 1);
    // What is written now is in the new table, its column and the view.
    let counts = async |sql: &str| db.count(&sql.replace("{s}", &deployment.schema), &[]).await;
    let there = counts("SELECT count(*) FROM \"{s}\".inspections").await;
    eventually("what is written now is in the new column", async || {
        (counts("SELECT count(score) FROM \"{s}\".inspections").await > there).then_some(())
    })
    .await;
    let seen = counts("SELECT count(*) FROM \"{s}\".lobbies").await;
    assert!(counts("SELECT count(*) FROM \"{s}\".inspections").await - seen < 20);
    let granted = "SELECT count(*) FROM information_schema.role_table_grants WHERE table_schema = '{s}' AND table_name = 'inspections' AND grantee = 'PUBLIC'";
    assert_eq!(counts(granted).await, 1);

    let back = deployment.run(&["rebuild", "--domain", "inspections", "--back", "--output", "json"]);
    println!("{}", back.stderr);
    assert_eq!(back.json()["done"], "swapped back");
    assert_eq!(columns(deployment).await, 0);
    stop.store(true, Ordering::SeqCst);
    let count: i64 = writing.await.expect("the writer goes on to the end");
    all_applied(deployment).await;
    assert_eq!(counts("SELECT count(*) FROM \"{s}\".inspections").await, count);
    let mut replica = Replica::default();
    replica
        .catch_up(&Phone::new(deployment, &tenant, "asha"), "inspections", 500)
        .await;
    assert_eq!(replica.records.len() as i64, count);
    deployment.run(&["verify", "--domain", "inspections"]).ok();
}
