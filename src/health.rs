//! `/livez` and `/readyz`, for whoever starts, stops and balances gateways.
//!
//! Live is a process that answers at all. Ready is a gateway that can take batches, which needs Kafka and nothing
//! else: with Postgres away, batches are taken and reads are told to come back, so it stays ready and says so. Both
//! are looked at in the background, so that asking often costs nothing. A gateway that seals otherwise than the deployment
//! does, or not at all, is not ready until it is started with the right secret.
//!
//! A gateway that is told to stop says so here before it takes no more. One that has too much to do tells it, and stays
//! ready: what it refuses goes to others by itself, and a load that is too much for all of them must not take them out one
//! after the other.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use tidelog_events::seal::Accord;
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
    /// What tenants have set, from the log.
    settings: Seen,
    /// How its secret stands to what the deployment seals with, from the log.
    seal_secret: Accord,
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
        self.reason().is_none()
    }

    /// Why it is not ready, in words for whoever looks.
    fn reason(self) -> Option<&'static str> {
        if let Some(wrong) = self.seal_secret.wrong() {
            return Some(wrong);
        }
        match self {
            Health {
                kafka: Seen::Unknown, ..
            } => Some("Kafka has not answered yet"),
            Health {
                kafka: Seen::Away, ..
            } => Some("Kafka does not answer, or does not take batches"),
            Health {
                settings: Seen::Unknown | Seen::Away,
                ..
            } => Some("what tenants have set has not been read from the log yet"),
            Health {
                seal_secret: Accord::Unread,
                ..
            } => Some("the topic of keys, sync.keys.v1, has not been read yet"),
            _ => None,
        }
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
    load: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Both paths. `overloaded` tells whether there is too much to do right now, `stopping` whether the end has begun.
pub(crate) fn routes(
    health: watch::Receiver<Health>,
    overloaded: impl Fn() -> bool + Clone + Send + Sync + 'static,
    stopping: watch::Receiver<bool>,
) -> BoxedFilter<(Response,)> {
    let livez = warp::path!("livez")
        .and(warp::get())
        .map(|| json(StatusCode::OK, r#"{"status":"live"}"#.into()));
    let readyz = warp::path!("readyz").and(warp::get()).map(move || {
        let health = *health.borrow();
        let reason = match *stopping.borrow() {
            true => Some("it was told to stop"),
            false => health.reason(),
        };
        let (code, status) = match reason {
            None => (StatusCode::OK, "ready"),
            Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        };
        let body = serde_json::to_string(&Readiness {
            status,
            health,
            load: if overloaded() { "too high" } else { "normal" },
            reason,
        });
        // Plain words always serialise; should that ever change, the status still says it.
        json(code, body.unwrap_or_default())
    });
    livez.or(readyz).unify().boxed()
}

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
    /// How the gateway's secret stands to what the deployment seals with.
    pub(crate) accord: watch::Receiver<Accord>,
    /// Any of the pools.
    pub(crate) database: Pool,
}

/// Looks again and again, and logs what changes.
pub(crate) async fn keep(needs: Needs, publish: watch::Sender<Health>) {
    loop {
        let (cluster, producer, postgres, settings, seal_secret) = tokio::join!(
            needs.cluster.answers(&needs.topic),
            needs.producer.check(&needs.topic),
            answers(&needs.database),
            settings_are_read(needs.settings.clone()),
            accord(needs.accord.clone())
        );
        let now = Health {
            kafka: (cluster && producer).into(),
            postgres: postgres.into(),
            settings: settings.into(),
            seal_secret,
        };
        if publish.send_if_modified(|before| std::mem::replace(before, now) != now) {
            match (now.reason(), now.postgres) {
                (None, Seen::Up) => tracing::info!("Kafka and Postgres answer"),
                (None, _) => {
                    tracing::warn!("Postgres does not answer: batches are taken, reads are not served")
                }
                (Some(reason), Seen::Up) => tracing::warn!(reason, "not ready"),
                (Some(reason), _) => {
                    tracing::warn!(reason, "not ready; and Postgres does not answer")
                }
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

async fn accord(mut accord: watch::Receiver<Accord>) -> Accord {
    let known = accord.wait_for(|accord| *accord != Accord::Unread);
    match tokio::time::timeout(PATIENCE, known).await {
        Ok(Ok(accord)) => *accord,
        _ => Accord::Unread,
    }
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

    const ALL_UP: Health = Health {
        kafka: Up,
        postgres: Up,
        settings: Up,
        seal_secret: Accord::Unused,
    };

    /// Status and body of what a path answers.
    async fn answer(path: &str, health: Health) -> (u16, String) {
        answer_while(path, health, false, false).await
    }

    async fn answer_while(path: &str, health: Health, overloaded: bool, stopping: bool) -> (u16, String) {
        let (_publish, health) = watch::channel(health);
        let (_stop, stopping) = watch::channel(stopping);
        let service = warp::service(routes(health, move || overloaded, stopping));
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
        let without_postgres = Health {
            postgres: Away,
            ..ALL_UP
        };
        let (status, body) = answer("/readyz", without_postgres).await;
        assert_eq!(
            (status, body.as_str()),
            (
                200,
                r#"{"status":"ready","kafka":"up","postgres":"away","settings":"up","seal_secret":"unused","load":"normal"}"#
            )
        );
        for (health, why) in [
            (Health::default(), "Kafka has not answered yet"),
            (
                Health {
                    kafka: Away,
                    ..ALL_UP
                },
                "Kafka does not answer",
            ),
            (
                Health {
                    settings: Away,
                    ..ALL_UP
                },
                "what tenants have set",
            ),
            (
                Health {
                    seal_secret: Accord::Unread,
                    ..ALL_UP
                },
                "the topic of keys",
            ),
            (
                Health {
                    seal_secret: Accord::Other,
                    ..ALL_UP
                },
                "seal_secret is not the one",
            ),
            (
                Health {
                    seal_secret: Accord::Missing,
                    kafka: Away,
                    ..ALL_UP
                },
                "seal_secret is not set",
            ),
        ] {
            let (status, body) = answer("/readyz", health).await;
            assert_eq!(status, 503, "{body}");
            assert!(body.contains(&format!(r#""reason":"{why}"#)), "{body}");
            assert_eq!(answer("/livez", health).await.0, 200);
        }
    }

    #[tokio::test]
    async fn too_much_to_do_is_told_and_the_end_is_told_before_it_comes() {
        let (status, body) = answer_while("/readyz", ALL_UP, true, false).await;
        assert!(status == 200 && body.contains(r#""load":"too high""#), "{body}");
        let (status, body) = answer_while("/readyz", ALL_UP, false, true).await;
        assert!(
            status == 503 && body.contains(r#""reason":"it was told to stop""#),
            "{body}"
        );
        assert_eq!(answer_while("/livez", ALL_UP, true, true).await.0, 200);
    }
}
