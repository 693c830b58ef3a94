//! What a tenant has set for itself: conflict policies, auto-resolution, device priority, limits. Gateways stamp what
//! follows from it into events as they append them, so a later change never changes history. Pure data; where it is
//! kept and who may change it is not known here.
//!
//! In JSON, every member optional (DOMAINS: Settings of a tenant):
//!
//! ```json
//! {"domains": {"helpdesk": {"policy": "merge", "auto_resolve": true}},
//!  "device_priority": {"enabled": true, "phone": 40},
//!  "limits": {"batch_items": 500, "item_bytes": 65536, "key_hours": 24}}
//! ```

use crate::batch::MAX_ENTRIES;
use crate::domain::{Domain, Policy, Registry};
use crate::ids::{DeviceType, TenantId};
use crate::item::MAX_ITEM_BYTES;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The compacted topic that holds them, a record a tenant, without a deployment's prefix.
pub const SETTINGS_TOPIC: &str = "sync.settings.v1";

/// Each kind of device with the priority that it has where a tenant says nothing else.
const PRIORITIES: [(&str, u8); 5] = [
    ("desktop", 100),
    ("laptop", 80),
    ("tablet", 60),
    ("phone", 40),
    (OTHER_DEVICE, 50),
];

/// A device whose kind is not known.
const OTHER_DEVICE: &str = "other";

/// The most domains that one tenant's settings may name.
const MOST_DOMAINS: usize = 200;

/// Hours that a key and its answer are kept: the default, and the most.
const KEY_HOURS: (u32, u32) = (24, 168);

/// What is wrong with settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct SettingsDefect {
    /// The member, as a path with dots.
    pub field: String,
    /// The rule that it breaks, in words.
    pub rule: String,
}

/// One tenant's settings, as far as it has set something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TenantSettings {
    /// By domain name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<String, DomainSettings>,
    /// Which device of a user goes before another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_priority: Option<DevicePriority>,
    /// Tighter limits than the service's own.
    #[serde(skip_serializing_if = "Limits::is_unset")]
    pub limits: Limits,
}

/// What is set for a domain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DomainSettings {
    /// How conflicts are decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Off: whatever the policy, a conflict waits for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resolve: Option<bool>,
}

/// Between two devices of one user, the one with the higher priority decides, where this is enabled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DevicePriority {
    /// Whether it is.
    pub enabled: bool,
    /// By kind: desktop, laptop, tablet, phone, other.
    #[serde(flatten)]
    pub kinds: BTreeMap<String, u8>,
}

/// Limits of a tenant's batches; each at most the service's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Items in a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_items: Option<u32>,
    /// Bytes of an item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_bytes: Option<u32>,
    /// Hours that an idempotency key and its answer are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hours: Option<u32>,
}

impl Limits {
    fn is_unset(&self) -> bool {
        *self == Limits::default()
    }
}

impl TenantSettings {
    /// Reads settings that somebody wants: every defect is told.
    pub fn checked(json: &Value, registry: &Registry) -> Result<TenantSettings, Vec<SettingsDefect>> {
        let (settings, mut defects) = read(json);
        for name in settings.domains.keys() {
            match registry.by_name(name) {
                Some(domain) if domain.is_entity() => {}
                Some(_) => defects.push(defect(
                    format!("domains.{name}"),
                    "is a telemetry domain, which has no conflicts",
                )),
                None => defects.push(defect(format!("domains.{name}"), "is no domain here")),
            }
        }
        if defects.is_empty() {
            Ok(settings)
        } else {
            Err(defects)
        }
    }

    /// Reads settings that are in force, perhaps written by a newer release: what is not understood is left out, and
    /// told.
    pub fn understood(json: &Value) -> (TenantSettings, Vec<SettingsDefect>) {
        read(json)
    }

    /// The policy that an item of that domain is stamped with.
    pub fn policy(&self, domain: &Domain) -> Policy {
        match self.domains.get(&domain.name) {
            Some(set) if set.auto_resolve == Some(false) => Policy::Manual,
            Some(set) => set.policy.unwrap_or(domain.policy),
            None => domain.policy,
        }
    }

    /// What an item from a device of that kind is stamped with; nothing where device priority is off.
    pub fn device_type(&self, kind: Option<&str>) -> Option<DeviceType> {
        let set = self.device_priority.as_ref().filter(|set| set.enabled)?;
        let kind = kind.unwrap_or(OTHER_DEVICE);
        DeviceType::new(kind, set.priority(kind))
    }

    /// The most items of a batch.
    pub fn batch_items(&self) -> usize {
        self.limits
            .batch_items
            .map_or(MAX_ENTRIES, |set| MAX_ENTRIES.min(set as usize))
    }

    /// The most bytes of an item.
    pub fn item_bytes(&self) -> usize {
        self.limits
            .item_bytes
            .map_or(MAX_ITEM_BYTES, |set| MAX_ITEM_BYTES.min(set as usize))
    }

    /// Hours that a key is kept, where the tenant has set that.
    pub fn key_hours(&self) -> Option<u32> {
        self.limits.key_hours
    }

    /// Everything that is in force, set or not: for people who ask what happens.
    pub fn effective(&self, registry: &Registry) -> TenantSettings {
        let domains = registry.iter().filter(|domain| domain.is_entity()).map(|domain| {
            let set = self.domains.get(&domain.name).copied().unwrap_or_default();
            let all = DomainSettings {
                policy: Some(set.policy.unwrap_or(domain.policy)),
                auto_resolve: Some(set.auto_resolve.unwrap_or(true)),
            };
            (domain.name.clone(), all)
        });
        let priority = self.device_priority.clone().unwrap_or_default();
        TenantSettings {
            domains: domains.collect(),
            device_priority: Some(DevicePriority {
                enabled: priority.enabled,
                kinds: PRIORITIES
                    .iter()
                    .map(|(kind, _)| ((*kind).to_owned(), priority.priority(kind)))
                    .collect(),
            }),
            limits: Limits {
                batch_items: u32::try_from(self.batch_items()).ok(),
                item_bytes: u32::try_from(self.item_bytes()).ok(),
                key_hours: Some(self.limits.key_hours.unwrap_or(KEY_HOURS.0)),
            },
        }
    }

    /// As JSON, what was set and nothing else.
    pub fn to_json(&self) -> Value {
        // Plain structs with text keys always serialise.
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl DevicePriority {
    fn priority(&self, kind: &str) -> u8 {
        let default = || PRIORITIES.iter().find(|(known, _)| *known == kind);
        match self.kinds.get(kind) {
            Some(set) => *set,
            None => default().map_or(50, |(_, priority)| *priority),
        }
    }
}

/// All tenants' settings as a gateway knows them: a value that is replaced when they change.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    by_tenant: HashMap<TenantId, Arc<InForce>>,
    partitions: Arc<Partitions>,
    /// Whether everything was read that there was when the gateway began. Before that, nothing may be stamped.
    pub complete: bool,
    /// The offset up to which the topic was read; -1 for nothing yet.
    pub through: i64,
}

/// How many partitions each topic was made with, by its name without a deployment's prefix.
pub type Partitions = BTreeMap<String, i32>;

/// A tenant's settings, and which change they are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The settings.
    pub settings: TenantSettings,
    /// The number of the change: the offset of its record and one more.
    pub revision: i64,
    /// Who made it.
    pub updated_by: String,
    /// When, by the log.
    pub updated_at: chrono::DateTime<chrono::Utc>,
}

impl Settings {
    /// Nothing read yet.
    pub fn unread() -> Settings {
        Settings {
            through: -1,
            ..Settings::default()
        }
    }

    /// What is in force for a tenant; none where it has set nothing.
    pub fn of(&self, tenant: &TenantId) -> Option<&Arc<InForce>> {
        self.by_tenant.get(tenant)
    }

    /// The tenants that have set something.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, &Arc<InForce>)> {
        self.by_tenant.iter()
    }

    /// How many partitions each topic was made with, as far as that was written down.
    pub fn partitions(&self) -> &Arc<Partitions> {
        &self.partitions
    }

    /// Takes a record that says so; none for one that takes it back.
    pub fn note_partitions(&mut self, topic: String, partitions: Option<i32>) {
        let all = Arc::make_mut(&mut self.partitions);
        match partitions {
            Some(partitions) => all.insert(topic, partitions),
            None => all.remove(&topic),
        };
    }

    /// Takes a record of the topic; none for one that takes a tenant's settings back.
    pub fn note(&mut self, tenant: TenantId, in_force: Option<InForce>) {
        match in_force {
            Some(in_force) => {
                self.by_tenant.insert(tenant, Arc::new(in_force));
            }
            None => {
                self.by_tenant.remove(&tenant);
            }
        }
    }
}

fn defect(field: impl Into<String>, rule: impl Into<String>) -> SettingsDefect {
    SettingsDefect {
        field: field.into(),
        rule: rule.into(),
    }
}

/// What can be understood, and what cannot.
fn read(json: &Value) -> (TenantSettings, Vec<SettingsDefect>) {
    let mut defects = Vec::new();
    let mut settings = TenantSettings::default();
    let Value::Object(members) = json else {
        return (settings, vec![defect("settings", "must be an object")]);
    };
    for (name, value) in members {
        match (name.as_str(), value) {
            // As if it was not there: what a merge of null leaves.
            ("domains" | "device_priority" | "limits", Value::Null) => {}
            ("domains", Value::Object(members)) => settings.domains = domains(members, &mut defects),
            ("device_priority", Value::Object(members)) => {
                settings.device_priority = Some(device_priority(members, &mut defects));
            }
            ("limits", Value::Object(members)) => settings.limits = limits(members, &mut defects),
            ("domains" | "device_priority" | "limits", _) => defects.push(defect(name, "must be an object")),
            _ => defects.push(defect(
                name,
                "is no setting; there are domains, device_priority and limits",
            )),
        }
    }
    (settings, defects)
}

fn domains(
    members: &Map<String, Value>,
    defects: &mut Vec<SettingsDefect>,
) -> BTreeMap<String, DomainSettings> {
    if members.len() > MOST_DOMAINS {
        defects.push(defect(
            "domains",
            format!("may name {MOST_DOMAINS} domains at most"),
        ));
    }
    let mut all = BTreeMap::new();
    for (name, value) in members.iter().take(MOST_DOMAINS) {
        let at = format!("domains.{name}");
        let Value::Object(members) = value else {
            defects.push(defect(at, "must be an object"));
            continue;
        };
        let mut set = DomainSettings::default();
        for (member, value) in members {
            let field = format!("{at}.{member}");
            match (member.as_str(), value) {
                ("policy", value) => match value.as_str().and_then(Policy::parse) {
                    Some(policy) => set.policy = Some(policy),
                    None => defects.push(defect(
                        field,
                        "must be one of client_wins, server_wins, most_recent_wins, preserve_escalation, merge, manual",
                    )),
                },
                ("auto_resolve", Value::Bool(on)) => set.auto_resolve = Some(*on),
                ("auto_resolve", _) => defects.push(defect(field, "must be true or false")),
                _ => defects.push(defect(
                    field,
                    "is no setting of a domain; there are policy and auto_resolve",
                )),
            }
        }
        if set != DomainSettings::default() {
            all.insert(name.clone(), set);
        }
    }
    all
}

fn device_priority(members: &Map<String, Value>, defects: &mut Vec<SettingsDefect>) -> DevicePriority {
    let mut set = DevicePriority::default();
    for (name, value) in members {
        let field = format!("device_priority.{name}");
        let known = PRIORITIES.iter().any(|(kind, _)| kind == name);
        match value {
            Value::Bool(on) if name == "enabled" => set.enabled = *on,
            _ if name == "enabled" => defects.push(defect(field, "must be true or false")),
            _ if known => match value.as_u64().and_then(|number| u8::try_from(number).ok()) {
                Some(priority) if priority <= DeviceType::MAX_PRIORITY => {
                    set.kinds.insert(name.clone(), priority);
                }
                _ => defects.push(defect(field, "must be an integer of 0 to 200")),
            },
            _ => defects.push(defect(
                field,
                "is no setting; there are enabled, desktop, laptop, tablet, phone and other",
            )),
        }
    }
    set
}

fn limits(members: &Map<String, Value>, defects: &mut Vec<SettingsDefect>) -> Limits {
    let mut set = Limits::default();
    for (name, value) in members {
        let field = format!("limits.{name}");
        let (slot, least, most) = match name.as_str() {
            "batch_items" => (&mut set.batch_items, 1, MAX_ENTRIES as u32),
            "item_bytes" => (&mut set.item_bytes, 1024, MAX_ITEM_BYTES as u32),
            "key_hours" => (&mut set.key_hours, 1, KEY_HOURS.1),
            _ => {
                defects.push(defect(
                    field,
                    "is no limit; there are batch_items, item_bytes and key_hours",
                ));
                continue;
            }
        };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (least..=most).contains(&number) => *slot = Some(number),
            _ => defects.push(defect(field, format!("must be an integer of {least} to {most}"))),
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(json: Value) -> Result<TenantSettings, Vec<SettingsDefect>> {
        TenantSettings::checked(&json, &Registry::shipped())
    }

    fn policy(json: Value, domain: &str) -> Policy {
        let registry = Registry::shipped();
        checked(json)
            .expect("settings")
            .policy(registry.by_name(domain).expect("a domain"))
    }

    #[test]
    fn a_tenant_chooses_a_policy_and_may_turn_auto_resolution_off() {
        let set = json!({"domains": {"helpdesk": {"policy": "merge"}, "activity": {"policy": "client_wins", "auto_resolve": false}}});
        assert_eq!(policy(set.clone(), "helpdesk"), Policy::Merge);
        assert_eq!(policy(set.clone(), "activity"), Policy::Manual);
        assert_eq!(policy(set, "attendance"), Policy::ServerWins);
        assert_eq!(policy(json!({}), "helpdesk"), Policy::PreserveEscalation);
    }

    #[test]
    fn device_types_are_stamped_only_where_priority_is_on() {
        let of = |json: Value, kind| checked(json).expect("settings").device_type(kind);
        let on = json!({"device_priority": {"enabled": true, "phone": 120}});
        assert_eq!(of(on.clone(), Some("phone")), DeviceType::new("phone", 120));
        assert_eq!(of(on.clone(), Some("desktop")), DeviceType::new("desktop", 100));
        assert_eq!(of(on, None), DeviceType::new("other", 50));
        assert_eq!(
            of(json!({"device_priority": {"phone": 120}}), Some("phone")),
            None
        );
        assert_eq!(of(json!({}), Some("phone")), None);
    }

    #[test]
    fn every_defect_is_told_with_its_path() {
        let told = checked(json!({
            "domains": {"helpdesk": {"policy": "fastest", "auto_resolve": 1}, "nowhere": {"policy": "merge"}, "voice": {"policy": "merge"}},
            "device_priority": {"enabled": "yes", "phone": 201, "watch": 1},
            "limits": {"batch_items": 0, "item_bytes": 1e9, "key_hours": 1.5, "speed": 1},
            "colour": "blue",
        }));
        let told: Vec<String> = told
            .expect_err("defects")
            .into_iter()
            .map(|defect| defect.field)
            .collect();
        for field in [
            "domains.helpdesk.policy",
            "domains.helpdesk.auto_resolve",
            "domains.nowhere",
            "domains.voice",
            "device_priority.enabled",
            "device_priority.phone",
            "device_priority.watch",
            "limits.batch_items",
            "limits.item_bytes",
            "limits.key_hours",
            "limits.speed",
            "colour",
        ] {
            assert!(told.iter().any(|told| told == field), "{field}: {told:?}");
        }
        assert!(checked(json!([])).is_err());
    }

    #[test]
    fn what_a_newer_release_wrote_is_understood_as_far_as_it_goes() {
        let newer = json!({"domains": {"helpdesk": {"policy": "merge", "mood": 1}}, "weather": {}});
        let (settings, defects) = TenantSettings::understood(&newer);
        assert_eq!(defects.len(), 2);
        assert_eq!(settings.domains["helpdesk"].policy, Some(Policy::Merge));
    }

    #[test]
    fn settings_read_back_as_they_were_written() {
        let json = json!({"domains": {"helpdesk": {"policy": "merge", "auto_resolve": true}},
            "device_priority": {"enabled": true, "phone": 40}, "limits": {"batch_items": 10}});
        assert_eq!(checked(json.clone()).expect("settings").to_json(), json);
        assert_eq!(
            checked(json!({"limits": null})).expect("settings").to_json(),
            json!({})
        );
        let all = TenantSettings::default().effective(&Registry::shipped());
        assert_eq!(all.domains["helpdesk"].policy, Some(Policy::PreserveEscalation));
        assert_eq!(
            (all.limits.batch_items, all.limits.key_hours),
            (Some(1000), Some(24))
        );
        // What is in force can be set as it is.
        assert!(checked(all.to_json()).is_ok());
    }
}
