//! The domains of this deployment: the ones that ship, and the `*.toml` files of a user's own folder in the order of
//! their names. What a definition may say is the `events` crate's to know; here are only the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tidelog_events::domain::{Domain, Registry};

use crate::settings::DomainSettings;

/// Reads and checks all definitions; an error names file and line.
pub(crate) fn registry(settings: &DomainSettings) -> Result<Arc<Registry>> {
    let mut own = Vec::new();
    for path in settings
        .domains_dir
        .iter()
        .map(|dir| files(dir))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        own.push((path.display().to_string(), text));
    }
    let registry = Registry::with(&own).context("the domain definitions cannot be used")?;
    Ok(Arc::new(registry))
}

/// The domain of that name, or an error that lists those that there are.
pub(crate) fn named<'a>(registry: &'a Registry, name: &str) -> Result<&'a Arc<Domain>> {
    registry.by_name(name).with_context(|| {
        let known: Vec<&str> = registry.iter().map(|domain| domain.name.as_str()).collect();
        format!("there is no domain {name:?}; there are {}", known.join(", "))
    })
}

/// The definitions in a folder, sorted.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .filter(|path| {
                path.as_ref()
                    .map_or(true, |path| path.extension().is_some_and(|e| e == "toml"))
            })
            .collect()
    };
    let mut files =
        list().with_context(|| format!("cannot read domains_dir, the folder {}", dir.display()))?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSPECTIONS: &str = "domain = \"inspections\"\nkind = \"entity\"\ntopic = \"sync.inspections.v1\"\n\
                               [fields]\nnote = { type = \"string\" }\n";

    fn with(files: &[(&str, &str)]) -> Result<Arc<Registry>, String> {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("a file");
        }
        let settings = DomainSettings {
            domains_dir: Some(dir.path().to_owned()),
        };
        registry(&settings).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_folder_adds_its_domains_to_the_ones_that_ship() {
        let registry =
            with(&[("inspections.toml", INSPECTIONS), ("README.md", "not one")]).expect("a registry");
        assert!(registry.by_name("inspections").is_some() && registry.by_name("helpdesk").is_some());
    }

    #[test]
    fn an_error_names_file_and_line() {
        let error = with(&[("bad.toml", &INSPECTIONS.replace("entity", "thing"))]).expect_err("a defect");
        assert!(error.contains("/bad.toml:\n  line 2: "), "{error}");
        let clash = with(&[("a.toml", INSPECTIONS), ("b.toml", INSPECTIONS)]).expect_err("a clash");
        assert!(
            clash.contains("/b.toml: there is a domain \"inspections\" already"),
            "{clash}"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let settings = DomainSettings {
            domains_dir: Some("/nowhere/at all".into()),
        };
        let error = format!("{:#}", registry(&settings).expect_err("no folder"));
        assert!(
            error.contains("domains_dir, the folder /nowhere/at all"),
            "{error}"
        );
    }
}
