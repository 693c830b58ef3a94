//! Personal values, sealed: the gateway puts each under a key of the user who sends it, and nothing behind the gateway ever
//! holds another form. Whoever reads opens it again. A user is forgotten by destroying his keys, which reaches the log, every
//! table, backup and rebuild at once. Pure: keys come in from outside, and so does the randomness that they are made of.
//!
//! - [`form`]: what a sealed value looks like, and the tag by which two of them are known to hold the same
//! - [`secret`]: the deployment's secret and what follows from it: tags, wrapped keys, keys' ids
//! - [`mod@close`]: an item sealed; [`mod@open`]: a document opened
//! - [`adopt`]: a value that did not change keeps its first seal
//! - [`record`]: a key as a record of its topic
//! - [`accord`]: which secret the deployment seals with, told by that topic

pub mod accord;
pub mod adopt;
pub mod close;
pub mod form;
pub mod open;
pub mod record;
pub mod secret;

pub use accord::{Accord, Witness};
pub use adopt::{Seals, content};
pub use close::{MAX_SEALED_BYTES, Sealing};
pub use open::{Found, KeySource, Opened, UnknownKey, holds_plain, open, wanted};
pub use secret::{DataKey, KeyId, SealSecret};

/// The compacted topic of wrapped keys, without a deployment's prefix.
pub const KEYS_TOPIC: &str = "sync.keys.v1";

/// Puts keys into the table, a list a column: tenants, ids, users, wrapped keys, times. A wrapped key that is null says that
/// the key is destroyed, which goes before whatever the table says and stays. Whoever has learnt of a key may run it.
pub const STORE_KEYS: &str = "\
INSERT INTO seal_keys AS k (tenant_id, key_id, user_id, wrapped, made_at, erased_at)
SELECT tenant, id, who, wrapped, at, CASE WHEN wrapped IS NULL THEN at END
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::timestamptz[]) AS n(tenant, id, who, wrapped, at)
ORDER BY tenant, id
ON CONFLICT (tenant_id, key_id) DO UPDATE SET wrapped = NULL, erased_at = excluded.erased_at
WHERE excluded.wrapped IS NULL AND k.wrapped IS NOT NULL";

/// The record that a value belongs to: sealed for one, it opens for no other.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// The domain's name.
    pub domain: &'a str,
    /// The record's identity, as `ce_subject` has it.
    pub subject: &'a str,
}

/// One more name of a path (RFC 6901). Answers the length to cut the path to afterwards.
fn descend(path: &mut String, name: &str) -> usize {
    let before = path.len();
    path.push('/');
    path.push_str(&name.replace('~', "~0").replace('/', "~1"));
    before
}
