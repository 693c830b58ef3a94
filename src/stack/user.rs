//! Who Postgres runs as, and where its files can then be.
//!
//! Postgres refuses to run as root, and root's folders are often closed to everybody else. So when we
//! are root, the cluster belongs to another user, and lies in a folder which that user can reach. This
//! module must not know what is put there.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::geteuid;
use tokio::process::Command;
use uuid::Uuid;

use super::files::ok_if_absent;

/// Where root keeps the cluster if the data folder is closed to the cluster's owner. Not `/var/tmp`:
/// systemd sweeps that.
const ELSEWHERE: &str = "/var/lib/tidelog";

/// A user of this system, other than root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A folder for the cluster, and who owns it; no user means that it is ours.
pub(super) struct Home {
    pub(super) path: PathBuf,
    pub(super) user: Option<User>,
}

impl Home {
    /// Finds or makes the folder that `link` names. As root it may be a symlink to one elsewhere.
    pub(super) async fn at(link: &Path) -> Result<Self> {
        if !geteuid().is_root() {
            std::fs::create_dir_all(link).with_context(|| format!("cannot make {}", link.display()))?;
            std::fs::set_permissions(link, std::fs::Permissions::from_mode(0o700)).with_context(|| {
                format!(
                    "{} belongs to another user: choose another --data-dir",
                    link.display()
                )
            })?;
            return Ok(Self {
                path: link.to_owned(),
                user: None,
            });
        }
        // A folder that a user made stays that user's, though root runs us now.
        let owner = std::fs::metadata(link)
            .ok()
            .filter(|m| m.uid() != 0)
            .map(|m| User {
                name: format!("user {}", m.uid()),
                uid: m.uid(),
                gid: m.gid(),
            });
        let user = match owner {
            Some(user) => user,
            None => system_user()?,
        };
        if !link.exists() {
            // A symlink to a folder that somebody removed.
            std::fs::remove_file(link).or_else(ok_if_absent)?;
        }
        own(link, &user)?;
        let path = link
            .canonicalize()
            .with_context(|| format!("cannot open {}", link.display()))?;
        if user.reaches(&path).await {
            return Ok(Self {
                path,
                user: Some(user),
            });
        }
        std::fs::remove_dir(link).with_context(|| {
            format!(
                "{} holds a database, but {} can no longer reach it: allow others to pass through \
                 the folders above it (chmod o+x), or move the data folder",
                link.display(),
                user.name
            )
        })?;
        let path = Path::new(ELSEWHERE).join(format!("dev-{}", Uuid::new_v4().simple()));
        own(&path, &user)?;
        symlink(&path, link).with_context(|| format!("cannot make {}", link.display()))?;
        eprintln!(
            "  Postgres runs as {} (it refuses root), which cannot reach {}: its files are in {}",
            user.name,
            link.display(),
            path.display()
        );
        Ok(Self {
            path,
            user: Some(user),
        })
    }

    /// Gives a file that we made here to the folder's owner.
    pub(super) fn give(&self, file: &Path) -> Result<()> {
        match &self.user {
            Some(user) => chown(file, Some(user.uid), Some(user.gid))
                .with_context(|| format!("cannot give {} to {}", file.display(), user.name)),
            None => Ok(()),
        }
    }
}

impl User {
    /// Whether this user can enter and write the folder. Tried, not computed: modes of all parents,
    /// access lists and mount options decide together.
    async fn reaches(&self, dir: &Path) -> bool {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"cd -- "$1" && test -w ."#, "sh"])
            .arg(dir)
            .current_dir("/");
        command
            .uid(self.uid)
            .gid(self.gid)
            .stderr(std::process::Stdio::null());
        command.status().await.is_ok_and(|status| status.success())
    }
}

fn own(dir: &Path, user: &User) -> Result<()> {
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        chown(dir, Some(user.uid), Some(user.gid))
    };
    make().with_context(|| format!("cannot make {} for {}", dir.display(), user.name))
}

/// The user that the Postgres package made, or else nobody.
fn system_user() -> Result<User> {
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| find(&passwd, name))
        .context(
            "Postgres refuses to run as root, and this system has neither a user postgres nor a user nobody: \
         run this as an ordinary user",
        )
}

fn find(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok().filter(|&uid| uid != 0)?;
    Some(User {
        name: name.to_owned(),
        uid,
        gid: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_user_by_its_whole_name_and_never_root() {
        let passwd =
            "postgres2:x:7:7::/:/bin/sh\npostgres:x:101:104:PostgreSQL,,,:/var/lib:/bin/bash\nr:x:0:0::/:\n";
        let user = find(passwd, "postgres").unwrap();
        assert_eq!((user.uid, user.gid), (101, 104));
        assert_eq!(find(passwd, "nobody"), None);
        assert_eq!(find(passwd, "r"), None);
    }
}
