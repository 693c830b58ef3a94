//! Tells gateways that positions moved: one NOTIFY from one connection for whatever has gathered since the last. Sent
//! after the commit and outside of it, since a NOTIFY inside the writing transactions would make their commits wait for
//! one another. A wake-up only: what moved is read from the table.

use crate::retry::waits;
use crate::session::Session;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio_postgres::Config;

/// Runs until shutdown.
pub(crate) async fn run(
    database: Config,
    channel: String,
    moved: Arc<Notify>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut session: Option<Session> = None;
    let mut pause = waits();
    loop {
        tokio::select! {
            _ = moved.notified() => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        if session.is_none() {
            session = connect(&database).await;
        }
        let sent = match &mut session {
            Some(open) => open.query("SELECT pg_notify($1, '')", &[&channel]).await.is_ok(),
            None => false,
        };
        if sent {
            pause = waits();
        } else {
            // Gateways poll the table as well, so a wake-up lost here is only late.
            session = None;
            tokio::time::sleep(pause.next().unwrap_or_default()).await;
        }
    }
}

async fn connect(database: &Config) -> Option<Session> {
    let session = Session::connect(database).await.ok()?;
    // A wake-up that a crash of the server loses is no loss, so its commit need not wait for the disk.
    session
        .client()
        .batch_execute("SET synchronous_commit = off")
        .await
        .ok()?;
    Some(session)
}
