//! One tenant's settings as a record of the compacted topic: the key is the tenant, the value what it has set, and the
//! headers say who did, in the words of every other event (CloudEvents 1.0, binary mode). A record without a value takes
//! a tenant's settings back. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use tidelog_events::ids::{TenantId, UserId};
use tidelog_events::item::encode_part;
use tidelog_events::settings::{InForce, SettingsDefect, TenantSettings};
use uuid::Uuid;

const TYPE: &str = "tidelog.settings.update";

/// The headers of a change, in the order sent.
pub(super) fn headers(tenant: &TenantId, by: &UserId, at: DateTime<Utc>) -> [(&'static str, String); 7] {
    [
        ("ce_specversion", "1.0".into()),
        ("ce_id", Uuid::new_v4().to_string()),
        ("ce_type", TYPE.into()),
        (
            "ce_source",
            format!(
                "/tenants/{}/users/{}",
                encode_part(tenant.as_str()),
                encode_part(by.as_str())
            ),
        ),
        ("ce_subject", tenant.as_str().to_owned()),
        ("ce_time", at.to_rfc3339_opts(SecondsFormat::Micros, true)),
        ("content-type", tidelog_events::envelope::CONTENT_TYPE.into()),
    ]
}

/// Why a record holds no settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("its key is no tenant")]
    Key,
    #[error("its value is not JSON: {0}")]
    Value(String),
}

/// A record, read.
#[derive(Debug, PartialEq)]
pub(super) struct Read {
    pub(super) tenant: TenantId,
    /// None: the tenant has nothing set any more.
    pub(super) in_force: Option<InForce>,
    /// What a newer release may have written.
    pub(super) not_understood: Vec<SettingsDefect>,
}

/// Reads a record at that offset.
pub(super) fn read(
    key: &[u8],
    value: Option<&[u8]>,
    source: Option<&str>,
    offset: i64,
    at: DateTime<Utc>,
) -> Result<Read, Unreadable> {
    let tenant = std::str::from_utf8(key)
        .ok()
        .and_then(|key| TenantId::parse(key).ok());
    let tenant = tenant.ok_or(Unreadable::Key)?;
    let Some(value) = value else {
        return Ok(Read {
            tenant,
            in_force: None,
            not_understood: Vec::new(),
        });
    };
    let json: Value = serde_json::from_slice(value).map_err(|error| Unreadable::Value(error.to_string()))?;
    let (settings, not_understood) = TenantSettings::understood(&json);
    Ok(Read {
        tenant,
        in_force: Some(InForce {
            settings,
            revision: offset + 1,
            updated_by: user(source).unwrap_or_default(),
            updated_at: at,
        }),
        not_understood,
    })
}

/// The user of `/tenants/<tenant>/users/<user>`.
fn user(source: Option<&str>) -> Option<String> {
    let (_, user) = source?.rsplit_once("/users/")?;
    let user = percent_encoding::percent_decode_str(user).decode_utf8().ok()?;
    Some(user.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_who_and_what() {
        let (tenant, by) = (
            TenantId::parse("acme/north").expect("a tenant"),
            UserId::parse("jürgen@x").expect("a user"),
        );
        let now = Utc::now();
        let headers = headers(&tenant, &by, now);
        let source = headers.iter().find(|(name, _)| *name == "ce_source");
        let value = br#"{"domains":{"helpdesk":{"policy":"merge"}}}"#;
        let read = read(
            b"acme/north",
            Some(value),
            source.map(|(_, text)| text.as_str()),
            4,
            now,
        );
        let read = read.expect("settings");
        let in_force = read.in_force.expect("settings");
        assert_eq!((read.tenant, in_force.updated_by.as_str()), (tenant, "jürgen@x"));
        assert_eq!(in_force.revision, 5);
        assert!(in_force.settings.domains.contains_key("helpdesk") && read.not_understood.is_empty());
    }

    #[test]
    fn what_is_no_settings_says_why() {
        let now = Utc::now();
        assert_eq!(read(b"", Some(b"{}"), None, 0, now), Err(Unreadable::Key));
        assert_eq!(read(b"\xff", Some(b"{}"), None, 0, now), Err(Unreadable::Key));
        assert!(matches!(
            read(b"acme", Some(b"{"), None, 0, now),
            Err(Unreadable::Value(_))
        ));
        assert_eq!(
            read(b"acme", None, None, 0, now).expect("a tombstone").in_force,
            None
        );
    }
}
