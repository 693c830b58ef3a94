//! Who sees and who writes a record. The fold computes a record's audience and stores it; readers compare it with
//! themselves. Knows nothing of SQL or tokens.

use crate::doc::{Doc, Json};
use crate::ids::{Role, UserId};
use serde_json::Value;
use std::collections::BTreeMap;

/// The rule of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// Every user of the tenant reads and writes.
    Tenant,
    /// The owner reads and writes; the roles listed read.
    Owner {
        /// Roles that read beside the owner.
        readers: Vec<Role>,
    },
    /// A field of the record decides; its owner always reads and writes.
    Scoped {
        /// The field, an enumeration with a default.
        field: String,
        /// From each value to who else.
        scopes: BTreeMap<String, Scope>,
    },
    /// The same as the parent's.
    Parent,
}

/// Who, beside the owner, at one value of the deciding field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Who reads.
    pub read: Vec<Who>,
    /// Who writes.
    pub write: Vec<Who>,
}

impl Scope {
    /// Whether the users listed in that field are among them.
    pub(super) fn lists(&self, name: &str) -> bool {
        let named = |who: &Who| matches!(who, Who::Listed(field) if field == name);
        self.read.iter().chain(&self.write).any(named)
    }
}

/// A group named by a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Everybody of the tenant.
    Everyone,
    /// All with a role.
    Role(Role),
    /// The users whose ids the record lists in a field.
    Listed(String),
}

/// Who sees a record, as stored with it: `*`, `user:<id>`, `role:<role>`. Only domains whose visibility is scoped,
/// and their children, store one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audience(pub Vec<String>);

impl Audience {
    /// Whether that reader is of the audience.
    pub fn admits(&self, reader: &Reader<'_>) -> bool {
        let tokens = reader.tokens();
        self.0.iter().any(|entry| tokens.contains(entry))
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// The user.
    pub user: &'a UserId,
    /// Their role.
    pub role: Role,
}

impl Reader<'_> {
    /// The audience entries that admit this reader.
    pub fn tokens(&self) -> [String; 3] {
        [
            "*".to_owned(),
            format!("user:{}", self.user),
            format!("role:{}", self.role.as_str()),
        ]
    }
}

impl Visibility {
    /// Whether an audience is stored with each record.
    pub fn stores_audience(&self) -> bool {
        matches!(self, Visibility::Scoped { .. } | Visibility::Parent)
    }

    /// The audience of a record; `None` where none is stored. A parent's is computed from the parent, not here.
    pub fn audience(&self, owner: &str, doc: &Doc) -> Option<Audience> {
        let Visibility::Scoped { field, scopes } = self else {
            return None;
        };
        let scope = doc
            .get(field)
            .and_then(Json::as_str)
            .and_then(|value| scopes.get(&*value));
        let mut entries = vec![format!("user:{owner}")];
        for who in scope.map_or(&[][..], |scope| &scope.read) {
            who.expand(doc, &mut entries);
        }
        entries.sort();
        entries.dedup();
        Some(Audience(entries))
    }

    /// The audience of what hangs on a record of `owner`: whoever sees that record, whether one is stored with it or not.
    pub fn audience_of_children(&self, owner: &str, stored: Option<&Audience>) -> Audience {
        match self {
            Visibility::Tenant => Audience(vec!["*".to_owned()]),
            Visibility::Owner { readers } => {
                let roles = readers.iter().map(|role| format!("role:{}", role.as_str()));
                let mut entries: Vec<String> = roles.chain([format!("user:{owner}")]).collect();
                entries.sort();
                Audience(entries)
            }
            Visibility::Scoped { .. } | Visibility::Parent => stored.cloned().unwrap_or_default(),
        }
    }

    /// Whether the rule lets somebody change a record of `owner`. A parent's rule is asked of the parent.
    pub fn may_write(&self, reader: &Reader<'_>, owner: &str, doc: &Doc) -> bool {
        match self {
            Visibility::Tenant => true,
            Visibility::Owner { .. } => reader.user.as_str() == owner,
            Visibility::Scoped { field, scopes } => {
                let scope = doc
                    .get(field)
                    .and_then(Json::as_str)
                    .and_then(|value| scopes.get(&*value));
                let mut entries = Vec::new();
                for who in scope.map_or(&[][..], |scope| &scope.write) {
                    who.expand(doc, &mut entries);
                }
                reader.user.as_str() == owner || Audience(entries).admits(reader)
            }
            Visibility::Parent => reader.user.as_str() == owner,
        }
    }
}

impl Who {
    fn expand(&self, doc: &Doc, entries: &mut Vec<String>) {
        match self {
            Who::Everyone => entries.push("*".into()),
            Who::Role(role) => entries.push(format!("role:{}", role.as_str())),
            Who::Listed(field) => {
                let listed = doc.get(field).map(Json::to_value);
                let listed = listed.as_ref().and_then(Value::as_array);
                entries.extend(
                    listed
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .map(|user| format!("user:{user}")),
                );
            }
        }
    }

    /// `everyone`, `role:<role>` or `field:<name>`, as definitions write it.
    pub fn parse(text: &str) -> Option<Who> {
        if text == "everyone" {
            return Some(Who::Everyone);
        }
        if let Some(role) = text.strip_prefix("role:") {
            return Role::parse(role).map(Who::Role);
        }
        text.strip_prefix("field:")
            .map(|field| Who::Listed(field.to_owned()))
    }
}
