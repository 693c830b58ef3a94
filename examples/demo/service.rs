//! The `tidelog dev` that the demo happens on: a process of its own, on a free port, with its data under the target
//! folder, where it stays for the next run.
//!
//! It ends with us, however we end: we stop it; where we panic, dropping it kills it; and where we are killed, it sees
//! that nobody holds `users.lock` any more.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::show::tell;

/// How long it may take to be ready. The first time, it fetches Kafka.
const READY: Duration = Duration::from_secs(600);
/// How long it may take to stop; then it is killed.
const STOP: Duration = Duration::from_secs(60);
/// How long one that outlived its demo may take to notice.
const EARLIER: Duration = Duration::from_secs(40);

/// A running `tidelog dev`.
pub(crate) struct Service {
    exe: PathBuf,
    dir: PathBuf,
    child: Child,
    /// The lines of `DIR/env`; empty until it is ready.
    env: Vec<(String, String)>,
    _in_use: File,
}

impl Service {
    /// Starts it. Cancel-safe: nothing awaits once it runs.
    pub(crate) async fn spawn() -> Result<Self> {
        let (exe, dir) = places()?;
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        wait_for_earlier(&dir).await?;
        let in_use = open(&dir.join("users.lock"))?;
        flock(&in_use, FlockOperation::LockShared).context("cannot lock users.lock")?;
        // One that a killed run left behind.
        let _ = std::fs::remove_file(dir.join("env"));
        let log = File::create(dir.join("dev.log")).context("cannot write dev.log")?;
        let child = tidelog(&exe, &dir)
            .args(["dev", "--until-unused", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches us alone, and we stop it in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", exe.display()))?;
        Ok(Self {
            exe,
            dir,
            child,
            env: Vec::new(),
            _in_use: in_use,
        })
    }

    /// Waits until it answers requests, telling what it says meanwhile.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let since = Instant::now();
        let mut told = 0;
        loop {
            let env = std::fs::read_to_string(self.dir.join("env")).unwrap_or_default();
            told = self.tell_progress(told, env.is_empty());
            if !env.is_empty() {
                let lines = env.lines().filter_map(|line| line.split_once('='));
                self.env = lines
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("`tidelog dev` ended before it was ready ({status})");
            }
            if since.elapsed() > READY {
                bail!("`tidelog dev` was not ready after {} s", READY.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Tells the lines after the first `told` that are meant for people: those before its log begins.
    fn tell_progress(&self, told: usize, starting: bool) -> usize {
        let log = self.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let lines: Vec<&str> = whole.lines().collect();
        let progress = |line: &&&str| line.starts_with("  ");
        if starting {
            lines
                .iter()
                .skip(told)
                .filter(progress)
                .for_each(|line| tell(line.trim()));
        }
        lines.len()
    }

    /// One of the lines of `DIR/env`.
    pub(crate) fn env(&self, name: &str) -> Result<&str> {
        let found = self.env.iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.as_str())
            .with_context(|| format!("DIR/env has no line {name}"))
    }

    /// A bearer token, by `tidelog token`.
    pub(crate) async fn token(&self, tenant: &str, user: &str, device: &str) -> Result<String> {
        let args = ["token", "--tenant", tenant, "--user", user, "--device", device];
        Ok(self.run(&args).await?.trim().to_owned())
    }

    /// The same for somebody with a role, at a desk.
    pub(crate) async fn token_as(&self, tenant: &str, user: &str, role: &str) -> Result<String> {
        let args = ["token", "--tenant", tenant, "--user", user, "--role", role];
        Ok(self.run(&args).await?.trim().to_owned())
    }

    /// What `tidelog status` says, for programs.
    pub(crate) async fn status(&self) -> Result<Value> {
        let said = self.run(&["status", "--output", "json"]).await?;
        serde_json::from_str(&said)
            .with_context(|| format!("`tidelog status` did not print JSON, but: {said}"))
    }

    /// What a `tidelog` command prints, run with the settings of this service.
    pub(crate) async fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = tidelog(&self.exe, &self.dir);
        command
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        let output = command.kill_on_drop(true).output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!(
                "`tidelog {}` failed ({}): {}",
                args.join(" "),
                output.status,
                text(&output.stderr).trim()
            );
        }
        Ok(text(&output.stdout))
    }

    /// Stops it and waits until it is gone, with all that it runs.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Some(pid) = pid else { return Ok(()) };
        let _ = kill_process(pid, Signal::TERM);
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                if !status.success() {
                    bail!(
                        "`tidelog dev` did not stop well ({status}); see {}",
                        self.dir.join("dev.log").display()
                    );
                }
                Ok(())
            }
            Err(_) => {
                self.child.kill().await?;
                bail!(
                    "`tidelog dev` did not stop within {} s, and was killed; see {}",
                    STOP.as_secs(),
                    self.dir.join("dev.log").display()
                )
            }
        }
    }

    /// The end of its log, for whoever has to find out what went wrong.
    pub(crate) fn show_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(15);
        eprintln!("\nThe end of {}:", self.dir.join("dev.log").display());
        lines[last..].iter().for_each(|line| eprintln!("  {line}"));
    }

    fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.join("dev.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The executable beside this one, `TARGET/PROFILE/tidelog`, and the data folder, `TARGET/demo`.
fn places() -> Result<(PathBuf, PathBuf)> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut above = own.ancestors().skip(2);
    let (Some(profile), Some(target)) = (above.next(), above.next()) else {
        bail!("{} does not lie in cargo's target folder", own.display());
    };
    let exe = profile.join("tidelog");
    if !exe.is_file() {
        bail!(
            "{} is not there: `cargo build` makes it, and `make demo` does both",
            exe.display()
        );
    }
    Ok((exe, target.join("demo")))
}

/// The command without the settings of whoever runs the demo: no variable, and no `tidelog.toml` of theirs.
fn tidelog(exe: &Path, dir: &Path) -> Command {
    let mut command = Command::new(exe);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("TIDELOG_") && name_text != "TIDELOG_CACHE_DIR" {
            command.env_remove(&name);
        }
    }
    command.current_dir(dir);
    command
}

/// Waits until the `tidelog dev` of a demo that was killed has seen that nobody uses it.
async fn wait_for_earlier(dir: &Path) -> Result<()> {
    let lock = open(&dir.join("lock"))?;
    let since = Instant::now();
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if since.elapsed() > EARLIER {
            bail!("another demo runs on {}: wait for it, or stop it", dir.display());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}
