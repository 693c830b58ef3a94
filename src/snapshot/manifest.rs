//! What a snapshot says of itself: of what it is, by which rules it was folded, where its partitions stand, and what its files hold.
//! Whether it can be gone on with is decided here, by comparing. Knows nothing of how files are written.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tidelog_events::domain::fold_marks;
use tidelog_projector::fold::FOLD_VERSION;
use tidelog_projector::shadow::{Shadow, Standing};

/// Of the form of manifest and files.
pub(super) const VERSION: u32 = 1;

/// The manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(super) version: u32,
    /// The topic in the log, with the deployment's prefix.
    pub(super) topic: String,
    /// The same without it.
    pub(super) name: String,
    /// The domains that live on it.
    pub(super) domains: Vec<String>,
    /// By which fold its rows were written last.
    pub(super) fold_version: u32,
    /// The hash of what the fold goes by in the domains' definitions.
    pub(super) definitions: String,
    /// The release that took it.
    pub(super) tidelog: String,
    /// The moment that it shows.
    pub(crate) taken_at: DateTime<Utc>,
    /// Where the partitions stood then.
    pub(crate) positions: Vec<Standing>,
    /// A file a table.
    pub(super) files: Vec<Stored>,
}

/// A file, and the rows in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) table: String,
    pub(super) file: String,
    /// In the order of a row's values.
    pub(super) columns: Vec<String>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// By which definitions a topic is folded.
pub(super) fn definitions(shadow: &Shadow) -> String {
    fold_marks(shadow.domains().iter().map(AsRef::as_ref))
}

impl Manifest {
    /// How many rows its files have.
    pub(super) fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// How many bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Sees to it that folding can go on from it: the same topic, folded by the same rules.
    pub(super) fn fits(&self, shadow: &Shadow) -> Result<()> {
        if self.topic != shadow.topic() {
            bail!(
                "it is of {}, not of {}: its rows and positions are of that topic alone",
                self.topic,
                shadow.topic()
            );
        }
        let full = "Rebuild from the whole log, or restore it with the build and the definitions that took it and upgrade afterwards";
        if self.fold_version != FOLD_VERSION {
            bail!(
                "it was folded by version {}, and this build folds by {FOLD_VERSION}: what older rules have made cannot be gone on with by \
                 newer ones. {full}",
                self.fold_version
            );
        }
        if self.definitions != definitions(shadow) {
            bail!(
                "the definitions of {} have changed since in what the fold goes by: what the older ones have made cannot be gone on \
                 with. {full}",
                self.domains.join(", ")
            );
        }
        Ok(())
    }

    /// The first partition of which the log has not all that came afterwards, with why.
    pub(super) fn gap(&self, bounds: &BTreeMap<i32, Range<i64>>) -> Option<String> {
        let at: BTreeMap<i32, i64> = self
            .positions
            .iter()
            .map(|at| (at.partition, at.next_offset))
            .collect();
        bounds.iter().find_map(|(partition, log)| {
            let at = at.get(partition).copied().unwrap_or(0);
            if log.start > at {
                return Some(format!(
                    "partition {partition} of {} begins at offset {}, and the snapshot ends at {at}: what came between is in neither",
                    self.topic, log.start
                ));
            }
            (at > log.end).then(|| {
                format!(
                    "partition {partition} of {} ends at offset {}, before the snapshot's {at}: the topic was lost or made anew since, and \
                     the snapshot is of another log",
                    self.topic, log.end
                )
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_goes_on_in_a_log_that_has_all_that_came_after_it() {
        let manifest = Manifest {
            version: VERSION,
            topic: "sync.helpdesk.v1".into(),
            name: "sync.helpdesk.v1".into(),
            domains: vec!["helpdesk".into()],
            fold_version: FOLD_VERSION,
            definitions: String::new(),
            tidelog: "0.1.0".into(),
            taken_at: Utc::now(),
            positions: vec![Standing {
                partition: 0,
                next_offset: 50,
                last_log_time: Utc::now(),
            }],
            files: Vec::new(),
        };
        let gap = |bounds: &[(i32, Range<i64>)]| manifest.gap(&bounds.iter().cloned().collect());
        assert_eq!(gap(&[(0, 50..50), (1, 0..9)]), None);
        assert_eq!(gap(&[(0, 0..90)]), None);
        let cut = gap(&[(0, 51..90)]).expect("a gap");
        assert!(
            cut.contains("begins at offset 51, and the snapshot ends at 50"),
            "{cut}"
        );
        let unknown = gap(&[(1, 3..9)]).expect("a partition that it has not");
        assert!(unknown.contains("the snapshot ends at 0"), "{unknown}");
        let anew = gap(&[(0, 0..49)]).expect("another log");
        assert!(anew.contains("lost or made anew"), "{anew}");
    }
}
