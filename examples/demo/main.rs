//! The demo: two phones and an analyst use Tidelog as real clients do, over HTTP and Kafka, and every step checks what
//! came back. `make demo` runs it; it ends with 0 only if everything was as expected.
//!
//! - `story`: what happens, step by step
//! - `service`: the `tidelog dev` that it happens on, with a data folder of its own
//! - `phone`, `analyst`: the clients; `tickets`: what the phones have to tell
//! - `show`: what you see, and the checks
//!
//! Nothing here uses a crate of Tidelog's own: what the demo can do, any client can.

mod analyst;
mod conflicts;
mod phone;
mod service;
mod show;
mod story;
mod tickets;

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use service::Service;
use show::Show;

/// How the play ended.
enum End {
    Played(Result<()>),
    /// By the signal of this number.
    Interrupted(i32),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode> {
    // From here on a signal is a wish that we hear, so that nothing is left running.
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let mut show =
        Show::begin("Tidelog demo: two phones and an analyst, on a real Kafka and a real Postgres");
    let mut service = tokio::select! {
        service = Service::spawn() => service?,
        number = signals.recv() => return Ok(interrupted(number)),
    };
    let end = tokio::select! {
        played = story::play(&mut show, &mut service) => End::Played(played),
        number = signals.recv() => End::Interrupted(number),
    };
    if let End::Played(Err(_)) = end {
        service.show_log();
    }
    // Whatever happened, nothing is left running.
    let stopped = service.stop().await;
    match end {
        End::Interrupted(number) => Ok(interrupted(number)),
        End::Played(Err(error)) => Err(error),
        End::Played(Ok(())) => {
            stopped?;
            show.end();
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// As shells report it.
fn interrupted(number: i32) -> ExitCode {
    eprintln!("\nInterrupted");
    ExitCode::from(u8::try_from(128 + number).unwrap_or(1))
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next signal that asks us to end.
    async fn recv(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.hangup.recv() => SignalKind::hangup().as_raw_value(),
        }
    }
}
