//! `GET /api/v1/conflicts` and `GET /api/v1/conflicts/{id}`: what became of the items that were behind their records.
//! The list is in the order of the log's time, and for people: partitions commit each for themselves, so a conflict may
//! turn up behind a place that a page has passed. Whoever must miss nothing follows the feed. Must not know who may see
//! what: `reading` says whose eyes these are, and the statements look.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tidelog_events::domain::Registry;
use tidelog_events::ids::{DeviceId, TenantId, UserId};
use tidelog_events::resolution::{Decided, KnownConflict};
use tidelog_events::token::{self, TokenError};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::FeedError;
use crate::filter;
use crate::opening::{Closed, Opener};
use crate::page::instant;
use crate::query::Query;
use crate::reading::{Effort, Sight};
use crate::sql::ConflictStatements;
use crate::store::{Parameter, Store};

const ABSENT: FeedError = FeedError::NotFound("there is no such conflict for you");

/// The last microsecond that an RFC 3339 time can say: 9999-12-31T23:59:59.999999Z.
const LAST_MICROSECOND: i64 = 253_402_300_799_999_999;

/// What conflicts are read with.
pub(crate) struct Conflicts<'a> {
    pub(crate) store: &'a Store,
    /// What opens sealed values; none where nothing is sealed.
    pub(crate) opener: Option<&'a Opener>,
    pub(crate) registry: &'a Registry,
    pub(crate) statements: &'a ConflictStatements,
    pub(crate) tenant: &'a TenantId,
    pub(crate) sight: Sight,
}

/// A place in the list: the conflict that was passed last.
type Place = (DateTime<Utc>, Uuid);

/// A place as its cursor holds it.
#[derive(Debug, Serialize, Deserialize)]
struct Passed {
    /// Microseconds since 1970.
    #[serde(rename = "t")]
    at: i64,
    #[serde(rename = "i")]
    id: Uuid,
}

/// What a list asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    after: Place,
    until: DateTime<Utc>,
    limit: usize,
    domain: Option<String>,
    device: Option<String>,
    open: Option<bool>,
}

#[derive(Serialize)]
struct Conflict<'a> {
    conflict_id: Uuid,
    domain: &'a str,
    mobile_id: Uuid,
    status: &'static str,
    resolution: &'a str,
    winner: &'a str,
    client_version: i64,
    server_version: i64,
    result_version: i64,
    user: &'a str,
    device: &'a str,
    operation: &'a str,
    occurred_at: String,
    client_timestamp: String,
    server_timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved: Option<Resolved<'a>>,
    // Told of one conflict, and not in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_doc: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_doc: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'a RawValue>,
}

/// What a person decided.
#[derive(Serialize)]
struct Resolved<'a> {
    strategy: &'a str,
    user: &'a str,
    device: &'a str,
    at: String,
    /// The record's version afterwards.
    version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct List<'a> {
    items: Vec<Conflict<'a>>,
    has_more: bool,
    cursor: Option<String>,
}

impl Asked {
    pub(crate) fn of(query: &Query, tenant: &TenantId, registry: &Registry) -> Result<Asked, FeedError> {
        let since = moment(query, "since")?.unwrap_or(DateTime::UNIX_EPOCH);
        let latest = DateTime::from_timestamp_micros(LAST_MICROSECOND).unwrap_or(DateTime::<Utc>::MAX_UTC);
        // The last place before the time, so that the time itself is told.
        let start = (since - TimeDelta::microseconds(1), Uuid::max());
        let after = match query.parameter("cursor")? {
            Some(text) => opened(text, tenant).map_err(FeedError::PageCursor)?.max(start),
            None => start,
        };
        let domain = query.parameter("domain")?;
        if domain.is_some_and(|name| registry.by_name(name).is_none()) {
            return Err(FeedError::parameter(
                "domain",
                "must be the name of a domain here",
            ));
        }
        let device = query.parameter("device")?.map(DeviceId::parse).transpose();
        let device =
            device.map_err(|error| FeedError::parameter("device", format!("must be {}", error.rule)))?;
        Ok(Asked {
            after,
            until: moment(query, "until")?.unwrap_or(latest),
            limit: query.limit()?,
            domain: domain.map(str::to_owned),
            device: device.map(String::from),
            open: match query.parameter("status")? {
                None => None,
                Some("open") => Some(true),
                Some("decided") => Some(false),
                Some(_) => return Err(FeedError::parameter("status", "must be open or decided")),
            },
        })
    }
}

impl Conflicts<'_> {
    /// One page. Where few of many are for the page, it ends before it is full, so that the work has a bound.
    pub(crate) async fn list(&self, asked: &Asked) -> Result<String, FeedError> {
        let (mut passed, mut told, mut effort) = (asked.after, Vec::new(), Effort::new());
        let has_more = 'reading: loop {
            let most = effort.next(asked.limit - told.len());
            let rows = self.next(asked, passed, most).await?;
            let (brought, had) = (rows.len(), told.len());
            for row in rows {
                let for_the_page: bool = row.try_get("told")?;
                if for_the_page && told.len() == asked.limit {
                    break 'reading true;
                }
                passed = (row.try_get("occurred_at")?, row.try_get("conflict_id")?);
                if for_the_page {
                    told.push(row);
                }
            }
            effort.note(brought, told.len() - had);
            if brought < most {
                break false;
            }
            if effort.is_enough() {
                break true;
            }
        };
        let list = List {
            items: told.iter().map(conflict).collect::<Result<_, _>>()?,
            has_more,
            cursor: has_more.then(|| sealed(passed, self.tenant)),
        };
        serde_json::to_string(&list).map_err(|error| unreadable(&error))
    }

    async fn next(&self, asked: &Asked, after: Place, most: usize) -> Result<Vec<Row>, FeedError> {
        let (tenant, most) = (self.tenant.as_str(), most as i64);
        let values: [Parameter<'_>; 11] = [
            &tenant,
            &self.sight.user,
            &self.sight.whole,
            &self.sight.tokens,
            &after.0,
            &after.1,
            &asked.until,
            &most,
            &asked.domain,
            &asked.device,
            &asked.open,
        ];
        self.store.query(&self.statements.list, &values).await
    }

    /// One with both its documents.
    pub(crate) async fn one(&self, id: &str) -> Result<String, FeedError> {
        let id = Uuid::try_parse(id).map_err(|_| FeedError::parameter("id", "must be a UUID"))?;
        let row = self.row(id).await?.ok_or(ABSENT)?;
        let text = |column| Ok::<_, FeedError>(raw(&row, column)?.get().to_owned());
        let (mut client, mut server) = (text("client_doc")?, text("server_doc")?);
        let domain = self.registry.by_name(row.try_get("domain")?);
        if let Some((opener, domain)) = self.opener.zip(domain) {
            let record: Uuid = row.try_get("mobile_id")?;
            let closed = [&mut client, &mut server].map(|json| Closed {
                domain,
                subject: record.to_string(),
                json,
            });
            opener.open(self.tenant.as_str(), closed.into()).await?;
        }
        told_whole(&row, &client, &server)
    }

    /// One as a resolution of it needs it; none that the caller may not see.
    pub(crate) async fn known(
        &self,
        id: Uuid,
        registry: &Registry,
    ) -> Result<Option<KnownConflict>, FeedError> {
        let Some(row) = self.row(id).await? else {
            return Ok(None);
        };
        known(&row, registry).map(Some)
    }

    async fn row(&self, id: Uuid) -> Result<Option<Row>, FeedError> {
        let tenant = self.tenant.as_str();
        let values: [Parameter<'_>; 5] = [
            &tenant,
            &self.sight.user,
            &self.sight.whole,
            &self.sight.tokens,
            &id,
        ];
        let rows = self.store.query(&self.statements.one, &values).await?;
        Ok(rows.into_iter().next())
    }
}

fn told_whole(row: &Row, client: &str, server: &str) -> Result<String, FeedError> {
    let mut conflict = conflict(row)?;
    if let Some(resolved) = &mut conflict.resolved {
        resolved.kept = Some(raw(row, "resolved_kept")?);
    }
    let conflict = Conflict {
        record_version: row.try_get("record_version")?,
        client_doc: Some(serde_json::from_str(client).map_err(|error| unreadable(&error))?),
        server_doc: Some(serde_json::from_str(server).map_err(|error| unreadable(&error))?),
        kept: Some(raw(row, "kept")?),
        ..conflict
    };
    serde_json::to_string(&conflict).map_err(|error| unreadable(&error))
}

fn known(row: &Row, registry: &Registry) -> Result<KnownConflict, FeedError> {
    let told = conflict(row)?;
    let occurred_at: DateTime<Utc> = row.try_get("occurred_at")?;
    let resolved_at: Option<DateTime<Utc>> = row.try_get("resolved_at")?;
    let decided = (told.status == "decided").then(|| Decided {
        by: told
            .resolved
            .as_ref()
            .map_or(told.resolution, |resolved| resolved.strategy)
            .to_owned(),
        user: told.resolved.as_ref().map(|resolved| resolved.user.to_owned()),
        at: resolved_at.unwrap_or(occurred_at),
    });
    // Which parent it hangs on is in the item, as the device spelled it.
    let field = registry
        .by_name(told.domain)
        .and_then(|domain| domain.parent.as_ref());
    let client_doc: Value =
        serde_json::from_str(raw(row, "client_doc")?.get()).map_err(|error| unreadable(&error))?;
    let parent = field
        .and_then(|parent| client_doc.get(&parent.field)?.as_str())
        .and_then(|text| Uuid::try_parse(text).ok());
    Ok(KnownConflict {
        domain: told.domain.to_owned(),
        mobile_id: told.mobile_id,
        parent,
        user: UserId::parse(told.user).map_err(|error| {
            tracing::error!(%error, "a conflict names no user");
            FeedError::Statement
        })?,
        server_version: told.server_version,
        decided,
    })
}

fn conflict(row: &Row) -> Result<Conflict<'_>, FeedError> {
    let winner: &str = row.try_get("winner")?;
    Ok(Conflict {
        conflict_id: row.try_get("conflict_id")?,
        domain: row.try_get("domain")?,
        mobile_id: row.try_get("mobile_id")?,
        status: if winner == "none" { "open" } else { "decided" },
        resolution: row.try_get("policy")?,
        winner,
        client_version: row.try_get("client_version")?,
        server_version: row.try_get("server_version")?,
        result_version: row.try_get("result_version")?,
        user: row.try_get("user_id")?,
        device: row.try_get("device_id")?,
        operation: row.try_get("operation")?,
        occurred_at: instant(row.try_get("occurred_at")?),
        client_timestamp: instant(row.try_get("client_time")?),
        server_timestamp: instant(row.try_get("server_time")?),
        resolved: resolved(row)?,
        record_version: None,
        client_doc: None,
        server_doc: None,
        kept: None,
    })
}

fn resolved(row: &Row) -> Result<Option<Resolved<'_>>, FeedError> {
    let Some(strategy) = row.try_get("strategy")? else {
        return Ok(None);
    };
    Ok(Some(Resolved {
        strategy,
        user: row.try_get("resolved_by")?,
        device: row.try_get("resolved_device_id")?,
        at: instant(row.try_get("resolved_at")?),
        version: row.try_get("resolved_version")?,
        kept: None,
    }))
}

/// JSON as Postgres writes it, passed on as it is.
fn raw<'a>(row: &'a Row, column: &str) -> Result<&'a RawValue, FeedError> {
    let text: Option<&str> = row.try_get(column)?;
    serde_json::from_str(text.unwrap_or("null")).map_err(|error| unreadable(&error))
}

fn moment(query: &Query, name: &str) -> Result<Option<DateTime<Utc>>, FeedError> {
    let Some(text) = query.parameter(name)? else {
        return Ok(None);
    };
    match filter::time(text) {
        Some(time) => Ok(Some(time)),
        None => Err(FeedError::parameter(
            name,
            "must be an RFC 3339 time, as 2026-01-31T09:30:00Z",
        )),
    }
}

fn sealed((at, id): Place, tenant: &TenantId) -> String {
    let at = at.timestamp_micros();
    token::seal(&["conflicts", tenant.as_str()], &Passed { at, id })
}

fn opened(text: &str, tenant: &TenantId) -> Result<Place, TokenError> {
    let passed: Passed = token::open(&["conflicts", tenant.as_str()], text)?;
    DateTime::from_timestamp_micros(passed.at)
        .filter(|_| (0..=LAST_MICROSECOND).contains(&passed.at))
        .map(|at| (at, passed.id))
        .ok_or(TokenError::NotOurs)
}

fn unreadable(error: &serde_json::Error) -> FeedError {
    tracing::error!(%error, "a conflict cannot be told");
    FeedError::Statement
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Result<Asked, String> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let tenant = TenantId::parse("acme").expect("a tenant");
        Asked::of(&Query(pairs.collect()), &tenant, &Registry::shipped()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cursor_leads_on_for_its_tenant_alone_and_never_before_since() {
        let (acme, other) = (
            TenantId::parse("acme").expect("a"),
            TenantId::parse("other").expect("b"),
        );
        let at: DateTime<Utc> = "2026-01-31T09:30:00.123456Z".parse().expect("a time");
        let text = sealed((at, Uuid::max()), &acme);
        assert_eq!(opened(&text, &acme), Ok((at, Uuid::max())));
        assert_eq!(opened(&text, &other), Err(TokenError::NotOurs));
        let later = asked(&[("cursor", &text), ("since", "2027-01-01T00:00:00Z")]).expect("a list");
        assert_eq!(later.after.0.to_rfc3339(), "2026-12-31T23:59:59.999999+00:00");
        let forged = Passed {
            at: i64::MAX,
            id: Uuid::nil(),
        };
        assert!(opened(&token::seal(&["conflicts", "acme"], &forged), &acme).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_told_by_its_name() {
        for (name, value) in [
            ("status", "closed"),
            ("domain", "nowhere"),
            ("device", "x"),
            ("since", "yesterday"),
            ("until", ""),
            ("limit", "0"),
            ("cursor", "null"),
        ] {
            let told = asked(&[(name, value)]).expect_err("a bad parameter");
            assert!(told.contains(name), "{name}: {told}");
        }
        let asked = asked(&[("status", "open"), ("device", "phone-1")]).expect("a list");
        assert_eq!((asked.open, asked.limit), (Some(true), 100));
    }
}
