//! A Kafka and a Postgres that one test has for itself, and may stop, freeze and kill: by `tidelog dev`, in a folder of
//! its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::process::Process;

/// How long it may take to start.
const START_DEADLINE: Duration = Duration::from_secs(150);

/// A running `tidelog dev`.
pub(crate) struct OwnStack {
    pub(crate) process: Process,
    /// Where its data is.
    pub(crate) data: PathBuf,
}

/// What `env` in its folder says.
pub(crate) struct Env {
    pub(crate) url: String,
    pub(crate) kafka_brokers: String,
    pub(crate) database_url: String,
    pub(crate) jwt_secret: String,
}

impl OwnStack {
    /// Starts it in `dir`, with further arguments, and waits until it says that it is ready.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> OwnStack {
        OwnStack::start_with(dir, args, &[])
    }

    /// The same, with variables that its servers get.
    pub(crate) fn start_with(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> OwnStack {
        std::fs::create_dir_all(dir).expect("the target folder can be written");
        let data = dir.join("data");
        // One that was killed leaves it there, until the next one has begun.
        let _ = std::fs::remove_file(data.join("env"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDELOG_")) {
            if name != "TIDELOG_CACHE_DIR" {
                command.env_remove(name);
            }
        }
        command.args(["dev", "--data-dir", "data"]).args(args);
        command.envs(variables.iter().copied());
        let mut process = Process::start("dev", &command, dir);
        // It has two minutes by itself, which a Kafka on a busy machine may need.
        let since = Instant::now();
        while !data.join("env").exists() {
            if let Some(status) = process.ended() {
                panic!("it ended ({status}). {}", process.last_words());
            }
            assert!(since.elapsed() < START_DEADLINE, "dev is still not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        OwnStack { process, data }
    }

    pub(crate) fn env(&self) -> Env {
        let text = std::fs::read_to_string(self.data.join("env")).expect("it is ready");
        let value = |name: &str| {
            let found = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
        };
        Env {
            url: value("TIDELOG_URL"),
            kafka_brokers: value("TIDELOG_KAFKA_BROKERS"),
            database_url: value("TIDELOG_DATABASE_URL"),
            jwt_secret: value("TIDELOG_JWT_SECRET"),
        }
    }

    /// Signals a server: `kafka` or `postgres`.
    pub(crate) fn signal(&self, server: &str, signal: Signal) {
        let pid = std::fs::read_to_string(self.data.join(server).join("running.lock")).expect("it runs");
        let pid = Pid::from_raw(pid.trim().parse().expect("a process id")).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }
}

/// The processes that name a folder or anything in it on their command line, or run in it; not this one.
pub(crate) fn processes_of(folder: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let name = folder.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("Linux").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == own {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let runs_there =
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if command.contains(&name) || runs_there {
            found.push(format!("{pid}: {command}"));
        }
    }
    found
}
