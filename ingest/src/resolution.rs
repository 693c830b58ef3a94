//! A person's decision of a conflict, on its way to the log: one event on the topic of the record that it is about. Reads
//! the request and judges it as far as a gateway can; whether it comes in time is the fold's to say. Must not know where
//! conflicts are kept: [`FindConflict`](tidelog_events::resolution::FindConflict) finds them.

use crate::error::IngestError;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::sync::Arc;
use tidelog_events::answer::RefusedItem;
use tidelog_events::batch::BatchError;
use tidelog_events::domain::Domain;
use tidelog_events::error::{ErrorCode, ItemError};
use tidelog_events::item::{Entry, Item, MAX_VERSION, Operation, Posting, check_patch, record_key};
use tidelog_events::resolution::{Decided, KnownConflict, Resolution, Strategy};
use tidelog_http::Problem;
use uuid::Uuid;

/// The device of whoever decides without one: at a desk, with a token that is bound to none.
pub(crate) const DESK: &str = "console";

/// The type of the problem, and its title.
const DECIDED: (&str, &str) = ("conflict-decided", "The conflict was decided before");

/// The conflict that a request decides.
#[derive(Debug, Clone)]
pub struct Contested {
    /// Its id.
    pub id: Uuid,
    /// The record's domain.
    pub domain: Arc<Domain>,
    /// What is known of it.
    pub conflict: KnownConflict,
}

/// A request, read: `{"strategy", "data"?, "version"?, "client_id"?}`.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The body as it came.
    pub(crate) entry: Entry<'a>,
    /// How.
    pub(crate) strategy: Strategy,
    /// The version of the record that was decided upon, where the request says so.
    pub(crate) version: Option<i64>,
    /// The person's patch.
    data: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// Reads a body.
    pub(crate) fn read(body: &'a str) -> Result<Wanted<'a>, IngestError> {
        let raw: &RawValue = serde_json::from_str(body).map_err(|error| BatchError::Malformed {
            line: error.line(),
            column: error.column(),
            message: format!("the body is not JSON: {error}"),
        })?;
        let entry = Entry::of(raw);
        let members = entry
            .members()
            .ok_or_else(|| member("the body must be an object with a strategy"))?;
        let present = |name: &str| members.get(name).filter(|raw| *raw != "null");
        let strategy = present("strategy")
            .and_then(|raw| serde_json::from_str::<String>(raw).ok())
            .and_then(|name| Strategy::parse(&name))
            .ok_or_else(|| member("strategy must be one of client_wins, server_wins, merge, manual"))?;
        let version = present("version").map(|raw| {
            let read = serde_json::from_str::<i64>(raw).ok();
            read.filter(|version| (0..=MAX_VERSION).contains(version))
                .ok_or_else(|| {
                    member("version must be a whole number from 0: the record's, as it was decided upon")
                })
        });
        let data = present("data");
        match (strategy, data) {
            (Strategy::Manual, None) => Err(member(
                "data is missing: with manual it says what becomes of the record",
            )),
            (Strategy::Manual, Some(raw)) if !raw.starts_with('{') => Err(member("data must be an object")),
            (Strategy::Manual, _) | (_, None) => Ok(Wanted {
                strategy,
                version: version.transpose()?,
                data,
                entry,
            }),
            (_, Some(_)) => Err(member("data goes with the strategy manual alone")),
        }
    }

    /// Judges the person's patch like any item's fields, and makes the event's item.
    pub(crate) fn judge(
        &self,
        contested: &Contested,
        posting: &Posting<'_>,
    ) -> Result<Item<'static>, Box<RefusedItem>> {
        let Contested { id, domain, conflict } = contested;
        let refused = |error| {
            Box::new(RefusedItem {
                index: 0,
                subject: Some(conflict.mobile_id.to_string()),
                entity_type: None,
                error,
            })
        };
        let data = match self.data {
            None => Map::new(),
            Some(raw) => patch(domain, raw, posting).map_err(refused)?,
        };
        let resolution = Resolution {
            conflict_id: *id,
            strategy: self.strategy,
            data,
        };
        let parent = domain
            .parent
            .as_ref()
            .map(|parent| parent.field.as_str())
            .zip(conflict.parent);
        let subject = conflict.mobile_id.to_string();
        let root = conflict
            .parent
            .map_or_else(|| subject.clone(), |parent| parent.to_string());
        Ok(Item {
            raw: Cow::Owned(resolution.to_json(parent)),
            key: record_key(posting.tenant, &root),
            subject,
            operation: Operation::Resolve,
            base: self.version.unwrap_or(conflict.server_version),
            time: None,
            client_time: None,
        })
    }
}

fn patch(domain: &Domain, raw: &str, posting: &Posting<'_>) -> Result<Map<String, Value>, ItemError> {
    check_patch(domain, raw, posting)?;
    match serde_json::from_str(raw) {
        Ok(Value::Object(data)) => Ok(data),
        _ => Err(ItemError::field("data", "object", "data must be an object")),
    }
}

fn member(message: &str) -> IngestError {
    BatchError::Member(message.into()).into()
}

/// What is told of a decision that comes after another one, at once and with what that was.
pub(crate) fn decided_before(decided: &Decided) -> Problem {
    let detail = match &decided.user {
        Some(user) => format!("{user} decided this conflict by {}", decided.by),
        None => format!("the policy {} decided this conflict when it arose", decided.by),
    };
    let problem = Problem::conflict(DECIDED.0, DECIDED.1, detail)
        .with("error_code", ErrorCode::AlreadyResolved.as_str())
        .with("resolution", decided.by.clone())
        .with("decided_at", decided.at.to_rfc3339());
    match &decided.user {
        Some(user) => problem.with("decided_by", user.clone()),
        None => problem,
    }
}

/// What whoever decided is told where it could not be.
pub(crate) fn problem(error: &ItemError) -> Problem {
    let detail = error.error_message.clone();
    let problem = match error.error_code {
        ErrorCode::AlreadyResolved => Problem::conflict(DECIDED.0, DECIDED.1, detail),
        ErrorCode::RecordMoved => Problem::conflict("record-moved-on", "The record has moved on", detail),
        ErrorCode::NoConflict => Problem::not_found(detail),
        ErrorCode::Forbidden => {
            Problem::forbidden("only supervisors, operators and the user whose item it was may decide")
        }
        _ => Problem::unprocessable("resolution-refused", "The record cannot become that", detail),
    };
    let problem = problem.with("error_code", error.error_code.as_str());
    // An `ItemError` is a plain struct of texts.
    match serde_json::to_value(error) {
        Ok(told) => problem.error(told),
        Err(_) => problem,
    }
}
