//! The folder of an export: where its files lie, and the state that says how far each partition has come. A file is
//! written under another name and gets its own when it is whole, and only then the state moves on; so whatever happens
//! in between, the next run writes that file again and nothing twice. Knows nothing of what files hold.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chrono::NaiveDate;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::sheet::Format;

/// The state's file. Readers of a folder of files pass over names that begin so.
const STATE: &str = "_export.json";
/// Of the state's own form.
const VERSION: u32 = 1;

/// What the files of a folder have in common: all runs into it have to be about the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct About {
    /// The domain's name.
    pub(super) domain: String,
    /// The topic, with the deployment's prefix.
    pub(super) topic: String,
    /// The files' format.
    pub(super) format: Format,
    /// Only events of this tenant.
    pub(super) tenant: Option<String>,
    /// Where it began, as it was said.
    pub(super) from: String,
    /// The columns' names.
    pub(super) columns: Vec<String>,
}

/// How far a partition has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Where its export begins.
    pub(super) first_offset: i64,
    /// Everything before it is in files.
    pub(super) next_offset: i64,
    /// The last of these files, which may not be the last word.
    pub(super) again: Option<Again>,
}

/// A file that is written again from its first offset, if there is more for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Again {
    /// Its day.
    pub(super) date: NaiveDate,
    /// Where its events begin.
    pub(super) first_offset: i64,
    /// It holds events of which nobody knew what becomes of them: it is written again in any case.
    pub(super) pending: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    about: About,
    partitions: BTreeMap<i32, Progress>,
}

/// The folder, locked unless it is only looked at.
pub(super) struct Folder {
    dir: PathBuf,
    state: State,
    trial: bool,
    _lock: Option<File>,
}

/// A file that is being written, which is gone if it is not finished.
pub(super) struct DayFile {
    made: Option<File>,
    path: PathBuf,
    unfinished: Option<PathBuf>,
}

impl Folder {
    /// Opens `<into>/<domain>`, made where it is not there; a trial only looks. `from` is none where nobody said one.
    pub(super) fn open(into: &Path, mut about: About, from: Option<&str>, trial: bool) -> Result<Folder> {
        let dir = into.join(&about.domain);
        if !trial {
            fs::create_dir_all(&dir).with_context(|| {
                format!(
                    "cannot make the folder {}: give one that can be written with --into",
                    dir.display()
                )
            })?;
        }
        let lock = if trial { None } else { Some(locked(&dir)?) };
        let found = read(&dir)?;
        if let (Some(state), None) = (&found, from) {
            about.from.clone_from(&state.about.from);
        }
        let state = match found {
            Some(state) => {
                same(&dir, &state.about, &about)?;
                state
            }
            None => {
                refuse_others(&dir)?;
                State {
                    version: VERSION,
                    about,
                    partitions: BTreeMap::new(),
                }
            }
        };
        let folder = Folder {
            dir,
            state,
            trial,
            _lock: lock,
        };
        if !trial {
            folder.sweep()?;
            folder.save()?;
        }
        Ok(folder)
    }

    /// The folder itself.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its export began, as it was said.
    pub(super) fn from(&self) -> &str {
        &self.state.about.from
    }

    /// How far each partition has come.
    pub(super) fn progress(&self) -> &BTreeMap<i32, Progress> {
        &self.state.partitions
    }

    /// Notes how far a partition has come, now that its files are whole.
    pub(super) fn note(&mut self, partition: i32, progress: Progress) -> Result<()> {
        if self.state.partitions.get(&partition) == Some(&progress) {
            return Ok(());
        }
        self.state.partitions.insert(partition, progress);
        if self.trial { Ok(()) } else { self.save() }
    }

    /// A day's file of a partition, within the folder.
    pub(super) fn name(&self, date: NaiveDate, partition: i32) -> PathBuf {
        let ending = self.state.about.format.as_str();
        PathBuf::from(format!("date={date}")).join(format!("partition={partition:04}.{ending}"))
    }

    /// Begins to write it.
    pub(super) fn begin(&self, date: NaiveDate, partition: i32) -> Result<DayFile> {
        let path = self.dir.join(self.name(date, partition));
        let unfinished = unfinished(&path);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let made = made.and_then(|()| File::create(&unfinished));
        let made = made.with_context(|| cannot_write(&path))?;
        Ok(DayFile {
            made: Some(made),
            path,
            unfinished: Some(unfinished),
        })
    }

    /// What a run left behind that was killed.
    fn sweep(&self) -> Result<()> {
        let days = fs::read_dir(&self.dir)?.filter_map(Result::ok);
        for day in days.filter(|day| day.file_name().to_string_lossy().starts_with("date=")) {
            for file in fs::read_dir(day.path())?.filter_map(Result::ok) {
                let name = file.file_name();
                let name = name.to_string_lossy();
                if name.starts_with(".partition=") && name.ends_with(".tmp") {
                    fs::remove_file(file.path()).with_context(|| cannot_write(&file.path()))?;
                }
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let path = self.dir.join(STATE);
        let new = self.dir.join(format!(".{STATE}.tmp"));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(&self.state)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().with_context(|| cannot_write(&path))
    }
}

impl DayFile {
    /// Where it will lie.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file to write to, once.
    pub(super) fn take(&mut self) -> Result<File> {
        self.made.take().context("the file is written already")
    }

    /// Gives the whole file its name; answers how many bytes it has.
    pub(super) fn finish(mut self, file: &File) -> Result<u64> {
        let done = || -> std::io::Result<u64> {
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            if let Some(unfinished) = &self.unfinished {
                fs::rename(unfinished, &self.path)?;
            }
            if let Some(day) = self.path.parent() {
                File::open(day)?.sync_all()?;
            }
            Ok(bytes)
        };
        let bytes = done().with_context(|| cannot_write(&self.path))?;
        self.unfinished = None;
        Ok(bytes)
    }
}

impl Drop for DayFile {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            // What stays is swept up by the next run.
            let _ = fs::remove_file(unfinished);
        }
    }
}

/// What is told where a file cannot be written; the cause follows.
pub(super) fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}; the files that are there are whole: when this is mended, start the same command again and it goes on",
        path.display()
    )
}

fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

fn locked(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("cannot open the folder {}", dir.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => bail!(
            "another export is writing into {}: wait for it, or give another folder with --into",
            dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock the folder {}", dir.display())),
    }
}

fn read(dir: &Path) -> Result<Option<State>> {
    let path = dir.join(STATE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let state: State = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is not the state of an export by this build: give another folder with --into",
            path.display()
        )
    })?;
    if state.version != VERSION {
        bail!(
            "{} was written by another release (version {}; this is {VERSION}): give another folder with --into",
            path.display(),
            state.version
        );
    }
    Ok(Some(state))
}

/// Files without a state are somebody else's.
fn refuse_others(dir: &Path) -> Result<()> {
    let Ok(found) = fs::read_dir(dir) else {
        return Ok(());
    };
    let other = found
        .filter_map(Result::ok)
        .find(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    match other {
        Some(other) => bail!(
            "{} holds {} and no {STATE}: no export that can be gone on with. Give another folder with --into",
            dir.display(),
            other.file_name().to_string_lossy()
        ),
        None => Ok(()),
    }
}

/// Sees to it that a run is about the same as those before it.
fn same(dir: &Path, found: &About, wanted: &About) -> Result<()> {
    let all = "all tenants".to_owned();
    let tenant = |about: &About| about.tenant.clone().unwrap_or_else(|| all.clone());
    let differences = [
        ("topic", found.topic.clone(), wanted.topic.clone()),
        (
            "format",
            found.format.as_str().into(),
            wanted.format.as_str().into(),
        ),
        ("tenant", tenant(found), tenant(wanted)),
        ("from", found.from.clone(), wanted.from.clone()),
    ];
    let differs = differences.iter().find(|(_, found, wanted)| found != wanted);
    if let Some((what, found, wanted)) = differs {
        bail!(
            "{} holds an export with another {what}: {found}, and not {wanted}. Give the same again, or another folder with --into",
            dir.display()
        );
    }
    if found.columns != wanted.columns {
        let new = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|name| !b.contains(name)).cloned().collect()
        };
        bail!(
            "{} holds an export with other columns (new now: {}; gone: {}): export into another folder with --into, since files \
             of one folder are one table",
            dir.display(),
            list(&new(&wanted.columns, &found.columns)),
            list(&new(&found.columns, &wanted.columns))
        );
    }
    Ok(())
}

fn list(names: &[String]) -> String {
    match names.is_empty() {
        true => "none".into(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(format: Format) -> About {
        About {
            domain: "helpdesk".into(),
            topic: "sync.helpdesk.v1".into(),
            format,
            tenant: None,
            from: "beginning".into(),
            columns: vec!["offset".into()],
        }
    }

    fn open(dir: &Path, about: About) -> Result<Folder, String> {
        Folder::open(dir, about, None, false).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_folder_goes_on_with_one_export_only() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(open(dir.path(), about(Format::Csv)).expect("a new folder"));
        let other = open(dir.path(), about(Format::Parquet)).err().expect("refused");
        assert!(other.contains("another format: csv, and not parquet"), "{other}");
        let mut wider = about(Format::Csv);
        wider.columns.push("field_a".into());
        let other = open(dir.path(), wider).err().expect("refused");
        assert!(other.contains("new now: field_a; gone: none"), "{other}");
        let tenant = About {
            tenant: Some("acme".into()),
            ..about(Format::Csv)
        };
        let other = open(dir.path(), tenant).err().expect("refused");
        assert!(
            other.contains("another tenant: all tenants, and not acme"),
            "{other}"
        );
        let held = open(dir.path(), about(Format::Csv)).expect("the same goes on");
        let other = open(dir.path(), about(Format::Csv)).err().expect("locked");
        assert!(other.contains("another export is writing"), "{other}");
        drop(held);
        open(dir.path(), about(Format::Csv)).expect("it is free again");
    }

    #[test]
    fn a_folder_of_somebody_elses_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("helpdesk")).expect("a folder");
        fs::write(dir.path().join("helpdesk/notes.txt"), "mine").expect("a file");
        let other = open(dir.path(), about(Format::Csv)).err().expect("refused");
        assert!(other.contains("holds notes.txt and no _export.json"), "{other}");
        fs::write(dir.path().join("helpdesk/_export.json"), "{").expect("a file");
        let other = open(dir.path(), about(Format::Csv)).err().expect("refused");
        assert!(other.contains("is not the state of an export"), "{other}");
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = open(dir.path(), about(Format::Jsonl)).expect("a folder");
        let date = NaiveDate::from_ymd_opt(2026, 3, 1).expect("a date");
        let names = || -> Vec<String> {
            let day = dir.path().join("helpdesk/date=2026-03-01");
            let found = fs::read_dir(day).expect("a day").filter_map(Result::ok);
            found
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        };
        let mut file = folder.begin(date, 3).expect("a file");
        assert_eq!(names(), [".partition=0003.jsonl.tmp"]);
        let mut made = file.take().expect("once");
        made.write_all(b"{}\n").expect("written");
        assert_eq!(file.finish(&made).expect("whole"), 3);
        assert_eq!(names(), ["partition=0003.jsonl"]);
        drop(folder.begin(date, 4).expect("a file"));
        assert_eq!(names(), ["partition=0003.jsonl"]);
        // One that was killed leaves its own behind, for the next run to sweep up.
        fs::write(
            dir.path()
                .join("helpdesk/date=2026-03-01/.partition=0005.jsonl.tmp"),
            "x",
        )
        .expect("a file");
        drop(folder);
        let _next = open(dir.path(), about(Format::Jsonl)).expect("a folder");
        assert_eq!(names(), ["partition=0003.jsonl"]);
    }
}
