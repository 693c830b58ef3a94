//! `tidelog dev`: all of Tidelog on one machine, with a Kafka and a Postgres of its own.
//!
//! This file knows the order in which things start and stop, and who may use the folder. How Kafka and
//! Postgres are run is [`crate::stack`]'s; what is served is the caller's `serve`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::stack::Stack;
use crate::stack::files::{Lock, ok_if_absent, secret, write_whole};

/// How long the gateway and the projectors get to finish what they are at.
const SERVE_DEADLINE: Duration = Duration::from_secs(30);
/// `--until-unused`: seconds in a row without a user.
const UNUSED_SECONDS: u32 = 15;

/// Runs everything on this machine: Kafka, Postgres, gateway and projectors
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Runs everything on this machine: a Kafka and a Postgres of its own on free ports, migrations, \
                  topics, gateway and projectors. Ctrl-C stops all of it; started again, it goes on with the \
                  data it had. When it is ready, DIR/env holds the addresses and secrets, as lines that a \
                  shell can source.",
    after_help = "Example:\n  tidelog dev --listen 127.0.0.1:8080\n  # in another terminal\n  \
                  set -a; . .tidelog/env; set +a; tidelog status"
)]
pub(crate) struct DevArgs {
    /// Folder for all data; removing it is starting anew
    #[arg(long, value_name = "DIR", default_value = ".tidelog")]
    pub(crate) data_dir: PathBuf,
    /// Address of the gateway
    #[arg(
        long,
        env = "TIDELOG_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub(crate) listen: SocketAddr,
    /// Run Kafka and Postgres only
    #[arg(long)]
    pub(crate) backing_only: bool,
    /// Address that Kafka tells its clients to come to, where that is another than its own
    #[arg(long, value_name = "ADDR:PORT", hide = true)]
    pub(crate) kafka_advertised: Option<SocketAddr>,
    /// Stop once nobody has held a shared lock on DIR/users.lock for 15 seconds
    #[arg(long, hide = true)]
    pub(crate) until_unused: bool,
}

/// What `serve` gets to work with.
pub(crate) struct DevEnv {
    /// The gateway's socket, bound already: that its port is taken shows before anything is started.
    pub(crate) listener: TcpListener,
    /// For `bootstrap.servers`.
    pub(crate) kafka_brokers: String,
    /// URL of the database, as its owner.
    pub(crate) database_url: String,
    /// Secret that tokens are signed with.
    pub(crate) jwt_secret: String,
    /// To be sent once requests are answered.
    pub(crate) ready: oneshot::Sender<()>,
    /// Turns true when it is time to stop; `serve` then returns.
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// Runs until a signal, a failure or, with `--until-unused`, the last user's leaving.
///
/// `serve` migrates, makes topics, runs gateway and projectors, and returns after `shutdown`. It is not
/// called with `--backing-only`.
pub(crate) async fn run(args: DevArgs, serve: impl AsyncFnOnce(DevEnv) -> Result<()>) -> Result<()> {
    // From here on a signal is a wish that we hear, not the end.
    let mut stop = StopSignals::new()?;
    let dir = Folder::open(&args.data_dir)?;
    let listener = if args.backing_only {
        None
    } else {
        Some(listen(args.listen).await?)
    };
    let jwt_secret = secret(&dir.path.join("jwt-secret"))?;
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;

    eprintln!("Starting Kafka and Postgres in {}", dir.path.display());
    let started = tokio::select! {
        started = Stack::start(&dir.path, &exe, args.kafka_advertised) => started,
        () = stop.recv() => {
            eprintln!("Stopping");
            return Stack::settled(&dir.path).await;
        }
    };
    let mut stack = started?;
    let env = Env {
        url: listener
            .as_ref()
            .map(|l| l.local_addr())
            .transpose()?
            .map(|a| format!("http://{a}")),
        kafka_brokers: stack.kafka_brokers.clone(),
        database_url: stack.database_url.clone(),
        jwt_secret,
    };

    // Locked out once the stack is to stop for want of users, and let in again when the folder is free:
    // until then they wait, instead of finding a stack that is half alive.
    let mut users = None;
    let end = match listener {
        None => {
            dir.announce(&env)?;
            eprintln!(
                "Ready: {} says where they are. Ctrl-C stops them.",
                dir.shown("env")
            );
            wait_for_end(&args, &dir, &mut stop, &mut stack, &mut users).await
        }
        Some(listener) => {
            let (ready, is_ready) = oneshot::channel();
            let (shutdown, shutting_down) = watch::channel(false);
            let serving = serve(DevEnv {
                listener,
                kafka_brokers: env.kafka_brokers.clone(),
                database_url: env.database_url.clone(),
                jwt_secret: env.jwt_secret.clone(),
                ready,
                shutdown: shutting_down,
            });
            let mut serving = std::pin::pin!(serving);
            let greeting = async {
                if is_ready.await.is_ok() {
                    dir.announce(&env)?;
                    greet(&dir, &env);
                }
                // What ends this run is one of the others.
                std::future::pending::<Result<()>>().await
            };
            let (end, serves) = tokio::select! {
                served = &mut serving => (served.and_then(|()| bail!("the service ended by itself")), false),
                error = greeting => (error, true),
                end = wait_for_end(&args, &dir, &mut stop, &mut stack, &mut users) => (end, true),
            };
            dir.retract()?;
            if serves {
                eprintln!("Stopping the gateway and the projectors");
                let _ = shutdown.send(true);
                end.and(finish_serving(serving, &mut stop).await)
            } else {
                end
            }
        }
    };
    dir.retract()?;
    eprintln!("Stopping Kafka and Postgres");
    let end = end.and(stack.stop().await);
    if end.is_ok() {
        eprintln!("Stopped. The data stays in {}.", dir.path.display());
    }
    drop(dir);
    drop(users);
    end
}

/// Waits until it is time to stop: because somebody says so or nobody needs us, which is well, or because
/// Kafka or Postgres ended, which is an error.
async fn wait_for_end(
    args: &DevArgs,
    dir: &Folder,
    stop: &mut StopSignals,
    stack: &mut Stack,
    users: &mut Option<Lock>,
) -> Result<()> {
    tokio::select! {
        () = stop.recv() => Ok(()),
        why = stack.wait_for_death() => Err(why),
        unused = until_unused(&dir.path), if args.until_unused => {
            *users = Some(unused?);
            Ok(())
        }
    }
}

/// Gives gateway and projectors time to end, after they were told; a second signal cuts it short.
async fn finish_serving(serving: impl Future<Output = Result<()>>, stop: &mut StopSignals) -> Result<()> {
    tokio::select! {
        finished = tokio::time::timeout(SERVE_DEADLINE, serving) => {
            if let Ok(served) = finished {
                return served.context("while stopping");
            }
        }
        () = stop.recv() => {}
    }
    eprintln!("  they have not finished: going on without them");
    Ok(())
}

/// The data folder, ours alone while this lives.
struct Folder {
    path: PathBuf,
    /// As the user wrote it, for what we print.
    given: PathBuf,
    _lock: Lock,
}

impl Folder {
    fn open(given: &Path) -> Result<Self> {
        std::fs::create_dir_all(given).with_context(|| {
            format!(
                "cannot make the data folder {}: choose another with --data-dir",
                given.display()
            )
        })?;
        let path = given
            .canonicalize()
            .with_context(|| format!("cannot open {}", given.display()))?;
        let file = path.join("lock");
        let Some(mut lock) = Lock::try_take(&file)? else {
            let holder = std::fs::read_to_string(&file).unwrap_or_default();
            bail!(
                "`tidelog dev` already runs on {} (process {}): use that one, stop it, or choose another \
                 folder with --data-dir",
                path.display(),
                holder.trim(),
            );
        };
        lock.write(&format!("{}\n", std::process::id()))?;
        let folder = Self {
            path,
            given: given.to_owned(),
            _lock: lock,
        };
        // One that a killed run left behind.
        folder.retract()?;
        Ok(folder)
    }

    fn shown(&self, name: &str) -> String {
        self.given.join(name).display().to_string()
    }

    fn announce(&self, env: &Env) -> Result<()> {
        write_whole(&self.path.join("env"), &env.lines())
    }

    fn retract(&self) -> Result<()> {
        let env = self.path.join("env");
        std::fs::remove_file(&env)
            .or_else(ok_if_absent)
            .with_context(|| format!("cannot remove {}", env.display()))
    }
}

/// What `DIR/env` says.
struct Env {
    /// None with `--backing-only`.
    url: Option<String>,
    kafka_brokers: String,
    database_url: String,
    jwt_secret: String,
}

impl Env {
    /// No value has a character that a shell would take for its own.
    fn lines(&self) -> String {
        format!(
            "TIDELOG_URL={}\nTIDELOG_KAFKA_BROKERS={}\nTIDELOG_DATABASE_URL={}\nTIDELOG_JWT_SECRET={}\n",
            self.url.as_deref().unwrap_or_default(),
            self.kafka_brokers,
            self.database_url,
            self.jwt_secret,
        )
    }
}

/// SIGINT and SIGTERM.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address with --listen (port 0 is any free one)")
    })
}

/// Waits until nobody has used the stack for a while; the lock keeps users out from then on.
async fn until_unused(dir: &Path) -> Result<Lock> {
    let users = dir.join("users.lock");
    let mut since = Instant::now();
    let mut seconds = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // A machine that slept, or this process stopped in a debugger: the users slept too.
        if since.elapsed() > Duration::from_secs(5) {
            seconds = 0;
        }
        since = Instant::now();
        match Lock::try_take(&users)? {
            Some(lock) => {
                seconds += 1;
                if seconds >= UNUSED_SECONDS {
                    eprintln!("Nobody has used this for {UNUSED_SECONDS} s");
                    return Ok(lock);
                }
            }
            None => seconds = 0,
        }
    }
}

/// Says how to post a first batch: lines to paste into another terminal.
fn greet(dir: &Folder, env: &Env) {
    let url = env.url.as_deref().unwrap_or_default();
    let tidelog = std::env::args_os().next().unwrap_or_else(|| "tidelog".into());
    let tidelog = shell_word(&tidelog.to_string_lossy());
    let id = Uuid::new_v4();
    println!(
        r#"
Tidelog is ready on {url}. A first batch, from another terminal:

  set -a; . {env_file}; set +a
  TOKEN=$({tidelog} token --tenant acme --user asha --device phone-1)

  # Phone 1 posts a ticket that it made offline …
  curl -s $TIDELOG_URL/api/v1/helpdesk/sync \
    -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
    -d '{{"client_id":"phone-1","entries":[{{"mobile_id":"{id}","version":0,"ticketdesc":"Pump 3 is leaking oil"}}]}}'

  # … and whoever may see it pulls what has changed.
  curl -s $TIDELOG_URL/api/v1/helpdesk/changes -H "Authorization: Bearer $TOKEN"

Ctrl-C stops everything; the data stays in {data}.
"#,
        env_file = shell_word(&dir.shown("env")),
        data = dir.given.display(),
    );
}

/// As a shell reads it back: quoted only if it has to be.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_survives_the_shell() {
        assert_eq!(shell_word(".tidelog/env"), ".tidelog/env");
        assert_eq!(shell_word("my data/env"), "'my data/env'");
        assert_eq!(shell_word("it's/env"), r"'it'\''s/env'");
    }

    #[test]
    fn a_folder_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path()).unwrap();
        let refusal = Folder::open(dir.path()).err().unwrap().to_string();
        assert!(
            refusal.contains(&format!("process {}", std::process::id())),
            "{refusal}"
        );
        drop(first);
        Folder::open(dir.path()).unwrap();
    }

    #[test]
    fn a_stale_env_is_gone_as_soon_as_the_folder_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("env"), "TIDELOG_URL=http://127.0.0.1:1\n").unwrap();
        Folder::open(dir.path()).unwrap();
        assert!(!dir.path().join("env").exists());
    }
}
