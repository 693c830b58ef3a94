//! `tidelog __guard`: runs one server as a child and makes sure that it never outlives `tidelog dev`.
//!
//! A parent that is killed cannot clean up, so the kernel tells us instead: our stdin is a pipe whose
//! other end only the parent holds, and it reads end-of-file when the parent is gone, however it went.
//! The child in turn inherits a lock on a file, so that whoever comes later can tell whether it still
//! runs even if the guard itself was killed. The guard knows nothing of what it runs.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::files::Lock;

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum StopSignal {
    /// Postgres: a fast shutdown, which ends sessions rather than waiting for them.
    Int,
    /// Kafka: a controlled shutdown.
    Term,
}

impl StopSignal {
    pub(super) fn as_signal(self) -> Signal {
        match self {
            Self::Int => Signal::INT,
            Self::Term => Signal::TERM,
        }
    }
}

/// Runs a server and stops it once stdin closes; used by `tidelog dev`, not by people.
#[derive(Args, Clone, Debug)]
pub(crate) struct GuardArgs {
    /// File that is locked for as long as the server runs, and that says its process id.
    #[arg(long)]
    pub(crate) lock: PathBuf,
    /// How the server is asked to stop.
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) signal: StopSignal,
    /// Seconds from the asking to the killing.
    #[arg(long, default_value_t = 30)]
    pub(crate) deadline: u64,
    /// Folder that the server runs in.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// User id that the server runs as.
    #[arg(long, requires = "gid")]
    pub(crate) uid: Option<u32>,
    /// Group id that the server runs as.
    #[arg(long, requires = "uid")]
    pub(crate) gid: Option<u32>,
    /// The server and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Runs the server to its end; the exit code is the server's, or 128 plus the signal that ended it.
pub(crate) async fn run(args: GuardArgs) -> Result<ExitCode> {
    let Some((program, arguments)) = args.command.split_first() else {
        bail!("no command given")
    };
    // Before the child is there: a signal in between must not end us and leave it alone.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut parent = pipe::Receiver::from_owned_fd(stdin)
        .context("stdin has to be a pipe: `tidelog dev` starts this command, people do not")?;

    let Some(mut lock) = Lock::try_take(&args.lock)? else {
        bail!("{} is locked: the same server already runs", args.lock.display());
    };
    lock.write("")?;
    let mut unread = [0; 64];
    // Looked at once the lock is ours: a parent that gave up, and then found the lock free, relies on
    // nothing being started any more.
    if rustix::io::read(&parent, &mut unread) == Ok(0) {
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(&args.dir)
        .stdin(Stdio::from(lock.share()?))
        // Its own group, so that Ctrl-C in a terminal reaches `tidelog dev` alone, which then stops
        // everything in order.
        .process_group(0);
    if let (Some(uid), Some(gid)) = (args.uid, args.gid) {
        command.uid(uid).gid(gid);
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let pid = child
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .context("the child has no id")?;
    lock.write(&format!("{pid}\n"))?;

    let why = loop {
        tokio::select! {
            status = child.wait() => return Ok(ended(status?)),
            read = parent.read(&mut unread) => match read {
                Ok(n) if n > 0 => {}
                _ => break "tidelog dev stopped or is gone",
            },
            _ = terminate.recv() => break "the guard got SIGTERM",
            _ = interrupt.recv() => break "the guard got SIGINT",
        }
    };
    eprintln!(
        "tidelog guard: {why}: sending SIG{} to process {pid}",
        name_of(args.signal)
    );
    let _ = kill_process(pid, args.signal.as_signal());
    if let Ok(status) = tokio::time::timeout(Duration::from_secs(args.deadline), child.wait()).await {
        return Ok(ended(status?));
    }
    eprintln!(
        "tidelog guard: process {pid} still runs after {} s: killing it",
        args.deadline
    );
    let _ = kill_process_group(pid, Signal::KILL);
    Ok(ended(child.wait().await?))
}

fn name_of(signal: StopSignal) -> &'static str {
    match signal {
        StopSignal::Int => "INT",
        StopSignal::Term => "TERM",
    }
}

fn ended(status: ExitStatus) -> ExitCode {
    eprintln!("tidelog guard: the server ended: {status}");
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
