//! Some partitions of a topic are rebuilt: their rows are exchanged, those of the others are left as they are.

use serde_json::{Value, json};

use crate::crew;
use crate::support::projection::projection;
use crate::support::service::{Deployment, Service};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_partitions_that_were_asked_for_are_rebuilt() {
    let service = Service::start("some");
    let deployment = &service.deployment;
    crew::fill(deployment, &crew::tenants(), 2000).await;
    let whole = projection(deployment).await;
    let db = deployment.db().await;
    db.rows(
        "DELETE FROM helpdesk WHERE ctid IN (SELECT min(ctid) FROM helpdesk WHERE partition IN (1, 2) GROUP BY partition)",
        &[],
    )
    .await;
    let rebuild = |args: &[&str]| {
        let all = [&["rebuild", "--domain", "helpdesk", "--output", "json"], args].concat();
        deployment.run(&all)
    };
    let done = |ran: &str| -> Value { serde_json::from_str(ran).expect("JSON") };

    let listed = rebuild(&["--partitions", "1"]);
    assert_eq!(listed.code, 3, "{listed:?}");
    let listed = done(&listed.stdout);
    assert_eq!(
        listed["differences"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    let other = rebuild(&["--partitions", "2"]);
    assert!(
        other.code == 1 && other.stderr.contains("for other partitions"),
        "{}",
        other.stderr
    );
    let mended = rebuild(&["--partitions", "1", "--accept-differences"]).json();
    assert_eq!(
        (&mended["done"], &mended["exchanged"]),
        (&json!("exchanged"), &json!(1)),
        "{mended}"
    );
    let verify =
        |partition: &str| deployment.run(&["verify", "--domain", "helpdesk", "--partition", partition]);
    assert_eq!((verify("1").code, verify("2").code), (0, 3));
    // Nothing is left of it, so the next may be for another one.
    rebuild(&["--partitions", "2", "--accept-differences"]).ok();
    assert_eq!(projection(deployment).await, whole);
    refusals(deployment);
}

fn refusals(deployment: &Deployment) {
    for (args, why) in [
        (&["--partitions", "77"][..], "no partition 77"),
        (&["--schema-version", "999"], "this build folds by version"),
    ] {
        let refused = deployment.run(&[&["rebuild", "--domain", "helpdesk"], args].concat());
        assert!(
            refused.code == 1 && refused.stderr.contains(why),
            "{}",
            refused.stderr
        );
    }
    let version = tidelog_projector::fold::FOLD_VERSION.to_string();
    deployment
        .run(&[
            "rebuild",
            "--domain",
            "helpdesk",
            "--schema-version",
            &version,
            "--no-swap",
        ])
        .ok();
    deployment
        .run(&["rebuild", "--domain", "helpdesk", "--discard", "--yes"])
        .ok();
}
