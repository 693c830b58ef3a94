//! How a conflict is decided (DOMAINS: Conflicts): by the policy that the event was stamped with, from the record as it
//! stands, the changes since the item's base, and the attempt. Pure: no clock, no I/O, no randomness; which fields a
//! domain has is its definition's. Whether the result may stand is judged after, and elsewhere.

use crate::merge::{Kept, Origin, document_at, last_change_of, merge};
use crate::state::{Doc, PastChange, State};
use chrono::{DateTime, Utc};
use std::collections::BTreeSet;
use tidelog_events::domain::{Domain, Policy};
use tidelog_events::ids::DeviceType;
use tidelog_events::outcome::{Change, Winner};

/// What [`Policy::PreserveEscalation`] keeps in every domain, beside its status and the fields that its definition names.
const ESCALATION: [&str; 3] = ["escalation_level", "escalated_at", "escalated_by"];

/// One side of a contest: who changed something, from which device, and when.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Who.
    pub user: &'a str,
    /// From which device.
    pub device: &'a str,
    /// What kind of device with its priority, where the tenant had device priority on.
    pub device_type: Option<&'a DeviceType>,
    /// When the device did it.
    pub time: DateTime<Utc>,
}

impl<'a> Side<'a> {
    fn of_state(state: &'a State) -> Side<'a> {
        Side {
            user: &state.user,
            device: &state.device,
            device_type: state.device_type.as_ref(),
            time: state.item_time,
        }
    }

    fn of_change(change: &'a PastChange) -> Side<'a> {
        Side {
            user: &change.user,
            device: &change.device,
            device_type: change.device_type.as_ref(),
            time: change.item_time,
        }
    }

    /// Whether this side goes before what the server has. The later one does, and a tie keeps the server's. Between two
    /// devices of one user their priorities decide before that. With its own device no side ties: of two changes that
    /// a device made at one time, the one further on in the log is the later.
    pub fn beats(&self, server: &Side<'_>) -> bool {
        if self.user == server.user && self.device == server.device {
            return self.time >= server.time;
        }
        if self.user == server.user
            && let (Some(own), Some(other)) = (self.device_type, server.device_type)
            && own.priority() != other.priority()
        {
            return own.priority() > other.priority();
        }
        self.time > server.time
    }
}

/// What a device wanted, not knowing the record's latest versions.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The version that the device last saw.
    pub base: i64,
    /// It is a deletion.
    pub deletes: bool,
    /// What it wanted to change.
    pub patch: &'a Doc,
    /// Who, from where, when.
    pub side: Side<'a>,
}

/// What becomes of the record.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It stays as it is.
    Stay,
    /// This is its document, if it may stand.
    Replace(Doc),
    /// It is deleted.
    Delete,
}

/// A conflict, decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What becomes of the record.
    pub verdict: Verdict,
    /// Whose state stands.
    pub winner: Winner,
    /// Which values came from whom, where the decision was not whole.
    pub kept: Kept,
}

impl Decision {
    fn whole(verdict: Verdict, winner: Winner) -> Decision {
        Decision {
            verdict,
            winner,
            kept: Kept::new(),
        }
    }

    fn server() -> Decision {
        Decision::whole(Verdict::Stay, Winner::Server)
    }
}

/// Decides. `since` are the changes that made the versions after the attempt's base, oldest first.
pub fn decide(
    domain: &Domain,
    policy: Policy,
    state: &State,
    since: &[PastChange],
    attempt: &Attempt<'_>,
) -> Decision {
    let decision = match policy {
        Policy::ClientWins => client(state, since, attempt),
        Policy::ServerWins => Decision::server(),
        Policy::MostRecentWins if attempt.side.beats(&Side::of_state(state)) => client(state, since, attempt),
        Policy::MostRecentWins => Decision::server(),
        Policy::PreserveEscalation | Policy::Merge if attempt.deletes || state.deleted => {
            delete_against_update(state, since, attempt)
        }
        Policy::PreserveEscalation => preserve_escalation(domain, state, attempt),
        Policy::Merge => field_by_field(state, since, attempt),
        Policy::Manual => Decision::whole(Verdict::Stay, Winner::None),
    };
    without_empty_change(decision, state)
}

/// What becomes of an attempt whose base lies further back than the record's past is kept. Nobody can tell any more what the
/// device did not know, nor whether it is a repeat of what was applied then: to let it change the record might undo later work,
/// to let it go might lose its own. So the record stays, and a person decides; but where nothing hangs on it, nobody is asked:
/// the policy would let the record stay, or the attempt wants what it says already.
pub fn out_of_sight(policy: Policy, state: &State, attempt: &Attempt<'_>) -> Decision {
    let stays = match policy {
        Policy::ServerWins => true,
        Policy::MostRecentWins => !attempt.side.beats(&Side::of_state(state)),
        _ => false,
    };
    let wanted = state.doc.patched(attempt.patch);
    let says_so = match attempt.deletes {
        true => state.deleted,
        false => !state.deleted && wanted == state.doc,
    };
    match stays || says_so {
        true => Decision::server(),
        false => Decision::whole(Verdict::Stay, Winner::None),
    }
}

/// The document that a stale update goes on from: the record's, or, if it was deleted, what the deletion removed, since
/// an update that beats a deletion undoes it.
pub fn standing<'a>(state: &'a State, since: &'a [PastChange]) -> Option<&'a Doc> {
    if !state.deleted {
        return Some(&state.doc);
    }
    let deletion = since
        .iter()
        .rev()
        .find(|change| change.version == state.version && change.change == Change::Deleted)?;
    Some(&deletion.touched.before)
}

/// The device's item as it is.
fn client(state: &State, since: &[PastChange], attempt: &Attempt<'_>) -> Decision {
    if attempt.deletes {
        return Decision::whole(Verdict::Delete, Winner::Client);
    }
    let doc = match standing(state, since) {
        Some(doc) => doc.patched(attempt.patch),
        None => Doc::new().patched(attempt.patch),
    };
    Decision::whole(Verdict::Replace(doc), Winner::Client)
}

/// Decided whole, by time. An update that came before another one's later edit is no reason to delete that edit, so a
/// deletion has to beat every change that its device did not know; an update has to beat the deletion.
fn delete_against_update(state: &State, since: &[PastChange], attempt: &Attempt<'_>) -> Decision {
    let unknown = if attempt.deletes { since } else { &[] };
    let beats_all = attempt.side.beats(&Side::of_state(state))
        && unknown
            .iter()
            .all(|change| attempt.side.beats(&Side::of_change(change)));
    if beats_all {
        client(state, since, attempt)
    } else {
        Decision::server()
    }
}

/// The device's item, but the escalation and the status stay the server's.
fn preserve_escalation(domain: &Domain, state: &State, attempt: &Attempt<'_>) -> Decision {
    let mut preserved: BTreeSet<&str> = ESCALATION.into_iter().collect();
    preserved.extend(domain.keep.iter().map(String::as_str));
    preserved.extend(domain.status.iter().map(|status| status.field.as_str()));
    let patch = attempt.patch.only(|name, _| !preserved.contains(name));
    let doc = state.doc.patched(&patch);
    let said_too = |name: &str| state.doc.get(name) == attempt.patch.get(name);
    let kept = attempt
        .patch
        .iter()
        .map(|(name, _)| {
            let origin = match &*name {
                name if said_too(name) => Origin::Both,
                name if preserved.contains(name) => Origin::Server,
                _ => Origin::Client,
            };
            (name.into_owned(), origin)
        })
        .collect();
    Decision {
        verdict: Verdict::Replace(doc),
        winner: Winner::Merged,
        kept,
    }
}

/// What only one side has changed since the base is taken from that side; what both changed goes to the later one, each
/// value's own last change being the server's side of it.
fn field_by_field(state: &State, since: &[PastChange], attempt: &Attempt<'_>) -> Decision {
    let base = document_at(attempt.base, &state.doc, since);
    let wanted = base.patched(attempt.patch);
    let client_wins = |path: &[String]| {
        let server = last_change_of(path, &state.doc, since);
        attempt
            .side
            .beats(&server.map_or_else(|| Side::of_state(state), Side::of_change))
    };
    let (doc, kept) = merge(&base, &state.doc, &wanted, &client_wins);
    Decision {
        verdict: Verdict::Replace(doc),
        winner: Winner::Merged,
        kept,
    }
}

/// A decision that leaves the document as it is makes no version: there is nothing that a reader could fetch. The
/// winner stays the policy's.
fn without_empty_change(decision: Decision, state: &State) -> Decision {
    match decision.verdict {
        Verdict::Replace(doc) if !state.deleted && doc == state.doc => Decision {
            verdict: Verdict::Stay,
            ..decision
        },
        _ => decision,
    }
}
