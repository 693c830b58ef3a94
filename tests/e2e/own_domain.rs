//! A user adds a domain by adding a file: an `inspections` domain works the whole way without a line of Rust.

use serde_json::json;
use uuid::Uuid;

use crate::support::items::mixed;
use crate::support::kafka::read_topic;
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::{Deployment, Service};

use super::mixed_items::{done, told};

const INSPECTIONS: &str = r#"# Inspections of fire equipment.
domain = "inspections"
kind = "entity"
topic = "sync.inspections.v1"
policy = "merge"
filters = ["result", { parameter = "done_from", from = "done_at" }]

[status]
field = "result"
initial = "open"

[status.transitions]
open = ["passed", "failed"]
failed = ["open"]

[[order]]
earlier = "begun_at"
later = "done_at"

[fields]
place = { type = "string", min = 3, max = 80, required = true, column = true }
result = { type = "enum", values = ["open", "passed", "failed"], case = "lower", column = true }
score = { type = "integer", min = 0, max = 100, column = true }
begun_at = { type = "datetime" }
done_at = { type = "datetime", column = true }
"#;

pub(super) fn deployment_with(name: &str, file: &str, text: &str) -> Deployment {
    let deployment = Deployment::new(name);
    let folder = deployment.dir.join("domains");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(file), text).expect("a file");
    deployment.with("TIDELOG_DOMAINS_DIR", folder.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_of_a_users_own_works_the_whole_way() {
    let service = Service::of(deployment_with("own", "inspections.toml", INSPECTIONS));
    let phone = Phone::new(&service.deployment, &tenant("own"), "asha");
    let mut replica = Replica::default();
    replica.catch_up(&phone, "inspections", 10).await;
    let id = Uuid::new_v4();
    let entries = [
        json!({"mobile_id": id, "place": "Stairwell B", "score": 70}).to_string(),
        json!({"mobile_id": Uuid::new_v4(), "place": "Lobby", "result": "PASSED", "done_at": "2026-03-02T10:00:00Z"}).to_string(),
        json!({"mobile_id": Uuid::new_v4(), "place": "B"}).to_string(),
        json!({"mobile_id": Uuid::new_v4(), "place": "Roof", "score": 101}).to_string(),
        json!({"mobile_id": Uuid::new_v4(), "place": "Cellar", "begun_at": "2026-03-02T10:00:00Z", "done_at": "2026-03-01T10:00:00Z"}).to_string(),
    ];
    let answer = phone.post("inspections", &entries).await.expect(200).json();
    assert_eq!(
        answer["synced_items"].as_array().map(Vec::len),
        Some(2),
        "{answer}"
    );
    let rules: Vec<&str> = answer["errors"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|e| e["rule"].as_str())
        .collect();
    assert_eq!(rules, ["min_length", "max", "order"], "{answer}");

    let records = read_topic(
        &service.deployment.brokers,
        &service.deployment.topic("sync.inspections.v1"),
    );
    let record = records
        .iter()
        .find(|record| record.header("ce_subject") == id.to_string())
        .expect("the event");
    assert_eq!(record.header("ce_type"), "tidelog.inspections.create");
    assert_eq!(record.header("ce_policy"), "merge");
    assert_eq!(record.value, entries[0]);

    // The state machine.
    let skip = json!({"mobile_id": id, "version": 1, "result": "failed"});
    phone.apply("inspections", skip).await;
    let answer = phone
        .post(
            "inspections",
            &[json!({"mobile_id": id, "version": 2, "result": "passed"}).to_string()],
        )
        .await;
    let error = &answer.expect(200).json()["errors"][0];
    assert_eq!(
        (&error["error_code"], &error["allowed"]),
        (&"INVALID_TRANSITION".into(), &json!(["open"])),
        "{error}"
    );

    // Reading, filters, promoted columns.
    assert_eq!(replica.catch_up(&phone, "inspections", 1).await.len(), 2);
    assert_eq!(replica.records[&id.to_string()]["result"], "failed");
    assert_eq!(phone.pull("inspections", "result=Passed").await.len(), 1);
    assert_eq!(phone.pull("inspections", "done_from=2026-03-02").await.len(), 1);
    assert_eq!(phone.pull("inspections", "done_from=2026-03-03").await.len(), 0);
    let db = service.deployment.db().await;
    let row = &db
        .objects(
            "SELECT place, result, score FROM inspections WHERE mobile_id = $1",
            &[&id],
        )
        .await[0];
    assert_eq!(
        *row,
        json!({"place": "Stairwell B", "result": "failed", "score": 70})
    );
    // The domains that ship are there beside it.
    phone
        .post("helpdesk", &crate::support::items::tickets(1))
        .await
        .expect(200);
    let status = service.deployment.run(&["status", "--output", "json"]).json();
    assert_eq!(status["lag"], 0, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_of_a_users_own_takes_part_by_its_entity_type() {
    let named = INSPECTIONS.replace("kind = ", "entity_type = \"inspection\"\nkind = ");
    let unnamed = INSPECTIONS.replace("inspections", "audits");
    let deployment = deployment_with("own-mixed", "inspections.toml", &named);
    std::fs::write(deployment.dir.join("domains/audits.toml"), unnamed).expect("a file");
    let service = Service::of(deployment);
    let phone = Phone::new(&service.deployment, &tenant("own"), "asha");
    let id = Uuid::new_v4();
    let results = phone
        .results(&[
            mixed("inspection", "create", id, 0, r#"{"place":"Stairwell B"}"#),
            mixed("audit", "create", id, 0, r#"{"place":"Stairwell B"}"#),
            mixed("audits", "create", id, 0, r#"{"place":"Stairwell B"}"#),
            mixed("inspection", "update", id, 0, r#"{"score":101}"#),
            mixed(
                "ticket",
                "create",
                Uuid::new_v4(),
                0,
                r#"{"ticketdesc":"Of a domain that ships"}"#,
            ),
        ])
        .await;
    let unknown = || ("error", None, "VALIDATION_ERROR entity_type enum".to_owned());
    let all: Vec<_> = results.iter().map(told).collect();
    assert_eq!(
        all,
        [
            done("created", 1),
            unknown(),
            unknown(),
            ("error", None, "VALIDATION_ERROR data.score max".into()),
            done("created", 1)
        ]
    );
    let known = results[1]["error_message"].as_str().expect("a message");
    assert!(known.ends_with("ticket, journal, inspection"), "{known}");
    assert_eq!(results[0]["entity_type"], "inspection");
    assert_eq!(
        phone
            .record("inspections", &id.to_string())
            .await
            .expect(200)
            .json()["place"],
        "Stairwell B"
    );
}

#[test]
fn check_domain_names_the_lines_of_defects() {
    let deployment = Deployment::new("check");
    let check = |name: &str, text: &str| {
        let file = deployment.dir.join(name);
        std::fs::write(&file, text).expect("a file");
        deployment.run(&["check-domain", name])
    };
    let good = check("good.toml", INSPECTIONS);
    assert_eq!(
        (good.code, good.stdout.trim()),
        (
            0,
            "good.toml: ok: domain inspections, topic sync.inspections.v1, table inspections"
        )
    );
    for (name, text, line, says) in [
        (
            "kind.toml",
            INSPECTIONS.replace("\"entity\"", "\"thing\""),
            3,
            "kind",
        ),
        (
            "policy.toml",
            INSPECTIONS.replace("\"merge\"", "\"mine_wins\""),
            5,
            "policy",
        ),
        (
            "filter.toml",
            INSPECTIONS.replace("\"result\", {", "\"outcome\", {"),
            6,
            "outcome",
        ),
        (
            "initial.toml",
            INSPECTIONS.replace("initial = \"open\"", "initial = \"new\""),
            10,
            "new",
        ),
        (
            "step.toml",
            INSPECTIONS.replace("failed = [\"open\"]", "failed = [\"lost\"]"),
            14,
            "lost",
        ),
        (
            "order.toml",
            INSPECTIONS.replace("earlier = \"begun_at\"", "earlier = \"begun\""),
            17,
            "begun",
        ),
        (
            "type.toml",
            INSPECTIONS.replace("type = \"integer\"", "type = \"int\""),
            23,
            "int",
        ),
        ("toml.toml", INSPECTIONS.replace("[fields]", "[fields"), 20, ""),
        (
            "name.toml",
            INSPECTIONS.replace("kind =", "entity_type = \"An inspection\"\nkind ="),
            3,
            "entity_type must begin with a-z",
        ),
        (
            "telemetry.toml",
            INSPECTIONS.replace(
                "kind = \"entity\"",
                "entity_type = \"visit\"\nkind = \"telemetry\"\nidentity = [\"place\"]",
            ),
            3,
            "entity_type is for entities without a parent",
        ),
        (
            "taken.toml",
            INSPECTIONS.replace("kind =", "entity_type = \"ticket\"\nkind ="),
            1,
            "entity_type is taken by the domain \"helpdesk\"",
        ),
        (
            "clash.toml",
            INSPECTIONS.replace("\"inspections\"", "\"helpdesk\""),
            1,
            "helpdesk",
        ),
    ] {
        let ran = check(name, &text);
        assert_eq!(ran.code, 1, "{name}: {ran:?}");
        let place = format!("{name}:{line}: ");
        assert!(
            ran.stdout.contains(&place) && ran.stdout.contains(says),
            "{name}: {ran:?} names not {place}…{says}"
        );
    }
    let ran = deployment.run(&["check-domain", "nowhere.toml"]);
    assert!(ran.code == 1 && ran.stdout.contains("nowhere.toml"), "{ran:?}");
}

#[test]
fn a_service_with_a_defective_definition_does_not_start() {
    let deployment = deployment_with(
        "defective",
        "inspections.toml",
        &INSPECTIONS.replace("\"entity\"", "\"thing\""),
    );
    for command in [
        &["migrate"][..],
        &["topics"],
        &["serve"],
        &["ingest"],
        &["project"],
    ] {
        let ran = deployment.run(command);
        assert_ne!(ran.code, 0, "{command:?}: {ran:?}");
        assert!(
            ran.stderr.contains("inspections.toml") && ran.stderr.contains("line 3"),
            "{command:?}: {ran:?}"
        );
    }
}

const PHOTOS: &str = r#"# Photos of an inspection.
domain = "photos"
kind = "entity"
topic = "sync.inspections.v1"
policy = "client_wins"

[parent]
domain = "inspections"
field = "inspection"

[fields]
inspection = { type = "uuid", required = true }
caption = { type = "string", max = 200 }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_on_a_record_that_all_see_is_seen_by_all() {
    let deployment = deployment_with("own-child", "inspections.toml", INSPECTIONS);
    std::fs::write(deployment.dir.join("domains/photos.toml"), PHOTOS).expect("a file");
    let service = Service::of(deployment);
    let tenant = tenant("own-child");
    let asha = Phone::new(&service.deployment, &tenant, "asha");
    let ben = Phone::new(&service.deployment, &tenant, "ben");
    let mut replica = Replica::default();
    replica.catch_up(&ben, "photos", 10).await;

    // The photo may come before what it is of: then it is its owner's alone.
    let (inspection, photo) = (Uuid::new_v4(), Uuid::new_v4());
    let taken = json!({"mobile_id": photo, "inspection": inspection, "caption": "the seal"});
    asha.apply("photos", taken).await;
    assert_eq!(asha.pull("photos", "").await.len(), 1);
    assert_eq!(replica.catch_up(&ben, "photos", 10).await.len(), 0);
    asha.apply("inspections", json!({"mobile_id": inspection, "place": "Roof"}))
        .await;
    replica.catch_up(&ben, "photos", 10).await;
    assert_eq!(replica.records[&photo.to_string()]["caption"], "the seal");

    // With the inspection goes what hangs on it.
    let gone = json!({"mobile_id": inspection, "version": 1, "sync_status": "pending_delete"});
    ben.apply("inspections", gone).await;
    replica.catch_up(&ben, "photos", 10).await;
    assert!(replica.records.is_empty(), "{:?}", replica.records);
    service
        .deployment
        .run(&["verify", "--domain", "inspections"])
        .ok();
}
