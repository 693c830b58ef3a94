//! A private Postgres cluster on 127.0.0.1, from the system's binaries.
//!
//! Passwords over TCP and no Unix socket: a socket's path may have 107 bytes, and a data folder's more.
//! Tidelog works as the role `tidelog`, which owns the database and is no superuser, as in production;
//! the superuser is `postgres`, with the same password. This module must not know of Tidelog's tables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};

use super::files::{ok_if_absent, ports, secret, write_whole};
use super::guard::StopSignal;
use super::process::{Process, Server, finish, log_of};
use super::user::Home;

pub(super) const NAME: &str = "Postgres";
pub(super) const STOP: StopSignal = StopSignal::Int;
/// Recovery after a power cut replays the WAL since the last checkpoint.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// The oldest major version that the SQL is tested with.
const OLDEST: u32 = 15;
const ADVICE: &str = "Postgres 15 or later is needed (`apt-get install postgresql`; `make run` does that for \
                      you), found by pg_config, below /usr/lib/postgresql or on PATH";

/// A Postgres that answers, with a database `tidelog`.
pub(super) struct Postgres {
    pub(super) process: Process,
    /// As the owner of the database.
    pub(super) url: String,
}

/// An installed server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Postgres {
    /// Starts the cluster in `home`, making it if there is none.
    pub(super) async fn start(home: &Path, exe: &Path) -> Result<Self> {
        let since = Instant::now();
        std::fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        super::process::clear(NAME, home, STOP).await?;
        let password = secret(&home.join("password"))?;
        let cluster = Home::at(&home.join("cluster")).await?;
        let binaries = choose(installed().await, made_with(&cluster)?)?;
        make_once(home, exe, &cluster, &binaries, &password).await?;
        // We know from its lock that none runs. Postgres itself would only know that *some* process has
        // the number in this file, which after a restart of a container is quite likely.
        std::fs::remove_file(cluster.path.join("data/postmaster.pid")).or_else(ok_if_absent)?;

        let mut anew = false;
        loop {
            let [port] = ports(&home.join("ports"), anew)?;
            match Self::start_on(port, home, exe, &binaries, &cluster, &password).await {
                Ok(postgres) => {
                    let took = since.elapsed().as_secs_f64();
                    eprintln!(
                        "  Postgres {} is up on 127.0.0.1:{port} ({took:.1} s)",
                        binaries.major
                    );
                    return Ok(postgres);
                }
                // Somebody took the port between our look and Postgres' bind.
                Err(e) if !anew && format!("{e:#}").contains("Address already in use") => anew = true,
                Err(e) => {
                    return Err(e.context(format!(
                        "Postgres does not start. The log in Kafka is the truth: if the database is damaged, \
                         remove {} and try again, and it is built anew from the log",
                        home.display()
                    )));
                }
            }
        }
    }

    async fn start_on(
        port: u16,
        home: &Path,
        exe: &Path,
        binaries: &Binaries,
        cluster: &Home,
        password: &str,
    ) -> Result<Self> {
        let mut args: Vec<OsString> = vec!["-D".into(), "data".into()];
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "unix_socket_directories=".to_owned(),
            "shared_buffers=128MB".to_owned(),
            // A service has some thirty, and the end-to-end tests keep a service a file at once.
            "max_connections=500".to_owned(),
            // Log lines that are looked for are English whatever the cluster was made with.
            "lc_messages=C".to_owned(),
        ];
        args.extend(
            settings
                .into_iter()
                .flat_map(|setting| ["-c".into(), setting.into()]),
        );
        let server = Server {
            name: NAME,
            exe,
            home,
            dir: &cluster.path,
            signal: STOP,
            user: cluster.user.as_ref(),
            program: &binaries.dir.join("postgres"),
            args,
        };
        let mut process = Process::start(server).await?;
        let deadline = Instant::now() + START_DEADLINE;
        let admin = loop {
            process.alive()?;
            match connect(port, password).await {
                Ok(client) => break client,
                Err(e) if Instant::now() > deadline => {
                    let late = format!("not ready after {} s", START_DEADLINE.as_secs());
                    return Err(e).with_context(|| format!("{late}; see {}", log_of(home).display()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        make_database(&admin, password)
            .await
            .context("cannot make the database tidelog")?;
        Ok(Self {
            process,
            url: format!("postgres://tidelog:{password}@127.0.0.1:{port}/tidelog"),
        })
    }
}

async fn connect(port: u16, password: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(password)
        .dbname("postgres");
    config
        .ssl_mode(SslMode::Disable)
        .connect_timeout(Duration::from_secs(5));
    let (client, connection) = config.connect(NoTls).await?;
    // It ends when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

/// Idempotent, and done at each start: a first start may have ended in between.
async fn make_database(admin: &Client, password: &str) -> Result<(), tokio_postgres::Error> {
    if admin
        .query_opt("select from pg_roles where rolname = 'tidelog'", &[])
        .await?
        .is_none()
    {
        // The password is hex digits of our own making: nothing to quote.
        admin
            .batch_execute(&format!(
                "create role tidelog login createdb password '{password}'"
            ))
            .await?;
    }
    if admin
        .query_opt("select from pg_database where datname = 'tidelog'", &[])
        .await?
        .is_none()
    {
        admin
            .batch_execute("create database tidelog owner tidelog")
            .await?;
    }
    Ok(())
}

/// Makes the cluster on first use, under another name until it is whole.
async fn make_once(
    home: &Path,
    exe: &Path,
    cluster: &Home,
    binaries: &Binaries,
    password: &str,
) -> Result<()> {
    let (data, fresh) = (cluster.path.join("data"), cluster.path.join("data.new"));
    if data.is_dir() {
        return Ok(());
    }
    std::fs::remove_dir_all(&fresh).or_else(ok_if_absent)?;
    let password_file = cluster.path.join("initdb-password");
    write_whole(&password_file, &format!("{password}\n"))?;
    cluster.give(&password_file)?;
    let args = [
        "--pgdata=data.new",
        "--username=postgres",
        "--pwfile=initdb-password",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
    ];
    let initdb = Server {
        name: "Making a Postgres cluster with initdb",
        exe,
        home,
        dir: &cluster.path,
        signal: STOP,
        user: cluster.user.as_ref(),
        program: &binaries.dir.join("initdb"),
        args: args.map(OsString::from).into(),
    };
    let made = Process::start(initdb).await?.finish().await;
    std::fs::remove_file(&password_file)?;
    made?;
    std::fs::rename(&fresh, &data).with_context(|| format!("cannot make {}", data.display()))
}

/// The major version of the cluster, if there is one already.
fn made_with(cluster: &Home) -> Result<Option<u32>> {
    let path = cluster.path.join("data/PG_VERSION");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let major = text.trim().parse();
            Ok(Some(major.with_context(|| {
                format!("{} does not hold a version", path.display())
            })?))
        }
        Err(e) => ok_if_absent(e)
            .map(|()| None)
            .with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The newest installed server; for a cluster that exists, one of the version that made it.
fn choose(mut installed: Vec<Binaries>, made_with: Option<u32>) -> Result<Binaries> {
    // Stable: of two copies of a version, the one of the better place stays first.
    installed.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    if let Some(made_with) = made_with {
        let found = installed
            .iter()
            .find(|binaries| binaries.major == made_with)
            .cloned();
        return found.with_context(|| {
            format!(
                "the database was made with Postgres {made_with}, which is no longer installed: install it \
                 again, or remove the folder `postgres` in the data folder to build the database anew from \
                 the log"
            )
        });
    }
    match installed.into_iter().next() {
        Some(newest) if newest.major >= OLDEST => Ok(newest),
        Some(newest) => bail!(
            "{} has only Postgres {}. {ADVICE}",
            newest.dir.display(),
            newest.major
        ),
        None => bail!("no Postgres server is installed. {ADVICE}"),
    }
}

/// All servers in the places where packages put them.
async fn installed() -> Vec<Binaries> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    // May name a folder without a server, where only the client is installed.
    if let Ok(said) = finish(Command::new("pg_config").arg("--bindir"), "pg_config").await {
        dirs.push(said.trim().into());
    }
    for entry in std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
    {
        dirs.push(entry.path().join("bin"));
    }
    dirs.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let mut found: Vec<Binaries> = Vec::new();
    for dir in dirs {
        let program = dir.join("postgres");
        if !program.is_file() || !dir.join("initdb").is_file() || found.iter().any(|b| b.dir == dir) {
            continue;
        }
        let said = finish(Command::new(&program).arg("--version"), "postgres --version").await;
        if let Some(major) = said.ok().as_deref().and_then(major) {
            found.push(Binaries { dir, major });
        }
    }
    found
}

/// 15 from `postgres (PostgreSQL) 15.12 (Debian …)`, 19 from `postgres (PostgreSQL) 19beta1`.
fn major(said: &str) -> Option<u32> {
    let version = said.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(major: u32) -> Binaries {
        Binaries {
            dir: format!("/usr/lib/postgresql/{major}/bin").into(),
            major,
        }
    }

    #[test]
    fn reads_the_version_that_postgres_says() {
        assert_eq!(
            major("postgres (PostgreSQL) 15.12 (Debian 15.12-0+deb12u2)\n"),
            Some(15)
        );
        assert_eq!(major("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(major("command not found"), None);
    }

    #[test]
    fn takes_the_newest_server_but_stays_with_the_one_that_made_the_cluster() {
        let installed = vec![server(17), server(14), server(16)];
        assert_eq!(choose(installed.clone(), None).unwrap().major, 17);
        assert_eq!(choose(installed.clone(), Some(16)).unwrap().major, 16);
        assert!(
            choose(installed, Some(15))
                .unwrap_err()
                .to_string()
                .contains("made with Postgres 15")
        );
    }

    #[test]
    fn refuses_a_server_that_is_too_old() {
        let error = choose(vec![server(14)], None).unwrap_err().to_string();
        assert!(error.contains("only Postgres 14"), "{error}");
        assert!(choose(vec![], None).is_err());
    }
}
