//! How this program reaches Postgres: a configuration for each use of it, and pools. Which statements run there is
//! the crates' to know. There is no TLS yet, and a URL that asks for it is refused rather than served without.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};

use crate::settings::DatabaseSettings;

/// How long a new connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection whose other end is gone without a word is given up after about this.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a statement may run, unless its user says otherwise.
const STATEMENT_TIMEOUT: (&str, &str) = ("statement_timeout", "30s");

/// Reads a URL. The message never repeats it: it may hold a password.
pub(crate) fn parse_url(url: &str) -> Result<Config, String> {
    const NO_TLS: &str = "it asks for TLS, which is not spoken yet: use sslmode=disable or prefer on a network you trust, \
                          or a local TLS proxy such as stunnel";
    let scheme = ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    if ["verify-ca", "verify-full"]
        .iter()
        .any(|mode| url.contains(&format!("sslmode={mode}")))
    {
        return Err(NO_TLS.into());
    }
    // What the parser says may hold a part of the URL, so it stays unsaid.
    let config = url.parse::<Config>().ok().filter(|_| scheme).ok_or(
        "it is no URL like postgres://user:password@host:5432/database (special characters in the password \
             are written %XX; options are those of tokio-postgres)",
    )?;
    if config.get_hosts().is_empty() {
        return Err("it names no host".into());
    }
    match config.get_ssl_mode() {
        SslMode::Disable | SslMode::Prefer => Ok(config),
        _ => Err(NO_TLS.into()),
    }
}

/// The configuration for one use: the service's schema is the whole search path, and `session` sets what this use
/// needs besides (`synchronous_commit`, say), which goes before what all have.
///
/// `use_of` is what `pg_stat_activity` shows after `tidelog-`.
pub(crate) fn config(settings: &DatabaseSettings, use_of: &str, session: &[(&str, &str)]) -> Result<Config> {
    let mut config = parse_url(settings.database_url.reveal())
        .map_err(anyhow::Error::msg)
        .context("database_url")?;
    let mut options = config.get_options().unwrap_or_default().to_owned();
    let own = [
        ("search_path", settings.schema.as_str()),
        STATEMENT_TIMEOUT,
        ("client_min_messages", "warning"),
    ];
    // The later one counts.
    for (name, value) in own.iter().chain(session) {
        let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
        options.push_str(&format!(" -c {name}={value}"));
    }
    config
        .options(options.trim_start())
        .application_name(format!("tidelog-{use_of}"))
        .keepalives(true)
        .keepalives_idle(SILENCE / 3)
        .keepalives_interval(SILENCE / 3)
        .keepalives_retries(2)
        .tcp_user_timeout(SILENCE);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    Ok(config)
}

/// A pool of up to `size` connections. Whoever gets none within `wait` gets an error instead.
pub(crate) fn pool(config: Config, size: usize, wait: Duration) -> Result<Pool> {
    let manager = Manager::from_config(
        config,
        NoTls,
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(wait))
        .create_timeout(Some(CONNECT_TIMEOUT.min(wait)))
        .recycle_timeout(Some(CONNECT_TIMEOUT.min(wait)))
        .build()
        .context("cannot make a connection pool")
}

/// One connection, which ends when the client is dropped.
pub(crate) async fn connect(config: &Config) -> Result<Client> {
    let connected = tokio::time::timeout(2 * CONNECT_TIMEOUT, config.connect(NoTls)).await;
    let (client, connection) = connected
        .context("it did not answer in time")
        .and_then(|connected| connected.map_err(plain))
        .with_context(|| {
            format!(
                "Postgres at {} cannot be reached: is it up, and is database_url right?",
                place(config)
            )
        })?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to Postgres ended");
        }
    });
    Ok(client)
}

/// An error of Postgres in its own words: the library's say only "db error". That it is Postgres' is said too: "connection closed"
/// could be anybody's.
pub(crate) fn plain(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(db) => {
            let hint = db.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            anyhow::anyhow!("Postgres: {} [{}]{hint}", db.message(), db.code().code())
        }
        None => anyhow::Error::new(error).context("Postgres"),
    }
}

/// Host, port and database, without user and password.
pub(crate) fn place(config: &Config) -> String {
    let hosts = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let host = match host {
                Host::Tcp(host) => host.clone(),
                Host::Unix(path) => path.display().to_string(),
            };
            let ports = config.get_ports();
            let port = ports.get(i).or_else(|| ports.first()).copied().unwrap_or(5432);
            format!("{host}:{port}")
        })
        .collect::<Vec<_>>();
    format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    fn settings(url: &str) -> DatabaseSettings {
        DatabaseSettings {
            database_url: Secret::new(url.into()),
            schema: "t_1".into(),
        }
    }

    #[test]
    fn the_schema_is_the_whole_search_path() {
        let url = "postgres://me:p%40ss@db:5433/tide?options=-c%20work_mem%3D8MB";
        let config = config(&settings(url), "ingest", &[("synchronous_commit", "off")]).expect("a config");
        assert_eq!(
            config.get_options(),
            Some(
                "-c work_mem=8MB -c search_path=t_1 -c statement_timeout=30s -c client_min_messages=warning -c synchronous_commit=off"
            )
        );
        assert_eq!(config.get_application_name(), Some("tidelog-ingest"));
        assert_eq!(place(&config), "db:5433/tide");
    }

    #[test]
    fn a_url_that_asks_for_tls_is_refused() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = parse_url(&format!("postgres://me@db/tide?sslmode={mode}")).expect_err(mode);
            assert!(error.contains("TLS"), "{error}");
        }
        assert!(parse_url("postgresql://me@db/tide?sslmode=prefer").is_ok());
    }

    #[test]
    fn a_url_that_cannot_be_read_is_not_repeated() {
        for bad in [
            "",
            "db:5432",
            "postgres://",
            "postgres:/me:hunter2=x@db",
            "postgres://me@db:hunter2/x",
            "host=db password=hunter2",
        ] {
            let error = parse_url(bad).expect_err(bad);
            assert!(!error.contains("hunter2") && !error.is_empty(), "{error}");
        }
    }
}
