//! A gateway: the write side and the read side behind one listener. They are made here, get the pools, the producer
//! and the positions that they work with, and never learn of each other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tidelog_events::domain::Registry;
use tidelog_events::seal::Accord;
use tidelog_events::{DEAD_LETTER_TOPIC, positions_channel, topic_name};
use tidelog_feed::positions::{self, PositionsConfig};
use tidelog_feed::{Feed, FeedParts, OutcomeStore, SESSION_SETTINGS};
use tidelog_http::Limits;
use tidelog_http::auth::Auth;
use tidelog_ingest::seals::{self, Seals};
use tidelog_ingest::settings::{Changer, FollowConfig, follow};
use tidelog_ingest::{Ingest, IngestConfig, IngestParts, Producer, ProducerConfig};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};
use warp::Filter;

use crate::connections;
use crate::database;
use crate::health::{self, Health};
use crate::kafka::Cluster;
use crate::settings::{
    AuthSettings, ConnectionSettings, DatabaseSettings, DomainSettings, KafkaSettings, NoticeSettings,
    PoolSettings, SealSettings, ShutdownSettings,
};
use crate::shutdown::stopped;
use crate::version::VERSION;

/// How long a batch waits for a connection before it goes on without Postgres, which it can.
const WRITE_WAIT: Duration = Duration::from_secs(3);
/// How long a read waits for one before it is told to come back.
const READ_WAIT: Duration = Duration::from_secs(5);
/// How long Postgres works on one statement: a little longer than its writer waits, so that what nobody waits for any more
/// does not go on there; and no longer than a reader does.
const WRITE_TIMEOUT: (&str, &str) = ("statement_timeout", "5s");
const READ_TIMEOUT: (&str, &str) = ("statement_timeout", "10s");
/// How often positions are read where no wake-up came.
const POSITIONS_POLL: Duration = Duration::from_millis(500);
/// How long what was taken from the last requests may need to reach the log and Postgres.
const DRAIN: Duration = Duration::from_secs(3);

/// What a gateway works with.
#[derive(Args, Clone, Debug)]
pub(crate) struct GatewaySettings {
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
    pub(crate) connections: ConnectionSettings,
    #[command(flatten)]
    pub(crate) shutdown: ShutdownSettings,
    #[command(flatten)]
    pub(crate) notice: NoticeSettings,
}

/// Connections that may wait to be taken up, as far as the kernel lets it (`net.core.somaxconn`). The usual thousand or less
/// is full after one burst of phones that come back into a network; the kernel then resets some, whatever they had sent.
const BACKLOG: u32 = 4096;

/// Binds the address. Done before anything else: that it is taken should show at once.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bound = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // A gateway that was stopped is started again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().with_context(|| format!("cannot listen on {address}: choose another address with --listen"))
}

/// Serves until `shutdown`; then answers the requests in flight and brings what they posted into the log. `ready` is
/// told when Kafka answers.
pub(crate) async fn run(
    settings: &GatewaySettings,
    registry: Arc<Registry>,
    listener: TcpListener,
    shutdown: watch::Receiver<bool>,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let config = |use_of, session: &[(&str, &str)]| database::config(&settings.database, use_of, session);
    let half = usize::from(settings.pool.database_pool / 2);
    // Claims and records of batches: what a crash of Postgres loses of them, the log and the fold have.
    let writing = config("ingest", &[("synchronous_commit", "off"), WRITE_TIMEOUT])?;
    let writing = database::pool(writing, half, WRITE_WAIT)?;
    let session: Vec<_> = SESSION_SETTINGS.into_iter().chain([READ_TIMEOUT]).collect();
    let reading = database::pool(config("feed", &session)?, half, READ_WAIT)?;
    let (positions, watching) = positions::watch(PositionsConfig {
        database: config("positions", &[])?,
        channel: positions_channel(&settings.database.schema),
        poll: POSITIONS_POLL,
    });
    let producer = Arc::new(Producer::new(ProducerConfig::new(&settings.kafka.kafka_brokers))?);
    let (tenants, following) = follow(FollowConfig {
        brokers: settings.kafka.kafka_brokers.clone(),
        topic_prefix: settings.kafka.topic_prefix.clone(),
    });
    let changer = Changer::new(
        registry.clone(),
        producer.clone(),
        tenants.clone(),
        &settings.kafka.topic_prefix,
    );
    let auth = Auth::new(settings.auth.jwt_secret.reveal())?;
    let secret = settings.seal.secret();
    let (heard, accord) = watch::channel(Accord::Unread);
    let prefix = &settings.kafka.topic_prefix;
    let seals = secret
        .clone()
        .map(|secret| Seals::new(secret, producer.clone(), writing.clone(), prefix, accord.clone()));
    let keys = seals::watch::Watching {
        brokers: settings.kafka.kafka_brokers.clone(),
        topic_prefix: prefix.clone(),
        secret: secret.clone(),
    };

    let ingest = Ingest::new(IngestParts {
        registry: registry.clone(),
        pool: writing,
        producer: producer.clone(),
        positions: positions.clone(),
        outcomes: OutcomeStore::new(reading.clone(), &registry),
        seals: seals.clone(),
        accord: accord.clone(),
        settings: tenants.clone(),
        config: IngestConfig {
            topic_prefix: settings.kafka.topic_prefix.clone(),
            ..IngestConfig::default()
        },
    });
    let feed = Arc::new(Feed::new(FeedParts {
        registry,
        pool: reading.clone(),
        positions,
        topic_prefix: settings.kafka.topic_prefix.clone(),
        secret,
        accord: accord.clone(),
    }));
    let (health, told) = watch::channel(Health::default());
    let needs = health::Needs {
        cluster: Cluster::new(&settings.kafka, "health")?,
        topic: topic_name(&settings.kafka.topic_prefix, DEAD_LETTER_TOPIC),
        producer,
        settings: tenants,
        accord,
        database: reading,
    };
    let admitting = ingest.clone();
    let routes = health::routes(told.clone(), move || admitting.overloaded(), shutdown.clone())
        .or(tidelog_ingest::routes(
            ingest.clone(),
            Arc::new(changer),
            feed.clone(),
            auth.clone(),
        ))
        .unify()
        .or(tidelog_feed::routes(feed, auth))
        .unify();

    let limits = Limits {
        shutdown_deadline: settings.shutdown.shutdown_deadline,
        ..connections::limits(settings.connections)
    };
    let address = listener
        .local_addr()
        .context("the listening socket has no address")?;
    tracing::info!(%address, version = VERSION, "the gateway listens");
    let serving = async {
        let stopping = async {
            stopped(shutdown).await;
            tokio::time::sleep(settings.notice.shutdown_notice).await;
        };
        let report = tidelog_http::serve(listener, routes, limits, stopping).await;
        let drained = ingest.drain(DRAIN).await;
        tracing::info!(
            requests = report.requests,
            connections = report.connections,
            refused = report.refused,
            made_room = report.made_room,
            timed_out = report.timed_out,
            dropped = report.dropped,
            drained,
            "the gateway stopped"
        );
    };
    tokio::select! {
        () = serving => Ok(()),
        // None of these ends while the routes hold what it tells.
        () = watching => anyhow::bail!("nobody watches the positions any more"),
        () = following => anyhow::bail!("nobody follows the tenants' settings any more"),
        () = seals::watch::follow(keys, seals, heard) => anyhow::bail!("nobody follows the topic of keys any more"),
        () = ingest.expire_keys() => anyhow::bail!("nobody removes expired keys any more"),
        () = health::keep(needs, health) => anyhow::bail!("nobody watches the gateway's health any more"),
        () = health::announce(told, ready) => anyhow::bail!("the gateway's health was announced twice"),
    }
}
