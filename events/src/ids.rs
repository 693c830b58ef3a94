//! Who is who: tenants, users, devices, batches. Parsed once at the edge, so that no other code has to ask
//! whether a string may be a tenant. Knows nothing of tokens or tables.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Why a text is not an identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct IdError {
    /// Which identifier: `tenant`, `user`, `device`.
    pub what: &'static str,
    /// The rule in words.
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text against the rule of this identifier.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(IdError { what: $what, rule: $rule }) }
            }

            /// The identifier as sent.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same, for whoever keeps it.
            pub fn shared(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn printable(text: &str, most: usize) -> bool {
    let fits = match text.is_ascii() {
        true => text.len() <= most && !text.bytes().any(|byte| byte.is_ascii_control()),
        false => text.chars().count() <= most && !text.chars().any(char::is_control),
    };
    fits && !text.is_empty()
}

text_id!(
    /// A customer: every row, key, cursor and metric belongs to exactly one.
    TenantId,
    "tenant",
    "1 to 64 characters without control characters",
    |text| printable(text, 64)
);
text_id!(
    /// A person of a tenant, as the token's `sub` names them.
    UserId,
    "user",
    "1 to 128 characters without control characters",
    |text| printable(text, 128)
);
text_id!(
    /// A phone or other device; a batch's `client_id`.
    DeviceId,
    "device",
    "5 to 100 of the characters A-Z, a-z, 0-9, _ and -",
    |text| (5..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
);

/// What a user may do beyond their own work. The two special roles are distinct: neither contains the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A field worker.
    #[default]
    User,
    /// Sees what `manager` entries and conflicts of the tenant say.
    Supervisor,
    /// Runs the service: settings, receipts, replay.
    Operator,
}

impl Role {
    /// The name in tokens and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Supervisor => "supervisor",
            Role::Operator => "operator",
        }
    }

    /// The role of that name.
    pub fn parse(text: &str) -> Option<Role> {
        [Role::User, Role::Supervisor, Role::Operator]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// What kind of device an event came from, and which priority its tenant gave that kind when the event was appended:
/// `<kind>/<priority>` in the header and in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceType {
    kind: String,
    priority: u8,
}

impl DeviceType {
    /// The highest priority that a tenant can give.
    pub const MAX_PRIORITY: u8 = 200;

    /// Of a kind with its priority.
    pub fn new(kind: &str, priority: u8) -> Option<DeviceType> {
        let fits = (1..=32).contains(&kind.len())
            && kind
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            && priority <= DeviceType::MAX_PRIORITY;
        fits.then(|| DeviceType {
            kind: kind.to_owned(),
            priority,
        })
    }

    /// Reads `<kind>/<priority>`.
    pub fn parse(text: &str) -> Option<DeviceType> {
        let (kind, priority) = text.split_once('/')?;
        DeviceType::new(kind, priority.parse().ok()?)
    }

    /// The higher one decides between two devices of one user.
    pub fn priority(&self) -> u8 {
        self.priority
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_5_to_100_of_its_alphabet() {
        assert!(DeviceId::parse("phone-1").is_ok());
        for bad in ["ph-1", "phone 1", "", &"x".repeat(101), "phöne-1"] {
            assert!(DeviceId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_device_type_reads_back_and_has_a_priority_of_0_to_200() {
        let phone = DeviceType::parse("phone/40").expect("a device type");
        assert_eq!((phone.priority(), phone.to_string().as_str()), (40, "phone/40"));
        for bad in ["phone", "phone/201", "phone/-1", "/40", "a b/40", "phone/40/1"] {
            assert_eq!(DeviceType::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_tenant_holds_no_control_character() {
        assert!(TenantId::parse("acme/north").is_ok());
        assert!(TenantId::parse("a\0b").is_err());
        assert!(TenantId::parse("").is_err());
    }
}
