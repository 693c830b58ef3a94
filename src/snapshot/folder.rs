//! Where snapshots lie: DIR/TOPIC/MOMENT, a folder each. One that is being taken has another name, and gets its own when all of it is on
//! the disk, its manifest last; so whatever has a manifest under its own name is whole. Knows nothing of what is in the files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::manifest::{Manifest, VERSION};

const MANIFEST: &str = "manifest.json";

/// A snapshot that is being taken; gone if it is not finished.
pub(super) struct Unfinished {
    path: PathBuf,
    unfinished: PathBuf,
    done: bool,
    _lock: File,
}

impl Unfinished {
    /// Begins one under `dir`, and sweeps up what a run left there that was killed.
    pub(super) fn begin(dir: &Path, topic: &str, at: DateTime<Utc>) -> Result<Unfinished> {
        let of_topic = dir.join(topic);
        let made = fs::create_dir_all(&of_topic);
        made.with_context(|| format!("cannot make the folder {}", of_topic.display()))?;
        let lock = locked(&of_topic)?;
        let moment = at.format("%Y%m%dT%H%M%SZ").to_string();
        let (path, unfinished) = (of_topic.join(&moment), of_topic.join(format!(".{moment}.tmp")));
        for left in fs::read_dir(&of_topic)?.filter_map(Result::ok) {
            let name = left.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with("Z.tmp") {
                fs::remove_dir_all(left.path()).with_context(|| cannot_write(&left.path()))?;
            }
        }
        if path.exists() {
            bail!(
                "there is a snapshot {} already: use that one, or take another in a moment",
                path.display()
            );
        }
        fs::create_dir(&unfinished).with_context(|| cannot_write(&unfinished))?;
        Ok(Unfinished {
            path,
            unfinished,
            done: false,
            _lock: lock,
        })
    }

    /// Where files are written to.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.unfinished.join(name)
    }

    /// Writes the manifest and gives all of it its name; answers that.
    pub(super) fn finish(mut self, manifest: &Manifest) -> Result<PathBuf> {
        let finish = || -> io::Result<()> {
            let mut file = File::create_new(self.unfinished.join(MANIFEST))?;
            file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            File::open(&self.unfinished)?.sync_all()?;
            fs::rename(&self.unfinished, &self.path)?;
            match self.path.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        finish().with_context(|| cannot_write(&self.path))?;
        self.done = true;
        Ok(self.path.clone())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            // What stays is swept up by the next run.
            let _ = fs::remove_dir_all(&self.unfinished);
        }
    }
}

/// What is told where something cannot be written; the cause follows.
pub(super) fn cannot_write(path: &Path) -> String {
    format!("cannot write {}: nothing was taken", path.display())
}

fn locked(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("cannot open the folder {}", dir.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => bail!(
            "another snapshot is being written into {}: wait for it",
            dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock the folder {}", dir.display())),
    }
}

/// A finished snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
}

/// Finds a topic's snapshot: `dir` itself, or the latest under it.
pub(super) fn find(dir: &Path, topic: &str) -> Result<Found> {
    if dir.join(MANIFEST).exists() {
        return open(dir);
    }
    let of_topic = [dir.join(topic), dir.to_owned()];
    match of_topic.iter().find_map(|dir| listed(dir).pop()) {
        Some(latest) => open(&latest),
        None => bail!(
            "there is no finished snapshot of {topic} in {}: give the folder that `tidelog snapshot --to` was given, or one snapshot's \
             own (with a {MANIFEST} in it)",
            dir.display()
        ),
    }
}

/// The snapshots beside one, itself too, that can be read; the latest last.
pub(super) fn beside(found: &Found) -> Vec<Found> {
    let parent = found.dir.parent().unwrap_or(&found.dir);
    listed(parent)
        .iter()
        .filter_map(|dir| open(dir).ok())
        .filter(|other| other.manifest.topic == found.manifest.topic)
        .collect()
}

/// Their names are moments, which sort as they came.
fn listed(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !name.starts_with('.') && path.join(MANIFEST).is_file()
        })
        .collect();
    found.sort();
    found
}

fn open(dir: &Path) -> Result<Found> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let damaged = || format!("{} is damaged: use another snapshot", path.display());
    let of_version: serde_json::Value = serde_json::from_slice(&text).with_context(damaged)?;
    if of_version["version"] != VERSION {
        bail!(
            "{} was written by another release (form {}; this one reads {VERSION}): use that release",
            path.display(),
            of_version["version"]
        );
    }
    let manifest: Manifest = serde_json::from_value(of_version).with_context(damaged)?;
    let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    if let Some(file) = manifest.files.iter().find(|file| !plain(&file.file)) {
        bail!("{} names a file outside of it: {:?}", path.display(), file.file);
    }
    Ok(Found {
        dir: dir.to_owned(),
        manifest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(at: DateTime<Utc>) -> Manifest {
        Manifest {
            version: VERSION,
            topic: "sync.helpdesk.v1".into(),
            name: "sync.helpdesk.v1".into(),
            domains: vec!["helpdesk".into()],
            fold_version: 2,
            definitions: String::new(),
            tidelog: "0.1.0".into(),
            taken_at: at,
            positions: Vec::new(),
            files: Vec::new(),
        }
    }

    #[test]
    fn only_what_is_whole_is_found_and_the_latest_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let topic = "sync.helpdesk.v1";
        let at = |second: i64| DateTime::from_timestamp(1_770_000_000 + second, 0).expect("a time");
        let none = find(dir.path(), topic).expect_err("nothing there").to_string();
        assert!(none.contains("no finished snapshot"), "{none}");
        for second in [7, 3] {
            let begun = Unfinished::begin(dir.path(), topic, at(second)).expect("begun");
            begun.finish(&manifest(at(second))).expect("finished");
        }
        let killed = Unfinished::begin(dir.path(), topic, at(9)).expect("begun");
        let busy = Unfinished::begin(dir.path(), topic, at(10))
            .err()
            .expect("locked");
        assert!(
            busy.to_string().contains("another snapshot is being written"),
            "{busy}"
        );
        std::mem::forget(killed);
        let found = find(dir.path(), topic).expect("found");
        assert_eq!(found.manifest.taken_at, at(7));
        assert_eq!(beside(&found).len(), 2);
        let one = dir
            .path()
            .join(topic)
            .join(at(3).format("%Y%m%dT%H%M%SZ").to_string());
        assert_eq!(find(&one, topic).expect("by its name").manifest.taken_at, at(3));
    }

    #[test]
    fn a_manifest_leads_nowhere_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let text = serde_json::to_string(&manifest(Utc::now())).expect("JSON");
        let stored = r#"{"table":"t","file":"../t","columns":[],"rows":0,"bytes":0,"sha256":""}"#;
        let evil = text.replace("\"files\":[]", &format!("\"files\":[{stored}]"));
        fs::write(dir.path().join(MANIFEST), evil).expect("a file");
        let refused = find(dir.path(), "sync.helpdesk.v1")
            .expect_err("refused")
            .to_string();
        assert!(refused.contains("outside of it"), "{refused}");
        fs::write(dir.path().join(MANIFEST), "{\"version\": 9}").expect("a file");
        let refused = find(dir.path(), "sync.helpdesk.v1")
            .expect_err("refused")
            .to_string();
        assert!(refused.contains("another release"), "{refused}");
    }
}
