//! `tidelog check-domain`: says what is wrong with domain definitions, as `FILE:LINE: message`, so that editors can
//! jump there. Each file is judged by itself, then together with the domains that ship, with those of `domains_dir`
//! and with the files named before it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use tidelog_events::domain::{Domain, Registry, RegistryError, parse};

use crate::domains;
use crate::output::OutputArgs;
use crate::settings::DomainSettings;

/// Says what is wrong with domain definitions
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  tidelog check-domain domains/inspections.toml\n\nExit codes:\n  \
                  0  every file is a definition that can be served\n  \
                  1  some are not, or cannot be read\n  \
                  2  wrong command line or setting"
)]
pub(crate) struct CheckDomainArgs {
    /// Definitions to check
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    domains: DomainSettings,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was found in a file.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Summary>,
    defects: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    topic: String,
    table: String,
    /// How mixed batches name its items, where they take them.
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_type: Option<String>,
}

#[derive(Debug, Serialize)]
struct Place {
    line: usize,
    message: String,
}

/// Runs the command.
pub(crate) fn run(args: CheckDomainArgs) -> Result<ExitCode> {
    let mut known = others(&args.domains, &args.files)?;
    let checked: Vec<Checked> = args.files.iter().map(|file| check(file, &mut known)).collect();
    args.output.output.print(&checked, |checked| {
        checked.iter().flat_map(lines).collect::<Vec<_>>().join("\n")
    })?;
    let all = checked.iter().all(|checked| checked.ok);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lines(checked: &Checked) -> Vec<String> {
    let file = &checked.file;
    let defects = checked
        .defects
        .iter()
        .map(|Place { line, message }| format!("{file}:{line}: {message}"));
    let summary = checked.domain.iter().map(|domain| {
        let Summary {
            name,
            topic,
            table,
            entity_type,
        } = domain;
        let mixed = entity_type.iter().map(|of| format!(", entity_type {of}"));
        let mixed: String = mixed.collect();
        format!("{file}: ok: domain {name}, topic {topic}, table {table}{mixed}")
    });
    defects.chain(summary).collect()
}

/// The definitions of `domains_dir` that are not to be checked.
fn others(settings: &DomainSettings, files: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let Some(dir) = &settings.domains_dir else {
        return Ok(Vec::new());
    };
    let checked: Vec<PathBuf> = files.iter().filter_map(|file| file.canonicalize().ok()).collect();
    let others = domains::files(dir)?
        .into_iter()
        .filter(|file| file.canonicalize().is_ok_and(|file| !checked.contains(&file)));
    others
        .map(|file| {
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok((file.display().to_string(), text))
        })
        .collect()
}

/// Checks one file, which joins the known ones if it is right.
fn check(path: &Path, known: &mut Vec<(String, String)>) -> Checked {
    let file = path.display().to_string();
    let judged = std::fs::read_to_string(path)
        .map_err(|error| at_the_top(format!("cannot read it: {error}")))
        .and_then(|text| judge(&file, text, known));
    match judged {
        Ok(domain) => Checked {
            file,
            ok: true,
            domain: Some(Summary {
                name: domain.name,
                topic: domain.topic,
                table: domain.table.to_string(),
                entity_type: domain.entity_type,
            }),
            defects: Vec::new(),
        },
        Err(defects) => Checked {
            file,
            ok: false,
            domain: None,
            defects,
        },
    }
}

fn judge(file: &str, text: String, known: &mut Vec<(String, String)>) -> Result<Domain, Vec<Place>> {
    let domain = parse(&text).map_err(|defects| {
        defects
            .into_iter()
            .map(|defect| Place {
                line: defect.line,
                message: defect.message,
            })
            .collect::<Vec<_>>()
    })?;
    known.push((file.to_owned(), text));
    let Err(error) = Registry::with(known) else {
        return Ok(domain);
    };
    known.pop();
    Err(match error {
        // Between files there is no one line.
        RegistryError::Clash { file: of, message } if of == file => at_the_top(message),
        other => at_the_top(format!("not checked against the others: {other}")),
    })
}

fn at_the_top(message: String) -> Vec<Place> {
    vec![Place { line: 1, message }]
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSPECTIONS: &str = "domain = \"inspections\"\nkind = \"entity\"\ntopic = \"sync.inspections.v1\"\n\
                               [fields]\nnote = { type = \"string\" }\n";

    fn checked(texts: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut known = Vec::new();
        let mut found = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let path = dir.path().join(format!("{i}.toml"));
            std::fs::write(&path, text).expect("a file");
            for line in lines(&check(&path, &mut known)) {
                found.push(line.replace(&format!("{}/", dir.path().display()), ""));
            }
        }
        found
    }

    #[test]
    fn every_defect_is_told_with_its_line() {
        let found = checked(&[INSPECTIONS, &INSPECTIONS.replace("entity", "thing"), INSPECTIONS]);
        assert_eq!(
            found[0],
            "0.toml: ok: domain inspections, topic sync.inspections.v1, table inspections"
        );
        assert!(found[1].starts_with("1.toml:2: "), "{found:?}");
        assert_eq!(found[2], "2.toml:1: there is a domain \"inspections\" already");
    }

    #[test]
    fn what_mixed_batches_call_its_items_is_told() {
        let found = checked(&[&INSPECTIONS.replace("kind", "entity_type = \"inspection\"\nkind")]);
        assert!(
            found[0].ends_with("table inspections, entity_type inspection"),
            "{found:?}"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_a_defect_of_its_own() {
        let found = lines(&check(Path::new("/nowhere.toml"), &mut Vec::new()));
        assert!(
            found[0].starts_with("/nowhere.toml:1: cannot read it: No such file"),
            "{found:?}"
        );
    }
}
