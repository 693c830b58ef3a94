//! `tidelog erase`: a user is forgotten by destroying the keys that his words are sealed under: in the log, so that no gateway
//! uses and no projection learns them any more, and in the table that readers look them up in. Each step may be done again,
//! so a command that was cut off is run again. `keys` finds and destroys, `plain` counts what was never sealed, `told` says
//! what was done and what stays.

mod keys;
mod plain;
mod told;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use tidelog_events::domain::Registry;
use tidelog_events::drill;
use tidelog_events::ids::{TenantId, UserId};
use tidelog_ingest::seals::Destroyer;
use tidelog_ingest::{Producer, ProducerConfig};
use tokio_postgres::Client;

use self::told::Erased;
use crate::audit::Audit;
use crate::domains;
use crate::guard_rails::{ConfirmArgs, Danger, OperatorArgs};
use crate::migrate::connected;
use crate::output::OutputArgs;
use crate::settings::{DatabaseSettings, DomainSettings, KafkaSettings};

/// Forgets a user: destroys the keys that his words are sealed under
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Forgets a user: destroys the keys that his words are sealed under (see seal_secret). From then on nobody can read \
                  them any more, in the log, in the tables, in backups of both, and after any rebuild; readers see \"[erased]\", \
                  within a minute everywhere. What the user sends afterwards is sealed under a new key and lives. Words that were \
                  sent before seal_secret was set are counted, and cannot be erased so. If it breaks off, run it again.",
    after_help = "Examples:\n  tidelog erase --tenant acme --user asha --dry-run\n  \
                  tidelog erase --tenant acme --user asha --yes --as olga --output json\n\nExit codes:\n  \
                  0  everything that this user sent is erased\n  \
                  1  failed, or not complete: some words were never sealed; it says how many, and where\n  \
                  2  wrong command line or setting, or it was not confirmed"
)]
pub(crate) struct EraseArgs {
    /// The customer
    #[arg(long, value_parser = |text: &str| TenantId::parse(text))]
    tenant: TenantId,
    /// The user who is to be forgotten
    #[arg(long, value_parser = |text: &str| UserId::parse(text))]
    user: UserId,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    operator: OperatorArgs,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub(crate) async fn run(args: EraseArgs) -> Result<ExitCode> {
    let registry = domains::registry(&args.domains)?;
    let client = connected(&args.database, &registry, "erase", &[("statement_timeout", "0")]).await?;
    let arguments = json!({"tenant": args.tenant, "user": args.user});
    let audit = Audit::begin(&args.database, &args.operator, "erase", &arguments).await?;
    let done = erase(&args, &registry, &client).await;
    let detail = match &done {
        Ok(done) => json!({"keys": done.keys_destroyed, "complete": done.complete}),
        Err(_) => json!({}),
    };
    audit.end(&done, detail).await;
    let done = done?;
    args.output.output.print(&done, told::text)?;
    Ok(match done.complete || done.dry_run {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn erase(args: &EraseArgs, registry: &Arc<Registry>, client: &Client) -> Result<Erased> {
    let found = keys::of(&args.kafka, client, &args.tenant, &args.user).await?;
    let plain = plain::count(&args.kafka, registry, &args.tenant, &args.user).await?;
    let mut done = Erased {
        tenant: args.tenant.clone(),
        user: args.user.clone(),
        dry_run: args.operator.dry_run,
        keys_destroyed: found.alive.len(),
        keys_destroyed_before: found.destroyed.len(),
        complete: plain.is_empty(),
        never_sealed: plain,
    };
    if args.operator.dry_run {
        return Ok(done);
    }
    args.confirm.confirm(&Danger {
        what: &format!("Erasing the user {} of {}", args.user, args.tenant),
        name: args.user.as_str(),
        named: true,
        flags: "--yes",
    })?;
    done.keys_destroyed = destroy(args, client, found).await?;
    Ok(done)
}

/// The log first: what it says, every table follows.
async fn destroy(args: &EraseArgs, client: &Client, found: keys::UserKeys) -> Result<usize> {
    let producer = Arc::new(Producer::new(ProducerConfig::new(&args.kafka.kafka_brokers))?);
    let destroyer = Destroyer::new(producer, &args.kafka.topic_prefix);
    let in_log = "the log did not take it: run it again";
    destroyer.destroy(&found.alive).await.context(in_log)?;
    drill::reached("erase.logged");
    // A key that a gateway made while it was asked is one of before, too: what this command saw to its end is gone.
    let late = keys::of(&args.kafka, client, &args.tenant, &args.user).await?;
    let late: Vec<_> = late
        .alive
        .into_iter()
        .filter(|name| !found.alive.contains(name))
        .collect();
    destroyer.destroy(&late).await.context(in_log)?;
    let all: Vec<_> = found.alive.iter().chain(&late).chain(&found.destroyed).collect();
    keys::forget(client, &all).await?;
    drill::reached("erase.forgotten");
    if let Err(error) = keys::rewrite(client).await {
        bail!(
            "the keys are destroyed, but the table seal_keys may still hold their bytes, since it could not be rewritten: {error:#}. Run it again"
        );
    }
    Ok(found.alive.len() + late.len())
}
