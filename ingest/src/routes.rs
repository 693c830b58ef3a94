//! `POST /api/v1/{domain}/sync` and `GET /api/v1/sync/idempotency/{key}`: a request becomes a [`Post`], a [`Reply`]
//! becomes a response. Must not know what happens between the two.

use crate::lookup::Known;
use crate::service::{Ingest, Post, Reply};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::domain::Domain;
use tidelog_events::outcome::FindOutcomes;
use tidelog_http::Problem;
use tidelog_http::auth::{Auth, Caller};
use tidelog_http::body::json_body;
use tidelog_http::idempotency_key::{IDEMPOTENT_REPLAYED, IdempotencyKey};
use tidelog_http::prefer::{PREFERENCE_APPLIED, Wait, wait};
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply as _};

/// The largest body, after decompression.
pub const MAX_BODY: usize = 10 << 20;

/// How long a phone may fall silent while it sends a body.
const IDLE: Duration = Duration::from_secs(30);

/// The write side's routes. An unknown domain is 404, before token and body are looked at.
pub fn routes<F: FindOutcomes>(ingest: Arc<Ingest<F>>, auth: Auth) -> BoxedFilter<(Response,)> {
    known(ingest.clone(), auth.clone())
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
                domain.ok_or_else(|| warp::reject::custom(Problem::not_found("there is no such domain")))
            }
        })
        .and(auth.caller())
        .and(key())
        .and(wait())
        .and(json_body(MAX_BODY, IDLE))
        .then(
            move |domain: Arc<Domain>,
                  caller: Caller,
                  key: Option<IdempotencyKey>,
                  wait: Wait,
                  body: Bytes| {
                let ingest = ingest.clone();
                async move {
                    let post = Post {
                        domain,
                        caller,
                        key,
                        body,
                    };
                    match ingest.post(post, wait.duration()).await {
                        Ok(reply) => respond(reply, wait),
                        Err(error) => Problem::from(error).into_response(),
                    }
                }
            },
        )
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
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
