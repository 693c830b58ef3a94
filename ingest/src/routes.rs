//! The paths of the write side: a request becomes a [`Post`], a [`Reply`] becomes a response; and what is known of a key.
//! Must not know what happens between the two.

use crate::lookup::Known;
use crate::resolution;
use crate::service::{Contested, Ingest, Post, Reply, To};
use crate::settings::Changer;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tidelog_events::error::ItemError;
use tidelog_events::ids::Role;
use tidelog_events::outcome::FindOutcomes;
use tidelog_events::resolution::{ConflictsUnavailable, FindConflict};
use tidelog_http::Problem;
use tidelog_http::auth::{Auth, Caller};
use tidelog_http::body::json_body;
use tidelog_http::idempotency_key::{IDEMPOTENT_REPLAYED, IdempotencyKey};
use tidelog_http::prefer::{PREFERENCE_APPLIED, Wait, wait};
use tidelog_http::problem::PROBLEM_JSON;
use uuid::Uuid;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply as _};

/// The largest body, after decompression.
pub const MAX_BODY: usize = 10 << 20;

/// How long a phone may fall silent while it sends a body.
fn idle() -> Duration {
    Duration::from_millis(drill::number("body_idle_ms", 30_000).into())
}

/// How long finding a conflict may take.
const FINDING: Duration = Duration::from_secs(5);

/// The write side's routes. An unknown domain is 404, before token and body are looked at.
pub fn routes<F: FindOutcomes, C: FindConflict>(
    ingest: Arc<Ingest<F>>,
    settings: Arc<Changer>,
    conflicts: Arc<C>,
    auth: Auth,
) -> BoxedFilter<(Response,)> {
    // Paths of the service's own look like those of domains with these names, which no domain may have.
    crate::settings::routes::routes(settings, auth.clone())
        .or(mixed(ingest.clone(), auth.clone()))
        .unify()
        .or(resolve(ingest.clone(), conflicts, auth.clone()))
        .unify()
        .or(known(ingest.clone(), auth.clone()))
        .unify()
        .or(sync(ingest, auth))
        .unify()
        .boxed()
}

/// What is known of a key.
fn known<F: FindOutcomes>(
    ingest: Arc<Ingest<F>>,
    auth: Auth,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("api" / "v1" / "sync" / "idempotency" / String)
        .and(warp::get())
        .and(auth.caller())
        .then(move |key: String, caller: Caller| {
            let ingest = ingest.clone();
            async move {
                let key = percent_decode_str(&key).decode_utf8_lossy();
                let key = match IdempotencyKey::new(&key) {
                    Ok(key) => key,
                    Err(error) => return Problem::from(error).into_response(),
                };
                match ingest.known(&caller, &key).await {
                    Ok(known) => told(&known),
                    Err(error) => Problem::from(error).into_response(),
                }
            }
        })
}

/// An answer is one caller's, of one moment.
fn told(known: &Known) -> Response {
    let mut response = warp::reply::json(known).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn sync<F: FindOutcomes>(
    ingest: Arc<Ingest<F>>,
    auth: Auth,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let domains = ingest.clone();
    // A trailing slash matches too: an empty last segment is none to warp.
    warp::path!("api" / "v1" / String / "sync")
        .and(warp::post())
        .and_then(move |name: String| {
            let domain = domains.registry().by_name(&name).cloned();
            async move {
                domain
                    .map(To::Domain)
                    .ok_or_else(|| warp::reject::custom(Problem::not_found("there is no such domain")))
            }
        })
        .and(sent(auth))
        .then(move |to: To, sent: Sent| take(ingest.clone(), to, sent))
}

fn mixed<F: FindOutcomes>(
    ingest: Arc<Ingest<F>>,
    auth: Auth,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("api" / "v1" / "sync" / "batch")
        .and(warp::post())
        .and(sent(auth))
        .then(move |sent: Sent| take(ingest.clone(), To::Mixed, sent))
}

fn resolve<F: FindOutcomes, C: FindConflict>(
    ingest: Arc<Ingest<F>>,
    conflicts: Arc<C>,
    auth: Auth,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("api" / "v1" / "conflicts" / String / "resolve")
        .and(warp::post())
        .and(sent(auth))
        .then(move |id: String, sent: Sent| {
            let (ingest, conflicts) = (ingest.clone(), conflicts.clone());
            async move {
                match contested(ingest.registry(), conflicts.as_ref(), &id, &sent).await {
                    Ok(contested) => take(ingest, To::Conflict(Box::new(contested)), sent).await,
                    Err(problem) => problem.into_response(),
                }
            }
        })
}

/// The conflict that a request is about, where its caller may decide it. That it was decided already is told at once,
/// unless a key says that this may be the decision itself, come again.
async fn contested<C: FindConflict>(
    registry: &Registry,
    conflicts: &C,
    id: &str,
    sent: &Sent,
) -> Result<Contested, Problem> {
    let absent = || Problem::not_found("there is no such conflict for you");
    let id = Uuid::try_parse(id).map_err(|_| Problem::bad_request("a conflict's id is a UUID"))?;
    let caller = &sent.caller;
    let finding = conflicts.conflict(&caller.tenant, &caller.user, caller.role, id);
    let found = match tokio::time::timeout(FINDING, finding).await {
        Ok(Ok(found)) => found.ok_or_else(absent)?,
        Ok(Err(ConflictsUnavailable(error))) => {
            tracing::warn!(error, "a conflict cannot be found");
            return Err(Problem::unavailable("conflicts cannot be read right now", 1));
        }
        Err(_) => return Err(Problem::unavailable("conflicts cannot be read right now", 1)),
    };
    if caller.role == Role::User && caller.user != found.user {
        return Err(resolution::problem(&ItemError::forbidden()));
    }
    if let Some(decided) = found.decided.as_ref().filter(|_| sent.key.is_none()) {
        return Err(resolution::decided_before(decided));
    }
    let domain = registry.by_name(&found.domain).cloned().ok_or_else(absent)?;
    Ok(Contested {
        id,
        domain,
        conflict: found,
    })
}

/// What every post brings.
struct Sent {
    caller: Caller,
    key: Option<IdempotencyKey>,
    wait: Wait,
    body: Bytes,
}

fn sent(auth: Auth) -> impl Filter<Extract = (Sent,), Error = Rejection> + Clone {
    auth.caller()
        .and(key())
        .and(wait())
        .and(json_body(MAX_BODY, idle()))
        .map(|caller, key, wait, body| Sent {
            caller,
            key,
            wait,
            body,
        })
}

async fn take<F: FindOutcomes>(ingest: Arc<Ingest<F>>, to: To, sent: Sent) -> Response {
    let Sent {
        caller,
        key,
        wait,
        body,
    } = sent;
    let post = Post {
        to,
        caller,
        key,
        body,
    };
    match ingest.post(post, wait.duration()).await {
        Ok(reply) => respond(reply, wait),
        Err(error) => Problem::from(error).into_response(),
    }
}

fn key() -> impl Filter<Extract = (Option<IdempotencyKey>,), Error = Rejection> + Copy {
    warp::header::headers_cloned().and_then(|headers: HeaderMap| async move {
        IdempotencyKey::from_headers(&headers).map_err(|error| warp::reject::custom(Problem::from(error)))
    })
}

fn respond(reply: Reply, wait: Wait) -> Response {
    let (status, body, replayed, location) = match reply {
        Reply::Final {
            status,
            body,
            replayed,
        } => (status, body, replayed, None),
        Reply::Accepted {
            receipt,
            body,
            replayed,
        } => (
            202,
            body,
            replayed,
            Some(format!("/api/v1/sync/batches/{receipt}")),
        ),
    };
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    let kind = if status < 400 {
        "application/json"
    } else {
        PROBLEM_JSON
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    if let Some(applied) = wait.applied() {
        headers.insert(PREFERENCE_APPLIED, applied);
    }
    // A receipt is base64url: always a header value.
    if let Some(location) = location.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(LOCATION, location);
    }
    response
}
