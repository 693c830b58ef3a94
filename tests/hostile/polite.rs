//! The phone that means no harm: it posts a ticket and pulls what has changed, over and over, from an address of its own,
//! and notes how long each took. Nothing of it may fail, whatever others do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::items::ticket;
use crate::support::phone::{Phone, tenant};
use crate::support::service::Deployment;

/// Half of the requests are answered within this, on a machine that runs attackers, service, Kafka and Postgres on its
/// two cores.
const USUAL: Duration = Duration::from_millis(500);

/// And all of them within this.
const WORST: Duration = Duration::from_secs(5);

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Polite {
    done: Arc<AtomicBool>,
    task: JoinHandle<Day>,
}

/// What it met with.
#[derive(Debug, Default)]
pub(crate) struct Day {
    took: Vec<Duration>,
    failed: Vec<String>,
}

impl Polite {
    /// Begins its day, when it has been answered once.
    pub(crate) async fn start(deployment: &Deployment, name: &str) -> Polite {
        let phone = Phone::new(deployment, &tenant(name), "polite");
        let first = ticket(Uuid::new_v4(), "The first ticket of the day").to_string();
        phone.post("helpdesk", &[first]).await.expect(200);
        let done = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(work(phone, done.clone()));
        Polite { done, task }
    }

    pub(crate) async fn stop(self) -> Day {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.expect("a phone that came to its day's end")
    }
}

async fn work(phone: Phone, done: Arc<AtomicBool>) -> Day {
    let mut day = Day::default();
    let mut cursor = String::new();
    while !done.load(Ordering::Relaxed) {
        let id = Uuid::new_v4();
        let body = phone.batch(&[ticket(id, "A pump is leaking oil").to_string()]);
        let headers = [("prefer", "wait=30")];
        if let Some(answer) = day
            .note(
                &phone,
                Method::POST,
                "/api/v1/helpdesk/sync",
                &headers,
                body.into(),
            )
            .await
            && answer["synced_items"][0]["status"] != "created"
        {
            day.failed.push(format!("posted: {answer}"));
        }
        tokio::time::sleep(PAUSE).await;
        let path = format!("/api/v1/helpdesk/changes?limit=1000{cursor}");
        if let Some(page) = day.note(&phone, Method::GET, &path, &[], Bytes::new()).await {
            if !page["items"].to_string().contains(&id.to_string()) {
                day.failed.push(format!("its own ticket is not in {page}"));
            }
            cursor = format!("&cursor={}", page["cursor"].as_str().unwrap_or_default());
        }
        tokio::time::sleep(PAUSE).await;
    }
    day
}

impl Day {
    async fn note(
        &mut self,
        phone: &Phone,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Option<serde_json::Value> {
        let begun = Instant::now();
        let answer = phone.try_send(method, path, headers, body).await;
        self.took.push(begun.elapsed());
        match answer {
            Ok(answer) if answer.status == 200 => return Some(answer.json()),
            Ok(answer) => self.failed.push(format!("{}: {}", answer.status, answer.text())),
            Err(error) => self.failed.push(error),
        }
        None
    }

    fn at(&self, part: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let last = took.len().saturating_sub(1);
        took.get((last as f64 * part) as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Whether it was a day like any other.
    #[track_caller]
    pub(crate) fn check(&self, name: &str) {
        assert!(
            self.failed.is_empty(),
            "{name}: {} of {} requests of the polite phone failed: {:?}",
            self.failed.len(),
            self.took.len(),
            &self.failed[..self.failed.len().min(5)]
        );
        assert!(!self.took.is_empty(), "{name}: the polite phone was never served");
        assert!(self.at(0.5) <= USUAL && self.at(1.0) <= WORST, "{name}: {self}");
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |part| self.at(part).as_millis();
        write!(
            f,
            "{} requests, half within {} ms, 99 % within {} ms, all within {} ms",
            self.took.len(),
            ms(0.5),
            ms(0.99),
            ms(1.0)
        )
    }
}
