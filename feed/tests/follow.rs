//! Whoever follows the feed holds what a fresh snapshot holds: by cursor, by time, with any limit, whatever is
//! applied between two pages and however far single partitions lag behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::world::{DOMAINS, Random, TENANTS, USERS, World};
use support::{Asker, Stage};
use tidelog_events::ids::Role;

/// A phone: what it holds, and what it asks with next.
struct Phone {
    who: Asker,
    domain: &'static str,
    by_time: bool,
    next: String,
    copy: BTreeMap<String, i64>,
}

impl Phone {
    /// Pulls one page; tells whether more follows.
    async fn pull(&mut self, stage: &Stage, limit: usize) -> bool {
        let path = format!("/api/v1/{}/changes?limit={limit}{}", self.domain, self.next);
        let page = stage.get(&self.who, &path).await;
        let items = page["items"].as_array().unwrap();
        assert!(
            self.by_time || items.len() <= limit,
            "{} items for limit {limit}",
            items.len()
        );
        for item in items {
            self.take(item);
        }
        self.next = match self.by_time {
            true => format!("&since={}", page["next_timestamp"].as_str().unwrap()),
            false => format!("&cursor={}", page["cursor"].as_str().unwrap()),
        };
        page["has_more"].as_bool().unwrap()
    }

    fn take(&mut self, item: &Value) {
        let name = if self.domain == "metrics" {
            "item_id"
        } else {
            "mobile_id"
        };
        let (id, version) = (
            item[name].as_str().unwrap().to_owned(),
            item["version"].as_i64().unwrap(),
        );
        if item.get("deleted").is_some() {
            self.copy.remove(&id);
        } else {
            assert_eq!(item["v"], version, "{item}");
            let before = self.copy.insert(id, version);
            assert!(
                before.is_none_or(|before| self.by_time || before <= version),
                "an older state came after a newer"
            );
        }
    }

    /// Pulls until nothing follows; tells whether that came to an end.
    async fn catch_up(&mut self, stage: &Stage, limit: usize) -> bool {
        for _ in 0..200 {
            if !self.pull(stage, limit).await {
                return true;
            }
        }
        false
    }
}

fn phones() -> Vec<Phone> {
    let mut phones = Vec::new();
    for tenant in TENANTS {
        let askers = [
            (USERS[0], Role::User),
            (USERS[1], Role::User),
            ("eve", Role::Supervisor),
        ];
        for (user, role) in askers {
            for domain in DOMAINS {
                for by_time in [false, true] {
                    let who = Asker::new(tenant, user, role);
                    phones.push(Phone {
                        who,
                        domain,
                        by_time,
                        next: String::new(),
                        copy: BTreeMap::new(),
                    });
                }
            }
        }
    }
    phones
}

/// Everything is applied: the phone comes to hold just that, and so does a new one.
async fn ends_right(stage: &Stage, world: &World, phone: &mut Phone, limit: usize, seed: u64) {
    let (who, domain, by_time) = (phone.who.clone(), phone.domain, phone.by_time);
    assert!(
        phone.catch_up(stage, limit).await,
        "seed {seed}: no end for {who:?} {domain}"
    );
    let seen = world.seen(&who, domain);
    assert_eq!(
        phone.copy, seen,
        "seed {seed} at the end: {who:?} {domain} by time: {by_time}"
    );
    let (next, copy) = (String::new(), BTreeMap::new());
    let mut fresh = Phone {
        who,
        domain,
        by_time: false,
        next,
        copy,
    };
    assert!(fresh.catch_up(stage, 1000).await);
    assert_eq!(
        fresh.copy, seen,
        "seed {seed}: a fresh snapshot of {:?} {domain}",
        fresh.who
    );
}

async fn history(seed: u64) {
    let stage = support::stage().await;
    let (mut world, mut random, mut phones) = (World::default(), Random(seed), phones());
    for round in 0..12 {
        for _ in 0..random.below(40) {
            world.append(&mut random);
        }
        world.apply_some(&stage, &mut random, round == 11).await;
        for phone in &mut phones {
            let limit = 1 + random.below(7);
            match random.below(3) {
                _ if round == 11 => {}
                0 => {}
                1 => drop(phone.pull(&stage, limit).await),
                _ => {
                    assert!(
                        phone.catch_up(&stage, limit).await,
                        "seed {seed} round {round}: no end"
                    );
                    let seen = world.seen(&phone.who, phone.domain);
                    let which = (&phone.who, phone.domain, phone.by_time);
                    assert_eq!(phone.copy, seen, "seed {seed} round {round}: {which:?}");
                }
            }
        }
    }
    for phone in &mut phones {
        ends_right(&stage, &world, phone, 1 + random.below(7), seed).await;
    }
    stage.strike().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_holds_what_a_fresh_snapshot_holds() {
    let seeds: u64 = std::env::var("TIDELOG_TEST_SEEDS").map_or(4, |n| n.parse().unwrap());
    for seed in 0..seeds {
        history(seed).await;
    }
}
