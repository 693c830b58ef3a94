//! Who calls: a bearer token (RFC 6750) that is a JWT signed with HS256 becomes a [`Caller`].
//!
//! The only place that knows what a token looks like. Must not know what a caller may do: that is each
//! handler's to decide from the role. A refusal says which rule the token breaks, never what it should have been.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use tidelog_events::ids::{DeviceId, Role, TenantId, UserId};
use warp::{Filter, Rejection};

use crate::problem::Problem;

/// Seconds for which an expired token still counts, for clocks that differ a little.
const LEEWAY_SECONDS: u64 = 5;

/// RFC 7518, section 3.2: an HS256 key has at least 256 bits.
const STRONG_SECRET_BYTES: usize = 32;

/// Whom a request speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The customer whose data it is about, all of it.
    pub tenant: TenantId,
    /// The person.
    pub user: UserId,
    /// The device that the token is bound to, if it is.
    pub device: Option<DeviceId>,
    /// What the person may do beyond their own work.
    pub role: Role,
}

/// What [`mint`] puts into a token.
#[derive(Debug, Clone, Serialize)]
pub struct Claims {
    /// The tenant.
    pub tenant: TenantId,
    /// The user.
    pub sub: UserId,
    /// The device to bind the token to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The role.
    pub role: Role,
    /// When the token ends, in seconds since 1970.
    pub exp: u64,
}

/// The secret is empty, so anyone could sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the JWT secret is empty")]
pub struct EmptySecret;

/// Checks tokens against one secret. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Keys>);

struct Keys {
    key: DecodingKey,
    rules: Validation,
}

/// Claims as they come, before any of them is believed.
#[derive(Deserialize)]
struct Incoming {
    #[serde(default)]
    tenant: Value,
    #[serde(default)]
    sub: Value,
    #[serde(default)]
    device: Value,
    #[serde(default)]
    role: Value,
}

impl Auth {
    /// Tokens signed with HS256 by the UTF-8 bytes of `secret`. An empty one is refused, a short one warned of.
    pub fn new(secret: &str) -> Result<Self, EmptySecret> {
        if secret.is_empty() {
            return Err(EmptySecret);
        }
        if secret.len() < STRONG_SECRET_BYTES {
            tracing::warn!(
                bytes = secret.len(),
                "the JWT secret is shorter than the 32 bytes HS256 asks for"
            );
        }
        // `Validation::new` allows this algorithm alone, so neither `none` nor a public key passes as a secret.
        // A token made for another audience (`aud`) is refused: this service has no name to be one by.
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = LEEWAY_SECONDS;
        rules.validate_nbf = true;
        Ok(Auth(Arc::new(Keys {
            key: DecodingKey::from_secret(secret.as_bytes()),
            rules,
        })))
    }

    /// The caller of a request, from its headers; else the 401 to answer.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (None, _) => Err(Problem::unauthorized("the header Authorization is missing")),
            (Some(value), None) => self.check_header(value),
            (Some(_), Some(_)) => Err(Problem::unauthorized("the header Authorization is there twice")),
        }
    }

    /// Extracts the [`Caller`], or rejects with a 401 problem.
    pub fn caller(&self) -> impl Filter<Extract = (Caller,), Error = Rejection> + Clone + use<> {
        let auth = self.clone();
        warp::header::headers_cloned().and_then(move |headers: HeaderMap| {
            let caller = auth.authenticate(&headers).map_err(warp::reject::custom);
            async move { caller }
        })
    }

    fn check_header(&self, value: &HeaderValue) -> Result<Caller, Problem> {
        let (scheme, token) = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().split_once(' '))
            .ok_or_else(|| Problem::unauthorized("the header Authorization is not `Bearer <token>`"))?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Problem::unauthorized("only the scheme Bearer is taken"));
        }
        self.check_token(token.trim_start())
    }

    fn check_token(&self, token: &str) -> Result<Caller, Problem> {
        let claims = jsonwebtoken::decode::<Incoming>(token, &self.0.key, &self.0.rules)
            .map_err(|error| Problem::unauthorized(reason(error.kind())))?
            .claims;
        Ok(Caller {
            tenant: text(&claims.tenant, "tenant").and_then(|t| known(TenantId::parse(t), "tenant"))?,
            user: text(&claims.sub, "sub").and_then(|t| known(UserId::parse(t), "sub"))?,
            device: match &claims.device {
                Value::Null => None,
                value => Some(text(value, "device").and_then(|t| known(DeviceId::parse(t), "device"))?),
            },
            role: match &claims.role {
                Value::Null => Role::default(),
                value => text(value, "role").and_then(|t| known(Role::parse(t).ok_or(()), "role"))?,
            },
        })
    }
}

/// A token for `claims`, signed as [`Auth`] with the same secret wants it.
pub fn mint(secret: &str, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
}

fn text<'a>(claim: &'a Value, name: &'static str) -> Result<&'a str, Problem> {
    match claim {
        Value::Null => Err(Problem::unauthorized(format!("the token has no claim `{name}`"))),
        Value::String(text) => Ok(text),
        _ => Err(unusable(name)),
    }
}

fn known<T, E>(parsed: Result<T, E>, name: &'static str) -> Result<T, Problem> {
    parsed.map_err(|_| unusable(name))
}

fn unusable(name: &'static str) -> Problem {
    Problem::unauthorized(format!(
        "the token's claim `{name}` is not one that this service knows"
    ))
}

/// What to tell of a token that does not verify. Everything about the key and the signature is one answer.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "token expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::MissingRequiredClaim(_) => "the token has no usable claim `exp`",
        ErrorKind::InvalidClaimFormat(_) => "the token's times cannot be read",
        ErrorKind::InvalidAudience => "the token was made for another audience",
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "only tokens signed with HS256 are taken"
        }
        _ => "the token is not a JWT that can be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn now() -> u64 {
        jsonwebtoken::get_current_timestamp()
    }

    fn claims() -> Value {
        json!({"tenant": "acme", "sub": "anna", "device": "phone-1", "role": "supervisor", "exp": now() + 60})
    }

    fn signed(claims: &Value) -> String {
        signed_with(SECRET, Algorithm::HS256, claims)
    }

    fn signed_with(secret: &str, algorithm: Algorithm, claims: &Value) -> String {
        let key = EncodingKey::from_secret(secret.as_bytes());
        format!(
            "Bearer {}",
            jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
        )
    }

    fn check(header: &str) -> Result<Caller, String> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
        Auth::new(SECRET)
            .unwrap()
            .authenticate(&headers)
            .map_err(|problem| {
                assert_eq!(problem.status(), 401);
                problem.to_string()
            })
    }

    fn refused(header: &str, why: &str) {
        match check(header) {
            Err(text) => assert!(text.contains(why), "{text:?} does not say {why:?}"),
            Ok(caller) => panic!("{header} passed as {caller:?}"),
        }
    }

    fn with(name: &str, value: Value) -> String {
        let mut claims = claims();
        claims[name] = value;
        signed(&claims)
    }

    #[test]
    fn what_is_minted_is_taken() {
        let claims = Claims {
            tenant: TenantId::parse("acme").unwrap(),
            sub: UserId::parse("anna").unwrap(),
            device: None,
            role: Role::Operator,
            exp: now() + 60,
        };
        let caller = check(&format!("Bearer {}", mint(SECRET, &claims).unwrap())).unwrap();
        assert_eq!(
            (
                caller.tenant.as_str(),
                caller.user.as_str(),
                caller.device,
                caller.role
            ),
            ("acme", "anna", None, Role::Operator)
        );
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_the_role_has_a_default() {
        let token = with("role", Value::Null).replace("Bearer ", "bEARER  ");
        let caller = check(&token).unwrap();
        assert_eq!(caller.role, Role::User);
        assert_eq!(caller.device.unwrap().as_str(), "phone-1");
    }

    #[test]
    fn every_other_token_is_a_401_that_says_why() {
        refused("Basic YTpi", "Bearer");
        refused("Bearer", "Bearer <token>");
        refused("Bearer not-a-token", "not a JWT");
        refused("Bearer a.b.c", "not a JWT");
        refused(&with("exp", json!(now() - LEEWAY_SECONDS - 2)), "token expired");
        refused(&with("exp", Value::Null), "`exp`");
        refused(&with("exp", json!("tomorrow")), "`exp`");
        refused(&with("nbf", json!(now() + 60)), "not valid yet");
        refused(&with("aud", json!("another")), "audience");
        refused(&with("role", json!("admin")), "`role`");
        refused(&with("tenant", Value::Null), "no claim `tenant`");
        refused(&with("tenant", json!(7)), "`tenant`");
        refused(&with("tenant", json!("")), "`tenant`");
        refused(&with("sub", json!("")), "`sub`");
        refused(&with("device", json!("x")), "`device`");
        refused(
            &signed_with("another secret, and a long one too", Algorithm::HS256, &claims()),
            "signature",
        );
        refused(&signed_with(SECRET, Algorithm::HS512, &claims()), "HS256");
        // {"alg":"none","typ":"JWT"} with claims and no signature.
        let body = signed(&claims()).split('.').nth(1).unwrap().to_owned();
        refused(
            &format!("Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{body}."),
            "not a JWT",
        );
    }

    #[test]
    fn a_signed_body_that_was_changed_is_refused() {
        let (mine, other) = (signed(&claims()), with("tenant", json!("other")));
        let (mine, other) = (
            mine.split('.').collect::<Vec<_>>(),
            other.split('.').collect::<Vec<_>>(),
        );
        refused(&[mine[0], other[1], mine[2]].join("."), "signature");
    }

    #[test]
    fn no_header_and_two_headers_are_both_401() {
        let auth = Auth::new(SECRET).unwrap();
        let mut headers = HeaderMap::new();
        assert!(
            auth.authenticate(&headers)
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
        for _ in 0..2 {
            headers.append(AUTHORIZATION, HeaderValue::from_str(&signed(&claims())).unwrap());
        }
        assert!(
            auth.authenticate(&headers)
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        assert_eq!(Auth::new("").err(), Some(EmptySecret));
    }

    #[tokio::test]
    async fn the_filter_extracts_the_caller_or_rejects_with_401() {
        let routes = Auth::new(SECRET)
            .unwrap()
            .caller()
            .map(|caller: Caller| caller.tenant.to_string())
            .recover(crate::problem::recover);
        let good = warp::test::request()
            .header("authorization", signed(&claims()))
            .reply(&routes)
            .await;
        assert_eq!((good.status().as_u16(), &good.body()[..]), (200, &b"acme"[..]));
        let garbled = HeaderValue::from_bytes(b"Bearer \xff").unwrap();
        let bad = warp::test::request()
            .header("authorization", garbled)
            .reply(&routes)
            .await;
        assert_eq!(bad.status(), 401);
        assert_eq!(bad.headers()["www-authenticate"], "Bearer");
    }
}
