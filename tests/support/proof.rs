//! A phone's side of the checksum: the sum over its copy, and the way down to what is wrong in it. Knows records by identity
//! and version alone, and nothing of how the service is asked.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// What a phone holds: each identity with its version.
pub(crate) type Copy = BTreeMap<String, i64>;

/// What has to be done about a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// To be got again: absent, or of another version.
    pub(crate) get: BTreeSet<String>,
    /// To be dropped: not there for this reader.
    pub(crate) drop: BTreeSet<String>,
}

/// Count and sum of what lies under a prefix, as the service writes them.
pub(crate) fn tally(copy: &Copy, prefix: &str) -> (i64, String) {
    let under = copy.iter().filter(|(id, _)| lies_under(id, prefix));
    let (mut count, mut sum) = (0, 0_u64);
    for (id, version) in under {
        count += 1;
        sum = sum.wrapping_add(hash(id, *version));
    }
    (count, format!("{sum:016x}"))
}

/// The same out of an answer.
pub(crate) fn told(answer: &Value) -> (i64, String) {
    let hash = answer["hash"].as_str().expect("a hash");
    (answer["count"].as_i64().expect("a count"), hash.to_owned())
}

/// Goes down from everything into each range whose sum differs. `ask` answers for a prefix.
pub(crate) async fn descend(copy: &Copy, id_column: &str, ask: impl AsyncFn(String) -> Value) -> Wrong {
    let (mut wrong, mut prefixes) = (Wrong::default(), vec![String::new()]);
    while let Some(prefix) = prefixes.pop() {
        let answer = ask(prefix.clone()).await;
        assert_eq!(answer["prefix"], prefix.as_str(), "{answer}");
        if let Some(ranges) = answer["ranges"].as_array() {
            assert_eq!(ranges.len(), 16, "{answer}");
            let differs =
                |range: &&Value| tally(copy, range["prefix"].as_str().expect("a prefix")) != told(range);
            let differing = ranges.iter().filter(differs);
            prefixes.extend(differing.map(|range| range["prefix"].as_str().expect("a prefix").to_owned()));
            continue;
        }
        let records = answer["records"].as_array().expect("ranges or records");
        assert_eq!(Some(records.len() as i64), answer["count"].as_i64(), "{answer}");
        let theirs: Copy = records
            .iter()
            .map(|record| {
                let id = record[id_column].as_str().expect("an identity");
                (id.to_owned(), record["version"].as_i64().expect("a version"))
            })
            .collect();
        let other = theirs
            .iter()
            .filter(|(id, version)| copy.get(*id) != Some(*version));
        wrong.get.extend(other.map(|(id, _)| id.clone()));
        let mine = copy.keys().filter(|id| lies_under(id, &prefix));
        wrong
            .drop
            .extend(mine.filter(|id| !theirs.contains_key(*id)).cloned());
    }
    wrong
}

fn hash(id: &str, version: i64) -> u64 {
    let digest = Sha256::digest(format!("{id}:{version}"));
    digest[..8]
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// Whether SHA-256 over the identity, in hexadecimal digits, begins so.
fn lies_under(id: &str, prefix: &str) -> bool {
    let digest = Sha256::digest(id);
    let digit = |at: usize| (digest[at / 2] >> (4 * (1 - at % 2))) & 15;
    let wanted = prefix.chars().map(|c| c.to_digit(16));
    wanted
        .enumerate()
        .all(|(at, wanted)| wanted == Some(u32::from(digit(at))))
}
