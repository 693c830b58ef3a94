//! Small things the local stack keeps on disk: locks, secrets, ports, files that appear whole.
//!
//! Nothing here knows what Kafka or Postgres is.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// A file locked with `flock(2)`: exclusive, and let go when the last process that inherited it ends.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock if nobody holds it; `None` says that somebody does.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = Self::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Waits, on this thread, until the lock is free.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let file = Self::open(path)?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self(file))
    }

    /// Replaces what the file says; by custom, who holds it.
    pub(crate) fn write(&mut self, text: &str) -> std::io::Result<()> {
        self.0.set_len(0)?;
        std::io::Seek::rewind(&mut self.0)?;
        self.0.write_all(text.as_bytes())
    }

    /// Another handle on the same lock, for a child to inherit: the lock is free once both are closed.
    pub(crate) fn share(&self) -> std::io::Result<File> {
        self.0.try_clone()
    }

    fn open(path: &Path) -> Result<File> {
        // Not truncated on opening: what it says belongs to whoever holds the lock.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(|| {
                format!(
                    "cannot open {}: does its folder belong to another user?",
                    path.display()
                )
            })
    }
}

/// Writes a file so that a reader sees all of it or none of it. Readable by the owner only.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // Removed first: the mode below counts only for a file that this creates.
        std::fs::remove_file(&fresh).or_else(ok_if_absent)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Takes an error that says "not there" for success.
pub(crate) fn ok_if_absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

/// The secret kept in `path`, made up on first use: hex digits, which need no quoting in a URL or a shell.
pub(crate) fn secret(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(e) => ok_if_absent(e).with_context(|| format!("cannot read {}", path.display()))?,
    }
    let secret = random_hex();
    write_whole(path, &format!("{secret}\n"))?;
    Ok(secret)
}

/// 64 hex digits with 244 random bits.
pub(crate) fn random_hex() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// `N` ports of 127.0.0.1 that nobody listens on: the ones `path` remembers, so that a saved URL
/// outlives a restart, or else new ones, which it then remembers.
///
/// Free now is not free in a moment; whoever binds them must be ready to call again with `anew`.
pub(crate) fn ports<const N: usize>(path: &Path, anew: bool) -> Result<[u16; N]> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    if !anew && let Ok(text) = std::fs::read_to_string(path) {
        let kept: Vec<u16> = text.split_whitespace().filter_map(|p| p.parse().ok()).collect();
        if let Ok(kept) = <[u16; N]>::try_from(kept)
            && kept
                .iter()
                .map(|&port| listen(port))
                .collect::<Result<Vec<_>, _>>()
                .is_ok()
        {
            return Ok(kept);
        }
    }
    // All are held at once, so that they differ.
    let held: Vec<TcpListener> = (0..N)
        .map(|_| listen(0))
        .collect::<Result<_, _>>()
        .context("no free port on 127.0.0.1")?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    let text: Vec<String> = ports.iter().map(u16::to_string).collect();
    write_whole(path, &format!("{}\n", text.join(" ")))?;
    Ok(ports)
}
