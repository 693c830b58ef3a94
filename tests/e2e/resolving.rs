//! A conflict that waits is decided by a person: once, by whom it concerns, upon the record as it is; and what was decided
//! reaches every phone like any change.

use std::sync::OnceLock;

use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::http::Answer;
use crate::support::items::ticket;
use crate::support::kafka::read_topic;
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "resolving").deployment
}

/// A tenant in which helpdesk conflicts wait, and two technicians, one of whom has such a conflict.
struct Waiting {
    asha: Phone,
    ben: Phone,
    sue: Phone,
    record: Uuid,
    conflict: String,
}

impl Waiting {
    async fn new(name: &str) -> Waiting {
        let tenant = tenant(name);
        let phone = |user: &str, device: &str, role| Phone::of(deployment(), &tenant, user, device, role);
        let olga = phone("olga", "desk-1", Role::Operator);
        let manual =
            json!({"domains": {"helpdesk": {"policy": "manual"}, "journal-media": {"auto_resolve": false}}});
        olga.send(Method::PUT, "/api/v1/settings/sync", &[], manual.to_string())
            .await
            .expect(200);
        let (asha, ben) = (
            phone("asha", "phone-1", Role::User),
            phone("ben", "phone-2", Role::User),
        );
        let record = Uuid::new_v4();
        asha.apply("helpdesk", ticket(record, "The lift is stuck again"))
            .await;
        ben.apply(
            "helpdesk",
            json!({"mobile_id": record, "version": 1, "comments": "ben's", "priority": "HIGH"}),
        )
        .await;
        let mine = json!({"mobile_id": record, "version": 1, "comments": "asha's"}).to_string();
        let answer = asha.post("helpdesk", &[mine]).await.expect(200).json();
        let conflict = &answer["conflicts"][0];
        assert_eq!(
            (&conflict["winner"], &conflict["resolution"]),
            (&json!("none"), &json!("manual")),
            "{answer}"
        );
        Waiting {
            sue: phone("sue", "desk-2", Role::Supervisor),
            conflict: conflict["conflict_id"].as_str().expect("an id").to_owned(),
            asha,
            ben,
            record,
        }
    }

    async fn resolve(&self, who: &Phone, decision: Value) -> Answer {
        self.resolve_with(who, &[("prefer", "wait=30")], decision).await
    }

    async fn resolve_with(&self, who: &Phone, headers: &[(&str, &str)], decision: Value) -> Answer {
        let path = format!("/api/v1/conflicts/{}/resolve", self.conflict);
        who.send(Method::POST, &path, headers, decision.to_string()).await
    }

    async fn told(&self) -> Value {
        let path = format!("/api/v1/conflicts/{}", self.conflict);
        self.sue.get(&path).await.expect(200).json()
    }

    async fn comments(&self) -> (Value, Value) {
        let record = self
            .ben
            .record("helpdesk", &self.record.to_string())
            .await
            .expect(200)
            .json();
        (record["version"].clone(), record["comments"].clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_strategy_is_carried_out_and_told() {
    for (strategy, data, winner, version, comments) in [
        ("client_wins", None, "client", 3, "asha's"),
        ("server_wins", None, "server", 2, "ben's"),
        ("merge", None, "merged", 3, "asha's"),
        ("manual", Some(json!({"comments": "sue's"})), "merged", 3, "sue's"),
    ] {
        let waiting = Waiting::new(strategy).await;
        let before = waiting.told().await;
        assert_eq!(
            (&before["status"], &before["record_version"]),
            (&json!("open"), &json!(2)),
            "{before}"
        );
        let mut replica = Replica::default();
        replica.catch_up(&waiting.ben, "helpdesk", 100).await;

        let mut decision = json!({ "strategy": strategy });
        if let Some(data) = data {
            decision["data"] = data;
        }
        let told = waiting.resolve(&waiting.sue, decision).await.expect(200).json();
        assert_eq!(
            (
                &told["status"],
                &told["resolution"],
                &told["winner"],
                &told["server_version"]
            ),
            (
                &json!("resolved"),
                &json!(strategy),
                &json!(winner),
                &json!(version)
            ),
            "{told}"
        );
        assert_eq!(
            (&told["conflict_id"], &told["mobile_id"]),
            (&json!(waiting.conflict), &json!(waiting.record))
        );
        assert_eq!(
            waiting.comments().await,
            (json!(version), json!(comments)),
            "{strategy}"
        );

        let after = waiting.told().await;
        assert_eq!(
            (&after["status"], &after["winner"], &after["resolution"]),
            (&json!("decided"), &json!(winner), &json!("manual"))
        );
        let resolved = &after["resolved"];
        assert_eq!(
            (&resolved["strategy"], &resolved["user"], &resolved["version"]),
            (&json!(strategy), &json!("sue"), &json!(version))
        );
        assert!(resolved["at"].is_string(), "{after}");
        // The other phone hears of it as of any change, if it is one.
        let heard = replica.catch_up(&waiting.ben, "helpdesk", 100).await;
        assert_eq!(heard.len(), usize::from(version == 3), "{heard:?}");
        let path = format!("/api/v1/helpdesk/records/{}/history", waiting.record);
        let history = waiting.ben.get(&path).await.expect(200).json();
        let last = history["items"]
            .as_array()
            .expect("items")
            .last()
            .expect("an entry")
            .clone();
        if version == 3 {
            assert_eq!(
                (&last["user"], &last["resolution"], &last["conflict_id"]),
                (&json!("sue"), &json!(strategy), &json!(waiting.conflict)),
                "{last}"
            );
        }
        // It is an event on the record's topic, beside the record's others.
        let topic = read_topic(&deployment().brokers, &deployment().topic("sync.helpdesk.v1"));
        let id = waiting.record.to_string();
        let events: Vec<_> = topic
            .iter()
            .filter(|record| record.header("ce_subject") == id)
            .collect();
        let event = events.last().expect("an event");
        assert_eq!(
            (event.header("ce_type"), event.header("ce_policy")),
            ("tidelog.helpdesk.resolve", strategy)
        );
        assert_eq!(
            (event.partition, event.key.as_str()),
            (events[0].partition, events[0].key.as_str())
        );
        let receipt = told["receipt"].as_str().expect("a receipt");
        let again = waiting
            .sue
            .get(&format!("/api/v1/sync/batches/{receipt}"))
            .await
            .expect(200)
            .json();
        assert_eq!(
            (&again["status"], &again["winner"]),
            (&told["status"], &told["winner"]),
            "{again}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_is_409_and_a_retry_under_its_key_is_the_first_answer() {
    let waiting = Waiting::new("twice").await;
    let headers = [
        ("prefer", "wait=30"),
        ("idempotency-key", "the-decision-of-sue-1"),
    ];
    let decision = json!({"strategy": "client_wins"});
    let first = waiting
        .resolve_with(&waiting.sue, &headers, decision.clone())
        .await
        .expect(200);
    let again = waiting
        .resolve_with(&waiting.sue, &headers, decision.clone())
        .await
        .expect(200);
    assert_eq!(
        (again.header("idempotent-replayed"), &again.body),
        (Some("true"), &first.body)
    );
    for (who, decision) in [
        (&waiting.sue, decision),
        (&waiting.asha, json!({"strategy": "server_wins"})),
    ] {
        let told = waiting.resolve(who, decision).await.expect(409).json();
        assert_eq!(told["type"], "/problems/conflict-decided", "{told}");
        assert_eq!(
            (&told["decided_by"], &told["resolution"]),
            (&json!("sue"), &json!("client_wins")),
            "{told}"
        );
    }
    // Under a key, the log says so.
    let headers = [
        ("prefer", "wait=30"),
        ("idempotency-key", "another-decision-of-1"),
    ];
    let told = waiting
        .resolve_with(&waiting.asha, &headers, json!({"strategy": "merge"}))
        .await
        .expect(409);
    assert_eq!(
        told.json()["type"],
        "/problems/conflict-decided",
        "{}",
        told.text()
    );
    assert_eq!(told.header("content-type"), Some("application/problem+json"));
    assert_eq!(waiting.comments().await, (json!(3), json!("asha's")));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_decide_at_once_one_does() {
    let waiting = Waiting::new("race").await;
    let decisions = (0..12).map(|n| {
        let who = if n % 2 == 0 { &waiting.sue } else { &waiting.asha };
        waiting.resolve(
            who,
            json!({"strategy": "manual", "data": {"comments": format!("decision {n}")}}),
        )
    });
    let answers = futures_util::future::join_all(decisions).await;
    let (done, late): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(done.len(), 1, "{answers:?}");
    assert!(late.iter().all(|answer| answer.status == 409), "{answers:?}");
    assert_eq!(waiting.comments().await.0, json!(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_record_moved_on_it_says_so_until_decided_upon_what_it_is_now() {
    let waiting = Waiting::new("moved").await;
    waiting
        .ben
        .apply(
            "helpdesk",
            json!({"mobile_id": waiting.record, "version": 2, "priority": "LOW"}),
        )
        .await;
    for decision in [
        json!({"strategy": "client_wins"}),
        json!({"strategy": "manual", "data": {"comments": "sue's"}, "version": 2}),
    ] {
        let told = waiting.resolve(&waiting.sue, decision).await.expect(409).json();
        assert_eq!(
            (&told["type"], &told["error_code"]),
            (&json!("/problems/record-moved-on"), &json!("RECORD_MOVED")),
            "{told}"
        );
        assert!(
            told["detail"].as_str().expect("a detail").contains("version 3"),
            "{told}"
        );
    }
    let now = waiting.told().await;
    assert_eq!(
        (&now["status"], &now["record_version"]),
        (&json!("open"), &json!(3)),
        "{now}"
    );
    let told = waiting
        .resolve(&waiting.sue, json!({"strategy": "client_wins", "version": 3}))
        .await
        .expect(200)
        .json();
    assert_eq!(told["server_version"], 4, "{told}");
    assert_eq!(waiting.comments().await, (json!(4), json!("asha's")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_and_what_is_no_decision() {
    let waiting = Waiting::new("wrong").await;
    let merge = json!({"strategy": "merge"});
    waiting.resolve(&waiting.ben, merge.clone()).await.expect(403);
    let foreign = Phone::of(
        deployment(),
        &tenant("foreign"),
        "sue",
        "desk-2",
        Role::Supervisor,
    );
    waiting.resolve(&foreign, merge.clone()).await.expect(404);
    let path = format!("/api/v1/conflicts/{}/resolve", Uuid::new_v4());
    waiting
        .sue
        .send(Method::POST, &path, &[], merge.to_string())
        .await
        .expect(404);
    waiting
        .sue
        .send(
            Method::POST,
            "/api/v1/conflicts/seven/resolve",
            &[],
            merge.to_string(),
        )
        .await
        .expect(400);
    for (decision, member) in [
        (json!({}), "strategy"),
        (json!({"strategy": "most_recent_wins"}), "strategy"),
        (json!({"strategy": "manual"}), "data"),
        (json!({"strategy": "manual", "data": []}), "data"),
        (json!({"strategy": "merge", "data": {}}), "data"),
        (json!({"strategy": "merge", "version": -1}), "version"),
        (json!({"strategy": "merge", "client_id": "x"}), "client_id"),
        (json!([]), "object"),
    ] {
        let told = waiting.resolve(&waiting.sue, decision.clone()).await.expect(400);
        assert!(told.text().contains(member), "{decision}: {}", told.text());
    }
    // What it would make of the record is judged, by the gateway and by the fold.
    for (data, code, field) in [
        (json!({"priority": "URGENT"}), "VALIDATION_ERROR", "priority"),
        (json!({"ticketdesc": null}), "VALIDATION_ERROR", "ticketdesc"),
        (json!({"status": "CLOSED"}), "INVALID_TRANSITION", "status"),
    ] {
        let told = waiting
            .resolve(&waiting.sue, json!({"strategy": "manual", "data": data}))
            .await
            .expect(422)
            .json();
        assert_eq!(
            (&told["errors"][0]["error_code"], &told["errors"][0]["field"]),
            (&json!(code), &json!(field)),
            "{told}"
        );
    }
    assert_eq!(waiting.told().await["status"], "open");
    // It still waits, and whose item it was may decide.
    waiting
        .resolve(&waiting.asha, json!({"strategy": "client_wins"}))
        .await
        .expect(200);
}

/// A child hangs on its parent's key; its conflict is decided on that topic too.
#[tokio::test(flavor = "multi_thread")]
async fn a_childs_conflict_is_decided_too() {
    let waiting = Waiting::new("media").await;
    let (asha, tablet) = (
        &waiting.asha,
        Phone::of(deployment(), &waiting.asha.tenant, "asha", "tablet-1", Role::User),
    );
    let (entry, media) = (Uuid::new_v4(), Uuid::new_v4());
    asha.apply(
        "journal",
        json!({"mobile_id": entry, "entry_type": "gratitude", "timestamp": "2026-03-01T10:00:00Z"}),
    )
    .await;
    let item = |version: i64, caption: &str| {
        json!({"mobile_id": media, "journal_entry": entry, "version": version, "media_type": "PHOTO", "original_filename": "a.png",
            "mime_type": "image/png", "caption": caption})
    };
    asha.apply("journal-media", item(0, "first")).await;
    asha.apply("journal-media", item(1, "second")).await;
    let answer = tablet
        .post("journal-media", &[item(1, "the tablet's").to_string()])
        .await
        .expect(200)
        .json();
    let id = answer["conflicts"][0]["conflict_id"]
        .as_str()
        .expect("a conflict");
    let path = format!("/api/v1/conflicts/{id}/resolve");
    let body = json!({"strategy": "client_wins"}).to_string();
    let told = asha
        .send(Method::POST, &path, &[("prefer", "wait=30")], body)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&told["winner"], &told["server_version"]),
        (&json!("client"), &json!(3)),
        "{told}"
    );
    let record = asha
        .record("journal-media", &media.to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(record["caption"], "the tablet's", "{record}");
}
