//! A phone: one keep-alive connection to a gateway, one request at a time. Written on hyper's bare client connection, so
//! that the measuring takes as little of the machine as can be. Must not know what requests say.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A connection.
pub(super) struct Phone {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
}

/// A batch that is ready to be posted.
pub(super) struct Posting {
    pub(super) bearer: HeaderValue,
    pub(super) body: Bytes,
}

/// Who waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// `Prefer: wait=0`, and 202.
    No,
    /// `Prefer: wait=20`, and 200 with an outcome for every item.
    ForOutcomes,
}

/// What became of many batches.
pub(super) struct Posted {
    /// From the first request to the last answer.
    pub(super) elapsed: Duration,
    /// From each request to its whole answer.
    pub(super) latencies: Vec<Duration>,
}

impl Phone {
    pub(super) async fn connect(gateway: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(gateway).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends when the sender is dropped.
        tokio::spawn(connection);
        let host = HeaderValue::from_str(&gateway.to_string())?;
        Ok(Self { sender, host })
    }

    pub(super) async fn get(
        &mut self,
        path: &str,
        bearer: Option<&HeaderValue>,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::get(path).header(HOST, &self.host);
        if let Some(bearer) = bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        self.send(request.body(Full::default())?).await
    }

    async fn post(&mut self, posting: &Posting, wait: Wait) -> Result<(StatusCode, Bytes)> {
        let request = Request::post("/api/v1/helpdesk/sync")
            .header(HOST, &self.host)
            .header(AUTHORIZATION, &posting.bearer)
            .header(CONTENT_TYPE, "application/json")
            .header("prefer", if wait == Wait::No { "wait=0" } else { "wait=20" })
            .body(Full::new(posting.body.clone()))?;
        self.send(request).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}

/// Posts batches from so many phones at once, each posting its next as soon as it has its answer. Every answer is
/// checked, after the measuring.
pub(super) async fn post_all(
    gateway: SocketAddr,
    postings: Vec<Posting>,
    phones: usize,
    wait: Wait,
    done: &Arc<AtomicU64>,
) -> Result<Posted> {
    let mut connections = Vec::new();
    for _ in 0..phones {
        connections.push(Phone::connect(gateway).await?);
    }
    let queue = Arc::new(Mutex::new(VecDeque::from(postings)));
    let mut working = JoinSet::new();
    let began = Instant::now();
    for mut phone in connections {
        let (queue, done) = (queue.clone(), done.clone());
        working.spawn(async move {
            let mut answers = Vec::new();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(posting) = next else { break };
                let asked = Instant::now();
                let (status, body) = phone.post(&posting, wait).await?;
                answers.push((asked.elapsed(), status, body));
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers = Vec::new();
    while let Some(answered) = working.join_next().await {
        answers.extend(answered??);
    }
    let elapsed = began.elapsed();
    for (_, status, body) in &answers {
        check(wait, *status, body)?;
    }
    let latencies = answers.into_iter().map(|(latency, _, _)| latency).collect();
    Ok(Posted { elapsed, latencies })
}

fn check(wait: Wait, status: StatusCode, body: &Bytes) -> Result<()> {
    let expected = if wait == Wait::No {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    let answer: serde_json::Value = serde_json::from_slice(body).context("an answer is no JSON")?;
    let synced = answer["synced_items"].as_array().map_or(0, Vec::len);
    let whole = wait == Wait::No || synced == super::tickets::BATCH;
    let faultless = answer["errors"].as_array().is_some_and(Vec::is_empty);
    if status != expected || !whole || !faultless {
        bail!("the gateway answered {status} with {synced} items: {answer}");
    }
    Ok(())
}
