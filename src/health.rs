//! `/livez` and `/readyz`, for whoever starts, stops and balances gateways.
//!
//! Live is a process that answers at all. Ready is a gateway that can take batches, which needs Kafka and nothing
//! else: with Postgres away, batches are taken and reads are told to come back, so it stays ready and says so. Both
//! are looked at in the background, so that asking often costs nothing.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use tidelog_events::settings::Settings;
use tidelog_ingest::Producer;
use tokio::sync::{oneshot, watch};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::kafka::Cluster;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a gateway needs, as it was last seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Health {
    kafka: Seen,
    postgres: Seen,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Seen {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Away,
}

impl Health {
    fn ready(self) -> bool {
        self.kafka == Seen::Up
    }
}

impl From<bool> for Seen {
    fn from(up: bool) -> Self {
        if up { Seen::Up } else { Seen::Away }
    }
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    #[serde(flatten)]
    health: Health,
}

/// Both paths.
pub(crate) fn routes(health: watch::Receiver<Health>) -> BoxedFilter<(Response,)> {
    let livez = warp::path!("livez")
        .and(warp::get())
        .map(|| json(StatusCode::OK, r#"{"status":"live"}"#.into()));
    let readyz = warp::path!("readyz").and(warp::get()).map(move || {
        let health = *health.borrow();
        let (code, status) = match health.ready() {
            true => (StatusCode::OK, "ready"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        };
        let body = serde_json::to_string(&Readiness { status, health });
        // Three plain words always serialise; should that ever change, the status still says it.
        json(code, body.unwrap_or_default())
    });
    livez.or(readyz).unify().boxed()
}

/// After so many looks in a row that found no broker, another client looks.
const SILENCES: u32 = 5;

/// What is looked at.
pub(crate) struct Needs {
    /// For a client of its own: what the producer heard last may be long ago.
    pub(crate) cluster: Cluster,
    /// A topic to ask about.
    pub(crate) topic: String,
    /// The producer, whose last batch may have failed although brokers answer.
    pub(crate) producer: Arc<Producer>,
    /// What tenants have set: without it nothing can be stamped.
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    /// Any of the pools.
    pub(crate) database: Pool,
}

/// Looks again and again, and logs what changes.
pub(crate) async fn keep(mut needs: Needs, publish: watch::Sender<Health>) {
    let mut silences = 0;
    loop {
        let (cluster, producer, postgres, settings) = tokio::join!(
            needs.cluster.answers(needs.topic.clone(), PATIENCE),
            needs.producer.check(PATIENCE),
            answers(&needs.database),
            settings_are_read(needs.settings.clone())
        );
        silences = if cluster { 0 } else { silences + 1 };
        if silences == SILENCES {
            silences = 0;
            needs.cluster.renew();
        }
        let now = Health {
            kafka: (cluster && producer && settings).into(),
            postgres: postgres.into(),
        };
        if publish.send_if_modified(|before| std::mem::replace(before, now) != now) {
            match (now.kafka, now.postgres) {
                (Seen::Up, Seen::Up) => tracing::info!("Kafka and Postgres answer"),
                (Seen::Up, _) => {
                    tracing::warn!("Postgres does not answer: batches are taken, reads are not served")
                }
                (_, Seen::Up) => tracing::warn!("Kafka does not answer: not ready"),
                _ => tracing::warn!("neither Kafka nor Postgres answers: not ready"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Says once that the gateway is ready, and then nothing more.
pub(crate) async fn announce(mut health: watch::Receiver<Health>, ready: oneshot::Sender<()>) {
    if health.wait_for(|health| health.ready()).await.is_ok() {
        // Nobody has to be waiting for it.
        let _ = ready.send(());
    }
    std::future::pending().await
}

/// Answers a plain word: what was waited for keeps whoever publishes the next value waiting as long as it is held.
async fn settings_are_read(mut settings: watch::Receiver<Arc<Settings>>) -> bool {
    let read = settings.wait_for(|settings| settings.complete);
    matches!(tokio::time::timeout(PATIENCE, read).await, Ok(Ok(_)))
}

async fn answers(database: &Pool) -> bool {
    let ask = async {
        let client = database.get().await.ok()?;
        client.simple_query("SELECT 1").await.ok()
    };
    matches!(tokio::time::timeout(PATIENCE, ask).await, Ok(Some(_)))
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use Seen::*;

    /// Status and body of what a path answers.
    async fn answer(path: &str, kafka: Seen, postgres: Seen) -> (u16, String) {
        let (_publish, health) = watch::channel(Health { kafka, postgres });
        let service = warp::service(routes(health));
        let request = http::Request::get(path).body(String::new()).expect("a request");
        let service = hyper_util::service::TowerToHyperService::new(service);
        let response = hyper::service::Service::call(&service, request)
            .await
            .expect("an answer");
        let (head, body) = response.into_parts();
        let body = http_body_util::BodyExt::collect(body)
            .await
            .expect("a body")
            .to_bytes();
        (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn ready_needs_the_log_and_nothing_else() {
        assert_eq!(answer("/readyz", Up, Up).await.0, 200);
        let (status, body) = answer("/readyz", Up, Away).await;
        assert_eq!(
            (status, body.as_str()),
            (200, r#"{"status":"ready","kafka":"up","postgres":"away"}"#)
        );
        let (status, body) = answer("/readyz", Away, Up).await;
        assert_eq!(
            (status, body.as_str()),
            (503, r#"{"status":"not ready","kafka":"away","postgres":"up"}"#)
        );
        assert_eq!(answer("/readyz", Unknown, Unknown).await.0, 503);
        assert_eq!(answer("/livez", Away, Away).await.0, 200);
    }
}
