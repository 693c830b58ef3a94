//! A snapshot's way back: checked against the topic, the rules and the log, its files against their sums, and only then loaded into a
//! shadow's tables.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use tidelog_events::drill;
use tidelog_projector::shadow::Shadow;
use tokio::sync::{mpsc, watch};

use super::folder::{self, Found};
use super::manifest::Stored;
use super::packed;
use crate::progress::during;
use crate::shutdown::stopped;

/// Blocks that wait to be taken.
const WAITING: usize = 4;

/// Finds the snapshot that a shadow can begin with, in a folder of snapshots or as the folder itself.
pub(crate) async fn find(dir: &Path, shadow: &Shadow) -> Result<Found> {
    let name = &shadow.domains()[0].topic;
    let found = folder::find(dir, name)?;
    let fits = found.manifest.fits(shadow);
    fits.with_context(|| format!("the snapshot {} cannot be begun with", found.dir.display()))?;
    let bounds = shadow.log().bounds().await?;
    if let Some(gap) = found.manifest.gap(&bounds) {
        let others = folder::beside(&found);
        let would_do = others
            .iter()
            .rev()
            .find(|other| other.manifest.gap(&bounds).is_none());
        let instead = match would_do {
            Some(other) => format!("use {}", other.dir.display()),
            None => format!(
                "none of the {} snapshots there reaches into the log. It takes one that was made when every partition stood at its \
                 beginning in the log or later",
                others.len()
            ),
        };
        bail!(
            "the snapshot {} cannot be begun with: {gap}; {instead}",
            found.dir.display()
        );
    }
    Ok(found)
}

/// Sees to it that every file is what was written.
pub(crate) async fn check_files(found: &Found, stop: &watch::Receiver<bool>) -> Result<()> {
    let checked = std::sync::Arc::new(AtomicU64::new(0));
    let (files, dir, passed) = (found.manifest.files.clone(), found.dir.clone(), checked.clone());
    let checking = tokio::task::spawn_blocking(move || {
        files.iter().try_for_each(|file| {
            check_file(&dir, file, |bytes| {
                passed.fetch_add(bytes, Ordering::Relaxed);
            })
        })
    });
    let what = format!("checking the bytes of {}", found.dir.display());
    let count = || checked.load(Ordering::Relaxed);
    unless(stop, async {
        during(&what, found.manifest.bytes(), count, checking).await?
    })
    .await
}

fn check_file(dir: &Path, file: &Stored, passed: impl Fn(u64)) -> Result<()> {
    let path = dir.join(&file.file);
    let summed = packed::sum(&path, passed).with_context(|| format!("cannot read {}", path.display()))?;
    if summed.sha256 != file.sha256 {
        bail!(
            "{} is damaged: it has {} bytes and the sum {}, and not {} and {}. Use another copy of it, or another snapshot",
            path.display(),
            summed.bytes,
            summed.sha256,
            file.bytes,
            file.sha256
        );
    }
    Ok(())
}

/// Loads all files into a shadow's tables, which are empty.
pub(crate) async fn load(
    found: &Found,
    shadow: &Shadow,
    jobs: usize,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let loaded = AtomicU64::new(0);
    let each = found.manifest.files.iter().map(|file| {
        let path = found.dir.join(&file.file);
        load_file(shadow, path, file, &loaded)
    });
    let loading = stream::iter(each).buffer_unordered(jobs).try_collect::<()>();
    let what = format!("loading the rows of {}", shadow.topic());
    let count = || loaded.load(Ordering::Relaxed);
    unless(stop, during(&what, found.manifest.rows(), count, loading)).await
}

async fn load_file(shadow: &Shadow, path: PathBuf, file: &Stored, loaded: &AtomicU64) -> Result<()> {
    let client = shadow.connect().await?;
    let mut sink = shadow.load_into(&client, &file.table, &file.columns).await?;
    let (parts, mut blocks) = mpsc::channel::<Bytes>(WAITING);
    let from = path.clone();
    let unpacking = tokio::task::spawn_blocking(move || packed::unpack(&from, &parts));
    while let Some(block) = blocks.recv().await {
        drill::reached("snapshot.loading");
        let rows = rows_in(&block);
        sink.send(block).await.map_err(crate::database::plain)?;
        loaded.fetch_add(rows, Ordering::Relaxed);
    }
    // Only what was read to its end is kept: dropping the rest undoes it.
    let unpacked = unpacking.await?;
    unpacked.with_context(|| format!("cannot read {}", path.display()))?;
    let rows = sink.as_mut().finish().await.map_err(crate::database::plain)?;
    if rows != file.rows {
        bail!(
            "{} has {rows} rows and not {}: it is damaged",
            path.display(),
            file.rows
        );
    }
    Ok(())
}

/// A row ends in the only line feed that it has.
pub(super) fn rows_in(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

async fn unless<T>(stop: &watch::Receiver<bool>, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = stopped(stop.clone()) => bail!("stopped while the snapshot was checked or loaded: the same command begins that anew"),
    }
}
