//! The four kinds of telemetry as the old cases know them: what a phone sends, what makes it wrong, and the three cases
//! that each kind has to pass.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{deployment, key, phone_of};
use crate::support::items::encoded;
use crate::support::phone::Phone;

/// A telemetry domain.
pub(super) struct Stream {
    pub(super) url: &'static str,
    /// The item of that number, as a phone sends it.
    pub(super) item: fn(usize) -> Value,
    /// The parts of its identity, for `asha` on `phone-1`.
    identity: fn(usize) -> Vec<String>,
    /// A member that a later copy changes.
    changed: (&'static str, Value),
    /// Members that make an item wrong, and their rules' names.
    wrong: Vec<(&'static str, Value, &'static str)>,
}

pub(super) fn voice() -> Stream {
    Stream {
        url: "voice",
        item: |n| {
            json!({"verification_id": format!("ver-{n}"), "timestamp": "2026-03-01T10:00:00Z", "verified": true,
                "confidence_score": 0.9, "processing_time_ms": 120, "metadata": {"engine": "b"}})
        },
        identity: |n| vec![format!("ver-{n}")],
        changed: ("confidence_score", json!(0.1)),
        wrong: vec![
            ("verified", json!("yes"), "boolean"),
            ("confidence_score", json!(1.5), "max"),
            ("timestamp", json!("2126-01-01T00:00:00Z"), "not_future"),
        ],
    }
}

pub(super) fn behavioral() -> Stream {
    Stream {
        url: "behavioral",
        item: |n| {
            json!({"event_id": format!("event-{n}"), "timestamp": "2026-03-01T10:00:00Z", "event_type": "tap",
                "session_duration_ms": 900, "interaction_count": n, "performance_score": 0.5})
        },
        identity: |n| vec!["asha".into(), format!("event-{n}")],
        changed: ("interaction_count", json!(77)),
        wrong: vec![
            ("interaction_count", json!(-1), "min"),
            ("timestamp", json!("yesterday"), "rfc3339"),
        ],
    }
}

pub(super) fn sessions() -> Stream {
    Stream {
        url: "sessions",
        item: |n| {
            json!({"session_id": format!("session-{n}"), "session_start": "2026-03-01T10:00:00Z",
                "duration_ms": 1500, "event_count": n, "status": "open"})
        },
        identity: |n| vec!["asha".into(), format!("session-{n}")],
        changed: ("status", json!("closed")),
        wrong: vec![
            ("duration_ms", json!(-1), "min"),
            ("session_start", json!(17), "type"),
        ],
    }
}

pub(super) fn metrics() -> Stream {
    Stream {
        url: "metrics",
        item: |n| json!({"metric_name": "battery", "value": 87.5, "unit": "%", "timestamp": format!("2026-03-01T10:00:{n:02}Z")}),
        identity: |n| {
            vec![
                "phone-1".into(),
                "battery".into(),
                format!("2026-03-01T10:00:{n:02}Z"),
            ]
        },
        changed: ("value", json!(12)),
        wrong: vec![
            ("value", json!("full"), "number"),
            ("metric_name", json!(""), "min_length"),
        ],
    }
}

impl Stream {
    pub(super) fn subject(&self, number: usize) -> String {
        let parts: Vec<String> = (self.identity)(number).iter().map(|part| encoded(part)).collect();
        parts.join("/")
    }

    pub(super) fn texts(&self, numbers: impl Iterator<Item = usize>) -> Vec<String> {
        numbers.map(|number| (self.item)(number).to_string()).collect()
    }

    pub(super) async fn post(&self, phone: &Phone, items: &[String]) -> Value {
        let answer = phone.post_keyed(self.url, &key(), items).await.expect(200).json();
        assert_eq!(answer["status"], "complete", "{answer}");
        answer
    }

    /// What the table holds of the tenant, by identity.
    pub(super) async fn rows(&self, phone: &Phone) -> Vec<Value> {
        let sql = format!(
            "SELECT item_id, version, user_id, device_id, doc FROM {} WHERE tenant_id = $1 ORDER BY item_id",
            self.url
        );
        deployment().db().await.objects(&sql, &[&phone.tenant]).await
    }

    pub(super) async fn changes(&self, phone: &Phone) -> i64 {
        let sql = format!("SELECT count(*) FROM {}_changes WHERE tenant_id = $1", self.url);
        deployment().db().await.count(&sql, &[&phone.tenant]).await
    }

    pub(super) async fn persists(&self) {
        let phone = phone_of(self.url);
        let answer = self.post(&phone, &self.texts(1..4)).await;
        assert_eq!(
            (
                &answer["synced_items"],
                &answer["failed_items"],
                &answer["errors"]
            ),
            (&json!(3), &json!(0), &json!([]))
        );
        let expected: Vec<Value> = (1..4)
            .map(|n| {
                json!({"item_id": self.subject(n), "version": 1, "user_id": "asha", "device_id": "phone-1",
                    "doc": (self.item)(n)})
            })
            .collect();
        assert_eq!(self.rows(&phone).await, expected);
        let pulled = phone.pull(self.url, "limit=100").await;
        let ids: BTreeSet<&str> = pulled
            .iter()
            .filter_map(|item| item["item_id"].as_str())
            .collect();
        let subjects: Vec<String> = (1..4).map(|n| self.subject(n)).collect();
        assert_eq!(ids, subjects.iter().map(String::as_str).collect());
    }

    /// The same items in another batch, twice in one batch, and a later copy with another content, unless those count.
    pub(super) async fn skips_repeats(&self, replaces: bool) {
        let phone = phone_of(self.url);
        self.post(&phone, &self.texts(1..3)).await;
        let before = self.rows(&phone).await;
        let again = self.post(&phone, &self.texts([1, 2, 2].into_iter())).await;
        assert_eq!(
            (&again["synced_items"], &again["failed_items"]),
            (&json!(3), &json!(0)),
            "a repeat counts as synced"
        );
        if !replaces {
            let mut copy = (self.item)(1);
            copy[self.changed.0] = self.changed.1.clone();
            let again = self.post(&phone, &[copy.to_string()]).await;
            assert_eq!(again["synced_items"], 1);
        }
        assert_eq!(self.rows(&phone).await, before, "written once");
        assert_eq!(self.changes(&phone).await, 2);
        let told = "SELECT count(*) FROM outcomes WHERE tenant_id = $1 AND status = 'duplicate'";
        let duplicates = deployment().db().await.count(told, &[&phone.tenant]).await;
        assert_eq!(duplicates, if replaces { 3 } else { 4 });
    }

    pub(super) async fn captures_validation_errors(&self) {
        let phone = phone_of(self.url);
        let mut items = vec![(self.item)(1)];
        for (number, (member, value, _)) in self.wrong.iter().enumerate() {
            let mut item = (self.item)(number + 2);
            item[*member] = value.clone();
            items.push(item);
        }
        items.extend([json!({"metadata": {}}), json!(7), json!(null), (self.item)(9)]);
        let texts: Vec<String> = items.iter().map(Value::to_string).collect();
        let answer = self.post(&phone, &texts).await;
        let failed = self.wrong.len() + 3;
        assert_eq!(
            (&answer["synced_items"], &answer["failed_items"]),
            (&json!(2), &json!(failed)),
            "{answer}"
        );
        for (number, (member, _, rule)) in self.wrong.iter().enumerate() {
            let error = &answer["errors"][number];
            assert_eq!(error["index"], number + 1, "{answer}");
            assert_eq!(
                (&error["error_code"], &error["field"], &error["rule"]),
                (&json!("VALIDATION_ERROR"), &json!(member), &json!(rule)),
                "{error}"
            );
            assert!(
                error["error"].is_string() && error.get("item_id").is_some(),
                "{error}"
            );
        }
        let ids: Vec<Value> = self
            .rows(&phone)
            .await
            .iter()
            .map(|row| row["item_id"].clone())
            .collect();
        assert_eq!(ids, [json!(self.subject(1)), json!(self.subject(9))]);
        phone.get("/livez").await.expect(200);
        // The record of the batch says so too.
        let sql = "SELECT items, appended_items, jsonb_array_length(refused) AS refused FROM batches WHERE tenant_id = $1";
        let batches = deployment().db().await.objects(sql, &[&phone.tenant]).await;
        assert_eq!(
            batches,
            [json!({"items": items.len(), "appended_items": 2, "refused": failed})]
        );
    }
}
