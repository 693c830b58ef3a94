//! The local stack: a real Apache Kafka and a real Postgres of one's own, in one data folder.
//!
//! The one place that knows how these are found, made, started and stopped; demo, tests, benchmarks and
//! `tidelog dev` come here. It must not know what Tidelog does with them: no topic, no table.
//!
//! - [`Stack`]: both together
//! - `kafka`, `postgres`: what is particular to each
//! - `process`: a server seen from here; `guard`: the small process between, which outlives us just long
//!   enough to stop the server
//! - `jars`: fetches Kafka; `user`: who Postgres runs as when we are root
//! - `files`: locks, secrets, ports

pub(crate) mod files;
pub(crate) mod guard;
mod jars;
mod kafka;
mod postgres;
mod process;
mod user;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use kafka::Kafka;
use postgres::Postgres;

/// A Kafka and a Postgres that answer, and are stopped when this is dropped.
pub(crate) struct Stack {
    /// For `bootstrap.servers`: `127.0.0.1:PORT`.
    pub(crate) kafka_brokers: String,
    /// URL of the database `tidelog`, as its owner, with the password.
    pub(crate) database_url: String,
    kafka: process::Process,
    postgres: process::Process,
}

impl Stack {
    /// Starts both on free ports, with the data that `data_dir` (an absolute path) has, and says so on
    /// stderr. `exe` is the `tidelog` executable, which also runs as their guard. `advertised` is where Kafka sends its
    /// clients, if not to itself.
    ///
    /// The caller sees to it that nobody else uses the folder. May be dropped at any await: what was
    /// started then stops by itself, and [`Self::settled`] waits for it.
    pub(crate) async fn start(data_dir: &Path, exe: &Path, advertised: Option<SocketAddr>) -> Result<Self> {
        let (kafka_home, postgres_home) = (data_dir.join("kafka"), data_dir.join("postgres"));
        let both = tokio::try_join!(
            Kafka::start(&kafka_home, exe, advertised),
            Postgres::start(&postgres_home, exe)
        );
        match both {
            Ok((kafka, postgres)) => Ok(Self {
                kafka_brokers: kafka.brokers,
                database_url: postgres.url,
                kafka: kafka.process,
                postgres: postgres.process,
            }),
            Err(e) => {
                Self::settled(data_dir).await?;
                Err(e)
            }
        }
    }

    /// Waits until neither server of this folder runs, and stops what does.
    pub(crate) async fn settled(data_dir: &Path) -> Result<()> {
        for (home, name, stop) in [
            ("kafka", kafka::NAME, kafka::STOP),
            ("postgres", postgres::NAME, postgres::STOP),
        ] {
            let home = data_dir.join(home);
            if home.is_dir() {
                process::clear(name, &home, stop).await?;
            }
        }
        Ok(())
    }

    /// Waits until one of the two ends by itself, and answers which and why. Cancel-safe.
    pub(crate) async fn wait_for_death(&mut self) -> anyhow::Error {
        tokio::select! {
            why = self.kafka.death() => why,
            why = self.postgres.death() => why,
        }
    }

    /// Stops both in order and waits until they are gone.
    pub(crate) async fn stop(self) -> Result<()> {
        let (kafka, postgres) = tokio::join!(self.kafka.stop(), self.postgres.stop());
        kafka.and(postgres)
    }
}
