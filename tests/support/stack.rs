//! One running Kafka and Postgres that all integration tests share.
//!
//! The first test process to want it starts `tidelog dev --backing-only --until-unused`; later ones find
//! it. Each holds a shared lock on `users.lock` for as long as it lives, and the stack stops itself a
//! while after the last one is gone: so a second run of the tests, soon after, finds it still there.
//! This file must not know what a test does with the stack.

use std::fs::{File, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// A first start fetches Kafka.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// What `tidelog migrate` runs, in order, for tests of crates that make tables by themselves.
#[allow(dead_code, reason = "not every test makes tables")]
pub(crate) const MIGRATIONS: [&str; 8] = [
    include_str!("../../migrations/V1__core.sql"),
    include_str!("../../migrations/V2__idempotency_items.sql"),
    include_str!("../../migrations/V3__resolutions.sql"),
    include_str!("../../migrations/V4__fold_version.sql"),
    include_str!("../../migrations/V5__shadows.sql"),
    include_str!("../../migrations/V6__audit.sql"),
    include_str!("../../migrations/V7__seal_keys.sql"),
    include_str!("../../migrations/V8__feed_floor.sql"),
];

/// Where the stack is; it stays up for as long as this process lives.
pub(crate) struct SharedStack {
    /// For `bootstrap.servers`.
    pub(crate) kafka_brokers: String,
    /// URL of the database `tidelog`, as its owner, who may create databases and schemas.
    pub(crate) database_url: String,
    /// Secret for tokens.
    pub(crate) jwt_secret: String,
    /// Held, not read.
    _in_use: File,
}

/// The stack that all tests share, started if need be.
pub(crate) fn shared() -> &'static SharedStack {
    static STACK: OnceLock<SharedStack> = OnceLock::new();
    STACK.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows where it lies");
        let target = test.ancestors().nth(3).expect("tests lie in target/*/deps");
        let dir = target.join("test-stack");
        std::fs::create_dir_all(&dir).expect("the target folder can be written");
        // One process at a time looks, and starts what it doesn't find.
        let starting = locked(&dir.join("start.lock"), FlockOperation::LockExclusive);
        // Waits for a stack that is stopping for want of users: it keeps users out until it is gone.
        let in_use = locked(&dir.join("users.lock"), FlockOperation::LockShared);
        let stack = match live(&dir) {
            Some(env) => env,
            None => start(&dir),
        };
        drop(starting);
        let [kafka_brokers, database_url, jwt_secret] = stack;
        SharedStack {
            kafka_brokers,
            database_url,
            jwt_secret,
            _in_use: in_use,
        }
    })
}

fn start(dir: &Path) -> [String; 3] {
    // One that a killed run left behind; while it is there, `live` looks at the very lock that the new run
    // is about to take.
    let _ = std::fs::remove_file(dir.join("env"));
    let log = dir.join("dev.log");
    let out = File::create(&log).expect("the target folder can be written");
    #[expect(
        clippy::zombie_processes,
        reason = "it outlives this process, for the next one to use"
    )]
    let mut dev = Command::new(binary())
        .args(["dev", "--backing-only", "--until-unused", "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a file can be had twice"))
        .stderr(out)
        // Ctrl-C ends the tests; the stack then sees that nobody uses it.
        .process_group(0)
        .spawn()
        .expect("tidelog can be run");
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Some(env) = live(dir) {
            return env;
        }
        let ended = ended(&mut dev);
        if ended.is_some() || Instant::now() > deadline {
            let why = ended.unwrap_or_else(|| format!("was not ready after {} s", START_DEADLINE.as_secs()));
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            panic!(
                "the shared stack: `tidelog dev` {why}; {} says:\n{said}",
                log.display()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The binary under test: cargo names it for the root package's tests; for the other crates' it lies beside them.
fn binary() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_tidelog") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows where it lies");
    let path = test
        .ancestors()
        .nth(2)
        .expect("tests lie in target/*/deps")
        .join("tidelog");
    assert!(
        path.exists(),
        "{} is not built: run `cargo build` first",
        path.display()
    );
    path
}

fn ended(dev: &mut Child) -> Option<String> {
    match dev.try_wait() {
        Ok(None) => None,
        Ok(Some(status)) => Some(format!("ended ({status})")),
        Err(e) => Some(format!("cannot be watched: {e}")),
    }
}

/// What `env` says, if what it says is there: a `dev` that was killed leaves the file behind.
fn live(dir: &Path) -> Option<[String; 3]> {
    let env = std::fs::read_to_string(dir.join("env")).ok()?;
    let value = |name: &str| {
        env.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    };
    let kafka = value("TIDELOG_KAFKA_BROKERS")?;
    let database = value("TIDELOG_DATABASE_URL")?;
    let secret = value("TIDELOG_JWT_SECRET")?;
    let (_, host) = database.rsplit_once('@')?;
    let (host, _) = host.split_once('/')?;
    let answers = |address: &str| {
        let address: Option<SocketAddr> = address.parse().ok();
        address.is_some_and(|a| TcpStream::connect_timeout(&a, Duration::from_secs(2)).is_ok())
    };
    // And its owner lives: the servers outlast a killed one by a second.
    let owned = {
        let lock = open(&dir.join("lock"));
        flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
    };
    (owned && answers(&kafka) && answers(host)).then_some([kafka, database, secret])
}

fn locked(path: &Path, how: FlockOperation) -> File {
    let file = open(path);
    flock(&file, how).expect("a file in the target folder can be locked");
    file
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()))
}
