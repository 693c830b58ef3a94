//! Hands the commit to the program that is built from it: of git, where the sources lie in a repository of their own; else what
//! `TIDELOG_BUILD_COMMIT` says, as in an image, whose context has no history; else `unknown`. Runs again when another commit is
//! checked out or made, and not when a file is changed: so it does not tell whether files differ from the commit.

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "TIDELOG_BUILD_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let commit = of_git().or_else(|| std::env::var(VARIABLE).ok());
    let commit: String = commit
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .take(40)
        .collect();
    let commit = if commit.is_empty() { "unknown" } else { &commit };
    println!("cargo::rustc-env=TIDELOG_COMMIT={commit}");
}

fn of_git() -> Option<String> {
    // A tarball that is unpacked within somebody's repository is not of that one.
    if !Path::new(".git").exists() {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    // Cargo runs this each time where a file that it is to watch is not there.
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    Some(commit)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
