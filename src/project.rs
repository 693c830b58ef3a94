//! `tidelog project`: projectors only. Each process takes its share of the partitions; how many share them is settled
//! by Kafka's consumer group, what is applied by Postgres.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use tidelog_events::domain::Registry;
use tidelog_projector::{ProjectorConfig, keys};
use tokio::sync::watch;

use crate::preflight::preflight;
use crate::serve::INSTANCE;
use crate::settings::{
    DatabaseSettings, DomainSettings, KafkaSettings, MetricsSettings, SealSettings, ShutdownSettings,
};
use crate::shutdown::until_signal;
use crate::version::VERSION;
use crate::{database, domains, figures};

/// Runs projectors: from the log into Postgres
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Runs projectors, which fold the log into Postgres. Start as many processes as you like, up to the \
                  number of partitions: they share them. SIGINT or SIGTERM stops it after the chunk in hand.",
    after_help = "Example:\n  tidelog project --kafka-brokers kafka:9092 --database-url postgres://tidelog:…@db/tidelog\n\n\
                  Exit codes:\n  \
                  0  stopped by a signal, everything finished\n  \
                  1  failed, or not everything was finished in time\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct ProjectArgs {
    #[command(flatten)]
    settings: ProjectorSettings,
}

/// What projectors work with.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProjectorSettings {
    #[command(flatten)]
    pub(crate) kafka: KafkaSettings,
    #[command(flatten)]
    pub(crate) database: DatabaseSettings,
    #[command(flatten)]
    pub(crate) domains: DomainSettings,
    #[command(flatten)]
    pub(crate) seal: SealSettings,
    #[command(flatten)]
    pub(crate) metrics: MetricsSettings,
    #[command(flatten)]
    pub(crate) shutdown: ShutdownSettings,
}

/// Runs the command.
pub(crate) async fn project(args: ProjectArgs) -> Result<()> {
    let settings = args.settings;
    let registry = domains::registry(&settings.domains)?;
    until_signal(settings.shutdown.shutdown_deadline, async |shutdown| {
        preflight(&settings.kafka, &settings.database, &settings.seal, &registry).await?;
        run(&settings, registry, shutdown).await
    })
    .await
}

/// Runs projectors until `shutdown`.
pub(crate) async fn run(
    settings: &ProjectorSettings,
    registry: Arc<Registry>,
    shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let config = ProjectorConfig {
        brokers: settings.kafka.kafka_brokers.clone(),
        group: group(&settings.kafka, &settings.database),
        topic_prefix: settings.kafka.topic_prefix.clone(),
        schema: settings.database.schema.clone(),
        database: database::config(&settings.database, "project", &[])?,
        registry,
        instance: INSTANCE.clone(),
    };
    tracing::info!(
        group = config.group,
        instance = config.instance,
        version = VERSION,
        "projectors start"
    );
    let (brokers, prefix) = (config.brokers.clone(), config.topic_prefix.clone());
    let database = database::config(&settings.database, "keys", &[])?;
    let taking_keys_over = async {
        // Keys can be taken over without the secret, but where there is none there are no keys.
        if settings.seal.seal_secret.is_some() {
            keys::follow(&brokers, &prefix, &database, shutdown.clone()).await;
        }
        std::future::pending::<()>().await
    };
    // Before anything is counted.
    let page = match settings.metrics.metrics_listen {
        Some(address) => Some((figures::keep()?, figures::listen(address).await?)),
        None => None,
    };
    let stop = shutdown.clone();
    let showing = async {
        if let Some((handle, listener)) = page {
            figures::serve(handle, listener, stop).await;
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = tidelog_projector::run(config, shutdown.clone()) => ended.context("the projectors ended"),
        () = taking_keys_over => Ok(()),
        () = showing => Ok(()),
    }
}

/// Projectors of one projection share a group. Another schema over the same topics is another projection: in the same
/// group, each would get a part of the records.
fn group(kafka: &KafkaSettings, database: &DatabaseSettings) -> String {
    let prefix = &kafka.topic_prefix;
    match database.schema.as_str() {
        "tidelog" => format!("{prefix}tidelog-projector"),
        schema => format!("{prefix}tidelog-projector-{schema}"),
    }
}
