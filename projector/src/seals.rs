//! Sealed values before the fold compares them: a value that did not change keeps the seal that the record has it under. So
//! equal values are equal texts for every policy and merge, and who sends a whole record again takes nobody's words under
//! a key of his own. Pure; without sealed values it does nothing and copies nothing.

use crate::document::Touched;
use crate::event::Arrived;
use crate::state::{Doc, PastChange, State};
use std::borrow::Cow;
use std::sync::Arc;
use tidelog_events::domain::Domain;
use tidelog_events::seal::Seals;
use tidelog_events::seal::form::mentions;

/// The item as a patch of its record's document.
pub(crate) fn patch_against(arrived: &Arrived, state: Option<&State>, since: &[PastChange]) -> Doc {
    let patch = arrived.patch.clone();
    match state {
        Some(state) => adopted(&arrived.domain, patch, state, since),
        None => patch,
    }
}

/// A patch with the seals that the record has for the same values: in its document, or in an earlier one, of which the changes
/// since then tell.
pub(crate) fn adopted(domain: &Domain, mut patch: Doc, state: &State, since: &[PastChange]) -> Doc {
    if mentions(patch.text()) {
        seals_of(domain, state, since).adopt(domain, &mut patch);
    }
    patch
}

/// The changes of a record, each value under the seal that the patch of an item would adopt for it.
pub(crate) fn unified<'a>(domain: &Domain, state: &State, since: &'a [PastChange]) -> Cow<'a, [PastChange]> {
    let seals = seals_of(domain, state, since);
    if seals.is_empty() {
        return Cow::Borrowed(since);
    }
    let unify = |change: &PastChange| {
        let mut before = change.touched.before.clone();
        seals.adopt(domain, &mut before);
        PastChange {
            touched: Arc::new(Touched {
                fields: change.touched.fields.clone(),
                before,
            }),
            ..change.clone()
        }
    };
    Cow::Owned(since.iter().map(unify).collect())
}

/// The document's first, then those of the documents before it, from the latest back.
fn seals_of(domain: &Domain, state: &State, since: &[PastChange]) -> Seals {
    let mut seals = Seals::default();
    if domain.has_personal() {
        seals.note(domain, &state.doc);
        for change in since.iter().rev() {
            seals.note(domain, &change.touched.before);
        }
    }
    seals
}
