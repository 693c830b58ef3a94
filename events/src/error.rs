//! What is wrong with one item, in the words and codes that a phone gets. The gateway (types, limits) and the fold
//! (required fields, transitions) both speak it. Knows nothing of HTTP.

use serde::{Deserialize, Serialize};

/// The `error_code` of an item (DOMAINS: error codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// A field breaks a rule; `field` and `rule` say which.
    ValidationError,
    /// The state machine forbids the step; `from`, `to` and `allowed` say which.
    InvalidTransition,
    /// Another user's record, which this user may not write.
    Forbidden,
    /// The base version is none that a server could have given.
    UnsupportedVersion,
    /// The item is larger than an item may be.
    TooLarge,
    /// A resolution of a conflict that the record does not have.
    NoConflict,
    /// A resolution of a conflict that was decided before.
    AlreadyResolved,
    /// A resolution that was decided upon an older version of the record.
    RecordMoved,
}

impl ErrorCode {
    /// The code as phones know it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::ValidationError => "VALIDATION_ERROR",
            ErrorCode::InvalidTransition => "INVALID_TRANSITION",
            ErrorCode::Forbidden => "FORBIDDEN",
            ErrorCode::UnsupportedVersion => "UNSUPPORTED_VERSION",
            ErrorCode::TooLarge => "TOO_LARGE",
            ErrorCode::NoConflict => "NO_CONFLICT",
            ErrorCode::AlreadyResolved => "ALREADY_RESOLVED",
            ErrorCode::RecordMoved => "RECORD_MOVED",
        }
    }
}

/// Why one item was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error_message}")]
pub struct ItemError {
    /// The code.
    pub error_code: ErrorCode,
    /// For people: names the field and the rule.
    pub error_message: String,
    /// The field concerned, a dotted path inside nested values; absent where it is the whole item.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// The rule broken, a stable short name (`max_length`, `enum`, `rfc3339`, `required` …).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// For a transition: the status before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<String>,
    /// For a transition: the status asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<String>,
    /// For a transition: what would have been allowed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allowed: Option<Vec<String>>,
}

impl ItemError {
    /// A broken rule of one field.
    pub fn field(field: impl Into<String>, rule: &str, message: impl Into<String>) -> ItemError {
        ItemError {
            error_code: ErrorCode::ValidationError,
            error_message: message.into(),
            field: Some(field.into()),
            rule: Some(rule.to_owned()),
            from: None,
            to: None,
            allowed: None,
        }
    }

    /// An item, or one field of it, that is larger than it may be.
    pub fn too_large(field: Option<String>, size: usize, limit: usize) -> ItemError {
        ItemError {
            error_code: ErrorCode::TooLarge,
            error_message: format!("the item has {size} bytes; at most {limit} are taken"),
            field,
            rule: Some("max_size".into()),
            from: None,
            to: None,
            allowed: None,
        }
    }

    /// A resolution that cannot be.
    pub fn resolution(code: ErrorCode, message: impl Into<String>) -> ItemError {
        ItemError {
            error_code: code,
            error_message: message.into(),
            field: None,
            rule: None,
            from: None,
            to: None,
            allowed: None,
        }
    }

    /// A record that this user may not write. Says nothing of the record itself.
    pub fn forbidden() -> ItemError {
        ItemError {
            error_code: ErrorCode::Forbidden,
            error_message: "this record belongs to another user".into(),
            field: None,
            rule: Some("owner".into()),
            from: None,
            to: None,
            allowed: None,
        }
    }

    /// A step that the state machine does not know.
    pub fn transition(field: &str, from: &str, to: &str, allowed: &[String]) -> ItemError {
        let choice = if allowed.is_empty() {
            "nothing: it is final".to_owned()
        } else {
            allowed.join(", ")
        };
        ItemError {
            error_code: ErrorCode::InvalidTransition,
            error_message: format!(
                "{field} cannot go from {from} to {to}; from {from} it may go to {choice}"
            ),
            field: Some(field.to_owned()),
            rule: Some("transition".into()),
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
            allowed: Some(allowed.to_vec()),
        }
    }
}
