//! A domain is data: one definition file says what its items hold, how its records move, who sees them and which
//! topic and tables they live in. Gateway, projector, reader and DDL all work from the [`Domain`] made here, so none
//! of them names one. What a file looks like: `definitions/` and [`file`].

mod ddl;
mod field;
mod file;
mod marks;
mod personal;
mod registry;
mod visibility;

pub use ddl::{ADDED_LATER, create_bare_tables, create_indexes, create_tables, expected_columns, feed_key};
pub use field::{Case, FUTURE_TOLERANCE_SECONDS, Field, FieldType, canonical_value, parse_datetime};
pub use file::{Defect, parse};
pub use marks::fold_marks;
pub use registry::{Registry, RegistryError};
pub use visibility::{Audience, Reader, Visibility};

use crate::doc::Doc;
use chrono::{DateTime, TimeDelta, Utc};
use file::ENVELOPE_FIELDS;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a conflict is decided (DOMAINS: Conflicts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The device's item is applied.
    ClientWins,
    /// The server's state stays.
    ServerWins,
    /// The later of the two times; a tie keeps the server's.
    MostRecentWins,
    /// The device's item is applied, but the fields kept by the definition stay the server's.
    PreserveEscalation,
    /// Field by field.
    Merge,
    /// A person decides.
    Manual,
}

impl Policy {
    /// The name in headers, answers and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::ClientWins => "client_wins",
            Policy::ServerWins => "server_wins",
            Policy::MostRecentWins => "most_recent_wins",
            Policy::PreserveEscalation => "preserve_escalation",
            Policy::Merge => "merge",
            Policy::Manual => "manual",
        }
    }

    /// The policy of that name.
    pub fn parse(text: &str) -> Option<Policy> {
        use Policy::*;
        [
            ClientWins,
            ServerWins,
            MostRecentWins,
            PreserveEscalation,
            Merge,
            Manual,
        ]
        .into_iter()
        .find(|p| p.as_str() == text)
    }
}

/// Entities have states with versions; telemetry is appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Records that are created, changed and deleted; identified by a `mobile_id` that the device made.
    Entity,
    /// Items that are written once, or, with `replace`, that a later copy replaces.
    Telemetry {
        /// A later copy replaces an earlier.
        replace: bool,
    },
}

/// One part of a telemetry item's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityPart {
    /// The posting user.
    User,
    /// The posting device.
    Device,
    /// A field of the item; the first of these names that it has.
    Field(Vec<String>),
}

/// The status field and the steps it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateMachine {
    /// The field.
    pub field: String,
    /// What a new record starts in, unless the device says otherwise.
    pub initial: String,
    /// From each status to those that may follow it.
    pub transitions: BTreeMap<String, Vec<String>>,
}

impl StateMachine {
    /// The statuses that may follow `from`; staying is always allowed and not listed.
    pub fn allowed(&self, from: &str) -> &[String] {
        self.transitions.get(from).map_or(&[], Vec::as_slice)
    }
}

/// `later` must not lie before `earlier`, where a record has both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The field that comes first.
    pub earlier: String,
    /// The field that follows.
    pub later: String,
}

/// Domains whose records hang on a record of another one share its topic, key and visibility.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The parent's domain.
    pub domain: String,
    /// The field that holds the parent's `mobile_id`.
    pub field: String,
}

/// A number that the server gives a new record: `<prefix>-<offset>-<partition>` of the creating event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbering {
    /// The field.
    pub field: String,
    /// What stands before the position.
    pub prefix: String,
}

/// How a filter of `/changes` compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The query parameter's value equals the field, in the field's letter case.
    Equals {
        /// The parameter; mostly the field's name.
        parameter: String,
        /// The field.
        field: String,
    },
    /// The field's time is at or after the parameter's.
    From {
        /// The parameter.
        parameter: String,
        /// The field.
        field: String,
    },
}

impl Filter {
    /// The query parameter's name.
    pub fn parameter(&self) -> &str {
        match self {
            Filter::Equals { parameter, .. } | Filter::From { parameter, .. } => parameter,
        }
    }
}

/// A definition, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// The name in URLs.
    pub name: String,
    /// The table's name; the feed is `<table>_changes`.
    pub table: Arc<str>,
    /// What one record is called: the `entity_type` of mixed batches (`POST /api/v1/sync/batch`); absent where these do
    /// not take it, as in telemetry and in domains with a parent. No two domains share one.
    pub entity_type: Option<String>,
    /// Entity or telemetry.
    pub kind: Kind,
    /// The topic, without a deployment's prefix.
    pub topic: String,
    /// How conflicts are decided unless a tenant says otherwise.
    pub policy: Policy,
    /// Fields that `preserve_escalation` keeps.
    pub keep: Vec<String>,
    /// Telemetry's identity; empty for entities.
    pub identity: Vec<IdentityPart>,
    /// The key in a WebSocket `sync_data` message, for telemetry.
    pub socket_key: Option<String>,
    /// The fields, in the order of the file.
    pub fields: Vec<Field>,
    /// The status field.
    pub status: Option<StateMachine>,
    /// Rules across two times.
    pub orders: Vec<Order>,
    /// The record that these hang on.
    pub parent: Option<Parent>,
    /// A number that the server gives.
    pub numbering: Option<Numbering>,
    /// A boolean field whose `true` means delete.
    pub delete_flag: Option<String>,
    /// Further values of `sync_status` that devices send (journal's `draft`).
    pub extra_sync_status: Vec<String>,
    /// Filters of `/changes`.
    pub filters: Vec<Filter>,
    /// Who sees and writes a record.
    pub visibility: Visibility,
    /// How far back, by the log's time, the fold looks and the feed is kept; none for ever.
    pub history: Option<TimeDelta>,
    /// What a new record gets where the device says nothing.
    pub initial: Doc,
}

impl Domain {
    /// What an event of this log time looks back to: of what is older it knows nothing.
    pub fn horizon(&self, log_time: DateTime<Utc>) -> DateTime<Utc> {
        self.history
            .and_then(|history| log_time.checked_sub_signed(history))
            .unwrap_or(DateTime::<Utc>::MIN_UTC)
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Whether it has fields that hold somebody's own words.
    pub fn has_personal(&self) -> bool {
        self.fields.iter().any(|field| field.personal)
    }

    /// Whether a member of an item is somebody's own words: a field that says so, and in a domain that has such fields also
    /// every member that the definition does not know.
    pub fn is_personal(&self, name: &str) -> bool {
        match self.field(name) {
            Some(field) => field.personal,
            None => self.has_personal() && !ENVELOPE_FIELDS.contains(&name),
        }
    }

    /// Whether records have states and versions.
    pub fn is_entity(&self) -> bool {
        self.kind == Kind::Entity
    }

    /// The column that holds the identity: `mobile_id`, or `item_id` for telemetry.
    pub fn id_column(&self) -> &'static str {
        if self.is_entity() { "mobile_id" } else { "item_id" }
    }

    /// The feed's table.
    pub fn changes_table(&self) -> String {
        format!("{}_changes", self.table)
    }

    /// The fields promoted to typed columns.
    pub fn columns(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.column)
    }
}
