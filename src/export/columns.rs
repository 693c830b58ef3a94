//! The columns of an export, the same for all formats: what each is called, what it holds, and where it comes from. One
//! row is one record of the log. Knows no file and no format.

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidelog_events::domain::{Domain, Field, FieldType, parse_datetime};
use tidelog_events::envelope::Event;
use tidelog_events::ids::TenantId;
use tidelog_events::outcome::{Change, Outcome};
use uuid::Uuid;

use super::payload::Payload;
use crate::look::became::{Became, Undecided};
use crate::look::seen::Seen;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whole numbers of 32 bits.
    Int32,
    /// Whole numbers of 64 bits.
    Int64,
    /// Doubles.
    Double,
    /// `true` or `false`.
    Boolean,
    /// UTF-8.
    Text,
    /// Times in UTC, to the millisecond, as the log has them.
    Millis,
    /// Times in UTC, to the microsecond, as devices and Postgres have them.
    Micros,
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    /// None.
    Null,
    /// Of [`Kind::Int32`] or [`Kind::Int64`].
    Integer(i64),
    /// Of [`Kind::Double`].
    Number(f64),
    /// Of [`Kind::Boolean`].
    Boolean(bool),
    /// Of [`Kind::Text`].
    Text(String),
    /// Of [`Kind::Millis`] or [`Kind::Micros`].
    Time(DateTime<Utc>),
}

/// A column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// What it holds.
    pub(super) kind: Kind,
    /// Whether every row has it.
    pub(super) required: bool,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Told(fn(&Told<'_>) -> Cell),
    /// A promoted field of the domain, as the item gives it.
    Field(Box<Field>),
}

/// Everything that is known of a record.
pub(super) struct Told<'a> {
    seen: &'a Seen,
    tenant: Option<&'a TenantId>,
    payload: &'a Payload,
    flat: Flat<'a>,
}

impl<'a> Told<'a> {
    /// The tenant is the event's, or where the headers cannot be read what is left of them tells.
    pub(super) fn of(
        seen: &'a Seen,
        tenant: Option<&'a TenantId>,
        payload: &'a Payload,
        became: &'a Became,
    ) -> Told<'a> {
        Told {
            seen,
            tenant,
            payload,
            flat: flat(became),
        }
    }

    fn event<T>(&self, of: impl FnOnce(&Event) -> T) -> Option<T> {
        self.seen.event.as_ref().ok().map(|(event, _)| of(event))
    }
}

/// The columns of a domain's export, in their order: those of every event, then its promoted fields under `field_…`.
pub(super) fn of(domain: &Domain) -> Vec<Column> {
    let fixed = COLUMNS.iter().map(|(name, kind, required, source)| Column {
        name: (*name).to_owned(),
        kind: *kind,
        required: *required,
        source: Source::Told(*source),
    });
    let promoted = domain.columns().map(|field| Column {
        name: format!("field_{}", field.name),
        kind: kind_of(&field.kind),
        required: false,
        source: Source::Field(Box::new(field.clone())),
    });
    fixed.chain(promoted).collect()
}

/// A record's row.
pub(super) fn row(columns: &[Column], told: &Told<'_>) -> Vec<Cell> {
    let cell = |column: &Column| match &column.source {
        Source::Told(of) => of(told),
        Source::Field(field) => promoted(field, told.payload),
    };
    columns.iter().map(cell).collect()
}

type Fixed = (&'static str, Kind, bool, fn(&Told<'_>) -> Cell);

const COLUMNS: [Fixed; 36] = [
    ("topic", Kind::Text, true, |told| text(Some(&told.seen.at.topic))),
    ("partition", Kind::Int32, true, |told| {
        Cell::Integer(told.seen.at.partition.into())
    }),
    ("offset", Kind::Int64, true, |told| {
        Cell::Integer(told.seen.offset)
    }),
    ("log_time", Kind::Millis, true, |told| {
        Cell::Time(told.seen.log_time)
    }),
    ("event_id", Kind::Text, false, |told| {
        text(told.event(|event| event.id))
    }),
    ("type", Kind::Text, false, |told| {
        text(told.event(|event| format!("tidelog.{}.{}", event.table, event.operation.as_str())))
    }),
    ("domain", Kind::Text, false, |told| {
        text(told.seen.event.as_ref().ok().map(|(_, domain)| &domain.name))
    }),
    ("operation", Kind::Text, false, |told| {
        text(told.event(|event| event.operation.as_str()))
    }),
    ("tenant", Kind::Text, false, |told| text(told.tenant)),
    ("user", Kind::Text, false, |told| {
        text(told.event(|event| event.user.clone()))
    }),
    ("device", Kind::Text, false, |told| {
        text(told.event(|event| event.device.clone()))
    }),
    ("device_type", Kind::Text, false, |told| {
        text(told.event(|event| event.device_type.clone()).flatten())
    }),
    ("role", Kind::Text, false, |told| {
        text(told.event(|event| event.role.as_str()))
    }),
    ("record", Kind::Text, false, |told| {
        text(told.event(|event| event.subject.clone()))
    }),
    ("base_version", Kind::Int64, false, |told| {
        integer(told.event(|event| event.base))
    }),
    ("policy", Kind::Text, false, |told| {
        text(told.event(|event| event.policy.as_str()))
    }),
    ("batch_id", Kind::Text, false, |told| {
        text(told.event(|event| event.batch.0))
    }),
    ("batch_index", Kind::Int32, false, |told| {
        integer(told.event(|event| event.index.into()))
    }),
    ("item_time", Kind::Micros, false, |told| {
        told.event(|event| event.time).map_or(Cell::Null, Cell::Time)
    }),
    ("client_time", Kind::Text, false, |told| {
        text(told.event(|event| event.client_time.clone()).flatten())
    }),
    ("outcome", Kind::Text, true, |told| text(Some(told.flat.outcome))),
    ("change", Kind::Text, false, |told| text(told.flat.change)),
    ("version", Kind::Int64, false, |told| integer(told.flat.version)),
    ("first_outcome", Kind::Text, false, |told| {
        text(told.flat.first_outcome)
    }),
    ("error_code", Kind::Text, false, |told| text(told.flat.error_code)),
    ("error_field", Kind::Text, false, |told| {
        text(told.flat.error_field)
    }),
    ("error_rule", Kind::Text, false, |told| text(told.flat.error_rule)),
    ("reason", Kind::Text, false, |told| text(told.flat.reason)),
    ("conflict_id", Kind::Text, false, |told| {
        text(told.flat.conflict_id)
    }),
    ("conflict_policy", Kind::Text, false, |told| {
        text(told.flat.conflict_policy)
    }),
    ("conflict_winner", Kind::Text, false, |told| {
        text(told.flat.conflict_winner)
    }),
    ("conflict_client_version", Kind::Int64, false, |told| {
        integer(told.flat.client_version)
    }),
    ("resolution", Kind::Text, false, |told| text(told.flat.resolution)),
    ("unreadable", Kind::Text, false, |told| {
        text(told.seen.event.as_ref().err())
    }),
    ("payload", Kind::Text, false, |told| {
        text(told.payload.text.as_deref())
    }),
    ("payload_encoding", Kind::Text, false, |told| {
        text(told.payload.encoding)
    }),
];

fn text(value: Option<impl ToString>) -> Cell {
    value.map_or(Cell::Null, |value| Cell::Text(value.to_string()))
}

fn integer(value: Option<i64>) -> Cell {
    value.map_or(Cell::Null, Cell::Integer)
}

/// As the promoted columns of the domain's table.
fn kind_of(kind: &FieldType) -> Kind {
    match kind {
        FieldType::Integer { .. } => Kind::Int64,
        FieldType::Number { .. } => Kind::Double,
        FieldType::Boolean => Kind::Boolean,
        FieldType::DateTime { .. } => Kind::Micros,
        _ => Kind::Text,
    }
}

/// What the item says of a promoted field; null where it says nothing, or nothing of its type.
fn promoted(field: &Field, payload: &Payload) -> Cell {
    let Some(value) = payload.member(&field.name) else {
        return Cell::Null;
    };
    let cell = match (kind_of(&field.kind), value) {
        (_, Value::Null) => None,
        (Kind::Int64, value) => value.as_i64().map(Cell::Integer),
        (Kind::Double, value) => value.as_f64().map(Cell::Number),
        (Kind::Boolean, value) => value.as_bool().map(Cell::Boolean),
        (Kind::Micros, value) => value.as_str().and_then(parse_datetime).map(Cell::Time),
        (_, value) => Some(match field.stored(value.clone()) {
            Value::String(text) => Cell::Text(text),
            other => Cell::Text(other.to_string()),
        }),
    };
    cell.unwrap_or(Cell::Null)
}

/// An outcome with its parts side by side.
#[derive(Default)]
struct Flat<'a> {
    outcome: &'static str,
    change: Option<&'static str>,
    version: Option<i64>,
    first_outcome: Option<&'static str>,
    error_code: Option<&'static str>,
    error_field: Option<&'a str>,
    error_rule: Option<&'a str>,
    reason: Option<&'a str>,
    conflict_id: Option<Uuid>,
    conflict_policy: Option<&'static str>,
    conflict_winner: Option<&'static str>,
    client_version: Option<i64>,
    resolution: Option<&'static str>,
}

fn flat(became: &Became) -> Flat<'_> {
    let named = |outcome| Flat {
        outcome,
        ..Flat::default()
    };
    match became {
        Became::Decided(outcome) => decided(outcome),
        Became::Undecided(Undecided::Pending) => named("pending"),
        Became::Undecided(Undecided::Unknown) => named("unknown"),
        Became::Undecided(Undecided::NotKept) => named("not_kept"),
        // Its status is not told: an operator may change it, and the same range has to give the same file.
        Became::Undecided(Undecided::DeadLetter { reason, .. }) => Flat {
            reason: Some(reason),
            ..named("dead_letter")
        },
    }
}

fn decided(outcome: &Outcome) -> Flat<'_> {
    match outcome {
        Outcome::Applied { change, version } => Flat {
            outcome: "applied",
            change: Some(change_name(*change)),
            version: Some(*version),
            ..Flat::default()
        },
        Outcome::NoEffect { version } => Flat {
            outcome: "no_effect",
            version: *version,
            ..Flat::default()
        },
        Outcome::Conflict {
            conflict_id,
            policy,
            winner,
            server_version,
            client_version,
        } => Flat {
            outcome: "conflict",
            version: Some(*server_version),
            conflict_id: Some(*conflict_id),
            conflict_policy: Some(policy.as_str()),
            conflict_winner: Some(winner.as_str()),
            client_version: Some(*client_version),
            ..Flat::default()
        },
        // It made nothing, so it has no version; what else is told is the first one's.
        Outcome::Duplicate { first } => {
            let first = decided(first);
            Flat {
                outcome: "duplicate",
                first_outcome: Some(first.outcome),
                change: None,
                version: None,
                ..first
            }
        }
        Outcome::Resolved {
            conflict_id,
            strategy,
            winner,
            version,
        } => Flat {
            outcome: "resolved",
            version: Some(*version),
            conflict_id: Some(*conflict_id),
            conflict_winner: Some(winner.as_str()),
            resolution: Some(strategy.as_str()),
            ..Flat::default()
        },
        Outcome::Refused { error } => Flat {
            outcome: "refused",
            error_code: Some(error.error_code.as_str()),
            error_field: error.field.as_deref(),
            error_rule: error.rule.as_deref(),
            reason: Some(&error.error_message),
            ..Flat::default()
        },
    }
}

fn change_name(change: Change) -> &'static str {
    match change {
        Change::Created => "created",
        Change::Updated => "updated",
        Change::Deleted => "deleted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_events::domain::Registry;
    use tidelog_events::error::ItemError;

    fn helpdesk() -> Vec<Column> {
        of(Registry::shipped().by_name("helpdesk").expect("it ships"))
    }

    #[test]
    fn names_are_unique_in_any_letter_case() {
        for domain in Registry::shipped().iter() {
            let mut names: Vec<String> = of(domain).iter().map(|c| c.name.to_lowercase()).collect();
            names.sort();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{}", domain.name);
        }
    }

    #[test]
    fn promoted_fields_are_typed_and_what_is_of_another_type_is_null() {
        let value = |name: &str, item: &str| {
            let column = helpdesk()
                .into_iter()
                .find(|column| column.name == name)
                .expect(name);
            let payload = Payload::of(Some(item.as_bytes()));
            match column.source {
                Source::Field(field) => promoted(&field, &payload),
                Source::Told(_) => panic!("{name} is no promoted field"),
            }
        };
        // As it is stored, so that the same status is one group.
        assert_eq!(
            value("field_status", r#"{"status":"closed"}"#),
            Cell::Text("CLOSED".into())
        );
        assert_eq!(value("field_bu", r#"{"bu":7}"#), Cell::Text("7".into()));
        assert_eq!(
            value("field_escalation_level", r#"{"escalation_level":2}"#),
            Cell::Integer(2)
        );
        for nothing in [
            "{}",
            r#"{"escalation_level":null}"#,
            r#"{"escalation_level":"two"}"#,
            "no JSON",
            "[]",
        ] {
            assert_eq!(value("field_escalation_level", nothing), Cell::Null, "{nothing}");
        }
    }

    #[test]
    fn a_duplicate_tells_what_the_first_was_and_made_no_version() {
        let first = Outcome::Applied {
            change: Change::Created,
            version: 4,
        };
        let again = Became::Decided(Outcome::Duplicate {
            first: Box::new(first),
        });
        let told = flat(&again);
        assert_eq!(
            (told.outcome, told.first_outcome, told.version, told.change),
            ("duplicate", Some("applied"), None, None)
        );
        let refused = Became::Decided(Outcome::Refused {
            error: ItemError::transition("status", "CLOSED", "NEW", &[]),
        });
        assert_eq!(flat(&refused).error_code, Some("INVALID_TRANSITION"));
    }
}
