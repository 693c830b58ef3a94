//! A definition file (TOML) and what can be wrong with one, by line. The shape of the file is the structs below; what
//! the parser cannot see (a transition to a status that does not exist, a column that Postgres has already) is
//! checked after. Knows nothing of other domains: what two definitions must not share is the registry's.

use super::field::{Case, Field, FieldType};
use super::personal::not_sealable;
use super::visibility::{Scope, Visibility, Who};
use super::{Domain, Filter, IdentityPart, Kind, Numbering, Order, Parent, Policy, StateMachine};
use crate::doc::Doc;
use crate::ids::Role;
use chrono::TimeDelta;
use serde::Deserialize;
use serde_json::Map;
use std::collections::BTreeMap;
use std::fmt;
use toml::Spanned;

/// Something wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    domain: Spanned<String>,
    table: Option<Spanned<String>>,
    entity_type: Option<Spanned<String>>,
    kind: Spanned<FileKind>,
    #[serde(default)]
    replace: bool,
    topic: Spanned<String>,
    policy: Option<Spanned<String>>,
    #[serde(default)]
    keep: Vec<Spanned<String>>,
    #[serde(default)]
    identity: Vec<Spanned<String>>,
    socket_key: Option<String>,
    delete_flag: Option<Spanned<String>>,
    history: Option<Spanned<String>>,
    #[serde(default)]
    extra_sync_status: Vec<String>,
    #[serde(default)]
    filters: Vec<Spanned<FileFilter>>,
    status: Option<FileStatus>,
    #[serde(default)]
    order: Vec<FileOrder>,
    parent: Option<FileParent>,
    numbering: Option<FileNumbering>,
    visibility: Option<Spanned<FileVisibility>>,
    fields: FileFields,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum FileKind {
    Entity,
    Telemetry,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum FileFilter {
    Equals(String),
    Renamed { parameter: String, equals: String },
    From { parameter: String, from: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStatus {
    field: Spanned<String>,
    initial: Spanned<String>,
    transitions: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOrder {
    earlier: Spanned<String>,
    later: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileParent {
    domain: String,
    field: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNumbering {
    field: Spanned<String>,
    prefix: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVisibility {
    rule: Spanned<String>,
    #[serde(default)]
    readers: Vec<Spanned<String>>,
    field: Option<Spanned<String>>,
    #[serde(default)]
    scopes: BTreeMap<Spanned<String>, FileScope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileScope {
    #[serde(default)]
    read: Vec<Spanned<String>>,
    #[serde(default)]
    write: Vec<Spanned<String>>,
}

/// The fields in the order of the file, for columns and documentation.
struct FileFields(Vec<(Spanned<String>, FileField)>);

impl<'de> Deserialize<'de> for FileFields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let unordered: BTreeMap<Spanned<String>, FileField> = BTreeMap::deserialize(deserializer)?;
        let mut fields: Vec<_> = unordered.into_iter().collect();
        fields.sort_by_key(|(name, _)| name.span().start);
        Ok(FileFields(fields))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileField {
    r#type: Spanned<String>,
    min: Option<Spanned<f64>>,
    max: Option<Spanned<f64>>,
    values: Option<Spanned<Vec<String>>>,
    case: Option<Case>,
    #[serde(default)]
    not_future: bool,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    personal: bool,
    #[serde(default)]
    column: bool,
    default: Option<Spanned<toml::Value>>,
}

/// Columns that every table has; a promoted field may not take their name.
const OWN_COLUMNS: [&str; 20] = [
    "tenant_id",
    "mobile_id",
    "item_id",
    "parent_id",
    "version",
    "deleted",
    "doc",
    "sync_status",
    "last_sync_timestamp",
    "owner_id",
    "created_at",
    "user_id",
    "device_id",
    "device_type",
    "updated_at",
    "run_from",
    "ahead_base",
    "audience",
    "partition",
    "offset",
];

/// Members that every item may carry; a definition does not list them.
pub(crate) const ENVELOPE_FIELDS: [&str; 6] = [
    "mobile_id",
    "version",
    "sync_status",
    "last_sync_timestamp",
    "client_timestamp",
    "updated_at",
];

/// The defaults, and the status that a record begins in.
fn initial(fields: &[Field], status: Option<&StateMachine>) -> Doc {
    let status = status.map(|status| (status.field.clone(), status.initial.as_str().into()));
    let defaults = fields
        .iter()
        .filter_map(|field| Some((field.name.clone(), field.default.clone()?)));
    status.into_iter().chain(defaults).collect::<Map<_, _>>().into()
}

/// Reads a definition; every defect found, the lines counted from 1.
pub fn parse(text: &str) -> Result<Domain, Vec<Defect>> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        vec![Defect {
            line,
            message: error.message().to_owned(),
        }]
    })?;
    let mut check = Check {
        text,
        defects: Vec::new(),
    };
    let personal: Vec<Spanned<String>> = file
        .fields
        .0
        .iter()
        .filter(|(_, field)| field.personal)
        .map(|(name, _)| name.clone())
        .collect();
    let domain = check.domain(file);
    for (field, why) in not_sealable(&domain) {
        if let Some(name) = personal.iter().find(|name| name.get_ref() == field) {
            check.defect(name, why);
        }
    }
    if check.defects.is_empty() {
        Ok(domain)
    } else {
        check.defects.sort_by_key(|defect| defect.line);
        Err(check.defects)
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes().iter().take(byte).filter(|b| **b == b'\n').count() + 1
}

struct Check<'a> {
    text: &'a str,
    defects: Vec<Defect>,
}

impl Check<'_> {
    fn defect<T>(&mut self, at: &Spanned<T>, message: impl Into<String>) {
        self.defects.push(Defect {
            line: line_of(self.text, at.span().start),
            message: message.into(),
        });
    }

    fn domain(&mut self, file: File) -> Domain {
        self.name(&file.domain, "domain", |b| b == b'-');
        let table = file.table.as_ref().map_or_else(
            || file.domain.get_ref().replace('-', "_"),
            |table| table.get_ref().clone(),
        );
        self.name(file.table.as_ref().unwrap_or(&file.domain), "table", |b| {
            b == b'_' || b == b'-'
        });
        self.topic(&file.topic);
        let entity = *file.kind.get_ref() == FileKind::Entity;
        self.entity_type(&file, entity);
        let fields = self.fields(&file.fields);
        let names = Names { fields: &fields };
        let policy = self.policy(file.policy.as_ref());
        for field in &file.keep {
            self.known(&names, field, "keep");
        }
        let identity = self.identity(&file, entity, &names);
        let status = file.status.as_ref().map(|status| self.status(status, &names));
        let visibility = self.visibility(&file, &names);
        if let Some(flag) = &file.delete_flag {
            self.typed(&names, flag, "delete_flag", "boolean", |kind| {
                *kind == FieldType::Boolean
            });
        }
        for order in &file.order {
            for field in [&order.earlier, &order.later] {
                self.typed(&names, field, "order", "datetime", |kind| {
                    matches!(kind, FieldType::DateTime { .. })
                });
            }
        }
        if let Some(parent) = &file.parent {
            self.typed(&names, &parent.field, "parent", "uuid", |kind| {
                *kind == FieldType::Uuid
            });
        }
        if let Some(numbering) = &file.numbering
            && names
                .get(numbering.field.get_ref())
                .is_none_or(|field| !field.read_only)
        {
            self.defect(
                &numbering.field,
                "numbering.field must name a read_only field of this file",
            );
        }
        let history = file.history.as_ref().and_then(|history| self.history(history));
        let filters = file
            .filters
            .iter()
            .filter_map(|filter| self.filter(filter, &names))
            .collect();
        Domain {
            name: file.domain.into_inner(),
            table: table.into(),
            entity_type: file.entity_type.map(Spanned::into_inner),
            kind: if entity {
                Kind::Entity
            } else {
                Kind::Telemetry {
                    replace: file.replace,
                }
            },
            topic: file.topic.into_inner(),
            policy,
            keep: file.keep.into_iter().map(Spanned::into_inner).collect(),
            identity,
            socket_key: file.socket_key,
            orders: file
                .order
                .into_iter()
                .map(|o| Order {
                    earlier: o.earlier.into_inner(),
                    later: o.later.into_inner(),
                })
                .collect(),
            parent: file.parent.map(|p| Parent {
                domain: p.domain,
                field: p.field.into_inner(),
            }),
            numbering: file.numbering.map(|n| Numbering {
                field: n.field.into_inner(),
                prefix: n.prefix,
            }),
            delete_flag: file.delete_flag.map(Spanned::into_inner),
            extra_sync_status: file.extra_sync_status,
            filters,
            visibility,
            history,
            initial: initial(&fields, status.as_ref()),
            status,
            fields,
        }
    }

    fn history(&mut self, text: &Spanned<String>) -> Option<TimeDelta> {
        let history = parse_history(text.get_ref());
        if history.is_none() {
            self.defect(
                text,
                format!(
                    "history is how many days the past is kept, \"{}d\" to \"{}d\", as \"400d\"; found {:?}",
                    HISTORY_DAYS.start(),
                    HISTORY_DAYS.end(),
                    text.get_ref()
                ),
            );
        }
        history
    }

    fn name(&mut self, name: &Spanned<String>, what: &str, also: fn(u8) -> bool) {
        let text = name.get_ref();
        let holds = text.len() <= 40
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || also(b));
        if !holds {
            self.defect(
                name,
                format!(
                    "{what} must begin with a-z and hold 1 to 40 of a-z, 0-9 and a separator; found {text:?}"
                ),
            );
        }
    }

    /// A mixed item names its record by `mobile_id` alone, which neither telemetry nor a child is found by.
    fn entity_type(&mut self, file: &File, entity: bool) {
        let Some(entity_type) = &file.entity_type else {
            return;
        };
        self.name(entity_type, "entity_type", |b| b == b'_' || b == b'-');
        if !entity || file.parent.is_some() {
            self.defect(
                entity_type,
                "entity_type is for entities without a parent: mixed batches take no others",
            );
        }
    }

    fn topic(&mut self, topic: &Spanned<String>) {
        let text = topic.get_ref();
        let holds = (1..=200).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !holds {
            self.defect(
                topic,
                format!("topic must hold 1 to 200 of A-Z, a-z, 0-9, '.', '_' and '-'; found {text:?}"),
            );
        }
    }

    fn policy(&mut self, policy: Option<&Spanned<String>>) -> Policy {
        let Some(policy) = policy else {
            return Policy::Merge;
        };
        Policy::parse(policy.get_ref()).unwrap_or_else(|| {
            let message = "policy must be one of client_wins, server_wins, most_recent_wins, preserve_escalation, merge, manual";
            self.defect(policy, message);
            Policy::Merge
        })
    }

    fn fields(&mut self, file: &FileFields) -> Vec<Field> {
        file.0
            .iter()
            .map(|(name, field)| self.field(name, field))
            .collect()
    }

    fn field(&mut self, name: &Spanned<String>, file: &FileField) -> Field {
        let text = name.get_ref();
        if ENVELOPE_FIELDS.contains(&text.as_str()) {
            self.defect(
                name,
                format!("{text} is part of every item; a definition does not list it"),
            );
        }
        if file.column && (OWN_COLUMNS.contains(&text.as_str()) || !is_column_name(text)) {
            self.defect(name, format!("{text} cannot be a column: every table has one of that name, or Postgres would not take it"));
        }
        let kind = self.field_type(file);
        if file.column
            && matches!(
                kind,
                FieldType::Point | FieldType::Strings | FieldType::Object | FieldType::Any
            )
        {
            self.defect(
                name,
                format!(
                    "{text} cannot be a column: only text, numbers, booleans, ids, enumerations and times can"
                ),
            );
        }
        let mut field = Field {
            name: text.clone(),
            kind,
            required: file.required,
            read_only: file.read_only,
            personal: file.personal,
            column: file.column,
            default: None,
        };
        if let Some(default) = &file.default {
            match serde_json::to_value(default.get_ref()) {
                Ok(value) if field.check(&value.to_string(), chrono::Utc::now()).is_ok() => {
                    field.default = Some(field.stored(value))
                }
                _ => self.defect(default, format!("default of {text} breaks the field's own rules")),
            }
        }
        field
    }

    fn field_type(&mut self, file: &FileField) -> FieldType {
        let kind = file.r#type.get_ref().as_str();
        let ranged = matches!(kind, "string" | "integer" | "number");
        for bound in [&file.min, &file.max].into_iter().flatten() {
            if !ranged {
                self.defect(
                    bound,
                    format!("min and max are for string, integer and number, not for {kind}"),
                );
            } else if kind != "number"
                && (bound.get_ref().fract() != 0.0 || (kind == "string" && *bound.get_ref() < 0.0))
            {
                self.defect(
                    bound,
                    format!("a bound of {kind} is a whole number, and a length is not negative"),
                );
            }
        }
        if let (Some(min), Some(max)) = (&file.min, &file.max)
            && min.get_ref() > max.get_ref()
        {
            self.defect(min, "min is greater than max: no value could hold");
        }
        if kind != "enum"
            && let Some(values) = &file.values
        {
            self.defect(values, format!("values are for enum, not for {kind}"));
        }
        let (min, max) = (
            file.min.as_ref().map(|m| *m.get_ref()),
            file.max.as_ref().map(|m| *m.get_ref()),
        );
        match kind {
            "string" => FieldType::Text {
                min: min.map(|m| m as usize),
                max: max.map(|m| m as usize),
            },
            "integer" => FieldType::Integer {
                min: min.map(|m| m as i64),
                max: max.map(|m| m as i64),
            },
            "number" => FieldType::Number { min, max },
            "enum" => self.enumeration(file),
            "datetime" => FieldType::DateTime {
                not_future: file.not_future,
            },
            "boolean" => FieldType::Boolean,
            "id" => FieldType::Id,
            "uuid" => FieldType::Uuid,
            "point" => FieldType::Point,
            "strings" => FieldType::Strings,
            "object" => FieldType::Object,
            "any" => FieldType::Any,
            other => {
                let all =
                    "string, enum, datetime, integer, number, boolean, id, uuid, point, strings, object, any";
                self.defect(
                    &file.r#type,
                    format!("there is no type {other:?}; there are {all}"),
                );
                FieldType::Any
            }
        }
    }

    fn enumeration(&mut self, file: &FileField) -> FieldType {
        let case = file.case.unwrap_or_default();
        let Some(values) = &file.values else {
            self.defect(&file.r#type, "an enum needs values = [\"…\"]");
            return FieldType::Any;
        };
        for value in values.get_ref() {
            let stored = match case {
                Case::Exact => value.clone(),
                Case::Upper => value.to_ascii_uppercase(),
                Case::Lower => value.to_ascii_lowercase(),
            };
            if stored != *value {
                self.defect(
                    values,
                    format!("{value:?} is not in the letter case that the enum stores"),
                );
            }
        }
        if values.get_ref().is_empty() {
            self.defect(values, "an enum without values takes nothing");
        }
        FieldType::Enum {
            values: values.get_ref().clone(),
            case,
        }
    }

    fn identity(&mut self, file: &File, entity: bool, names: &Names<'_>) -> Vec<IdentityPart> {
        if entity && (!file.identity.is_empty() || file.replace) {
            self.defect(
                &file.kind,
                "identity and replace are for telemetry; an entity is identified by its mobile_id",
            );
        }
        if !entity && file.identity.is_empty() {
            self.defect(
                &file.kind,
                "telemetry needs identity = [\"…\"]: fields (a|b: the first present), $user, $device",
            );
        }
        file.identity
            .iter()
            .map(|part| match part.get_ref().as_str() {
                "$user" => IdentityPart::User,
                "$device" => IdentityPart::Device,
                fields => {
                    let fields: Vec<String> = fields.split('|').map(str::to_owned).collect();
                    for field in &fields {
                        if names.get(field).is_none() {
                            self.defect(
                                part,
                                format!("identity names {field:?}, which is no field of this file"),
                            );
                        }
                    }
                    IdentityPart::Field(fields)
                }
            })
            .collect()
    }

    fn status(&mut self, status: &FileStatus, names: &Names<'_>) -> StateMachine {
        let values: Vec<String> = match names.get(status.field.get_ref()).map(|field| &field.kind) {
            Some(FieldType::Enum { values, .. }) => values.clone(),
            _ => {
                self.defect(
                    &status.field,
                    format!(
                        "status.field {:?} must be an enum field of this file",
                        status.field.get_ref()
                    ),
                );
                Vec::new()
            }
        };
        let unknown = |status: &Spanned<String>| !values.is_empty() && !values.contains(status.get_ref());
        if unknown(&status.initial) {
            self.defect(
                &status.initial,
                format!(
                    "initial status {:?} is not one of {}",
                    status.initial.get_ref(),
                    values.join(", ")
                ),
            );
        }
        for (from, allowed) in &status.transitions {
            for name in std::iter::once(from).chain(allowed) {
                if unknown(name) {
                    self.defect(
                        name,
                        format!(
                            "transition names {:?}, which is not one of {}",
                            name.get_ref(),
                            values.join(", ")
                        ),
                    );
                }
            }
        }
        StateMachine {
            field: status.field.get_ref().clone(),
            initial: status.initial.get_ref().clone(),
            transitions: status
                .transitions
                .iter()
                .map(|(from, allowed)| {
                    (
                        from.get_ref().clone(),
                        allowed.iter().map(|to| to.get_ref().clone()).collect(),
                    )
                })
                .collect(),
        }
    }

    fn visibility(&mut self, file: &File, names: &Names<'_>) -> Visibility {
        if file.parent.is_some() {
            return Visibility::Parent;
        }
        let Some(spanned) = &file.visibility else {
            return Visibility::Tenant;
        };
        let visibility = spanned.get_ref();
        match visibility.rule.get_ref().as_str() {
            "tenant" => Visibility::Tenant,
            "owner" => {
                let mut readers = Vec::new();
                for who in &visibility.readers {
                    match who.get_ref().strip_prefix("role:").and_then(Role::parse) {
                        Some(role) => readers.push(role),
                        None => self.defect(
                            who,
                            "readers of rule \"owner\" are \"role:supervisor\" or \"role:operator\"",
                        ),
                    }
                }
                Visibility::Owner { readers }
            }
            "scoped" => self.scoped(spanned, names),
            other => {
                self.defect(
                    &visibility.rule,
                    format!("there is no visibility rule {other:?}; there are tenant, owner, scoped"),
                );
                Visibility::Tenant
            }
        }
    }

    fn scoped(&mut self, spanned: &Spanned<FileVisibility>, names: &Names<'_>) -> Visibility {
        let visibility = spanned.get_ref();
        let Some(field) = &visibility.field else {
            self.defect(spanned, "visibility rule \"scoped\" needs field = \"…\"");
            return Visibility::Tenant;
        };
        match names.get(field.get_ref()) {
            Some(Field {
                kind: FieldType::Enum { values, .. },
                default: Some(_),
                ..
            }) => {
                for value in values {
                    if !visibility.scopes.keys().any(|scope| scope.get_ref() == value) {
                        self.defect(
                            spanned,
                            format!("visibility says nothing of {} = {value:?}", field.get_ref()),
                        );
                    }
                }
            }
            _ => self.defect(field, "visibility.field must be an enum field with a default"),
        }
        let mut scopes = BTreeMap::new();
        for (value, scope) in &visibility.scopes {
            let read = self.whos(&scope.read, names);
            let write = self.whos(&scope.write, names);
            scopes.insert(value.get_ref().clone(), Scope { read, write });
        }
        Visibility::Scoped {
            field: field.get_ref().clone(),
            scopes,
        }
    }

    fn whos(&mut self, texts: &[Spanned<String>], names: &Names<'_>) -> Vec<Who> {
        let mut whos = Vec::new();
        for text in texts {
            match Who::parse(text.get_ref()) {
                Some(Who::Listed(field))
                    if names
                        .get(&field)
                        .is_none_or(|field| field.kind != FieldType::Strings) =>
                {
                    self.defect(
                        text,
                        format!("{field:?} must be a field of type strings in this file"),
                    );
                }
                Some(who) => whos.push(who),
                None => self.defect(
                    text,
                    "an audience is \"everyone\", \"role:<role>\" or \"field:<name>\"",
                ),
            }
        }
        whos
    }

    fn filter(&mut self, filter: &Spanned<FileFilter>, names: &Names<'_>) -> Option<Filter> {
        match filter.get_ref() {
            FileFilter::Equals(field) if names.get(field).is_some() => Some(Filter::Equals {
                parameter: field.clone(),
                field: field.clone(),
            }),
            FileFilter::Renamed { parameter, equals } if names.get(equals).is_some() => {
                Some(Filter::Equals {
                    parameter: parameter.clone(),
                    field: equals.clone(),
                })
            }
            FileFilter::From { parameter, from }
                if names
                    .get(from)
                    .is_some_and(|f| matches!(f.kind, FieldType::DateTime { .. })) =>
            {
                Some(Filter::From {
                    parameter: parameter.clone(),
                    field: from.clone(),
                })
            }
            FileFilter::Equals(field) | FileFilter::Renamed { equals: field, .. } => {
                self.defect(
                    filter,
                    format!("filter names {field:?}, which is no field of this file"),
                );
                None
            }
            FileFilter::From { from, .. } => {
                self.defect(
                    filter,
                    format!("filter names {from:?}, which is no datetime field of this file"),
                );
                None
            }
        }
    }

    fn known(&mut self, names: &Names<'_>, field: &Spanned<String>, what: &str) {
        if names.get(field.get_ref()).is_none() {
            self.defect(
                field,
                format!(
                    "{what} names {:?}, which is no field of this file",
                    field.get_ref()
                ),
            );
        }
    }

    fn typed(
        &mut self,
        names: &Names<'_>,
        field: &Spanned<String>,
        what: &str,
        kind: &str,
        holds: fn(&FieldType) -> bool,
    ) {
        if names.get(field.get_ref()).is_none_or(|field| !holds(&field.kind)) {
            self.defect(
                field,
                format!(
                    "{what} must name a {kind} field of this file; found {:?}",
                    field.get_ref()
                ),
            );
        }
    }
}

/// A phone may well be away for some days.
const HISTORY_DAYS: std::ops::RangeInclusive<i64> = 7..=36_500;

/// Days; in builds for tests seconds too, since nobody waits for a week.
fn parse_history(text: &str) -> Option<TimeDelta> {
    if cfg!(debug_assertions)
        && let Some(seconds) = text.strip_suffix('s')
    {
        return seconds
            .parse()
            .ok()
            .filter(|s| *s > 0)
            .and_then(TimeDelta::try_seconds);
    }
    let days: i64 = text.strip_suffix('d')?.parse().ok()?;
    HISTORY_DAYS.contains(&days).then(|| TimeDelta::days(days))
}

struct Names<'a> {
    fields: &'a [Field],
}

impl<'a> Names<'a> {
    fn get(&self, name: &str) -> Option<&'a Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Names that need no more than quoting in Postgres.
fn is_column_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
