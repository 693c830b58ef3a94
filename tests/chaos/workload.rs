//! Phones as they are in the field: they create, change and delete their own tickets and a few that all share, in batches to
//! either gateway, with clocks that are hours off; they try again under the same key, hang up before the answer and try
//! again under another, ask for a receipt, and read by cursor all along. What each was told is kept for the checker.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{SecondsFormat, TimeDelta, Utc};
use http::Method;
use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::run::Load;
use crate::support::Dice;
use crate::support::http::Answer;
use crate::support::phone::{Phone, Replica};
use crate::support::service::Deployment;

/// A gateway that is stopped leaves its connections open and silent; one that lives has answered by then.
const SILENCE: Duration = Duration::from_millis(2500);

/// A batch that got its final answer.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) tenant: String,
    /// How far the phone's clock is ahead.
    pub(crate) skew: TimeDelta,
    /// Its items' records and their items as sent to a domain, by index.
    pub(crate) items: Vec<(Uuid, Value)>,
    pub(crate) answer: Value,
    /// Under which key which bytes were posted, and whether as a mixed batch; and the bytes that were answered.
    request: (String, String, bool),
    bytes: Bytes,
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
    /// Which gateway it turns to next.
    nearest: usize,
    dice: Dice,
    progress: Arc<Progress>,
    /// How far its clock is off.
    skew: TimeDelta,
    known: Vec<(Uuid, i64)>,
    load: Load,
}

impl Caller {
    pub(crate) fn new(
        gateways: &[Deployment; 2],
        tenant: &str,
        number: u64,
        seed: u64,
        progress: &Arc<Progress>,
        load: Load,
    ) -> Caller {
        let mut dice = Dice::new(seed.wrapping_mul(1000).wrapping_add(number));
        let (user, device) = (format!("user-{number}"), format!("phone-{number}"));
        Caller {
            at: [0, 1].map(|n| Phone::of(&gateways[n], tenant, &user, &device, Role::User)),
            skew: TimeDelta::minutes(dice.roll(1200) as i64 - 600),
            nearest: dice.roll(2),
            dice,
            progress: progress.clone(),
            known: Vec::new(),
            load,
        }
    }

    /// Posts batches until it is time to finish; answers what it was told.
    pub(crate) async fn work(mut self) -> (Caller, Vec<Told>) {
        let mut told = Vec::new();
        while !self.progress.finish.load(Ordering::SeqCst) {
            told.push(self.batch(told.len()).await);
            // A person's pace, so that a run is as long as its faults and not as large.
            tokio::time::sleep(Duration::from_millis(self.dice.roll(self.load.pause) as u64)).await;
        }
        (self, told)
    }

    /// Asks once more for everything that it was told: whoever wrote late must not have changed it.
    pub(crate) async fn ask_again(mut self, told: Vec<Told>) {
        for Told { request, bytes, .. } in told {
            let (key, body, mixed) = request;
            let again = self.answer_for_good(&key, &body, mixed).await;
            self.same(&bytes, &again.body);
        }
    }

    /// A retried key gets the same answer.
    fn same(&self, first: &Bytes, again: &Bytes) {
        let text = String::from_utf8_lossy;
        let same = match self.load.forgets {
            false => first == again,
            true => outcomes(first) == outcomes(again),
        };
        assert!(
            same,
            "a retried key got another answer: {} then {}",
            text(first),
            text(again)
        );
    }

    async fn batch(&mut self, number: usize) -> Told {
        let items: Vec<(Uuid, Value)> = (0..1 + self.dice.roll(self.load.items))
            .map(|_| self.item(number))
            .collect();
        let mixed = self.dice.roll(5) == 0;
        let body = self.body(&items, mixed);
        if self.dice.roll(8) == 0 && self.load.hangs_up {
            // Hung up before the answer, and forgotten: the same items come again under another key.
            let hurry = Duration::from_millis(self.dice.roll(40) as u64);
            let key = Uuid::new_v4().to_string();
            let _ = tokio::time::timeout(hurry, self.post(&key, &body, mixed, "wait=2")).await;
        }
        let key = Uuid::new_v4().to_string();
        let answer = self.answer_for_good(&key, &body, mixed).await;
        if self.dice.roll(5) == 0 {
            let again = self.answer_for_good(&key, &body, mixed).await;
            self.same(&answer.body, &again.body);
        }
        let (bytes, answer) = (answer.body.clone(), answer.json());
        self.learn(&answer);
        self.progress.answered.fetch_add(items.len(), Ordering::SeqCst);
        Told {
            tenant: self.at[0].tenant.clone(),
            skew: self.skew,
            items,
            answer,
            request: (key, body, mixed),
            bytes,
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
        let headers = [("idempotency-key", key), ("prefer", wait)];
        let sent = self.at[self.nearest].try_send(Method::POST, path, &headers, body.to_owned());
        let answer = tokio::time::timeout(SILENCE, sent).await;
        let answer = answer.unwrap_or_else(|_| Err("no answer".into()));
        // Where one is silent or gone, the next attempt is with the other.
        self.nearest = match &answer {
            Ok(_) => self.dice.roll(2),
            Err(_) => 1 - self.nearest,
        };
        answer
    }

    /// Tries under one key, at either gateway, until the answer is final.
    async fn answer_for_good(&mut self, key: &str, body: &str, mixed: bool) -> Answer {
        let (since, mut accepted) = (Instant::now(), false);
        loop {
            let wait = ["wait=0", "wait=2", "wait=2", "wait=2"][self.dice.roll(4)];
            match self.post(key, body, mixed, wait).await {
                Ok(answer) if answer.status == 200 => return answer,
                Ok(answer) if answer.status == 202 => {
                    accepted = true;
                    self.ask_receipt(&answer).await;
                }
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
                since.elapsed() < self.load.patience,
                "a batch that was {} got no final answer in {:?}",
                if accepted { "accepted" } else { "not accepted" },
                self.load.patience
            );
            tokio::time::sleep(Duration::from_millis(20 + self.dice.roll(80) as u64)).await;
        }
    }

    /// A receipt resolves, now or later; it is never unknown.
    async fn ask_receipt(&mut self, accepted: &Answer) {
        let receipt = accepted.json()["receipt"].as_str().expect("a receipt").to_owned();
        let phone = &self.at[self.dice.roll(2)];
        let path = format!("/api/v1/sync/batches/{receipt}");
        let asked = phone.try_send(Method::GET, &path, &[], "");
        if let Ok(Ok(answer)) = tokio::time::timeout(SILENCE, asked).await {
            assert!(
                matches!(answer.status, 200 | 429 | 500..),
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

/// What an answer says of the items, without the receipt and the time of the append.
fn outcomes(answer: &Bytes) -> Value {
    let mut answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    for of_the_append in ["receipt", "timestamp"] {
        answer.as_object_mut().map(|answer| answer.remove(of_the_append));
    }
    answer
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
        let more = tokio::time::timeout(SILENCE, step).await.ok().flatten();
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
