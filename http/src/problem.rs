//! Problem documents: the one shape in which anything that is not a success is told (RFC 9457).
//!
//! A [`Problem`] is a warp reply and a warp rejection, so a handler returns it and a filter rejects with it.
//! [`recover`] turns every rejection, ours or warp's own, into one. Must not know what a domain, a record or
//! a database is, and never repeats an error's text that was not written for the caller.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use warp::reject::{self, Reject, Rejection};

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Names that a problem's extension members cannot take.
const OWN_MEMBERS: [&str; 6] = ["type", "title", "status", "detail", "retryable", "errors"];

/// An RFC 9457 problem document with the headers that belong to it.
///
/// In JSON: `type` (a stable relative reference such as `/problems/not-found`), `title`, `status`, `detail`,
/// `retryable` (whether the same request may succeed later, unchanged), `errors` where there are any, and
/// extension members after them.
#[derive(Clone)]
pub struct Problem(Box<Inner>);

#[derive(Clone)]
struct Inner {
    status: StatusCode,
    slug: Cow<'static, str>,
    title: Cow<'static, str>,
    detail: Cow<'static, str>,
    retryable: bool,
    retry_after: Option<u32>,
    errors: Vec<Value>,
    extensions: Vec<(Cow<'static, str>, Value)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem of the type `/problems/<slug>`. `title` names the type and doesn't vary; what is particular
    /// to this occurrence goes into [`detail`](Self::detail).
    pub fn new(
        status: StatusCode,
        slug: impl Into<Cow<'static, str>>,
        title: impl Into<Cow<'static, str>>,
    ) -> Self {
        Problem(Box::new(Inner {
            status,
            slug: slug.into(),
            title: title.into(),
            detail: Cow::Borrowed(""),
            retryable: false,
            retry_after: None,
            errors: Vec::new(),
            extensions: Vec::new(),
            headers: Vec::new(),
        }))
    }

    /// 400: the request is not what the interface asks for.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request cannot be understood",
        )
        .detail(detail)
    }

    /// 401, with the challenge that RFC 6750 asks for.
    pub fn unauthorized(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A valid bearer token is needed",
        )
        .detail(detail)
        .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 403: the caller is known and may not.
    pub fn forbidden(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed").detail(detail)
    }

    /// 404: absent, or not the caller's to know of.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found").detail(detail)
    }

    /// 405. `allow` lists the methods that the path has; RFC 9110 wants them in `Allow`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "This path does not have that method",
        );
        match allow {
            "" => problem,
            _ => problem.header(ALLOW, HeaderValue::from_static(allow)),
        }
    }

    /// 408: the request did not arrive in time. The connection closes, as what follows cannot be told apart.
    pub fn request_timeout(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "request-timeout",
            "The request did not arrive in time",
        )
        .detail(detail)
        .retryable(true)
        .closing()
    }

    /// 409 of a type of its own.
    pub fn conflict(slug: &'static str, title: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, slug, title).detail(detail)
    }

    /// 409: the same request is still being worked on. Asking again in `retry_after` seconds helps.
    pub fn in_flight(detail: impl Into<Cow<'static, str>>, retry_after: u32) -> Self {
        Self::conflict(
            "request-in-flight",
            "The same request is still being worked on",
            detail,
        )
        .retry_after(retry_after)
    }

    /// 410: it was there and is no longer kept.
    pub fn gone(slug: &'static str, title: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::GONE, slug, title).detail(detail)
    }

    /// 413: more than the limit.
    pub fn payload_too_large(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload-too-large",
            "The request is too large",
        )
        .detail(detail)
    }

    /// 415: a content type, charset or content coding that is not read here.
    pub fn unsupported_media_type(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The body is of a kind that is not read here",
        )
        .detail(detail)
    }

    /// 422 of a type of its own: understood, and refused for what it says.
    pub fn unprocessable(
        slug: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, slug, title).detail(detail)
    }

    /// 429: slower, please.
    pub fn too_many(detail: impl Into<Cow<'static, str>>, retry_after: u32) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-requests",
            "Too many requests",
        )
        .detail(detail)
        .retry_after(retry_after)
    }

    /// 500. Carries no detail on purpose: what went wrong is in the log, under the request's id.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong here",
        )
        .detail("The failure is logged under this answer's x-request-id.")
    }

    /// 503: something that the service needs is away.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>, retry_after: u32) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "Temporarily unavailable",
        )
        .detail(detail)
        .retry_after(retry_after)
    }

    /// What is particular to this occurrence, for a person to read.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// One entry more in `errors`.
    #[must_use]
    pub fn error(mut self, error: Value) -> Self {
        self.0.errors.push(error);
        self
    }

    /// An extension member. One that is named like a standard member is left out of the document.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        let name = name.into();
        debug_assert!(!OWN_MEMBERS.contains(&&*name), "{name} is a standard member");
        self.0.extensions.push((name, value.into()));
        self
    }

    /// Says in `Retry-After` how many seconds to wait, which makes the problem retryable.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self.retryable(true)
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// A header besides those that a problem sets by itself.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// The connection closes after this answer.
    #[must_use]
    pub fn closing(self) -> Self {
        self.header(CONNECTION, HeaderValue::from_static("close"))
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The `type`, as a relative reference.
    pub fn type_uri(&self) -> String {
        format!("/problems/{}", self.0.slug)
    }

    /// Whether the same request may succeed later. A retryable answer is never stored under an idempotency key.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The document's bytes, for whoever stores an answer.
    pub fn to_bytes(&self) -> Bytes {
        match serde_json::to_vec(self) {
            Ok(bytes) => bytes.into(),
            // Strings and `Value`s always serialise; should that ever change, the status still says it.
            Err(_) => Bytes::from_static(b"{}"),
        }
    }

    /// The answer with its headers, over whatever body type is made of bytes.
    pub fn to_response<B: From<Bytes>>(&self) -> Response<B> {
        let mut response = Response::new(B::from(self.to_bytes()));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.0.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in &self.0.headers {
            headers.append(name.clone(), value.clone());
        }
        response
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Inner {
            status,
            title,
            detail,
            retryable,
            errors,
            extensions,
            ..
        } = &*self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &self.type_uri())?;
        map.serialize_entry("title", title)?;
        map.serialize_entry("status", &status.as_u16())?;
        if !detail.is_empty() {
            map.serialize_entry("detail", detail)?;
        }
        map.serialize_entry("retryable", retryable)?;
        if !errors.is_empty() {
            map.serialize_entry("errors", errors)?;
        }
        for (name, value) in extensions
            .iter()
            .filter(|(name, _)| !OWN_MEMBERS.contains(&&**name))
        {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Problem({} {}: {})",
            self.0.status.as_u16(),
            self.0.slug,
            self.0.detail
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.detail {
            "" => f.write_str(&self.0.title),
            detail => write!(f, "{}: {detail}", self.0.title),
        }
    }
}

impl std::error::Error for Problem {}

impl Reject for Problem {}

impl warp::Reply for Problem {
    fn into_response(self) -> warp::reply::Response {
        // warp's body type cannot be named from outside, but it is made of bytes.
        self.to_response()
    }
}

/// Turns a rejection into a problem document. The last filter of every server ([`crate::serve`] adds it).
///
/// Where several routes rejected, a [`Problem`] says most, since a route that matched made it; after it
/// whatever warp itself found wrong with the request, then 405, and 404 only if no route matched at all.
pub async fn recover(rejection: Rejection) -> Result<Problem, Infallible> {
    Ok(of_rejection(&rejection))
}

fn of_rejection(rejection: &Rejection) -> Problem {
    if let Some(problem) = rejection.find::<Problem>() {
        return problem.clone();
    }
    if rejection.find::<reject::PayloadTooLarge>().is_some() {
        return Problem::payload_too_large("");
    }
    if rejection.find::<reject::UnsupportedMediaType>().is_some() {
        return Problem::unsupported_media_type("");
    }
    if rejection.find::<reject::LengthRequired>().is_some() {
        return Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "length-required",
            "The request needs a Content-Length",
        );
    }
    if let Some(header) = rejection.find::<reject::MissingHeader>() {
        return Problem::bad_request(format!("the header {} is missing", header.name()));
    }
    if let Some(header) = rejection.find::<reject::InvalidHeader>() {
        return Problem::bad_request(format!("the header {} cannot be read", header.name()));
    }
    if rejection.find::<reject::InvalidQuery>().is_some() {
        return Problem::bad_request("the query string cannot be read, or a parameter in it");
    }
    if rejection.find::<warp::body::BodyDeserializeError>().is_some() {
        return Problem::bad_request("the body cannot be read");
    }
    if rejection.find::<reject::MethodNotAllowed>().is_some() {
        return Problem::method_not_allowed("");
    }
    if rejection.is_not_found() {
        return Problem::not_found("there is nothing at this path");
    }
    tracing::error!(?rejection, "a rejection that no one has made a problem of");
    Problem::internal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use warp::Filter;

    fn document(problem: &Problem) -> Value {
        serde_json::from_slice(&problem.to_bytes()).unwrap()
    }

    #[test]
    fn a_document_has_the_members_of_rfc_9457_in_their_order() {
        let problem = Problem::bad_request("no `entries`")
            .error(json!({"index": 3}))
            .with("rule", "present");
        assert_eq!(
            String::from_utf8(problem.to_bytes().to_vec()).unwrap(),
            r#"{"type":"/problems/bad-request","title":"The request cannot be understood","status":400,"detail":"no `entries`","retryable":false,"errors":[{"index":3}],"rule":"present"}"#
        );
    }

    #[test]
    fn what_can_be_retried_says_so_in_document_and_header() {
        for problem in [
            Problem::in_flight("", 1),
            Problem::too_many("", 1),
            Problem::unavailable("", 1),
        ] {
            let response: Response<Bytes> = problem.to_response();
            assert_eq!(response.headers()[RETRY_AFTER], "1");
            assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
            assert_eq!(document(&problem)["retryable"], true, "{problem:?}");
        }
        let refused = Problem::unprocessable("idempotency-key-reused", "Reused", "");
        assert_eq!(document(&refused)["retryable"], false);
        assert_eq!(document(&refused)["type"], "/problems/idempotency-key-reused");
    }

    #[test]
    fn a_401_carries_its_challenge() {
        let response: Response<Bytes> = Problem::unauthorized("token expired").to_response();
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
    }

    #[derive(Debug)]
    struct Secretive;
    impl Reject for Secretive {}

    /// Status and document of what `filter` answers to `request`.
    async fn answer<F>(request: warp::test::RequestBuilder, filter: F) -> (u16, String)
    where
        F: Filter<Error = Rejection> + Clone + Send + Sync + 'static,
        F::Extract: warp::Reply + Send,
    {
        let response = request.reply(&filter.recover(recover)).await;
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        (
            response.status().as_u16(),
            String::from_utf8(response.body().to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn warps_own_rejections_become_problems() {
        let get = || warp::test::request().path("/a");
        let a = || warp::path("a");
        assert_eq!(answer(get(), warp::path("b").map(|| "")).await.0, 404);
        assert_eq!(answer(get(), a().and(warp::post()).map(|| "")).await.0, 405);
        assert_eq!(
            answer(get(), a().and(warp::header::<u8>("x")).map(|_| ""))
                .await
                .0,
            400
        );
        assert_eq!(
            answer(get(), a().and(warp::query::<Limit>()).map(|_| "")).await.0,
            400
        );
        let limited = || a().and(warp::body::content_length_limit(1)).map(|| "");
        assert_eq!(answer(get(), limited()).await.0, 411);
        assert_eq!(
            answer(get().header("content-length", "2"), limited()).await.0,
            413
        );
        let text = get().header("content-type", "text/plain").body("1");
        assert_eq!(
            answer(text, a().and(warp::body::json::<u8>()).map(|_| ""))
                .await
                .0,
            415
        );
        assert_eq!(
            answer(get().body("{"), a().and(warp::body::json::<u8>()).map(|_| ""))
                .await
                .0,
            400
        );
    }

    #[derive(serde::Deserialize)]
    struct Limit {
        #[serde(rename = "limit")]
        _limit: u8,
    }

    #[tokio::test]
    async fn an_unknown_rejection_says_nothing_of_itself() {
        let filter = warp::any().and_then(|| async { Err::<&str, _>(reject::custom(Secretive)) });
        let (status, text) = answer(warp::test::request(), filter).await;
        assert_eq!(status, 500);
        assert!(!text.contains("Secretive"));
    }

    #[tokio::test]
    async fn the_route_that_matched_has_the_say() {
        let get = warp::path("a").and(warp::get()).map(|| "");
        let post = warp::path("a")
            .and(warp::post())
            .and_then(|| async { Err::<&str, _>(reject::custom(Problem::bad_request("ours"))) });
        let other = warp::path("b").map(|| "");
        let request = warp::test::request().method("POST").path("/a");
        let (status, text) = answer(request, get.or(post).or(other)).await;
        assert_eq!((status, text.contains("ours")), (400, true));
    }
}
