//! How a service of ours ends: by a signal, in order and in time. What has to be finished is the service's to know.

use std::time::Duration;

use anyhow::{Result, bail};
use tidelog_events::drill;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// What is added to the deadline for the steps after the last request: flushing, letting go of partitions.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// Runs a service, which is told to stop by SIGINT or SIGTERM, and then has the deadline and a little more to return.
/// A second signal ends it at once.
pub(crate) async fn until_signal(
    deadline: Duration,
    service: impl AsyncFnOnce(watch::Receiver<bool>) -> Result<()>,
) -> Result<()> {
    let mut signals = Signals::new()?;
    let (stop, stopping) = watch::channel(false);
    let mut service = std::pin::pin!(service(stopping));
    let name = tokio::select! {
        ended = &mut service => return ended,
        name = signals.next() => name,
    };
    tracing::info!(signal = name, ?deadline, "stopping");
    if !drill::guarded("shutdown") {
        return Ok(());
    }
    stop.send_replace(true);
    tokio::select! {
        ended = &mut service => {
            tracing::info!("stopped");
            ended
        }
        () = tokio::time::sleep(deadline + AFTERWARDS) => {
            bail!("not everything was finished within {deadline:?} (shutdown_deadline): clients will retry what was cut off")
        }
        name = signals.next() => bail!("a second signal ({name}): ended with work unfinished, which clients will retry"),
    }
}

/// Runs until `stop`, or until the service ends by itself, which it should not.
pub(crate) async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone can no longer say so: that too is the end.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits for SIGINT or SIGTERM, which is how a command that shows something for ever is ended.
pub(crate) async fn signalled() -> Result<()> {
    Signals::new()?.next().await;
    Ok(())
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
