//! Phones as they are in the field: they create, change and delete their own tickets and a few that all share, in batches to
//! either gateway, with clocks that are hours off; they try again under the same key, hang up before the answer and try
//! again under another, ask for a receipt, and read by cursor all along. What each was told is kept for the checker.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, TimeDelta, Utc};
use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::cases::{BRIEF, Load};
use crate::support::Dice;
use crate::support::http::Answer;
use crate::support::phone::{Phone, Replica};
use crate::support::service::Deployment;

/// However long something is broken, a phone's batch gets its answer within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// A batch that got its final answer.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) tenant: String,
    /// Its items' records and texts, by index.
    pub(crate) items: Vec<(Uuid, String)>,
    pub(crate) answer: Value,
}

/// What all phones of a run share.
#[derive(Default)]
pub(crate) struct Progress {
    /// Items with a final answer.
    pub(crate) answered: AtomicUsize,
    /// Answers other than 200 and 202, by status.
    pub(crate) refused: AtomicUsize,
    /// Phones finish the batch that they are at.
    pub(crate) finish: AtomicBool,
    /// Readers and watchers end.
    pub(crate) stop: AtomicBool,
}

/// A phone: the same device at either gateway.
pub(crate) struct Caller {
    at: [Phone; 2],
    dice: Dice,
    progress: Arc<Progress>,
    /// How far its clock is off.
    skew: TimeDelta,
    known: Vec<(Uuid, i64)>,
    pub(crate) load: Load,
}

impl Caller {
    pub(crate) fn new(
        gateways: &[Deployment; 2],
        tenant: &str,
        number: u64,
        seed: u64,
        progress: &Arc<Progress>,
    ) -> Caller {
        let mut dice = Dice::new(seed.wrapping_mul(1000).wrapping_add(number));
        let (user, device) = (format!("user-{number}"), format!("phone-{number}"));
        Caller {
            at: [0, 1].map(|n| Phone::of(&gateways[n], tenant, &user, &device, Role::User)),
            skew: TimeDelta::minutes(dice.roll(1200) as i64 - 600),
            dice,
            progress: progress.clone(),
            known: Vec::new(),
            load: BRIEF,
        }
    }

    /// Posts batches until it is time to finish; answers what it was told.
    pub(crate) async fn work(mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while !self.progress.finish.load(Ordering::SeqCst) {
            told.push(self.batch(told.len()).await);
            // A person's pace, so that a run is as long as its faults and not as large.
            tokio::time::sleep(Duration::from_millis(self.dice.roll(self.load.pause) as u64)).await;
        }
        told
    }

    async fn batch(&mut self, number: usize) -> Told {
        let items: Vec<(Uuid, Value)> = (0..1 + self.dice.roll(self.load.items))
            .map(|_| self.item(number))
            .collect();
        let mixed = self.dice.roll(5) == 0;
        let body = self.body(&items, mixed);
        if self.dice.roll(8) == 0 {
            // Hung up before the answer, and forgotten: the same items come again under another key.
            let hurry = Duration::from_millis(self.dice.roll(40) as u64);
            let key = Uuid::new_v4().to_string();
            let _ = tokio::time::timeout(hurry, self.post(&key, &body, mixed, "wait=2")).await;
        }
        let key = Uuid::new_v4().to_string();
        let answer = self.answer_for_good(&key, &body, mixed).await;
        if self.dice.roll(5) == 0 {
            let again = self.answer_for_good(&key, &body, mixed).await;
            assert_eq!(
                again.body,
                answer.body,
                "a retried key got another answer: {} then {}",
                answer.text(),
                again.text()
            );
        }
        let answer = answer.json();
        self.learn(&answer);
        self.progress.answered.fetch_add(items.len(), Ordering::SeqCst);
        Told {
            tenant: self.at[0].tenant.clone(),
            items: items
                .into_iter()
                .map(|(id, item)| (id, item.to_string()))
                .collect(),
            answer,
        }
    }

    /// One item, as a batch to its domain has it.
    fn item(&mut self, number: usize) -> (Uuid, Value) {
        let dice = &mut self.dice;
        let text = format!("ticket of batch {number}, throw {}", dice.roll(1_000_000_000));
        let time = (Utc::now() + self.skew - TimeDelta::seconds(dice.roll(7200) as i64))
            .to_rfc3339_opts(SecondsFormat::Micros, true);
        let known = (!self.known.is_empty()).then(|| self.known[dice.roll(self.known.len())]);
        let (id, base) = match (dice.roll(10), known) {
            // A ticket that every phone of the tenant knows.
            (0 | 1, _) => (shared(&self.at[0].tenant, dice.roll(5)), dice.roll(6) as i64),
            (2..=5, Some(known)) => known,
            _ => {
                let id = Uuid::new_v4();
                self.known.push((id, 0));
                (id, 0)
            }
        };
        let deletes = base > 0 && dice.roll(7) == 0;
        let mut item =
            json!({"mobile_id": id, "version": base, "ticketdesc": text, "client_timestamp": time});
        if deletes {
            item["sync_status"] = "pending_delete".into();
        }
        if dice.roll(25) == 0 {
            item["priority"] = "URGENT".into();
        }
        (id, item)
    }

    fn body(&self, items: &[(Uuid, Value)], mixed: bool) -> String {
        let sent_at = (Utc::now() + self.skew).to_rfc3339_opts(SecondsFormat::Micros, true);
        let (name, entries): (&str, Vec<Value>) = match mixed {
            false => ("entries", items.iter().map(|(_, item)| item.clone()).collect()),
            true => ("items", items.iter().map(|(_, item)| as_mixed(item)).collect()),
        };
        json!({"client_id": self.at[0].device, "sent_at": sent_at, name: entries}).to_string()
    }

    async fn post(&mut self, key: &str, body: &str, mixed: bool, wait: &str) -> Result<Answer, String> {
        let path = if mixed {
            "/api/v1/sync/batch"
        } else {
            "/api/v1/helpdesk/sync"
        };
        let phone = &self.at[self.dice.roll(2)];
        let headers = [("idempotency-key", key), ("prefer", wait)];
        let sent = phone.try_send(Method::POST, path, &headers, body.to_owned());
        // A gateway that is stopped leaves its connections open and silent.
        match tokio::time::timeout(Duration::from_secs(10), sent).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer".into()),
        }
    }

    /// Tries under one key, at either gateway, until the answer is final.
    async fn answer_for_good(&mut self, key: &str, body: &str, mixed: bool) -> Answer {
        let since = Instant::now();
        loop {
            let wait = if self.dice.roll(4) == 0 {
                "wait=0"
            } else {
                "wait=5"
            };
            match self.post(key, body, mixed, wait).await {
                Ok(answer) if answer.status == 200 => return answer,
                Ok(answer) if answer.status == 202 => self.ask_receipt(&answer).await,
                Ok(answer) => {
                    self.progress.refused.fetch_add(1, Ordering::Relaxed);
                    assert!(
                        matches!(answer.status, 409 | 429 | 500..),
                        "{} {}",
                        answer.status,
                        answer.text()
                    );
                }
                Err(_) => {}
            }
            assert!(
                since.elapsed() < PATIENCE,
                "a batch got no final answer in {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(20 + self.dice.roll(80) as u64)).await;
        }
    }

    /// A receipt resolves, now or later; it is never unknown.
    async fn ask_receipt(&mut self, accepted: &Answer) {
        let receipt = accepted.json()["receipt"].as_str().expect("a receipt").to_owned();
        let phone = &self.at[self.dice.roll(2)];
        let path = format!("/api/v1/sync/batches/{receipt}");
        if let Ok(answer) = phone.try_send(Method::GET, &path, &[], "").await {
            assert!(
                answer.status == 200 || answer.status >= 500,
                "{} {}",
                answer.status,
                answer.text()
            );
        }
    }

    fn learn(&mut self, answer: &Value) {
        for entry in entries(answer) {
            let id = entry["mobile_id"].as_str().and_then(|id| id.parse().ok());
            let known = self.known.iter_mut().find(|(known, _)| Some(*known) == id);
            if let (Some(known), Some(version)) = (known, entry["server_version"].as_i64()) {
                known.1 = known.1.max(version);
            }
        }
    }
}

/// The same item in a mixed batch: what it does stands outside of its data.
fn as_mixed(item: &Value) -> Value {
    let (version, deletes) = (
        item["version"].as_i64().unwrap_or(0),
        item["sync_status"] == "pending_delete",
    );
    let operation = match (deletes, version) {
        (true, _) => "delete",
        (false, 0) => "create",
        _ => "update",
    };
    let mut data = item.clone();
    for outside in ["mobile_id", "version", "sync_status", "client_timestamp"] {
        data.as_object_mut().expect("an object").remove(outside);
    }
    json!({"mobile_id": item["mobile_id"], "entity_type": "ticket", "operation": operation, "version": version, "data": data,
        "client_timestamp": item["client_timestamp"]})
}

/// A ticket that all phones of a tenant know; another one in each tenant.
pub(crate) fn shared(tenant: &str, number: usize) -> Uuid {
    let mut hash = DefaultHasher::new();
    (tenant, number).hash(&mut hash);
    Uuid::from_u128(0x4000_8000_0000_0000_0000_u128 | u128::from(hash.finish()) << 80 | number as u128)
}

/// The entries of an answer, whichever form it has.
pub(crate) fn entries(answer: &Value) -> impl Iterator<Item = &Value> {
    ["synced_items", "conflicts", "errors", "results"]
        .into_iter()
        .flat_map(|list| answer[list].as_array().into_iter().flatten())
}

/// Follows the changes at either gateway, page by page, until it is time to stop; answers what it holds. The replica
/// itself refuses a version that goes back.
pub(crate) async fn read(
    gateways: [Deployment; 2],
    tenant: String,
    limit: usize,
    progress: Arc<Progress>,
) -> Replica {
    let at = gateways.map(|gateway| Phone::of(&gateway, &tenant, "reader", "phone-reader", Role::Operator));
    let mut dice = Dice::new(limit as u64);
    let (mut replica, mut highest) = (Replica::default(), BTreeMap::<String, i64>::new());
    while !progress.stop.load(Ordering::SeqCst) {
        let step = replica.try_step(&at[dice.roll(2)], "helpdesk", limit);
        let more = tokio::time::timeout(Duration::from_secs(10), step)
            .await
            .ok()
            .flatten();
        for (id, document) in &replica.records {
            let version = document["version"].as_i64().expect("a version");
            let last = highest.entry(id.clone()).or_insert(version);
            assert!(
                version >= *last,
                "a reader saw {id} go back from {last} to {version}"
            );
            *last = version;
        }
        if more != Some(true) {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
    replica
}
