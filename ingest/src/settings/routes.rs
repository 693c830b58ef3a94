//! `/api/v1/settings/sync`: what a tenant has set (GET), in whole (PUT) or in part (PATCH, RFC 7396); for operators of
//! the tenant. `ETag` and `If-Match` keep two of them from undoing each other's changes unseen (RFC 9110 section 13).

use super::change::{Change, Changer, SettingsError};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tidelog_events::ids::Role;
use tidelog_events::settings::{InForce, SettingsDefect};
use tidelog_http::Problem;
use tidelog_http::auth::{Auth, Caller};
use tidelog_http::body::json_body;
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply as _};

/// Far more than any settings.
const MAX_BODY: usize = 64 << 10;

/// How long an operator may fall silent while sending a body.
const IDLE: Duration = Duration::from_secs(10);

/// What an answer says beside the settings; a body may hold them too, so that what was read can be written back.
const TOLD: [&str; 4] = ["effective", "revision", "updated_at", "updated_by"];

/// The routes.
pub(crate) fn routes(changer: Arc<Changer>, auth: Auth) -> BoxedFilter<(Response,)> {
    show(changer.clone(), auth.clone())
        .or(change(changer, auth))
        .unify()
        .boxed()
}

fn show(changer: Arc<Changer>, auth: Auth) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("api" / "v1" / "settings" / "sync")
        .and(warp::get())
        .and(auth.caller())
        .then(move |caller: Caller| {
            let changer = changer.clone();
            async move {
                let shown = async {
                    operators_only(&caller)?;
                    let current = changer.current(&caller.tenant).await?;
                    Ok::<_, Problem>(respond(&changer, current.as_deref()))
                };
                shown.await.unwrap_or_else(|problem| problem.into_response())
            }
        })
}

fn change(
    changer: Arc<Changer>,
    auth: Auth,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let method = warp::put()
        .map(|| Method::PUT)
        .or(warp::patch().map(|| Method::PATCH))
        .unify();
    warp::path!("api" / "v1" / "settings" / "sync")
        .and(method)
        .and(auth.caller())
        .and(warp::header::optional::<String>("if-match"))
        .and(json_body(MAX_BODY, IDLE))
        .then(
            move |method: Method, caller: Caller, if_match: Option<String>, body: Bytes| {
                let changer = changer.clone();
                async move {
                    let changed = async {
                        operators_only(&caller)?;
                        let change = Change {
                            json: settings(&body)?,
                            from: if_match.as_deref().and_then(revision).transpose()?,
                            tenant: caller.tenant,
                            by: caller.user,
                            merge: method == Method::PATCH,
                        };
                        let in_force = changer.change(change).await?;
                        Ok::<_, Problem>(respond(&changer, Some(&in_force)))
                    };
                    changed.await.unwrap_or_else(|problem| problem.into_response())
                }
            },
        )
}

fn operators_only(caller: &Caller) -> Result<(), Problem> {
    match caller.role {
        Role::Operator => Ok(()),
        _ => Err(Problem::forbidden("settings are for the role operator")),
    }
}

fn settings(body: &[u8]) -> Result<Value, Problem> {
    let mut json: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    match &mut json {
        Value::Object(members) => members.retain(|name, _| !TOLD.contains(&name.as_str())),
        _ => return Err(Problem::bad_request("the body must be an object of settings")),
    }
    Ok(json)
}

/// The revision that `If-Match` names; none for `*`, which any revision matches.
fn revision(if_match: &str) -> Option<Result<i64, Problem>> {
    if if_match.trim() == "*" {
        return None;
    }
    let inside = if_match
        .trim()
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let number = inside.and_then(|text| text.parse().ok());
    Some(number.ok_or_else(|| {
        Problem::bad_request("If-Match must be one ETag that these settings were answered with")
    }))
}

fn respond(changer: &Changer, in_force: Option<&InForce>) -> Response {
    let registry = changer.registry();
    let set = in_force
        .map(|current| current.settings.clone())
        .unwrap_or_default();
    let mut body = set.to_json();
    body["effective"] = set.effective(registry).to_json();
    body["revision"] = in_force.map_or(0, |current| current.revision).into();
    if let Some(current) = in_force {
        body["updated_at"] = json!(current.updated_at);
        body["updated_by"] = json!(current.updated_by);
    }
    let mut response = Response::new(body.to_string().into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let tag = format!("\"{}\"", in_force.map_or(0, |current| current.revision));
    // Digits between quotes: always a header value.
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}

impl From<SettingsError> for Problem {
    fn from(error: SettingsError) -> Problem {
        let detail = error.to_string();
        match error {
            SettingsError::Wrong(defects) => defects.iter().fold(
                Problem::unprocessable("settings-wrong", "These settings cannot be", detail),
                |problem, SettingsDefect { field, rule }| {
                    problem.error(json!({ "field": field, "rule": rule }))
                },
            ),
            SettingsError::Moved { current } => Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "settings-moved",
                "The settings were changed since",
            )
            .detail(detail)
            .with("revision", current),
            SettingsError::Unread => Problem::unavailable(detail, 1),
            SettingsError::Log(error) => error.into(),
        }
    }
}
