//! A process that is measured: one of this program's own commands, with settings by environment alone, and what it
//! takes of memory and processor. It runs under the guard of the local stack, so it never outlives this process. Must
//! not know what the commands do.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::{ChildStdin, Command};

/// How long it may take to stop.
const STOP_SECONDS: &str = "30";
/// Clock ticks in a second, as `/proc` counts: fixed in Linux' interface to programs.
const TICKS: f64 = 100.0;

/// This program, with these settings and no others.
fn program(exe: &Path, dir: &Path, settings: &[(&str, &str)]) -> Command {
    let mut program = Command::new(exe);
    program.current_dir(dir);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDELOG_") {
            program.env_remove(name);
        }
    }
    program.envs(settings.iter().copied());
    program
}

/// Runs a command that ends by itself, and answers the JSON that it prints.
pub(super) async fn run(exe: &Path, dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> Result<Value> {
    let mut program = program(exe, dir, settings);
    program.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let ended = program
        .output()
        .await
        .with_context(|| format!("cannot run {}", exe.display()))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        bail!("`tidelog {}` failed ({}): {said}", args.join(" "), ended.status);
    }
    serde_json::from_slice(&ended.stdout)
        .with_context(|| format!("`tidelog {}` prints no JSON", args.join(" ")))
}

/// A running command.
pub(super) struct Child {
    command: String,
    guard: tokio::process::Child,
    /// The guard stops the command when this closes.
    leash: Option<ChildStdin>,
    lock: PathBuf,
    log: PathBuf,
    at_rest: Option<u64>,
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    pub(super) at_rest: u64,
    /// The most that it ever was.
    pub(super) peak: u64,
}

impl Child {
    /// Starts a command. Nothing but `settings` reaches it: no settings file, no variable of whoever runs the bench.
    pub(super) async fn start(
        exe: &Path,
        dir: &Path,
        command: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let (lock, log) = (
            dir.join(format!("{command}.lock")),
            dir.join(format!("{command}.log")),
        );
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut guard = program(exe, dir, settings);
        guard.args([
            "__guard",
            "--signal",
            "TERM",
            "--deadline",
            STOP_SECONDS,
            "--lock",
        ]);
        guard
            .arg(&lock)
            .arg("--dir")
            .arg(dir)
            .arg("--")
            .arg(exe)
            .arg(command);
        guard
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let mut guard = guard
            .spawn()
            .with_context(|| format!("cannot run {}", exe.display()))?;
        // Out of the child's hands, since waiting for a child closes its stdin.
        let leash = guard.stdin.take();
        Ok(Self {
            command: command.to_owned(),
            guard,
            leash,
            lock,
            log,
            at_rest: None,
        })
    }

    /// An error once it has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        match self.guard.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "`tidelog {}` ended ({status}): {}",
                self.command,
                self.last_words()
            ),
        }
    }

    /// Waits for one that ends by itself.
    pub(super) async fn finish(mut self) -> Result<()> {
        let status = self.guard.wait().await?;
        if !status.success() {
            bail!(
                "`tidelog {}` failed ({status}): {}",
                self.command,
                self.last_words()
            );
        }
        Ok(())
    }

    /// Stops it and waits until it is gone.
    pub(super) async fn stop(mut self) -> Result<()> {
        drop(self.leash.take());
        self.guard.wait().await?;
        Ok(())
    }

    /// What it said last.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Lets it be for a while, and notes its memory.
    pub(super) async fn rest(&mut self, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.at_rest = Some(self.status("VmRSS:")?);
        Ok(())
    }

    /// Its memory.
    pub(super) fn memory(&self) -> Result<Memory> {
        Ok(Memory {
            at_rest: self.at_rest.unwrap_or_default(),
            peak: self.status("VmHWM:")?,
        })
    }

    /// Processor time that it has used, all threads together, in seconds.
    pub(super) fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // The second field is the program's name, which may hold anything but ends with the last ')'.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|field| field.parse::<f64>().ok())
                .unwrap_or_default()
        };
        Ok((ticks(11) + ticks(12)) / TICKS)
    }

    fn status(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))
            .context("memory is read from /proc, so this runs on Linux only")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
        Ok(kilobytes * 1024)
    }

    /// The command's own process, which the guard names in the lock file.
    fn pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(&self.lock).unwrap_or_default();
        text.trim()
            .parse()
            .with_context(|| format!("`tidelog {}` does not run", self.command))
    }
}
