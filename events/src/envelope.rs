//! The event as it stands on a topic: CloudEvents 1.0, Kafka protocol binding, binary mode. Who, what, when and under
//! which policy are in the headers, so that the fold needs no lookup; the value is the item as the device sent it.
//! Which headers there are is fixed in the design: each costs the producer.

use crate::batch::BatchId;
use crate::domain::{Policy, Registry, parse_datetime};
use crate::ids::{DeviceId, DeviceType, Role, TenantId, UserId};
use crate::item::{MAX_SUBJECT_BYTES, Operation, decode_part, encode_part};
use chrono::{DateTime, SecondsFormat, Utc};
use std::borrow::Cow;
use std::sync::Arc;
use uuid::Uuid;

/// Media type of every value.
pub const CONTENT_TYPE: &str = "application/json";

/// What all events of a batch say alike: written once, borrowed by each.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// The tenant.
    pub tenant: TenantId,
    /// Who posted.
    pub user: UserId,
    /// From which device.
    pub device: DeviceId,
    /// As whom.
    pub role: Role,
    /// What kind of device with its priority (`<kind>/<priority>`), only where device priority is on.
    pub device_type: Option<String>,
    /// The batch.
    pub batch: BatchId,
    source: String,
}

impl Stamp {
    /// Of a batch.
    pub fn new(
        tenant: TenantId,
        user: UserId,
        device: DeviceId,
        role: Role,
        device_type: Option<String>,
        batch: BatchId,
    ) -> Stamp {
        let source = format!(
            "/tenants/{}/users/{}/devices/{}",
            encode_part(tenant.as_str()),
            encode_part(user.as_str()),
            encode_part(device.as_str())
        );
        Stamp {
            tenant,
            user,
            device,
            role,
            device_type,
            batch,
            source,
        }
    }

    /// The headers of one item's event, in the order sent.
    #[allow(clippy::too_many_arguments)] // each is one header; a struct of them would be built to be taken apart
    pub fn headers(
        &self,
        table: &str,
        operation: Operation,
        subject: &str,
        index: u32,
        time: DateTime<Utc>,
        base: i64,
        policy: Policy,
        client_time: Option<&str>,
    ) -> Vec<(&'static str, Cow<'_, str>)> {
        let mut headers = Vec::with_capacity(13);
        headers.push(("ce_specversion", Cow::Borrowed("1.0")));
        headers.push(("ce_id", self.batch.event_id(index).to_string().into()));
        headers.push((
            "ce_type",
            format!("tidelog.{table}.{}", operation.as_str()).into(),
        ));
        headers.push(("ce_source", Cow::Borrowed(self.source.as_str())));
        headers.push(("ce_subject", subject.to_owned().into()));
        headers.push((
            "ce_time",
            time.to_rfc3339_opts(SecondsFormat::Micros, true).into(),
        ));
        headers.push(("ce_batch", format!("{}/{index}", self.batch).into()));
        headers.push(("ce_baseversion", base.to_string().into()));
        headers.push(("ce_policy", Cow::Borrowed(policy.as_str())));
        headers.push(("content-type", Cow::Borrowed(CONTENT_TYPE)));
        if self.role != Role::User {
            headers.push(("ce_role", Cow::Borrowed(self.role.as_str())));
        }
        if let Some(time) = client_time {
            headers.push(("ce_clienttime", time.to_owned().into()));
        }
        if let Some(kind) = &self.device_type {
            headers.push(("ce_devicetype", Cow::Borrowed(kind.as_str())));
        }
        headers
    }
}

/// An event read back: everything but the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `ce_id`.
    pub id: Uuid,
    /// The table of its domain.
    pub table: Arc<str>,
    /// What it does.
    pub operation: Operation,
    /// The tenant.
    pub tenant: TenantId,
    /// Who posted.
    pub user: UserId,
    /// From which device.
    pub device: DeviceId,
    /// As whom.
    pub role: Role,
    /// What kind of device with its priority, where device priority was on.
    pub device_type: Option<DeviceType>,
    /// The identity.
    pub subject: Arc<str>,
    /// When the device did it, corrected for skew.
    pub time: DateTime<Utc>,
    /// The device's own time as it was sent, where the value does not hold it (items of mixed batches).
    pub client_time: Option<String>,
    /// The batch.
    pub batch: BatchId,
    /// The item's index in it.
    pub index: u32,
    /// The version that the device last saw.
    pub base: i64,
    /// How a conflict is to be decided, as it stood when the event was appended.
    pub policy: Policy,
}

/// Why a record on a topic is no event of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A header is missing.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A header does not say what it has to.
    #[error("the header {name} cannot be read: {value:?}")]
    Unreadable {
        /// Its name.
        name: &'static str,
        /// What it holds, cut to 100 characters.
        value: String,
    },
    /// A CloudEvents version that this build does not know.
    #[error("CloudEvents {0:?} is not spoken here, 1.0 is")]
    SpecVersion(String),
    /// A domain that this deployment does not have.
    #[error("no domain here has the table {0:?}")]
    UnknownDomain(String),
}

impl Event {
    /// Reads the headers of a record.
    pub fn from_headers<'a>(
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        registry: &Registry,
    ) -> Result<Event, EnvelopeError> {
        Event::of_batch(headers, registry, &mut LastSource::default())
    }

    /// The same, of one record of many: those of one batch follow each other, and what they say alike is read and held once.
    pub fn of_batch<'a>(
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        registry: &Registry,
        last: &mut LastSource<'a>,
    ) -> Result<Event, EnvelopeError> {
        let found = Found::of(headers)?;
        let version = found.get(Header::SpecVersion)?;
        if version != "1.0" {
            return Err(EnvelopeError::SpecVersion(version.chars().take(100).collect()));
        }
        let (table, operation) = found.read(Header::Type, |text| {
            let (table, operation) = text.strip_prefix("tidelog.")?.rsplit_once('.')?;
            Some((table, Operation::parse(operation)?))
        })?;
        let Some(domain) = registry.by_table(table) else {
            return Err(EnvelopeError::UnknownDomain(table.to_owned()));
        };
        let (tenant, user, device) = found.read(Header::Source, |text| last.parts(text))?;
        let (batch, index) = found.read(Header::Batch, |text| {
            let (batch, index) = text.split_once('/')?;
            Some((
                BatchId(Uuid::try_parse(batch).ok()?),
                index
                    .parse::<u32>()
                    .ok()
                    .filter(|index| *index <= i32::MAX as u32)?,
            ))
        })?;
        Ok(Event {
            id: found.read(Header::Id, |text| Uuid::try_parse(text).ok())?,
            table: domain.table.clone(),
            operation,
            tenant,
            user,
            device,
            role: found.read_any(Header::Role, Role::parse)?.unwrap_or(Role::User),
            device_type: found.read_any(Header::DeviceType, DeviceType::parse)?,
            client_time: found.read_any(Header::ClientTime, |text| {
                parse_datetime(text).map(|_| text.to_owned())
            })?,
            subject: found.read(Header::Subject, |text| {
                (!text.is_empty() && text.len() <= MAX_SUBJECT_BYTES && !text.contains('\0'))
                    .then(|| text.into())
            })?,
            time: found.read(Header::Time, parse_datetime)?,
            batch,
            index,
            base: found.read(Header::BaseVersion, |text| {
                text.parse().ok().filter(|base| *base >= 0)
            })?,
            policy: found.read(Header::Policy, Policy::parse)?,
        })
    }
}

/// The source that was read last, and who it names.
#[derive(Debug, Default)]
pub struct LastSource<'a>(Option<(&'a str, (TenantId, UserId, DeviceId))>);

impl<'a> LastSource<'a> {
    fn parts(&mut self, text: &'a str) -> Option<(TenantId, UserId, DeviceId)> {
        if self.0.as_ref().is_none_or(|(last, _)| *last != text) {
            self.0 = Some((text, source_parts(text)?));
        }
        self.0.as_ref().map(|(_, parts)| parts.clone())
    }
}

/// The headers that are read, in the order in which they are sent.
#[derive(Debug, Clone, Copy)]
enum Header {
    SpecVersion,
    Id,
    Type,
    Source,
    Subject,
    Time,
    Batch,
    BaseVersion,
    Policy,
    Role,
    ClientTime,
    DeviceType,
}

/// Their names.
const NAMES: [&str; 12] = [
    "ce_specversion",
    "ce_id",
    "ce_type",
    "ce_source",
    "ce_subject",
    "ce_time",
    "ce_batch",
    "ce_baseversion",
    "ce_policy",
    "ce_role",
    "ce_clienttime",
    "ce_devicetype",
];

impl Header {
    fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// The headers of one record.
struct Found<'a>([Option<&'a str>; NAMES.len()]);

impl<'a> Found<'a> {
    fn of(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<Found<'a>, EnvelopeError> {
        let mut found = Found([None; NAMES.len()]);
        // They mostly come in the order in which they are listed.
        let mut expected = 0;
        for (name, value) in headers {
            let at = match NAMES.get(expected) {
                Some(known) if *known == name => Some(expected),
                _ => NAMES.iter().position(|known| *known == name),
            };
            if let Some(at) = at {
                expected = at + 1;
                let bytes = value.unwrap_or_default();
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| unreadable(NAMES[at], &String::from_utf8_lossy(bytes)))?;
                found.0[at] = Some(text);
            }
        }
        Ok(found)
    }

    fn get(&self, header: Header) -> Result<&'a str, EnvelopeError> {
        self.0[header as usize].ok_or(EnvelopeError::Missing(header.name()))
    }

    fn read<T>(&self, header: Header, parse: impl FnOnce(&'a str) -> Option<T>) -> Result<T, EnvelopeError> {
        let text = self.get(header)?;
        parse(text).ok_or_else(|| unreadable(header.name(), text))
    }

    /// One that need not be there.
    fn read_any<T>(
        &self,
        header: Header,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<Option<T>, EnvelopeError> {
        match self.0[header as usize] {
            Some(_) => self.read(header, parse).map(Some),
            None => Ok(None),
        }
    }
}

fn unreadable(name: &'static str, text: &str) -> EnvelopeError {
    EnvelopeError::Unreadable {
        name,
        value: text.chars().take(100).collect(),
    }
}

/// What every `ce_source` of a tenant begins with.
pub fn sources_of(tenant: &TenantId) -> String {
    format!("/tenants/{}/users/", encode_part(tenant.as_str()))
}

/// The tenant that a `ce_source` tells of, whatever else is wrong with it.
pub fn tenant_of(source: &str) -> Option<TenantId> {
    let encoded = source.strip_prefix("/tenants/")?.split('/').next()?;
    TenantId::parse(&decode_part(encoded)?).ok()
}

fn source_parts(text: &str) -> Option<(TenantId, UserId, DeviceId)> {
    let mut parts = text.strip_prefix("/tenants/")?.split('/');
    let mut next = || decode_part(parts.next()?);
    let tenant = TenantId::parse(&next()?).ok()?;
    (next()? == "users").then_some(())?;
    let user = UserId::parse(&next()?).ok()?;
    (next()? == "devices").then_some(())?;
    let device = DeviceId::parse(&next()?).ok()?;
    next().is_none().then_some((tenant, user, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Fingerprint;

    fn stamp() -> Stamp {
        let batch = BatchId::of("key-of-sixteen-characters", &Fingerprint([7; 32]));
        Stamp::new(
            TenantId::parse("a/b").expect("tenant"),
            UserId::parse("jürgen@x").expect("user"),
            DeviceId::parse("phone-1").expect("device"),
            Role::Supervisor,
            Some("tablet/60".into()),
            batch,
        )
    }

    #[test]
    fn a_source_begins_with_its_tenants_part() {
        let (stamp, other) = (stamp(), TenantId::parse("a").expect("tenant"));
        assert!(stamp.source.starts_with(&sources_of(&stamp.tenant)));
        assert!(!stamp.source.starts_with(&sources_of(&other)));
        assert_eq!(tenant_of(&stamp.source), Some(stamp.tenant));
        assert_eq!(tenant_of("/tenants/a"), Some(other));
        assert_eq!(tenant_of("/somewhere/a"), None);
    }

    #[test]
    fn headers_read_back_as_they_were_written() {
        let stamp = stamp();
        let time = parse_datetime("2026-01-31T09:30:00.123456Z").expect("time");
        let headers = stamp.headers(
            "helpdesk",
            Operation::Update,
            "id",
            3,
            time,
            4,
            Policy::Merge,
            Some("2026-01-31T11:30:00+02:00"),
        );
        let event = Event::from_headers(
            headers.iter().map(|(n, v)| (*n, Some(v.as_bytes()))),
            &Registry::shipped(),
        )
        .expect("an event");
        assert_eq!(
            (event.tenant, event.user, event.device),
            (stamp.tenant.clone(), stamp.user.clone(), stamp.device.clone())
        );
        assert_eq!(
            (event.time, event.base, event.index, event.policy),
            (time, 4, 3, Policy::Merge)
        );
        assert_eq!(
            (event.id, event.batch, event.role),
            (stamp.batch.event_id(3), stamp.batch, Role::Supervisor)
        );
        assert_eq!(event.client_time.as_deref(), Some("2026-01-31T11:30:00+02:00"));
        assert_eq!(event.device_type, DeviceType::new("tablet", 60));
    }

    #[test]
    fn what_is_not_ours_says_why() {
        let read = |headers: &[(&str, &str)]| {
            Event::from_headers(
                headers.iter().map(|(n, v)| (*n, Some(v.as_bytes()))),
                &Registry::shipped(),
            )
            .expect_err("an error")
        };
        assert_eq!(read(&[]), EnvelopeError::Missing("ce_specversion"));
        assert_eq!(
            read(&[("ce_specversion", "9")]),
            EnvelopeError::SpecVersion("9".into())
        );
        let unknown = [("ce_specversion", "1.0"), ("ce_type", "tidelog.nowhere.create")];
        assert_eq!(read(&unknown), EnvelopeError::UnknownDomain("nowhere".into()));
    }
}
