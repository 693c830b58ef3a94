//! A long-running command of the product as a child process that cannot become an orphan: it runs under the product's
//! own guard, which stops it when our end of a pipe closes, however this process ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::eventually_blocking;

/// A running command.
pub(crate) struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    guard: Child,
    leash: Option<ChildStdin>,
}

impl Process {
    /// Starts a command, with the environment and folder that it was given. Its output goes to a file in `dir`.
    pub(crate) fn start(name: &str, command: &Command, dir: &Path) -> Process {
        let (log, lock) = (dir.join(format!("{name}.log")), dir.join(format!("{name}.lock")));
        let _ = std::fs::remove_file(&lock);
        let out = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .expect("a log file");
        let mut guard = Command::new(env!("CARGO_BIN_EXE_tidelog"));
        guard
            .arg("__guard")
            .arg("--lock")
            .arg(&lock)
            .arg("--dir")
            .arg(dir);
        guard.args(["--signal", "TERM", "--deadline", "10", "--"]);
        guard.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => guard.env(name, value),
                None => guard.env_remove(name),
            };
        }
        guard.current_dir(dir).stdin(Stdio::piped());
        guard
            .stdout(out.try_clone().expect("a file can be had twice"))
            .stderr(out);
        let mut guard = guard.spawn().expect("tidelog can be run");
        let leash = guard.stdin.take();
        let pid = eventually_blocking(&format!("{name} has started"), || {
            let pid = std::fs::read_to_string(&lock).ok()?.trim().parse().ok();
            if pid.is_none() && matches!(guard.try_wait(), Ok(Some(_))) {
                panic!(
                    "{name} was not started: {}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
            Pid::from_raw(pid?)
        });
        Process {
            name: name.to_owned(),
            pid,
            log,
            guard,
            leash,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Everything that it has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log, for a failure's message.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "{} said last:\n{}",
            self.name,
            lines[lines.len().saturating_sub(40)..].join("\n")
        )
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.guard.try_wait().expect("a child can be waited for")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|e| panic!("{} cannot be signalled: {e}", self.name));
    }

    /// Sends a signal, unless it has ended by itself in the meantime.
    pub(crate) fn signal_if_running(&self, signal: Signal) {
        match kill_process(self.pid, signal) {
            Err(error) if error != Errno::SRCH => panic!("{} cannot be signalled: {error}", self.name),
            _ => {}
        }
    }

    /// Ends it without a warning, and waits until it is gone.
    pub(crate) fn kill9(mut self) {
        self.signal_if_running(Signal::KILL);
        self.guard.wait().expect("a child can be waited for");
    }

    /// Asks it to stop, and waits; answers its exit code.
    pub(crate) fn terminate(mut self) -> i32 {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until it ends by itself; answers its exit code, or 128 and the signal.
    pub(crate) fn wait(&mut self) -> i32 {
        let what = format!("{} has ended", self.name);
        let status = eventually_blocking(&what, || self.ended());
        status.code().unwrap_or(-1)
    }

    /// The greatest amount of memory that it has had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.peak_memory_if_running().expect("a running process")
    }

    /// The same; none of a process that has ended.
    pub(crate) fn peak_memory_if_running(&self) -> Option<u64> {
        self.status("VmHWM:")
    }

    /// The memory that it has, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:").expect("a running process")
    }

    fn status(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.last_words());
        }
        drop(self.leash.take());
        let _ = self.guard.wait();
    }
}
