//! A phone that follows its cursor can prove that it holds what it should, at every place where it ever stood, whoever it is and
//! whatever goes on meanwhile; and gets again just what is wrong.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tidelog_http::auth::Role;
use uuid::Uuid;

use crate::support::Dice;
use crate::support::phone::{Phone, Replica, tenant};
use crate::support::proof::{Copy, Wrong, descend, tally, told};
use crate::support::service::{Deployment, Service};

static SERVICE: OnceLock<Service> = OnceLock::new();

const DOMAINS: [&str; 5] = ["helpdesk", "attendance", "journal", "journal-media", "sessions"];

fn deployment() -> &'static Deployment {
    &Service::shared(&SERVICE, "checksums").deployment
}

fn id_column(domain: &str) -> &'static str {
    if domain == "sessions" {
        "item_id"
    } else {
        "mobile_id"
    }
}

/// A phone's copy of a domain, and what it was at each cursor that it held after a whole pull.
struct Holder<'a> {
    phone: &'a Phone,
    domain: &'static str,
    replica: Replica,
    stood: Vec<(String, Copy)>,
}

impl Holder<'_> {
    async fn catch_up(&mut self, limit: usize) {
        self.replica.catch_up(self.phone, self.domain, limit).await;
        let held = self.replica.records.iter();
        let copy = held.map(|(id, document)| (id.clone(), document["version"].as_i64().expect("a version")));
        let cursor = self.replica.cursor.clone().expect("a cursor");
        self.stood.push((cursor, copy.collect()));
    }

    async fn is_proved(&self) {
        for (at, (cursor, copy)) in self.stood.iter().enumerate() {
            let which = format!("{} of {} at cursor {at}", self.domain, self.phone.user);
            let answer = checksum(self.phone, self.domain, &format!("cursor={cursor}")).await;
            assert_eq!(told(&answer), tally(copy, ""), "{which}");
            let down = descend(copy, id_column(self.domain), async |prefix| {
                checksum(
                    self.phone,
                    self.domain,
                    &format!("cursor={cursor}&prefix={prefix}"),
                )
                .await
            });
            assert_eq!(down.await, Wrong::default(), "{which}");
        }
    }
}

async fn checksum(phone: &Phone, domain: &str, query: &str) -> Value {
    phone
        .get(&format!("/api/v1/{domain}/checksum?{query}"))
        .await
        .expect(200)
        .json()
}

/// Somebody who makes, changes, shares, hides and deletes their own records.
struct Author {
    phone: Phone,
    dice: Dice,
    known: Vec<(&'static str, Value, i64)>,
}

impl Author {
    fn new(phone: Phone, seed: u64) -> Author {
        Author {
            phone,
            dice: Dice::new(seed),
            known: Vec::new(),
        }
    }

    async fn work(&mut self, items: usize) {
        for domain in DOMAINS {
            let entries: Vec<String> = (0..items).map(|_| self.item(domain).to_string()).collect();
            let answer = self.phone.post(domain, &entries).await.expect(200).json();
            assert!(answer["errors"].as_array().is_none_or(Vec::is_empty), "{answer}");
        }
    }

    fn item(&mut self, domain: &'static str) -> Value {
        let mine: Vec<usize> = (0..self.known.len())
            .filter(|at| self.known[*at].0 == domain)
            .collect();
        if !mine.is_empty() && self.dice.roll(2) == 0 {
            let at = mine[self.dice.roll(mine.len())];
            let (_, mut item, version) = self.known[at].clone();
            if domain == "sessions" {
                item["event_count"] = self.dice.roll(1000).into();
                return item;
            }
            item["version"] = version.into();
            if self.dice.roll(4) == 0 {
                item["sync_status"] = "pending_delete".into();
                self.known.swap_remove(at);
                return item;
            }
            item["remarks"] = self.dice.roll(1_000_000).into();
            if domain == "journal" {
                item["privacy_scope"] = self.scope().into();
            }
            self.known[at].2 += 1;
            return item;
        }
        let item = self.made(domain);
        self.known.push((domain, item.clone(), 1));
        item
    }

    fn scope(&mut self) -> &'static str {
        ["private", "manager", "team", "shared"][self.dice.roll(4)]
    }

    fn made(&mut self, domain: &'static str) -> Value {
        let id = Uuid::new_v4();
        match domain {
            "helpdesk" => json!({"mobile_id": id, "ticketdesc": "Pump 4 is leaking oil"}),
            "attendance" => json!({
                "mobile_id": id, "deviceid": "handset-1", "gpslocation": {"type": "Point", "coordinates": [7.5, 51.5]},
            }),
            "journal" => json!({
                "mobile_id": id, "entry_type": "site_inspection", "timestamp": "2026-03-01T10:00:00Z",
                "privacy_scope": self.scope(), "team_members": ["ben"],
            }),
            "journal-media" => {
                let entries: Vec<Value> = self
                    .known
                    .iter()
                    .filter(|(domain, ..)| *domain == "journal")
                    .map(|(_, item, _)| item["mobile_id"].clone())
                    .collect();
                let entry = match entries.is_empty() {
                    true => json!(Uuid::new_v4()),
                    false => entries[self.dice.roll(entries.len())].clone(),
                };
                json!({
                    "mobile_id": id, "journal_entry": entry, "media_type": "PHOTO",
                    "original_filename": "gate.jpg", "mime_type": "image/jpeg",
                })
            }
            _ => json!({"session_id": id, "session_start": "2026-03-01T10:00:00Z", "event_count": 1}),
        }
    }
}

/// An author, somebody of the team, a supervisor and an operator.
fn people(tenant: &str) -> Vec<Phone> {
    let phone = |user: &str, role| Phone::of(deployment(), tenant, user, "phone-2", role);
    vec![
        phone("asha", Role::User),
        phone("ben", Role::User),
        phone("dora", Role::Supervisor),
        phone("emil", Role::Operator),
    ]
}

fn holders(people: &[Phone]) -> Vec<Holder<'_>> {
    let of_phone = |phone| {
        DOMAINS.map(|domain| Holder {
            phone,
            domain,
            replica: Replica::default(),
            stood: Vec::new(),
        })
    };
    people.iter().flat_map(of_phone).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_has_the_sum_at_every_cursor_that_they_held() {
    let tenant = tenant("sums");
    let mut author = Author::new(Phone::new(deployment(), &tenant, "asha"), 5);
    let people = people(&tenant);
    let mut holders = holders(&people);
    for round in 0..5 {
        author.work(30).await;
        for (n, holder) in holders
            .iter_mut()
            .enumerate()
            .filter(|(n, _)| (n + round) % 3 > 0 || round == 4)
        {
            holder.catch_up([7, 100, 1000][(n + round) % 3]).await;
        }
    }
    for holder in &holders {
        holder.is_proved().await;
        let (now, (cursor, _)) = (
            checksum(holder.phone, holder.domain, "").await,
            holder.stood.last().expect("a cursor"),
        );
        let there = checksum(holder.phone, holder.domain, &format!("cursor={cursor}")).await;
        assert_eq!(told(&now), told(&there));
    }
    // Nobody sees all the same, and another tenant sees nothing.
    let counts: Vec<i64> = holders
        .iter()
        .filter(|holder| holder.domain == "journal")
        .map(|holder| holder.stood.last().map_or(0, |(_, copy)| copy.len() as i64))
        .collect();
    assert!(
        counts[0] > counts[1] && counts[1] > 0 && counts[2] > 0,
        "{counts:?}"
    );
    let stranger = Phone::of(
        deployment(),
        &crate::support::phone::tenant("none"),
        "asha",
        "phone-1",
        Role::Operator,
    );
    assert_eq!(checksum(&stranger, "helpdesk", "").await["count"], 0);
    let theirs = &holders[0].stood[0].0;
    let refused = stranger
        .get(&format!("/api/v1/helpdesk/checksum?cursor={theirs}"))
        .await;
    refused.expect_problem(400, "bad-cursor", "starts anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_mends_its_copy_with_what_is_wrong_alone() {
    let tenant = tenant("mends");
    let phone = Phone::new(deployment(), &tenant, "asha");
    let tickets = |n| {
        (0..n)
            .map(|_| json!({"mobile_id": Uuid::new_v4(), "ticketdesc": "Pump 4 is leaking oil"}).to_string())
    };
    phone
        .post("helpdesk", &tickets(900).collect::<Vec<_>>())
        .await
        .expect(200);
    let mut holder = holders(std::slice::from_ref(&phone)).remove(0);
    let first = phone.page("helpdesk", "limit=10").await;
    let unfinished = format!(
        "/api/v1/helpdesk/checksum?cursor={}",
        first["cursor"].as_str().expect("a cursor")
    );
    phone
        .get(&unfinished)
        .await
        .expect_problem(409, "unfinished-cursor", "has_more");
    holder.catch_up(1000).await;
    let (cursor, whole) = holder.stood.pop().expect("a cursor");
    let ids: Vec<&String> = whole.keys().collect();
    let mut copy = whole.clone();
    copy.remove(ids[3]);
    copy.insert(ids[500].clone(), 0);
    copy.insert(Uuid::new_v4().to_string(), 4);
    assert_ne!(
        told(&checksum(&phone, "helpdesk", &format!("cursor={cursor}")).await),
        tally(&copy, "")
    );
    let wrong = descend(&copy, "mobile_id", async |prefix| {
        checksum(&phone, "helpdesk", &format!("cursor={cursor}&prefix={prefix}")).await
    })
    .await;
    assert_eq!(wrong.get.iter().collect::<Vec<_>>(), [ids[3], ids[500]]);
    for id in &wrong.get {
        let record = phone.record("helpdesk", id).await.expect(200).json();
        copy.insert(id.clone(), record["version"].as_i64().expect("a version"));
    }
    copy.retain(|id, _| !wrong.drop.contains(id));
    assert_eq!(copy, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_disturb_the_sum() {
    let tenant = tenant("disturb");
    let people = people(&tenant);
    let mut holders = holders(&people);
    let done = AtomicBool::new(false);
    let mut authors = [1, 2].map(|n| {
        Author::new(
            Phone::of(deployment(), &tenant, &format!("asha-{n}"), "phone-1", Role::User),
            n,
        )
    });
    let writing = async {
        let [one, two] = &mut authors;
        for _ in 0..6 {
            tokio::join!(one.work(15), two.work(15));
        }
        done.store(true, Ordering::SeqCst);
    };
    let reading = async {
        let mut looks = 0;
        while !done.load(Ordering::SeqCst) {
            for holder in &mut holders {
                holder.catch_up(50).await;
                holder.is_proved().await;
                holder.stood.truncate(3);
                looks += 1;
            }
        }
        looks
    };
    let ((), looks) = tokio::join!(writing, reading);
    assert!(looks >= holders.len(), "{looks} looks");
}
