//! A deployment of one's own: a topic prefix, a schema, a port, and the product's commands run in it. Many of them live
//! side by side on one stack.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::db::Db;
use super::process::Process;
use super::{eventually_blocking, stack, sweep};

/// Enough to see that partitions are several, few enough to be made quickly.
pub(crate) const PARTITIONS: i32 = 3;

/// Settings under which commands are run.
#[derive(Clone)]
pub(crate) struct Deployment {
    pub(crate) brokers: String,
    pub(crate) database_url: String,
    pub(crate) jwt_secret: String,
    pub(crate) prefix: String,
    pub(crate) schema: String,
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    settings: Vec<(String, String)>,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its output, if it succeeded.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}

impl Deployment {
    /// On the stack that all tests share.
    pub(crate) fn new(name: &str) -> Deployment {
        let stack = stack::shared();
        sweep::once(stack);
        Deployment::on(name, &stack.kafka_brokers, &stack.database_url, &stack.jwt_secret)
    }

    /// On another one.
    pub(crate) fn on(name: &str, brokers: &str, database_url: &str, jwt_secret: &str) -> Deployment {
        // Two runs of the same test keep out of each other's way by the process's id, two deployments of one
        // process by a number.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{pid}-{number}"));
        std::fs::create_dir_all(&dir).expect("the target folder can be written");
        Deployment {
            brokers: brokers.to_owned(),
            database_url: database_url.to_owned(),
            jwt_secret: jwt_secret.to_owned(),
            prefix: format!("{}{pid}-{number}-{name}.", sweep::PREFIX),
            schema: format!("{}{pid}_{number}_{}", sweep::SCHEMA, name.replace('-', "_")),
            port: free_port(),
            dir,
            settings: Vec::new(),
        }
    }

    /// Sets another setting, by its variable.
    #[must_use]
    pub(crate) fn with(mut self, variable: &str, value: impl Into<String>) -> Deployment {
        self.settings.retain(|(known, _)| known != variable);
        self.settings.push((variable.to_owned(), value.into()));
        self
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn topic(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// A command with this deployment's settings and no others.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDELOG_")) {
            if name != "TIDELOG_CACHE_DIR" {
                command.env_remove(name);
            }
        }
        command.args(args).current_dir(&self.dir).stdin(Stdio::null());
        command
            .env("TIDELOG_KAFKA_BROKERS", &self.brokers)
            .env("TIDELOG_DATABASE_URL", &self.database_url)
            .env("TIDELOG_JWT_SECRET", &self.jwt_secret)
            .env("TIDELOG_TOPIC_PREFIX", &self.prefix)
            .env("TIDELOG_SCHEMA", &self.schema)
            .env("TIDELOG_PARTITIONS", PARTITIONS.to_string())
            .env("TIDELOG_LISTEN", format!("127.0.0.1:{}", self.port))
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().expect("tidelog can be run");
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Makes tables and topics.
    pub(crate) fn prepare(&self) {
        self.run(&["migrate"]).ok();
        self.run(&["topics"]).ok();
    }

    /// Starts a long-running command.
    pub(crate) fn start(&self, command: &str) -> Process {
        Process::start(command, &self.command(&[command]), &self.dir)
    }

    /// Starts a command that listens, and waits until it answers there.
    pub(crate) fn start_listening(&self, command: &str, path: &str) -> Process {
        let mut process = self.start(command);
        self.answers(&mut process, path);
        process
    }

    /// Waits until `path` answers 200.
    pub(crate) fn answers(&self, process: &mut Process, path: &str) {
        eventually_blocking(&format!("{path} answers 200"), || {
            if let Some(status) = process.ended() {
                panic!(
                    "it ended ({status}) before {path} answered. {}",
                    process.last_words()
                );
            }
            (super::http::status_of(self.port, path) == Some(200)).then_some(())
        });
    }

    pub(crate) async fn db(&self) -> Db {
        Db::connect(&self.database_url, &self.schema).await
    }
}

/// A deployment that serves.
pub(crate) struct Service {
    pub(crate) deployment: Deployment,
    pub(crate) process: Process,
}

impl Service {
    /// Gateway and projectors in one process, ready for requests.
    pub(crate) fn start(name: &str) -> Service {
        Service::of(Deployment::new(name))
    }

    pub(crate) fn of(deployment: Deployment) -> Service {
        deployment.prepare();
        let process = deployment.start_listening("serve", "/readyz");
        Service { deployment, process }
    }

    /// The service that the tests of one file share; each keeps to tenants of its own.
    pub(crate) fn shared(of_file: &'static OnceLock<Service>, name: &str) -> &'static Service {
        of_file.get_or_init(|| Service::start(name))
    }
}

/// A port below those that the system gives to outgoing connections, so that it is still free after a restart.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(37);
        let port = u16::try_from(20_000 + step % 12_000).expect("a port");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
