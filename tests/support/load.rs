//! Load as many phones together make it: requests that come when they come, whether or not the ones before are
//! answered (open loop), and what became of each. Knows one domain, and nothing of what is a good answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tokio::task::JoinSet;

use super::items::tickets;
use super::phone::{Phone, tenant};
use super::service::Deployment;

/// Items a batch.
pub(crate) const BATCH: usize = 100;

/// What became of one request.
pub(crate) struct Seen {
    /// Whose, by its place in the list.
    pub(crate) phone: usize,
    /// Since the load began.
    pub(crate) asked: Duration,
    pub(crate) took: Duration,
    pub(crate) status: u16,
    /// Of a refusal, in seconds.
    pub(crate) retry_after: Option<u32>,
    /// Where to ask for a batch's outcomes.
    pub(crate) location: Option<String>,
}

/// What a phone asks.
#[derive(Clone, Copy)]
pub(crate) enum Ask {
    /// A new batch, not waiting for its outcomes.
    Post,
    /// The newest changes.
    Pull,
}

/// So many phones of each of so many tenants.
pub(crate) fn phones(deployment: &Deployment, tenants: usize, each: usize) -> Vec<Arc<Phone>> {
    (0..tenants)
        .flat_map(|_| {
            let tenant = tenant("load");
            (0..each).map(move |n| (tenant.clone(), format!("user-{n}")))
        })
        .map(|(tenant, user)| Arc::new(Phone::new(deployment, &tenant, &user)))
        .collect()
}

/// Batches a second that these phones get through together, each posting its next when it has its answer.
pub(crate) async fn rate_taken(phones: &[Arc<Phone>], lasting: Duration) -> f64 {
    each_in_turn(phones, Ask::Post, Manners::Good, Duration::from_secs(1)).await;
    let seen = each_in_turn(phones, Ask::Post, Manners::Good, lasting).await;
    refused_politely(&seen);
    served(&seen).len() as f64 / lasting.as_secs_f64()
}

async fn ask((at, phone): (usize, &Phone), what: Ask, batch: String, began: Instant) -> Seen {
    let asked = Instant::now();
    let answer = match what {
        Ask::Post => phone.send_batch("helpdesk", &[("prefer", "wait=0")], batch).await,
        Ask::Pull => {
            let path = "/api/v1/helpdesk/changes?limit=100";
            phone.send(Method::GET, path, &[], Bytes::new()).await
        }
    };
    Seen {
        phone: at,
        asked: asked - began,
        took: asked.elapsed(),
        status: answer.status,
        retry_after: answer
            .header("retry-after")
            .and_then(|seconds| seconds.parse().ok()),
        location: answer.header("location").map(str::to_owned),
    }
}

fn batch(phone: &Phone, what: Ask) -> String {
    match what {
        Ask::Post => phone.batch(&tickets(BATCH)),
        Ask::Pull => String::new(),
    }
}

/// So many requests a second for so long, each phone in its turn.
pub(crate) async fn at_rate(phones: &[Arc<Phone>], what: Ask, rate: f64, lasting: Duration) -> Vec<Seen> {
    let count = (rate * lasting.as_secs_f64()).ceil() as usize;
    let phones: Vec<(usize, Arc<Phone>)> = phones.iter().cloned().enumerate().cycle().take(count).collect();
    let batches: Vec<String> = phones.iter().map(|(_, phone)| batch(phone, what)).collect();
    let mut asking = JoinSet::new();
    let began = Instant::now();
    for (n, ((at, phone), batch)) in phones.into_iter().zip(batches).enumerate() {
        let due = began + Duration::from_secs_f64(n as f64 / rate);
        tokio::time::sleep_until(due.into()).await;
        asking.spawn(async move { ask((at, &phone), what, batch, began).await });
    }
    asking.join_all().await
}

/// What a phone does that is refused.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manners {
    /// It waits as it is told.
    Good,
    /// It asks again a moment later.
    None,
}

/// Each phone asks again as soon as it has its answer.
pub(crate) async fn each_in_turn(
    phones: &[Arc<Phone>],
    what: Ask,
    manners: Manners,
    lasting: Duration,
) -> Vec<Seen> {
    let began = Instant::now();
    let mut asking = JoinSet::new();
    for (at, phone) in phones.iter().cloned().enumerate() {
        asking.spawn(async move {
            let mut seen = Vec::new();
            while began.elapsed() < lasting {
                let one = ask((at, &phone), what, batch(&phone, what), began).await;
                if let Some(seconds) = one.retry_after {
                    let pause = match manners {
                        Manners::Good => Duration::from_secs(seconds.into()),
                        Manners::None => Duration::from_millis(10),
                    };
                    tokio::time::sleep(pause).await;
                }
                seen.push(one);
            }
            seen
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

/// Those that were taken or answered.
pub(crate) fn served(seen: &[Seen]) -> Vec<Duration> {
    seen.iter()
        .filter(|one| one.status < 300)
        .map(|one| one.took)
        .collect()
}

/// What `percent` of them do not exceed, in milliseconds.
pub(crate) fn percentile(times: &[Duration], percent: f64) -> f64 {
    assert!(!times.is_empty(), "nothing was served");
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1].as_secs_f64() * 1e3
}

/// Everything that was not served was refused as it has to be: with a status that says whose doing it is, and when to
/// come back.
pub(crate) fn refused_politely(seen: &[Seen]) {
    for one in seen.iter().filter(|one| one.status >= 300) {
        assert!([429, 503].contains(&one.status), "{}", one.status);
        assert!(
            one.retry_after.is_some_and(|seconds| (1..=3).contains(&seconds)),
            "{} with Retry-After {:?}",
            one.status,
            one.retry_after
        );
    }
}
