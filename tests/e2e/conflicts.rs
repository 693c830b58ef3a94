//! Nobody's work vanishes without a word: whoever made a change that lost, or decided one, finds what became of it, in
//! the record's history and among the conflicts; and no other tenant does.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::items::ticket;
use crate::support::phone::{Phone, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "conflicts").deployment
}

/// Two technicians of one tenant.
fn technicians(name: &str) -> (Phone, Phone) {
    let tenant = tenant(name);
    (
        Phone::of(deployment(), &tenant, "asha", "phone-1", Role::User),
        Phone::of(deployment(), &tenant, "ben", "phone-2", Role::User),
    )
}

/// Posts one item, which has to be behind; answers its entry in `conflicts`.
async fn behind(phone: &Phone, domain: &str, item: Value) -> Value {
    let answer = phone.post(domain, &[item.to_string()]).await.expect(200).json();
    let conflict = answer["conflicts"][0].clone();
    assert_eq!(conflict["status"], "conflict", "{answer}");
    conflict
}

async fn items(phone: &Phone, path: &str) -> Vec<Value> {
    let page = phone.get(&format!("/api/v1/{path}")).await.expect(200).json();
    assert_eq!(page["has_more"], false, "{page}");
    page["items"].as_array().expect("items").clone()
}

/// Version, whether it applied, who, and what it did, of each entry.
fn told(history: &[Value]) -> Vec<(i64, bool, &str, &str)> {
    history
        .iter()
        .map(|entry| {
            (
                entry["version"].as_i64().expect("a version"),
                entry["applied"] == true,
                entry["user"].as_str().expect("a user"),
                entry["operation"].as_str().expect("an operation"),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_of_two_changes_stands_and_the_other_is_not_forgotten() {
    let (asha, ben) = technicians("recent");
    let id = Uuid::new_v4();
    let edit = |remarks: &str, at: &str| json!({"mobile_id": id, "version": 1, "remarks": remarks, "client_timestamp": at});
    let task =
        json!({"mobile_id": id, "jobdesc": "Check the pumps", "client_timestamp": "2026-03-01T08:00:00Z"});
    asha.apply("activity", task).await;
    ben.apply("activity", edit("ben's", "2026-03-01T10:00:00Z")).await;
    let lost = behind(&asha, "activity", edit("earlier", "2026-03-01T09:00:00Z")).await;
    let won = behind(&asha, "activity", edit("later", "2026-03-01T11:00:00Z")).await;
    assert_eq!(
        (&lost["winner"], &won["winner"]),
        (&json!("server"), &json!("client"))
    );

    let listed = items(&ben, "conflicts?domain=activity").await;
    let summary: Vec<_> = listed
        .iter()
        .map(|c| {
            (
                &c["conflict_id"],
                &c["resolution"],
                &c["winner"],
                &c["server_version"],
                &c["result_version"],
            )
        })
        .collect();
    let policy = json!("most_recent_wins");
    assert_eq!(
        summary,
        [
            (
                &lost["conflict_id"],
                &policy,
                &json!("server"),
                &json!(2),
                &json!(2)
            ),
            (
                &won["conflict_id"],
                &policy,
                &json!("client"),
                &json!(2),
                &json!(3)
            ),
        ]
    );
    assert_eq!(items(&ben, "conflicts?status=open").await, [Value::Null; 0]);
    assert_eq!(items(&ben, "conflicts/?device=phone-2").await, [Value::Null; 0]);

    let history = items(&ben, &format!("activity/records/{id}/history")).await;
    assert_eq!(
        told(&history),
        [
            (1, true, "asha", "create"),
            (2, true, "ben", "update"),
            (2, false, "asha", "update"),
            (3, true, "asha", "update"),
        ]
    );
    assert_eq!(
        (&history[2]["conflict_id"], &history[3]["conflict_id"]),
        (&lost["conflict_id"], &won["conflict_id"])
    );
    assert_eq!(history[1].get("conflict_id"), None);
    assert_eq!(
        (&history[3]["fields"], &history[3]["before"]),
        (
            &json!(["client_timestamp", "remarks"]),
            &json!({"client_timestamp": "2026-03-01T10:00:00Z", "remarks": "ben's"})
        )
    );
    assert_eq!(history[3]["client_timestamp"], "2026-03-01T11:00:00.000000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_escalation_says_what_was_kept_from_whom() {
    let (asha, ben) = technicians("escalation");
    let id = Uuid::new_v4();
    asha.apply("helpdesk", ticket(id, "The lift is stuck")).await;
    ben.apply(
        "helpdesk",
        json!({"mobile_id": id, "version": 1, "comments": "theirs", "status": "OPEN"}),
    )
    .await;
    let merged = behind(
        &asha,
        "helpdesk",
        json!({"mobile_id": id, "version": 1, "comments": "mine", "status": "NEW"}),
    )
    .await;
    let path = format!(
        "/api/v1/conflicts/{}",
        merged["conflict_id"].as_str().expect("an id")
    );
    for slash in ["", "/"] {
        let one = ben.get(&format!("{path}{slash}")).await.expect(200).json();
        assert_eq!(
            (
                &one["mobile_id"],
                &one["domain"],
                &one["resolution"],
                &one["winner"]
            ),
            (
                &json!(id),
                &json!("helpdesk"),
                &json!("preserve_escalation"),
                &json!("merged")
            )
        );
        assert_eq!(
            (&one["user"], &one["device"]),
            (&json!("asha"), &json!("phone-1"))
        );
        assert_eq!(
            (
                &one["client_version"],
                &one["server_version"],
                &one["result_version"]
            ),
            (&json!(1), &json!(2), &json!(3))
        );
        assert_eq!(
            (&one["client_doc"]["comments"], &one["server_doc"]["comments"]),
            (&json!("mine"), &json!("theirs"))
        );
        assert_eq!(one["kept"], json!({"comments": "client", "status": "server"}));
    }
    let history = items(&ben, &format!("helpdesk/records/{id}/history/")).await;
    assert_eq!(told(&history).len(), 3);
    assert_eq!(history[2]["conflict_id"], merged["conflict_id"]);

    // Deleted, its past is still told.
    ben.apply(
        "helpdesk",
        json!({"mobile_id": id, "version": 3, "sync_status": "pending_delete"}),
    )
    .await;
    asha.record("helpdesk", &id.to_string()).await.expect(404);
    let history = items(&asha, &format!("helpdesk/records/{id}/history")).await;
    assert_eq!(told(&history)[3], (4, true, "ben", "delete"));
    assert_eq!(history[3]["before"]["comments"], "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_sees_neither_conflicts_nor_history() {
    let (asha, ben) = technicians("mine");
    let (id, elsewhere) = (Uuid::new_v4(), tenant("foreign"));
    asha.apply("helpdesk", ticket(id, "A ticket of my tenant")).await;
    let edit = |text: &str| json!({"mobile_id": id, "version": 1, "comments": text});
    ben.apply("helpdesk", edit("theirs")).await;
    let conflict = behind(&asha, "helpdesk", edit("mine")).await;
    let path = format!(
        "/api/v1/conflicts/{}",
        conflict["conflict_id"].as_str().expect("an id")
    );
    let page = asha.get("/api/v1/conflicts?limit=1").await.expect(200).json();
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1));
    for role in [Role::User, Role::Supervisor, Role::Operator] {
        let foreign = Phone::of(deployment(), &elsewhere, "asha", "phone-1", role);
        assert_eq!(items(&foreign, "conflicts").await, [Value::Null; 0]);
        let absent = foreign
            .get(&format!("/api/v1/conflicts/{}", Uuid::new_v4()))
            .await;
        let there = foreign.get(&path).await;
        assert_eq!(
            (there.status, &there.body),
            (404, &absent.body),
            "{}",
            there.text()
        );
        let absent = foreign
            .record("helpdesk", &format!("{}/history", Uuid::new_v4()))
            .await;
        let there = foreign.record("helpdesk", &format!("{id}/history")).await;
        assert_eq!(
            (there.status, &there.body),
            (404, &absent.body),
            "{}",
            there.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_entrys_past_is_its_authors_and_the_supervisors() {
    let (asha, ben) = technicians("private");
    let dora = Phone::of(deployment(), &asha.tenant, "dora", "phone-3", Role::Supervisor);
    let tablet = Phone::of(deployment(), &asha.tenant, "asha", "tablet-1", Role::User);
    let id = Uuid::new_v4();
    let entry = json!({"mobile_id": id, "entry_type": "gratitude", "timestamp": "2026-03-01T10:00:00Z"});
    let edit = |text: &str| json!({"mobile_id": id, "version": 1, "content": text});
    asha.apply("journal", entry).await;
    tablet.apply("journal", edit("on the tablet")).await;
    let conflict = behind(&asha, "journal", edit("on the phone")).await;
    let path = format!(
        "/api/v1/conflicts/{}",
        conflict["conflict_id"].as_str().expect("an id")
    );
    let history = format!("{id}/history");
    for (phone, status) in [(&asha, 200), (&tablet, 200), (&dora, 200), (&ben, 404)] {
        let listed = items(phone, "conflicts").await.len();
        assert_eq!(listed, usize::from(status == 200), "{}", phone.user);
        assert_eq!(phone.get(&path).await.status, status, "{}", phone.user);
        assert_eq!(
            phone.record("journal", &history).await.status,
            status,
            "{}",
            phone.user
        );
    }
}
