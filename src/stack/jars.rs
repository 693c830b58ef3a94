//! Where Kafka's jars come from: Maven Central, once, into a cache that all data folders share.
//!
//! `deploy/kafka/pom.xml` says which jars. This module must not know how they are run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::files::{Lock, ok_if_absent};
use super::process::finish;

const POM: &str = include_str!("../../deploy/kafka/pom.xml");

/// The folder with the jars, fetched if this is the first time.
pub(super) async fn folder() -> Result<PathBuf> {
    let cache = cache_dir(|name| std::env::var_os(name))?;
    let jars = cache.join(format!("kafka-{}", version()));
    if jars.to_string_lossy().contains(':') {
        bail!(
            "Java cannot load from {}, for its ':'. Set TIDELOG_CACHE_DIR to another folder.",
            jars.display()
        );
    }
    if jars.is_dir() {
        return Ok(jars);
    }
    std::fs::create_dir_all(&cache).with_context(|| {
        format!(
            "cannot make {}: set TIDELOG_CACHE_DIR to a folder that you may write",
            cache.display()
        )
    })?;
    // Whoever comes second waits here, and then finds the jars.
    let lock = cache.join("kafka.lock");
    let lock = tokio::task::spawn_blocking(move || Lock::take(&lock)).await??;
    if !jars.is_dir() {
        fetch(&cache, &jars).await?;
    }
    drop(lock);
    Ok(jars)
}

async fn fetch(cache: &Path, jars: &Path) -> Result<()> {
    let since = Instant::now();
    eprintln!(
        "  Fetching Kafka {} from Maven Central, once (44 MB), into {}",
        version(),
        jars.display()
    );
    // Under a name of its own until it is whole. The lock is ours, so one that is there was left behind.
    let partial = cache.join("kafka.partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial)?;
    let pom = partial.join("pom.xml");
    std::fs::write(&pom, POM)?;
    let mut output = OsString::from("-DoutputDirectory=");
    output.push(&partial);
    let mut maven = Command::new("mvn");
    maven
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(&pom)
        .arg("dependency:copy-dependencies")
        .arg(output);
    finish(&mut maven, "Fetching Kafka with Maven").await.with_context(|| {
        format!(
            "Kafka's jars are not in {} and could not be fetched. This needs Maven (`apt-get install maven`; \
             `make run` does that for you) and a way to Maven Central, by a proxy or mirror in \
             ~/.m2/settings.xml if need be",
            jars.display()
        )
    })?;
    std::fs::rename(&partial, jars).with_context(|| format!("cannot make {}", jars.display()))?;
    std::fs::remove_dir_all(&partial).or_else(ok_if_absent)?;
    eprintln!("  Fetched in {:.1} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// The version of our own pom, which changes with any jar: `4.3.1-1` is Kafka 4.3.1, first edition.
pub(super) fn version() -> &'static str {
    POM.split_once("<version>")
        .and_then(|(_, rest)| rest.split_once("</version>"))
        .map_or("", |(v, _)| v)
}

fn cache_dir(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("TIDELOG_CACHE_DIR") {
        return std::path::absolute(&dir).with_context(|| format!("TIDELOG_CACHE_DIR={}", dir.display()));
    }
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(base
        .context("set TIDELOG_CACHE_DIR to a folder for Kafka's jars: HOME is not set")?
        .join("tidelog"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pom_names_its_version() {
        assert!(version().starts_with("4."), "{}", version());
    }

    #[test]
    fn the_cache_is_where_the_nearest_setting_says() {
        let with = |vars: &'static [(&str, &str)]| {
            cache_dir(move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
        };
        assert_eq!(with(&[("HOME", "/h")]).unwrap(), Path::new("/h/.cache/tidelog"));
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(),
            Path::new("/x/tidelog")
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("TIDELOG_CACHE_DIR", "/t")]).unwrap(),
            Path::new("/t")
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "")]).unwrap(),
            Path::new("/h/.cache/tidelog")
        );
        assert!(with(&[]).is_err());
    }
}
