//! A server of the local stack, as `tidelog dev` sees it: started under a guard, watched, stopped.
//!
//! Dropping a [`Process`] stops the server too, only without waiting for it: the guard sees its stdin
//! close. That makes every start cancellable at any await. This module must not know which server it is.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, ChildStdin, Command};

use super::files::{Lock, ok_if_absent};
use super::guard::StopSignal;
use super::user::User;

/// How long a server gets to stop before its guard kills it.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// What to run, and where.
pub(super) struct Server<'a> {
    /// As people know it: "Kafka".
    pub(super) name: &'static str,
    /// The `tidelog` executable, which is also the guard.
    pub(super) exe: &'a Path,
    /// Folder of its lock and log.
    pub(super) home: &'a Path,
    /// Folder it runs in.
    pub(super) dir: &'a Path,
    pub(super) signal: StopSignal,
    /// Who it runs as, if not as we do.
    pub(super) user: Option<&'a User>,
    pub(super) program: &'a Path,
    pub(super) args: Vec<OsString>,
}

/// A server that runs under a guard.
pub(super) struct Process {
    name: &'static str,
    signal: StopSignal,
    home: PathBuf,
    guard: Child,
    /// Ours to hold: the guard stops the server when it closes.
    leash: Option<ChildStdin>,
}

impl Process {
    /// Starts the server. It is not ready yet; for that, watch its log or its port with [`Self::alive`].
    pub(super) async fn start(server: Server<'_>) -> Result<Self> {
        let Server {
            name,
            exe,
            home,
            dir,
            signal,
            user,
            program,
            args,
        } = server;
        clear(name, home, signal).await?;
        let log = fresh_log(home).with_context(|| format!("cannot write {}", log_of(home).display()))?;
        let mut command = Command::new(exe);
        command
            .arg("__guard")
            .arg("--lock")
            .arg(lock_of(home))
            .arg("--dir")
            .arg(dir);
        command.args(["--signal", if signal == StopSignal::Int { "INT" } else { "TERM" }]);
        command.arg("--deadline").arg(STOP_DEADLINE.as_secs().to_string());
        if let Some(user) = user {
            command.args(["--uid", &user.uid.to_string(), "--gid", &user.gid.to_string()]);
        }
        command.arg("--").arg(program).args(args);
        command
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut guard = command
            .spawn()
            .with_context(|| format!("cannot run {}", exe.display()))?;
        // Out of the child's hands, since waiting for a child closes its stdin.
        let leash = guard.stdin.take();
        Ok(Self {
            name,
            signal,
            home: home.to_owned(),
            guard,
            leash,
        })
    }

    /// An error once the server has ended, with its last words.
    pub(super) fn alive(&mut self) -> Result<()> {
        match self.guard.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.epitaph(status)),
        }
    }

    /// Waits until the server ends by itself, and says how and why.
    pub(super) async fn death(&mut self) -> anyhow::Error {
        match self.guard.wait().await {
            Ok(status) => self.epitaph(status),
            Err(e) => anyhow!(e).context(format!("lost track of {}", self.name)),
        }
    }

    /// Waits until a program that ends by itself has done its work. Under a guard like the servers, so
    /// that nothing of it runs on when this is dropped: `initdb` has children of its own.
    pub(super) async fn finish(mut self) -> Result<()> {
        let status = self.guard.wait().await?;
        if status.success() {
            Ok(())
        } else {
            Err(self.epitaph(status))
        }
    }

    /// Stops the server and waits until it is gone.
    pub(super) async fn stop(mut self) -> Result<()> {
        drop(self.leash.take());
        self.guard.wait().await?;
        // A guard that somebody killed did not stop its child.
        clear(self.name, &self.home, self.signal).await
    }

    /// What the server has written since it was started.
    pub(super) fn log(&self) -> String {
        read_lossy(&log_of(&self.home))
    }

    fn epitaph(&self, status: ExitStatus) -> anyhow::Error {
        let log = log_of(&self.home);
        anyhow!(
            "{} ended ({status}). What it said last:\n{}\nAll of it is in {}.",
            self.name,
            last_words(&self.log()),
            log.display(),
        )
    }
}

/// Makes sure that no server of an earlier run is left in `home`: one that is stopping gets its time, one
/// that lost its guard is stopped here.
pub(super) async fn clear(name: &str, home: &Path, signal: StopSignal) -> Result<()> {
    let path = lock_of(home);
    let since = Instant::now();
    let (mut told, mut asked, mut killed) = (false, false, false);
    // The lock is inherited by the server: while it is held, the process id in the file is the server's.
    while Lock::try_take(&path)?.is_none() {
        let pid = read_lossy(&path).trim().parse().ok().and_then(Pid::from_raw);
        let waited = since.elapsed();
        if !told && waited > Duration::from_secs(1) {
            eprintln!("  {name} of an earlier run is still there: stopping it");
            told = true;
        }
        if let Some(pid) = pid {
            if !asked {
                let _ = kill_process(pid, signal.as_signal());
                asked = true;
            }
            if !killed && waited > STOP_DEADLINE {
                let _ = kill_process_group(pid, Signal::KILL);
                killed = true;
            }
        }
        if waited > STOP_DEADLINE + Duration::from_secs(5) {
            let who = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
            bail!("{name} of an earlier run still runs as {who} and does not stop. Kill it, then try again.");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Runs a program that has no children to its end and answers what it printed.
pub(super) async fn finish(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{what}: cannot run {}", command.as_std().get_program().display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = stdout + &String::from_utf8_lossy(&output.stderr);
        bail!(
            "{what} failed ({}). What it said last:\n{}",
            output.status,
            last_words(&said)
        );
    }
    Ok(stdout)
}

pub(super) fn log_of(home: &Path) -> PathBuf {
    home.join("server.log")
}

fn lock_of(home: &Path) -> PathBuf {
    home.join("running.lock")
}

/// A new log; the one of the run before is kept beside it.
fn fresh_log(home: &Path) -> std::io::Result<File> {
    let log = log_of(home);
    std::fs::rename(&log, log.with_extension("log.1")).or_else(ok_if_absent)?;
    OpenOptions::new().append(true).create(true).mode(0o600).open(log)
}

/// The part of a log that most likely says why: the first errors near its end, or else the end.
fn last_words(log: &str) -> String {
    const ERRORS: [&str; 3] = [" ERROR ", "Exception", "OutOfMemory"];
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = |count: usize| &lines[lines.len().saturating_sub(count)..];
    let is_error = |line: &&&str| ERRORS.iter().any(|mark| line.contains(mark));
    let mut shown: Vec<&str> = end(200).iter().filter(is_error).take(5).copied().collect();
    if shown.is_empty() {
        shown = end(12).to_vec();
    }
    if shown.is_empty() {
        shown.push("(nothing)");
    }
    shown
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
