//! What strangers send, on any compiler: each fuzz target (`fuzz/`) is given its whole corpus, then arbitrary bytes, then
//! what comes of its corpus when bytes of it are changed, left out, repeated or taken from another entry.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::value::RawValue;
use targets::{TARGETS, Target};
use tidelog_events::item::Entry;

use support::service::Deployment;

/// Of each kind and target.
const CASES: u32 = 4000;

/// A name and what is in it.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut entries: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).expect("a file")))
        .collect();
    entries.sort();
    assert!(entries.len() >= 10, "{target} has a corpus");
    entries
}

/// Runs a target on what a strategy makes; a panic of its is the case's failure, so that it is made small and shown.
fn hold(strategy: impl Strategy<Value = Vec<u8>>, target: Target) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let ran = runner.run(&strategy, |data| {
        std::panic::catch_unwind(|| (target.1)(&data)).map_err(|_| {
            let text = String::from_utf8_lossy(&data).into_owned();
            TestCaseError::fail(format!("{}: {text:?}", target.0))
        })
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

/// One change of an entry.
#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    Cut(Index, usize),
    Twice(Index, usize),
    From(Index, Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        // What means something in what is read here.
        (
            any::<Index>(),
            prop::sample::select(&b"\"\\{}[],:.-+e0129\0 \n/%=_"[..])
        )
            .prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<Index>(), 1..20_usize).prop_map(|(at, many)| Change::Cut(at, many)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, many)| Change::Twice(at, many)),
        (any::<Index>(), any::<Index>(), 1..60_usize)
            .prop_map(|(at, other, many)| Change::From(at, other, many)),
    ]
}

fn changed(entries: &[(String, Vec<u8>)], first: &Index, changes: &[Change]) -> Vec<u8> {
    let mut data = first.get(entries).1.clone();
    for change in changes {
        if data.is_empty() {
            return data;
        }
        let span = |at: &Index, many: usize| {
            let from = at.index(data.len());
            from..(from + many).min(data.len())
        };
        match change {
            Change::Byte(at, byte) => *at.get_mut(&mut data) = *byte,
            Change::Cut(at, many) => drop(data.drain(span(at, *many))),
            Change::Twice(at, many) => {
                let span = span(at, *many);
                let part = data[span.clone()].to_vec();
                data.splice(span.start..span.start, part);
            }
            Change::From(at, other, many) => {
                let span = span(at, *many);
                let theirs = &other.get(entries).1;
                let from = at.index(theirs.len().max(1));
                let part = theirs[from.min(theirs.len())..(from + many).min(theirs.len())].to_vec();
                data.splice(span, part);
            }
        }
    }
    data
}

fn try_target(name: &str) {
    let target = TARGETS
        .into_iter()
        .find(|(known, _)| *known == name)
        .expect("a target");
    let entries = corpus(name);
    for (path, data) in &entries {
        println!("{path}");
        (target.1)(data);
    }
    hold(prop::collection::vec(any::<u8>(), 0..300), target);
    let changes = (any::<Index>(), prop::collection::vec(change(), 1..6));
    hold(
        changes.prop_map(move |(first, changes)| changed(&entries, &first, &changes)),
        target,
    );
}

#[test]
fn cursors() {
    try_target("cursor");
}

#[test]
fn items() {
    try_target("item");
}

#[test]
fn headers_of_a_record() {
    try_target("headers");
}

#[test]
fn bodies() {
    try_target("batch");
}

#[test]
fn tokens() {
    try_target("jwt");
}

/// The rule of what jsonb takes is ours; Postgres has the last word.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_of_the_corpus_is_taken_by_postgres() {
    let deployment = Deployment::new("corpus");
    deployment.prepare();
    let db = deployment.db().await;
    let mut taken = 0;
    for (path, data) in corpus("item") {
        let Ok(raw) = serde_json::from_slice::<&RawValue>(&data) else {
            continue;
        };
        for item in targets::accepted(&Entry::of(raw)) {
            let sql = "SELECT jsonb_typeof($1::text::jsonb)";
            let rows = db.rows(sql, &[&item.raw.as_ref()]).await;
            assert_eq!(rows[0].get::<_, &str>(0), "object", "{path}");
            taken += 1;
        }
    }
    assert!(taken >= 10, "{taken}");
}
