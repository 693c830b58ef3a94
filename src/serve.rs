//! `tidelog serve`: gateway and projectors in one process, each of which also has a command of its own. They meet in
//! Kafka and in Postgres alone, here too.
//!
//! Stopping has an order: the gateway first, since its last requests wait for what the projectors apply.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tidelog_events::domain::Registry;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::dev::DevEnv;
use crate::gateway::{self, GatewaySettings};
use crate::preflight::preflight;
use crate::project::{self, ProjectorSettings};
use crate::settings::{
    AuthSettings, ConnectionSettings, DatabaseSettings, DomainSettings, KafkaSettings, ListenSettings,
    MetricsSettings, NoticeSettings, PoolSettings, SealSettings, Secret, ShutdownSettings, TopicSettings,
};
use crate::shutdown::until_signal;
use crate::status::Looker;
use crate::{database, domains, migrate, topics};

/// How long `dev` waits for its projectors before it says that it is ready all the same.
const PROJECTORS_DEADLINE: Duration = Duration::from_secs(30);

/// What this process is called in `positions.owner`: host, process and a start of its own.
pub(crate) static INSTANCE: LazyLock<String> = LazyLock::new(|| {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "tidelog",
        host => host,
    };
    let start = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &start[..8])
});

/// Runs gateway and projectors in one process
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Runs gateway and projectors in one process. SIGINT or SIGTERM stops it: requests and folds in flight \
                  are finished first. To scale the two by themselves, run `tidelog ingest` and `tidelog project`.",
    after_help = "Example:\n  tidelog migrate && tidelog topics && tidelog serve --listen 0.0.0.0:8080\n\nExit codes:\n  \
                  0  stopped by a signal, everything finished\n  \
                  1  failed, or not everything was finished in time\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    listen: ListenSettings,
    #[command(flatten)]
    settings: ServeSettings,
}

/// What gateway and projectors work with.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServeSettings {
    #[command(flatten)]
    pub(crate) kafka: KafkaSettings,
    #[command(flatten)]
    pub(crate) database: DatabaseSettings,
    #[command(flatten)]
    pub(crate) pool: PoolSettings,
    #[command(flatten)]
    pub(crate) domains: DomainSettings,
    #[command(flatten)]
    pub(crate) auth: AuthSettings,
    #[command(flatten)]
    pub(crate) seal: SealSettings,
    #[command(flatten)]
    pub(crate) metrics: MetricsSettings,
    #[command(flatten)]
    pub(crate) connections: ConnectionSettings,
    #[command(flatten)]
    pub(crate) shutdown: ShutdownSettings,
    #[command(flatten)]
    pub(crate) notice: NoticeSettings,
}

impl ServeSettings {
    fn gateway(&self) -> GatewaySettings {
        GatewaySettings {
            kafka: self.kafka.clone(),
            database: self.database.clone(),
            pool: self.pool.clone(),
            domains: self.domains.clone(),
            auth: self.auth.clone(),
            seal: self.seal.clone(),
            connections: self.connections,
            shutdown: self.shutdown.clone(),
            notice: self.notice.clone(),
        }
    }

    fn projector(&self) -> ProjectorSettings {
        ProjectorSettings {
            kafka: self.kafka.clone(),
            database: self.database.clone(),
            domains: self.domains.clone(),
            seal: self.seal.clone(),
            metrics: self.metrics,
            shutdown: self.shutdown.clone(),
        }
    }
}

/// Runs the command.
pub(crate) async fn serve(args: ServeArgs) -> Result<()> {
    let deadline = args.settings.shutdown.shutdown_deadline + args.settings.notice.shutdown_notice;
    let registry = domains::registry(&args.settings.domains)?;
    let listener = gateway::listen(args.listen.listen).await?;
    until_signal(deadline, async |shutdown| {
        preflight(
            &args.settings.kafka,
            &args.settings.database,
            &args.settings.seal,
            &registry,
        )
        .await?;
        let (ready, _) = oneshot::channel();
        run(args.settings.clone(), listener, shutdown, ready).await
    })
    .await
}

/// Runs gateway and projectors until `shutdown`, and stops both if one ends before. `ready` is told when the gateway
/// answers requests and Kafka answers it.
pub(crate) async fn run(
    settings: ServeSettings,
    listener: TcpListener,
    mut shutdown: watch::Receiver<bool>,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let registry = domains::registry(&settings.domains)?;
    let (stop_gateway, gateway_stops) = watch::channel(false);
    let (stop_projectors, projectors_stop) = watch::channel(false);
    let (gateway, projector) = (settings.gateway(), settings.projector());
    let mut gateway = std::pin::pin!(gateway::run(
        &gateway,
        registry.clone(),
        listener,
        gateway_stops,
        ready
    ));
    let mut projectors = std::pin::pin!(project::run(&projector, registry, projectors_stop));
    let ended = tokio::select! {
        ended = &mut gateway => {
            stop_projectors.send_replace(true);
            let _ = projectors.await;
            return ended.and_then(|()| bail!("the gateway ended by itself"));
        }
        ended = &mut projectors => Some(ended),
        _ = shutdown.wait_for(|stop| *stop) => None,
    };
    stop_gateway.send_replace(true);
    if let Some(ended) = ended {
        let _ = gateway.await;
        return ended.and_then(|()| bail!("the projectors ended by themselves"));
    }
    // The last requests wait for outcomes, so the projectors go on meanwhile.
    let gateway = tokio::select! {
        ended = &mut gateway => ended,
        ended = &mut projectors => {
            let _ = gateway.await;
            return ended.and_then(|()| bail!("the projectors ended by themselves"));
        }
    };
    stop_projectors.send_replace(true);
    gateway.and(projectors.await)
}

/// What `tidelog dev` serves: everything, on a database and a log that it makes ready first.
pub(crate) async fn under_dev(env: DevEnv, domains: DomainSettings, seal: SealSettings) -> Result<()> {
    let kafka = KafkaSettings {
        kafka_brokers: env.kafka_brokers,
        topic_prefix: String::new(),
    };
    let settings = ServeSettings {
        kafka,
        database: DatabaseSettings {
            database_url: Secret::new(env.database_url),
            schema: "tidelog".into(),
        },
        pool: PoolSettings { database_pool: 16 },
        domains,
        auth: AuthSettings {
            jwt_secret: Secret::new(env.jwt_secret),
        },
        seal,
        metrics: MetricsSettings { metrics_listen: None },
        connections: ConnectionSettings {
            max_connections: 4096,
            max_connections_per_address: None,
        },
        shutdown: ShutdownSettings {
            shutdown_deadline: Duration::from_secs(20),
        },
        notice: NoticeSettings {
            shutdown_notice: Duration::ZERO,
        },
    };
    let registry = domains::registry(&settings.domains)?;
    let config = database::config(&settings.database, "migrate", &[("statement_timeout", "0")])?;
    migrate::run_migrations(&config, &settings.database.schema, &registry).await?;
    let topic_settings = TopicSettings {
        partitions: 6,
        replication_factor: None,
    };
    let report = topics::ensure(&settings.kafka, &topic_settings, &registry, true).await?;
    for difference in &report.differences {
        eprintln!("warning: {difference}");
    }
    let (ready, is_ready) = oneshot::channel();
    let projecting = async {
        if is_ready.await.is_ok() {
            projectors_own_everything(&settings, &registry).await;
            // `dev` may be stopping already.
            let _ = env.ready.send(());
        }
        // What ends this is the service.
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = run(settings.clone(), env.listener, env.shutdown, ready) => ended,
        () = projecting => Ok(()),
    }
}

/// Waits until a first batch gets its outcomes at once, rather than while the group still forms.
async fn projectors_own_everything(settings: &ServeSettings, registry: &Arc<Registry>) {
    let mut looker = Looker::new(&settings.kafka, &settings.database, registry);
    let wait = async {
        loop {
            match looker.glance().await {
                Ok(status) if status.owned_by(&INSTANCE) => return,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let waited = tokio::time::timeout(PROJECTORS_DEADLINE, wait)
        .await
        .context("timeout");
    if waited.is_err() {
        eprintln!(
            "warning: the projectors do not own every partition after {} s: `tidelog status --all` shows which",
            PROJECTORS_DEADLINE.as_secs()
        );
    }
}
