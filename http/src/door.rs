//! What a connection is told for which there is no place: 503 at once, rather than being left hanging, so that its client
//! can go elsewhere or come back, or a closed connection where too many come at once. Must not know how places are given out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use crate::connection::{Stage, linger};
use crate::places::Full;
use crate::problem::Problem;
use crate::server::Limits;

/// How many are being told so at any time, so that telling stays cheap.
const BEING_REFUSED: usize = 64;

/// How long a refused client is given to read its refusal.
const LINGER: Duration = Duration::from_secs(1);

pub(crate) struct Door {
    all: Bytes,
    of_address: Bytes,
    slots: Arc<Semaphore>,
    told: watch::Receiver<Stage>,
    /// How many were refused.
    pub(crate) refused: u64,
}

impl Door {
    pub(crate) fn new(limits: &Limits, told: watch::Receiver<Stage>) -> Self {
        let of_address = format!(
            "too many connections are open from this address: at most {} may be",
            limits.max_connections_per_address
        );
        Door {
            all: refusal("too many connections are open"),
            of_address: refusal(&of_address),
            slots: Arc::new(Semaphore::new(BEING_REFUSED)),
            told,
            refused: 0,
        }
    }

    /// Tells a client that there is no place for it. Where enough are being told so already it is hung up on: kept
    /// waiting, it would keep those waiting who come after it and for whom there may be a place.
    pub(crate) fn refuse(&mut self, mut stream: TcpStream, full: Full) {
        self.refused += 1;
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return;
        };
        tracing::debug!(?full, "connection refused: too many are open");
        let refusal = match full {
            Full::All => self.all.clone(),
            Full::Address => self.of_address.clone(),
        };
        let mut told = self.told.clone();
        tokio::spawn(async move {
            let refuse = async {
                // A few hundred bytes: the kernel's buffer takes them at once.
                if stream.write_all(&refusal).await.is_ok() {
                    linger(&mut stream, LINGER).await;
                }
            };
            tokio::select! {
                () = refuse => {}
                _ = told.wait_for(|stage| *stage != Stage::Running) => {}
            }
            drop(slot);
        });
    }
}

/// The bytes of a 503.
fn refusal(detail: &str) -> Bytes {
    let response: Response<Bytes> = Problem::unavailable(detail.to_owned(), 1).closing().to_response();
    let mut text = b"HTTP/1.1 503 Service Unavailable\r\n".to_vec();
    for (name, value) in response.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body().len()).as_bytes());
    text.extend_from_slice(response.body());
    text.into()
}
