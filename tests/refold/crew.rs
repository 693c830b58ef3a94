//! Phones of two tenants that write to every domain, and phones that read all of it by cursor, for as long as somebody else does
//! what is tested. Writers make records, change their own, collide over shared ones and repeat themselves. Knows no command.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tidelog_http::auth::Role;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::items::{DOMAINS, Known};
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::service::Deployment;
use crate::support::{Dice, eventually};

/// Writers and readers at work.
pub(crate) struct Crew {
    stop: Arc<AtomicBool>,
    pub(crate) sent: Arc<AtomicUsize>,
    writers: Vec<JoinHandle<Vec<String>>>,
    readers: Vec<JoinHandle<Reader>>,
    deployment: Deployment,
}

/// A phone that reads, and what it holds of each domain.
struct Reader {
    phone: Phone,
    limit: usize,
    held: BTreeMap<&'static str, Replica>,
}

/// What writers leave: whose receipts they got.
pub(crate) struct Left {
    pub(crate) receipts: Vec<String>,
    pub(crate) tenants: Vec<String>,
}

/// Events before anything is rebuilt: few, or as many as TIDELOG_REFOLD_EVENTS says.
pub(crate) fn events() -> usize {
    let wanted = std::env::var("TIDELOG_REFOLD_EVENTS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(4000)
}

/// Two tenants, or eight where there is much to share.
pub(crate) fn tenants() -> Vec<String> {
    let names = [
        "north", "south", "east", "west", "upper", "lower", "inner", "outer",
    ];
    let count = if events() > 100_000 { 8 } else { 2 };
    names[..count].iter().map(|name| tenant(name)).collect()
}

/// Posts about so many items, as fast as they are taken, and waits until they are applied.
pub(crate) async fn fill(deployment: &Deployment, tenants: &[String], events: usize) {
    let crew = Crew::start(deployment, tenants, 8, 0, Duration::ZERO);
    let since = std::time::Instant::now();
    while crew.sent.load(Ordering::Relaxed) < events {
        assert!(
            crew.writers.iter().all(|writer| !writer.is_finished()),
            "a writer ended"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{events} events posted in {:?}", since.elapsed());
    crew.end().await;
}

impl Crew {
    pub(crate) fn start(
        deployment: &Deployment,
        tenants: &[String],
        writers: usize,
        readers: usize,
        pause: Duration,
    ) -> Crew {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writers = (0..writers).map(|n| {
            let tenant = &tenants[n % tenants.len()];
            // Whoever fills and whoever writes later is another person.
            let user = format!("user-{n}-{}", Uuid::new_v4().simple());
            let phone = Phone::new(deployment, tenant, &user);
            let writer = Writer {
                phone,
                dice: Dice::new(n as u64),
                known: BTreeMap::new(),
                number: n << 32,
                last: BTreeMap::new(),
            };
            tokio::spawn(writer.work(stop.clone(), sent.clone(), pause))
        });
        let readers = (0..readers).map(|n| {
            let tenant = &tenants[n % tenants.len()];
            let reader = Reader {
                phone: Phone::of(
                    deployment,
                    tenant,
                    &format!("reader-{n}"),
                    "phone-r",
                    Role::Operator,
                ),
                limit: [37, 100, 500, 1000, 250][n % 5],
                held: BTreeMap::new(),
            };
            tokio::spawn(reader.follow(stop.clone()))
        });
        Crew {
            stop: stop.clone(),
            sent: sent.clone(),
            writers: writers.collect(),
            readers: readers.collect(),
            deployment: deployment.clone(),
        }
    }

    /// Everybody finishes; everything is applied; readers hold what a new phone would be given.
    pub(crate) async fn end(self) -> Left {
        self.stop.store(true, Ordering::SeqCst);
        let mut receipts = Vec::new();
        for writer in self.writers {
            receipts.extend(writer.await.expect("a writer goes on to the end"));
        }
        all_applied(&self.deployment).await;
        let mut tenants = Vec::new();
        for reader in self.readers {
            let mut reader = reader.await.expect("a reader goes on to the end");
            reader.holds_what_there_is().await;
            tenants.push(reader.phone.tenant.clone());
        }
        Left { receipts, tenants }
    }
}

/// All of the log is applied. It may take as long as the lag goes down.
pub(crate) async fn all_applied(deployment: &Deployment) {
    let mut least = u64::MAX;
    loop {
        let lag = eventually("the lag goes down", async || {
            let status = deployment.run(&["status", "--output", "json"]);
            let lag = (status.code == 0).then(|| status.json()["lag"].as_u64())??;
            (lag == 0 || lag < least).then_some(lag)
        })
        .await;
        if lag == 0 {
            return;
        }
        least = lag;
    }
}

struct Writer {
    phone: Phone,
    dice: Dice,
    /// Own records of each domain, with the version that they are thought to have.
    known: BTreeMap<&'static str, Vec<(Value, i64)>>,
    number: usize,
    /// What was posted last to each domain, to be repeated.
    last: BTreeMap<&'static str, Vec<String>>,
}

impl Writer {
    async fn work(mut self, stop: Arc<AtomicBool>, sent: Arc<AtomicUsize>, pause: Duration) -> Vec<String> {
        let mut receipts = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let known = &DOMAINS[self.dice.roll(DOMAINS.len())];
            let entries = self.entries(known);
            let body = self.phone.batch(&entries);
            let key = Uuid::new_v4().to_string();
            loop {
                let headers = [("prefer", "wait=0"), ("idempotency-key", key.as_str())];
                let answer = self.phone.send_batch(known.url, &headers, body.clone()).await;
                match answer.status {
                    200 | 202 => {
                        receipts.extend(answer.json()["receipt"].as_str().map(str::to_owned));
                        break;
                    }
                    429 | 503 => tokio::time::sleep(Duration::from_millis(50)).await,
                    _ => panic!("{}", answer.text()),
                }
            }
            sent.fetch_add(entries.len(), Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
        receipts
    }

    fn entries(&mut self, known: &'static Known) -> Vec<String> {
        let mut entries: Vec<String> = (0..40).map(|_| self.entry(known)).collect();
        if self.dice.roll(4) == 0 {
            // The same items again, in another batch.
            entries.extend(self.last.remove(known.url).into_iter().flatten().take(5));
        }
        self.last.insert(known.url, entries.clone());
        entries
    }

    fn entry(&mut self, known: &'static Known) -> String {
        let own = self.known.entry(known.url).or_default();
        let throw = self.dice.roll(20);
        if known.is_entity() && throw < 8 && !own.is_empty() {
            let at = self.dice.roll(own.len());
            let (item, version) = &mut own[at];
            let mut change = item.clone();
            change["version"] = (*version).into();
            if throw == 0 {
                change["sync_status"] = "pending_delete".into();
                own.swap_remove(at);
            } else {
                *version += 1;
            }
            return change.to_string();
        }
        self.number += 1;
        let mut item: Value = serde_json::from_str(&(known.item)(self.number % 900).text).expect("an item");
        if known.is_entity() {
            if throw == 19 {
                // Of a few that everybody has: most of these are behind.
                let shared = Uuid::from_u128(0x4000_8000_0000_0000_0000 | self.dice.roll(5) as u128);
                item["mobile_id"] = shared.to_string().into();
            } else {
                own.push((item.clone(), 1));
            }
        }
        item.to_string()
    }
}

impl Reader {
    async fn follow(mut self, stop: Arc<AtomicBool>) -> Reader {
        while !stop.load(Ordering::SeqCst) {
            for known in &DOMAINS {
                self.step(known.url).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self
    }

    /// One page of a domain; whether there may be more. The replica refuses a version that goes back; an answer other than a page
    /// or "come back" ends the test.
    async fn step(&mut self, domain: &'static str) -> bool {
        let replica = self.held.entry(domain).or_default();
        replica.try_step(&self.phone, domain, self.limit).await != Some(false)
    }

    async fn holds_what_there_is(&mut self) {
        for known in &DOMAINS {
            while self.step(known.url).await {}
            let mut fresh = Replica::default();
            while fresh.try_step(&self.phone, known.url, 1000).await != Some(false) {}
            let held = &self.held[known.url].records;
            assert_eq!(held.len(), fresh.records.len(), "{}", known.url);
            for (id, document) in &fresh.records {
                assert_eq!(held.get(id), Some(document), "{} {id}", known.url);
            }
        }
    }
}
