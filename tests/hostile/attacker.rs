//! Sockets of an attacker: from an address of its own, speaking HTTP only as far as it serves the attack.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::PATIENCE;
use crate::support::service::Deployment;

/// Where an attack comes from: each has an address, so that none runs out of ports because of the one before.
#[derive(Clone, Copy)]
pub(crate) struct Attacker {
    from: SocketAddr,
    to: SocketAddr,
}

/// An attacker's connection.
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// An answer's status and head.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
}

impl Attacker {
    /// At 127.0.0.`host`; the polite phone is at 127.0.0.1.
    pub(crate) fn at(host: u8, deployment: &Deployment) -> Attacker {
        Attacker {
            from: ([127, 0, 0, host], 0).into(),
            to: ([127, 0, 0, 1], deployment.port).into(),
        }
    }

    pub(crate) async fn try_connect(&self) -> std::io::Result<Socket> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.from)?;
        let stream = socket.connect(self.to).await?;
        Ok(Socket {
            stream,
            read: Vec::new(),
        })
    }

    pub(crate) async fn connect(&self) -> Socket {
        let connected = tokio::time::timeout(PATIENCE, self.try_connect()).await;
        connected
            .expect("the service accepts in time")
            .expect("the service accepts")
    }

    /// A connection on which that much has been said.
    pub(crate) async fn say(&self, bytes: impl AsRef<[u8]>) -> Socket {
        let mut socket = self.connect().await;
        socket.send(bytes).await.expect("the service reads");
        socket
    }
}

impl Socket {
    /// Sends as much as the service takes; an error says that it has closed.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        match tokio::time::timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await {
            Ok(sent) => sent,
            Err(_) => panic!("the service neither read nor closed"),
        }
    }

    /// Reads one answer with a length; none if the service closes before it is whole.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.read.drain(..end).collect::<Vec<_>>()).into_owned();
        let length = head
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then_some(value)
            })
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0);
        while self.read.len() < length {
            self.more().await?;
        }
        self.read.drain(..length);
        Some(Answer {
            status: head.get(9..12)?.parse().ok()?,
            head,
        })
    }

    /// Waits until the service has closed, orderly or not.
    pub(crate) async fn closed(&mut self) {
        while self.more().await.is_some() {}
    }

    async fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 16 * 1024];
        match tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await {
            Ok(Ok(n @ 1..)) => {
                self.read.extend_from_slice(&buffer[..n]);
                Some(())
            }
            Ok(_) => None,
            Err(_) => panic!("the service neither answered nor closed within {PATIENCE:?}"),
        }
    }
}

/// The head of a batch's POST with a valid token; `more` are header lines.
pub(crate) fn post_head(bearer: &str, more: &str) -> String {
    format!(
        "POST /api/v1/helpdesk/sync HTTP/1.1\r\nhost: tidelog\r\nauthorization: {bearer}\r\n\
         content-type: application/json\r\n{more}\r\n"
    )
}

pub(crate) fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// As many sockets as wanted, or as this machine lets the test have besides what else it opens; it says if these are fewer.
pub(crate) fn sockets(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a soft limit may be raised to the hard one");
    let most = limit
        .maximum
        .map_or(usize::MAX, |most| most as usize)
        .saturating_sub(300);
    // The service needs as many as the test, and has the same limit.
    let most = most.min(12_000 - 300);
    if most < wanted {
        println!("this machine's limit of file handles allows for {most} connections, not {wanted}");
    }
    most.min(wanted)
}

/// Ticks that many times a second.
pub(crate) fn every(a_second: u32) -> tokio::time::Interval {
    tokio::time::interval(Duration::from_secs(1) / a_second)
}
