//! A phone, as far as the gateway can tell: an HTTP client with a bearer token.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::tickets::{self, Item};

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the gateway is asked to wait for final outcomes: enough for a machine that is busy.
const WAIT: &str = "wait=30";

/// Where a person holds a device.
pub(crate) struct Phone {
    pub(crate) user: &'static str,
    pub(crate) device: &'static str,
    url: String,
    token: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The header `Idempotent-Replayed`.
    pub(crate) replayed: Option<String>,
    pub(crate) body: Bytes,
    /// The body, read; null where it is no JSON.
    pub(crate) json: Value,
    /// From the request to the last byte.
    pub(crate) took: Duration,
}

impl Phone {
    pub(crate) fn new(user: &'static str, device: &'static str, url: &str, token: String) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self {
            user,
            device,
            url: url.to_owned(),
            token,
            http,
        }
    }

    /// Posts tickets as one batch under a key.
    pub(crate) async fn post(&self, key: &str, items: &[Item]) -> Result<Answer> {
        let body = tickets::batch(self.device, items);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/api/v1/helpdesk/sync", self.url))
            .header("content-type", "application/json")
            .header("idempotency-key", format!("\"{key}\""))
            .header("prefer", WAIT);
        self.send(request, body).await
    }

    /// Puts a document.
    pub(crate) async fn put(&self, path: &str, body: &str) -> Result<Answer> {
        self.say(Method::PUT, path, body).await
    }

    /// Posts a document that is no batch.
    pub(crate) async fn post_to(&self, path: &str, body: &str) -> Result<Answer> {
        self.say(Method::POST, path, body).await
    }

    async fn say(&self, method: Method, path: &str, body: &str) -> Result<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .header("prefer", WAIT);
        self.send(request, body.to_owned()).await
    }

    /// Pulls a page of what has changed.
    pub(crate) async fn pull(&self, query: &str) -> Result<Answer> {
        self.get(&format!("/api/v1/helpdesk/changes?{query}")).await
    }

    /// Asks for a path.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        let request = Request::builder()
            .uri(format!("{}{path}", self.url))
            .header("prefer", WAIT);
        self.send(request, String::new()).await
    }

    async fn send(&self, request: hyper::http::request::Builder, body: String) -> Result<Answer> {
        let request = request
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::new(Bytes::from(body)))?;
        let what = format!("{} {}", request.method(), request.uri());
        let began = Instant::now();
        let exchange = async {
            let (head, body) = self.http.request(request).await?.into_parts();
            anyhow::Ok((head, body.collect().await?.to_bytes()))
        };
        let (head, body) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .with_context(|| format!("{what}: no answer within {} s", PATIENCE.as_secs()))?
            .with_context(|| what)?;
        Ok(Answer {
            status: head.status.as_u16(),
            replayed: head
                .headers
                .get("idempotent-replayed")
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned),
            json: serde_json::from_slice(&body).unwrap_or_default(),
            body,
            took: began.elapsed(),
        })
    }
}

impl Answer {
    /// A list in the body; empty where there is none.
    pub(crate) fn list(&self, name: &str) -> &[Value] {
        self.json[name].as_array().map_or(&[], Vec::as_slice)
    }

    /// A text in the body; empty where there is none.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_default()
    }

    /// Status and body, for whoever has to find out what went wrong.
    pub(crate) fn whole(&self) -> String {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(2000).collect();
        format!("{} {body}", self.status)
    }
}
