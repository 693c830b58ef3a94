//! The work: helpdesk tickets as phones send them, about 400 bytes each, in batches of 100. Made from a seed, so that
//! every run sends the same; of words rather than of random bytes or one repeated text, so that they compress as text
//! does.

use anyhow::Result;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;
use tidelog_http::auth::{DeviceId, TenantId, UserId};
use uuid::Uuid;

use super::ground::Ground;
use super::phone::Posting;

/// Items of a batch.
pub(super) const BATCH: usize = 100;
/// The domain's topic, without a prefix.
pub(super) const TOPIC: &str = "sync.helpdesk.v1";
/// Partitions of each topic, as `tidelog topics` makes them.
pub(super) const PARTITIONS: i64 = 6;
/// Tenants who post, each with one phone.
const PEOPLE: usize = 64;

const WORDS: &str = "access alarm basement battery blocked broken building cable ceiling clean contractor cooling corridor \
    damaged delivery desk door drain electric elevator emergency entrance fan filter fire floor gate generator glass \
    heating inspection keys lamp leak light lobby lock loose machine meter missing noise office outlet paint panel \
    parking pipe power pressure pump railing replaced reported roof safety sensor shift sign smoke stairs switch toilet \
    urgent valve ventilation visitor wall warehouse water window wiring";

/// Someone with a phone.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) tenant: TenantId,
    pub(super) user: UserId,
    pub(super) device: DeviceId,
}

impl Person {
    /// The person of that number, of a tenant of the same number.
    pub(super) fn numbered(number: usize) -> Result<Self> {
        Ok(Self {
            tenant: TenantId::parse(&format!("tenant-{number:04}"))?,
            user: UserId::parse(&format!("user-{number:04}"))?,
            device: DeviceId::parse(&format!("phone-{number:04}"))?,
        })
    }
}

/// The header that says who.
pub(super) fn bearer(ground: &Ground, person: &Person) -> Result<HeaderValue> {
    Ok(HeaderValue::from_str(&format!(
        "Bearer {}",
        ground.token(person)?
    ))?)
}

/// Makes tickets.
pub(super) struct Tickets {
    random: u64,
    words: Vec<&'static str>,
    people: Vec<(Person, HeaderValue)>,
}

/// Tickets that were posted: whose, and which.
pub(super) struct Known {
    person: usize,
    ids: Vec<Uuid>,
}

impl Tickets {
    pub(super) fn new(ground: &Ground, seed: u64) -> Result<Self> {
        let people = (0..PEOPLE).map(|number| {
            let person = Person::numbered(number)?;
            let bearer = bearer(ground, &person)?;
            Ok((person, bearer))
        });
        Ok(Self {
            random: seed.wrapping_mul(0x2545_F491_4F6C_DD1D),
            words: WORDS.split_whitespace().collect(),
            people: people.collect::<Result<_>>()?,
        })
    }

    /// Batches of new tickets, and what is needed to change them later.
    pub(super) fn creates(&mut self, batches: usize) -> (Vec<Posting>, Vec<Known>) {
        (0..batches)
            .map(|number| {
                let known = Known {
                    person: number % PEOPLE,
                    ids: (0..BATCH).map(|_| self.uuid()).collect(),
                };
                let entries: Vec<String> = known
                    .ids
                    .iter()
                    .map(|id| self.create(*id, known.person))
                    .collect();
                (self.posting(known.person, &entries), known)
            })
            .unzip()
    }

    /// A change of each ticket: opened, with a comment.
    pub(super) fn updates(&mut self, known: &[Known]) -> Vec<Posting> {
        known
            .iter()
            .map(|known| {
                let entries: Vec<String> = known
                    .ids
                    .iter()
                    .map(|id| self.update(*id, known.person))
                    .collect();
                self.posting(known.person, &entries)
            })
            .collect()
    }

    fn create(&mut self, id: Uuid, person: usize) -> String {
        let priority = ["HIGH", "MEDIUM", "LOW"][self.below(3)];
        json!({
            "mobile_id": id, "version": 0, "ticketdesc": self.text(11), "priority": priority,
            "identifier": "TICKET", "comments": self.text(5), "assignedtopeople": format!("people-{}", self.below(5000)),
            "bu": format!("site-{}", self.below(300)), "cuser": self.people[person].0.user.as_str(),
            "client_timestamp": self.time(), "sync_status": "pending_sync",
        })
        .to_string()
    }

    fn update(&mut self, id: Uuid, person: usize) -> String {
        json!({
            "mobile_id": id, "version": 1, "status": "OPEN", "comments": self.text(12),
            "muser": self.people[person].0.user.as_str(), "client_timestamp": self.time(), "sync_status": "pending_sync",
        })
        .to_string()
    }

    fn posting(&self, person: usize, entries: &[String]) -> Posting {
        let (who, bearer) = &self.people[person];
        let body = format!(
            r#"{{"client_id":"{}","entries":[{}]}}"#,
            who.device,
            entries.join(",")
        );
        Posting {
            bearer: bearer.clone(),
            body: Bytes::from(body),
        }
    }

    /// So many words.
    pub(super) fn text(&mut self, words: usize) -> String {
        let known = self.words.len();
        let chosen: Vec<&str> = (0..words)
            .map(|_| {
                let at = self.below(known);
                self.words[at]
            })
            .collect();
        chosen.join(" ")
    }

    /// A moment of the first months of 2026.
    fn time(&mut self) -> String {
        let (day, second) = (self.below(28) + 1, self.below(60));
        format!(
            "2026-{:02}-{day:02}T{:02}:{:02}:{second:02}Z",
            self.below(3) + 1,
            self.below(24),
            self.below(60)
        )
    }

    fn uuid(&mut self) -> Uuid {
        let (high, low) = (self.next(), self.next());
        uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes()).into_uuid()
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
