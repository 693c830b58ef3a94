//! Every policy with two devices, what a person decides, mixed batches, repeats, refusals and removals; then the log folded
//! again from offset 0 into a fresh schema. Rows, versions, outcomes, conflicts, feed and hits are the same, row by row.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::eventually;
use crate::support::items::ticket;
use crate::support::phone::{Phone, tenant};
use crate::support::projection::{next_offsets, projection};
use crate::support::service::{Deployment, Service};

/// People of a tenant that decides conflicts by one policy.
struct Crew {
    asha: Phone,
    tablet: Phone,
    ben: Phone,
    sue: Phone,
}

impl Crew {
    async fn of(deployment: &Deployment, policy: &str, device_priority: bool) -> Crew {
        let tenant = tenant(policy);
        let phone = |user: &str, device: &str, role| Phone::of(deployment, &tenant, user, device, role);
        let settings = json!({"domains": {"helpdesk": {"policy": policy}, "journal": {"policy": policy}},
            "device_priority": {"enabled": device_priority}});
        let olga = phone("olga", "desk-1", Role::Operator);
        olga.send(Method::PUT, "/api/v1/settings/sync", &[], settings.to_string())
            .await
            .expect(200);
        Crew {
            asha: phone("asha", "phone-1", Role::User),
            tablet: phone("asha", "tablet-1", Role::User),
            ben: phone("ben", "phone-2", Role::User),
            sue: phone("sue", "desk-2", Role::Supervisor),
        }
    }

    /// A ticket of Asha's that Ben has changed at 10 o'clock.
    async fn contested(&self) -> Uuid {
        let id = Uuid::new_v4();
        let mut first = ticket(id, "The lift is stuck again");
        first["client_timestamp"] = json!("2026-03-01T08:00:00Z");
        first["tags"] = json!(["lift", "urgent"]);
        self.asha.apply("helpdesk", first).await;
        let change = json!({"mobile_id": id, "version": 1, "comments": "ben's", "escalation_level": 2, "tags": ["lift"], "client_timestamp": "2026-03-01T10:00:00Z"});
        self.ben.apply("helpdesk", change).await;
        id
    }

    /// An attempt that is behind; answers who won, the version afterwards, and the conflict's id.
    async fn behind(&self, phone: &Phone, id: Uuid, change: Value, hour: u8) -> (String, i64, String) {
        let mut item = json!({"mobile_id": id, "version": 1, "client_timestamp": format!("2026-03-01T{hour:02}:00:00Z")});
        for (name, value) in change.as_object().expect("an object") {
            item[name] = value.clone();
        }
        let kind = phone.device.split('-').next().expect("a kind");
        let batch = json!({"client_id": phone.device, "device_type": kind, "entries": [item]});
        let answer = phone
            .send_batch("helpdesk", &[("prefer", "wait=30")], batch.to_string())
            .await
            .expect(200)
            .json();
        let conflict = &answer["conflicts"][0];
        let text = |name: &str| {
            conflict[name]
                .as_str()
                .unwrap_or_else(|| panic!("{answer}"))
                .to_owned()
        };
        (
            text("winner"),
            conflict["server_version"].as_i64().expect("a version"),
            text("conflict_id"),
        )
    }

    async fn says(&self, id: Uuid) -> Value {
        let answer = self.sue.record("helpdesk", &id.to_string()).await;
        if answer.status == 404 {
            json!("deleted")
        } else {
            answer.json()["comments"].clone()
        }
    }
}

/// By policy: an earlier and a later edit of the same field, an earlier and a later deletion. Who won, and what the record
/// says then.
const TABLE: [(&str, [(&str, &str); 4]); 6] = [
    (
        "client_wins",
        [
            ("client", "asha's"),
            ("client", "asha's"),
            ("client", "deleted"),
            ("client", "deleted"),
        ],
    ),
    (
        "server_wins",
        [
            ("server", "ben's"),
            ("server", "ben's"),
            ("server", "ben's"),
            ("server", "ben's"),
        ],
    ),
    (
        "most_recent_wins",
        [
            ("server", "ben's"),
            ("client", "asha's"),
            ("server", "ben's"),
            ("client", "deleted"),
        ],
    ),
    (
        "preserve_escalation",
        [
            ("merged", "asha's"),
            ("merged", "asha's"),
            ("server", "ben's"),
            ("client", "deleted"),
        ],
    ),
    (
        "merge",
        [
            ("merged", "ben's"),
            ("merged", "asha's"),
            ("server", "ben's"),
            ("client", "deleted"),
        ],
    ),
    (
        "manual",
        [
            ("none", "ben's"),
            ("none", "ben's"),
            ("none", "ben's"),
            ("none", "ben's"),
        ],
    ),
];

/// Answers the conflicts that wait.
async fn by_policy(
    deployment: &Deployment,
    policy: &str,
    expected: [(&str, &str); 4],
) -> Vec<(Crew, String, i64)> {
    let mut waiting = Vec::new();
    let edit =
        json!({"comments": "asha's", "escalation_level": 1, "tags": ["lift", "urgent", "third floor"]});
    let deletion = json!({"sync_status": "pending_delete"});
    let attempts = [(&edit, 9), (&edit, 11), (&deletion, 9), (&deletion, 11)];
    for ((change, hour), (winner, says)) in attempts.into_iter().zip(expected) {
        let crew = Crew::of(deployment, policy, false).await;
        let id = crew.contested().await;
        let (won, version, conflict) = crew.behind(&crew.asha, id, change.clone(), hour).await;
        assert_eq!(
            (won.as_str(), &crew.says(id).await),
            (winner, &json!(says)),
            "{policy} at {hour}: {change}"
        );
        let record = crew.sue.record("helpdesk", &id.to_string()).await;
        if policy == "preserve_escalation" && record.status == 200 {
            assert_eq!(
                record.json()["escalation_level"],
                2,
                "the escalation stays the server's"
            );
        }
        if policy == "merge" && change == &edit {
            // Ben took a tag away, Asha added one.
            assert_eq!(
                record.json()["tags"],
                json!(["lift", "third floor"]),
                "{}",
                record.text()
            );
        }
        if won == "none" {
            waiting.push((crew, conflict, version));
        }
    }
    waiting
}

/// Between two devices of one user the tablet decides, whatever the time, where the tenant turned that on.
async fn by_device(deployment: &Deployment) {
    for (on, winner) in [(true, "client"), (false, "server")] {
        let crew = Crew::of(deployment, "most_recent_wins", on).await;
        let id = Uuid::new_v4();
        crew.asha
            .apply("helpdesk", ticket(id, "The lift is stuck again"))
            .await;
        let batch = json!({"client_id": "phone-1", "device_type": "phone", "entries": [
            {"mobile_id": id, "version": 1, "comments": "on the phone", "client_timestamp": "2026-03-01T10:00:00Z"}]});
        crew.asha
            .send_batch("helpdesk", &[("prefer", "wait=30")], batch.to_string())
            .await
            .expect(200);
        let (won, ..) = crew
            .behind(&crew.tablet, id, json!({"comments": "on the tablet"}), 9)
            .await;
        assert_eq!(won, winner, "device priority on: {on}");
    }
}

/// What else a log holds: mixed batches, media whose audience moves, telemetry and its repeats, refusals, removals.
async fn the_rest(deployment: &Deployment) {
    let crew = Crew::of(deployment, "merge", false).await;
    let (entry, media, task) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let private = json!({"mobile_id": entry, "entry_type": "gratitude", "timestamp": "2026-03-01T10:00:00Z"});
    crew.asha.apply("journal", private).await;
    let photo = json!({"mobile_id": media, "journal_entry": entry, "media_type": "PHOTO", "original_filename": "a.png", "mime_type": "image/png"});
    crew.asha.apply("journal-media", photo).await;
    crew.asha
        .apply(
            "journal",
            json!({"mobile_id": entry, "version": 1, "privacy_scope": "shared"}),
        )
        .await;
    crew.asha
        .apply(
            "journal",
            json!({"mobile_id": entry, "version": 2, "privacy_scope": "private"}),
        )
        .await;
    let mixed = |key: &str| {
        json!({"client_id": "phone-1", "idempotency_key": key, "items": [
            {"mobile_id": task, "entity_type": "task", "operation": "create", "data": {"jobdesc": "Check the pumps"}, "client_timestamp": "2026-03-01T08:00:00Z"},
            {"mobile_id": task, "entity_type": "task", "operation": "update", "version": 1, "data": {"jobstatus": "INPROGRESS"}},
            {"mobile_id": task, "entity_type": "task", "operation": "update", "version": 2, "data": {"jobstatus": "ASSIGNED"}},
            {"mobile_id": Uuid::new_v4(), "entity_type": "ticket", "operation": "create", "data": {"ticketdesc": "short"}},
        ]})
        .to_string()
    };
    for key in ["the-first-mixed-batch", "the-second-mixed-batch"] {
        let answer = crew
            .asha
            .send(
                Method::POST,
                "/api/v1/sync/batch",
                &[("prefer", "wait=30")],
                mixed(key),
            )
            .await
            .expect(200)
            .json();
        let statuses: Vec<&str> = answer["results"]
            .as_array()
            .expect("results")
            .iter()
            .filter_map(|r| r["status"].as_str())
            .collect();
        let expected = if key.contains("first") {
            ["created", "updated", "error", "error"]
        } else {
            ["duplicate", "duplicate", "error", "error"]
        };
        assert_eq!(statuses, expected, "{answer}");
    }
    let sample =
        json!({"verification_id": Uuid::new_v4(), "timestamp": "2026-03-01T10:00:00Z", "verified": true});
    let session = |n: i64| json!({"session_id": "a-session", "event_count": n}).to_string();
    for round in 0..3 {
        let voice = [sample.to_string(), json!({"verification_id": format!("{round}"), "timestamp": "2026-03-01T10:00:00Z", "verified": false}).to_string()];
        crew.asha.post("voice", &voice).await.expect(200);
        crew.asha
            .post("sessions", &[session(round % 2)])
            .await
            .expect(200);
    }
    // Deleted twice, and back.
    let id = crew.contested().await;
    for version in [2, 2] {
        let gone = json!({"mobile_id": id, "version": version, "sync_status": "pending_delete", "updated_at": "2026-03-01T12:00:00Z"}).to_string();
        crew.ben.post("helpdesk", &[gone]).await.expect(200);
    }
    crew.ben
        .apply(
            "helpdesk",
            json!({"mobile_id": id, "version": 3, "ticketdesc": "The lift is stuck once more"}),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_policy_decides_as_it_says_and_a_rebuild_decides_the_same() {
    let service = Service::start("rebuilding");
    let deployment = service.deployment.clone();
    let (policies, ..) = tokio::join!(
        futures_util::future::join_all(TABLE.map(|(policy, expected)| by_policy(
            &deployment,
            policy,
            expected
        ))),
        by_device(&deployment),
        the_rest(&deployment),
    );
    let waiting: Vec<(Crew, String, i64)> = policies.into_iter().flatten().collect();
    assert_eq!(waiting.len(), 4, "what manual leaves to people");
    let decisions = [
        json!({"strategy": "client_wins"}),
        json!({"strategy": "merge"}),
        json!({"strategy": "manual", "data": {"comments": "sue's"}}),
    ];
    for ((crew, conflict, version), decision) in waiting.iter().zip(decisions) {
        let path = format!("/api/v1/conflicts/{conflict}/resolve");
        let told = crew
            .sue
            .send(
                Method::POST,
                &path,
                &[("prefer", "wait=30")],
                decision.to_string(),
            )
            .await
            .expect(200)
            .json();
        assert!(told["server_version"].as_i64() >= Some(*version), "{told}");
        crew.sue
            .send(Method::POST, &path, &[], decision.to_string())
            .await
            .expect(409);
    }
    let (crew, conflict, _) = &waiting[3];
    let open = crew
        .sue
        .send(
            Method::GET,
            &format!("/api/v1/conflicts/{conflict}"),
            &[],
            Bytes::new(),
        )
        .await
        .expect(200)
        .json();
    assert_eq!(open["status"], "open", "one is left to wait");

    let before = projection(&deployment).await;
    let counts: BTreeMap<&str, usize> = before
        .iter()
        .map(|(name, rows)| (name.as_str(), rows.len()))
        .collect();
    assert!(
        counts["conflicts"] >= 26 && counts["outcomes"] > 0 && counts["helpdesk_changes"] > 50,
        "{counts:?}"
    );
    assert!(
        counts["idempotency_records"] > 0 && counts["journal_media_changes"] > 1,
        "{counts:?}"
    );

    // From offset 0, into a schema of its own, beside the service.
    let mut fresh = deployment.clone();
    fresh.schema.push_str("_fresh");
    fresh.run(&["migrate"]).ok();
    let rebuilding = fresh.start("project");
    let ends = next_offsets(&deployment).await;
    eventually("everything is folded again", async || {
        (next_offsets(&fresh).await == ends).then_some(())
    })
    .await;
    let after = projection(&fresh).await;
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    for (table, rows) in &before {
        assert_eq!(&after[table], rows, "{table}");
    }
    assert_eq!(rebuilding.terminate(), 0);
}
