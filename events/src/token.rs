//! Opaque tokens: what a client keeps for us and hands back (cursors, receipts). Versioned, and bound to whom and what
//! they were made for by a checksum, so that one of another tenant or a mistyped one is refused and not misread. The
//! checksum is no signature: nothing may be granted because of what a token says.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// Why a token cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Cut, mistyped, or made for somebody or something else.
    #[error("it was not given out here, or not for this")]
    NotOurs,
    /// Made by a release that wrote another shape.
    #[error("it was made by another release of the service")]
    Version,
}

const VERSION: u8 = 1;
const CHECK: usize = 6;

/// Makes a token. `context` says what it is and for whom: kind, tenant, domain …
pub fn seal(context: &[&str], payload: &impl Serialize) -> String {
    // The payloads are plain structs of this project, whose serialisation cannot fail.
    let body = serde_json::to_vec(payload).unwrap_or_default();
    let mut bytes = Vec::with_capacity(1 + CHECK + body.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&checksum(context, &body));
    bytes.extend_from_slice(&body);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a token made by [`seal`] under the same context.
pub fn open<T: DeserializeOwned>(context: &[&str], token: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| TokenError::NotOurs)?;
    let (version, rest) = bytes.split_first().ok_or(TokenError::NotOurs)?;
    if *version != VERSION {
        return Err(TokenError::Version);
    }
    let (check, body) = rest.split_at_checked(CHECK).ok_or(TokenError::NotOurs)?;
    if check != checksum(context, body) {
        return Err(TokenError::NotOurs);
    }
    serde_json::from_slice(body).map_err(|_| TokenError::NotOurs)
}

fn checksum(context: &[&str], body: &[u8]) -> [u8; CHECK] {
    let mut hash = Sha256::new();
    for part in context {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(body);
    let digest = hash.finalize();
    let mut check = [0; CHECK];
    check.copy_from_slice(&digest[..CHECK]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_for_what_it_was_made() {
        let token = seal(&["cursor", "acme", "helpdesk"], &vec![1, 2, 3]);
        assert_eq!(
            open::<Vec<i32>>(&["cursor", "acme", "helpdesk"], &token),
            Ok(vec![1, 2, 3])
        );
        assert_eq!(
            open::<Vec<i32>>(&["cursor", "other", "helpdesk"], &token),
            Err(TokenError::NotOurs)
        );
        assert_eq!(open::<Vec<i32>>(&["cursor"], ""), Err(TokenError::NotOurs));
        assert_eq!(
            open::<Vec<i32>>(&["cursor"], "not base64!"),
            Err(TokenError::NotOurs)
        );
    }
}
