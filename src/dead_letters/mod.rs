//! `tidelog dead-letters`: records that the fold could not read, and what an operator does about them. Each idea has its
//! file: `letter` is one of them as it is stored, `choice` which of them a command is about, and a file for each
//! command. Nothing here deletes a letter: what is dealt with has another status.

mod append;
mod choice;
mod drop;
mod export;
mod letter;
mod list;
mod order;
mod retry;
mod show;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};
use tidelog_events::domain::Registry;
use tokio_postgres::Client;

use crate::domains;
use crate::migrate::connected;
use crate::output::OutputArgs;
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings};

/// Records that could not be read: lists, shows, retries, drops and exports them
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "A record that the fold cannot read becomes a dead letter: it is kept with the reason and its place in the \
                  log, and its partition goes on. Here they are looked at, tried again once this build can read them, or \
                  dropped. None is ever deleted.",
    after_help = "Examples:\n  tidelog dead-letters list\n  tidelog dead-letters show sync.helpdesk.v1/2/17\n  \
                  tidelog dead-letters retry sync.helpdesk.v1/2/17 --dry-run\n  \
                  tidelog dead-letters drop sync.helpdesk.v1/2/17 --why \"put there by hand\" --yes\n  \
                  tidelog dead-letters export --since 24h --to letters.jsonl\n\nExit codes:\n  \
                  0  done, or nothing to do\n  \
                  1  failed, for example because Kafka or Postgres is away\n  \
                  2  wrong command line or setting, or what cannot be undone was not confirmed\n  \
                  3  some were refused; it says which and why"
)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Clone, Debug)]
enum Action {
    List(Box<list::ListArgs>),
    Show(Box<show::ShowArgs>),
    Retry(Box<retry::RetryArgs>),
    Drop(Box<drop::DropArgs>),
    Export(Box<export::ExportArgs>),
}

/// Runs the command.
pub(crate) async fn run(args: DeadLettersArgs) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match args.action {
        Action::List(args) => list::run(*args).await.map(done),
        Action::Show(args) => show::run(*args).await.map(done),
        Action::Retry(args) => retry::run(*args).await,
        Action::Drop(args) => drop::run(*args).await,
        Action::Export(args) => export::run(*args).await.map(done),
    }
}

/// What each of them works with.
#[derive(Args, Clone, Debug)]
struct Bench {
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

impl Bench {
    /// The domains, and a connection to a schema of this build.
    async fn open(&self) -> Result<(Arc<Registry>, Client)> {
        let registry = domains::registry(&self.domains)?;
        let client = connected(&self.database, &registry, "dead-letters", &[]).await?;
        Ok((registry, client))
    }
}
