//! What an erasure did, and what it cannot do: said each time, since whoever asked to be forgotten will ask.

use std::collections::BTreeMap;

use serde::Serialize;
use tidelog_events::ids::{TenantId, UserId};

use crate::output::counted;

/// What was done, or would be.
#[derive(Debug, Serialize)]
pub(super) struct Erased {
    pub(super) tenant: TenantId,
    pub(super) user: UserId,
    pub(super) dry_run: bool,
    /// Keys destroyed by this command.
    pub(super) keys_destroyed: usize,
    /// Keys of this user that had been destroyed before.
    pub(super) keys_destroyed_before: usize,
    /// Whether nothing of this user's was ever sent unsealed.
    pub(super) complete: bool,
    /// Events with words that were never sealed, by domain.
    pub(super) never_sealed: BTreeMap<String, u64>,
}

/// For people.
pub(super) fn text(erased: &Erased) -> String {
    let Erased { tenant, user, .. } = erased;
    let mut lines = Vec::new();
    let keys = counted(erased.keys_destroyed as u64, "key", "keys");
    match (
        erased.dry_run,
        erased.keys_destroyed,
        erased.keys_destroyed_before,
    ) {
        (_, 0, 0) => lines.push(format!(
            "No key of {user} of {tenant} is known: nothing of theirs was ever sealed."
        )),
        (_, 0, before) => lines.push(format!(
            "{user} of {tenant} was erased before: {}.",
            match before {
                1 => "1 key is destroyed".to_owned(),
                before => format!("{before} keys are destroyed"),
            }
        )),
        (true, ..) => lines.push(format!("Would destroy {keys} of {user} of {tenant}.")),
        (false, ..) => {
            lines.push(format!("Destroyed {keys} of {user} of {tenant}."));
            lines.push("Gateways may show what they opened for up to a minute; one that is started now shows \"[erased]\".".into());
            lines.push("Kafka drops its copy of the wrapped keys with the next compaction of the topic of keys, an hour or so from now.".into());
            lines.push("Write-ahead logs and backups of Postgres, and copies of the topic, hold wrapped keys until they age out; \
                        none is of use without seal_secret. A backup that is restored is erased again by the projectors.".into());
        }
    }
    if !erased.never_sealed.is_empty() {
        let counts = erased.never_sealed.iter();
        let counts: Vec<String> = counts
            .map(|(domain, count)| format!("{domain} {count}"))
            .collect();
        lines.push(format!(
            "NOT COMPLETE: events of this user that hold words which were never sealed, and stay: {}.",
            counts.join(", ")
        ));
    }
    lines.push("What stays: that there were records, their identities, times, statuses and versions, and fields that are not personal.".into());
    lines.join("\n")
}
