//! The query string of a read, checked: what to start from, how much, filters, what to wait for. Parameters that
//! nobody knows are passed over; a known one that is there twice or cannot be read is an error. Reads no database.

use chrono::{DateTime, Utc};
use tidelog_events::domain::Domain;
use tidelog_events::ids::TenantId;
use tidelog_events::position::Appended;
use tidelog_events::receipt::Receipt;

use crate::cursor::Cursor;
use crate::error::FeedError;
use crate::filter::{self, Values};

/// Changes a page, for who doesn't say.
const DEFAULT_LIMIT: usize = 100;

/// The most changes a page.
const MAX_LIMIT: usize = 1000;

/// Parameters and values as they came, decoded.
pub(crate) struct Query(pub(crate) Vec<(String, String)>);

/// What a pull starts from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nothing: a first sync.
    Anew,
    /// Where an earlier page ended.
    Cursor(Cursor),
    /// A time, inclusive.
    Since(DateTime<Utc>),
}

/// What a pull asks for.
#[derive(Debug)]
pub(crate) struct Pull {
    pub(crate) start: Start,
    pub(crate) limit: usize,
    pub(crate) filters: Option<Values>,
}

impl Query {
    /// The value of a parameter, if it is there.
    pub(crate) fn parameter(&self, name: &str) -> Result<Option<&str>, FeedError> {
        let mut values = self
            .0
            .iter()
            .filter(|(known, _)| known == name)
            .map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (Some(_), Some(_)) => Err(FeedError::parameter(name, "is there twice")),
            (value, _) => Ok(value),
        }
    }

    /// What a pull of that domain asks for.
    pub(crate) fn pull(&self, tenant: &TenantId, domain: &Domain) -> Result<Pull, FeedError> {
        let start = match (self.parameter("cursor")?, self.parameter("since")?) {
            (None, None) => Start::Anew,
            (Some(text), None) => Cursor::open(text, tenant, &domain.name, domain.is_entity())
                .map(Start::Cursor)
                .map_err(FeedError::Cursor)?,
            (None, Some(text)) => Start::Since(filter::time(text).ok_or_else(|| {
                FeedError::parameter("since", "must be an RFC 3339 time, as 2026-01-31T09:30:00Z")
            })?),
            (Some(_), Some(_)) => {
                return Err(FeedError::parameter(
                    "since",
                    "cannot be used with cursor: a cursor says where to go on",
                ));
            }
        };
        let filters = filter::values(domain, |name| self.parameter(name))?;
        Ok(Pull {
            start,
            limit: self.limit()?,
            filters,
        })
    }

    /// How much a page holds.
    pub(crate) fn limit(&self) -> Result<usize, FeedError> {
        match self.parameter("limit")?.map(str::parse) {
            None => Ok(DEFAULT_LIMIT),
            Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
            Some(_) => Err(FeedError::parameter(
                "limit",
                format!("must be a whole number from 1 to {MAX_LIMIT}"),
            )),
        }
    }

    /// What must be applied before the read: the places of the receipt in `wait_for`.
    pub(crate) fn wait_for(&self, tenant: &TenantId) -> Result<Option<Appended>, FeedError> {
        let Some(text) = self.parameter("wait_for")? else {
            return Ok(None);
        };
        Receipt::open(text, tenant)
            .map(|receipt| Some(receipt.appended))
            .map_err(|error| FeedError::parameter("wait_for", format!("is no receipt of yours: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_events::domain::Registry;

    fn pull(pairs: &[(&str, &str)]) -> Result<Pull, String> {
        let query = Query(
            pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
        );
        let registry = Registry::shipped();
        let tenant = TenantId::parse("acme").expect("a tenant");
        query
            .pull(&tenant, registry.by_name("helpdesk").expect("a domain"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn who_says_nothing_starts_anew_with_a_hundred() {
        let asked = pull(&[("colour", "red"), ("colour", "blue")]).expect("a pull");
        assert_eq!(
            (asked.start, asked.limit, asked.filters),
            (Start::Anew, 100, None)
        );
    }

    #[test]
    fn a_limit_out_of_range_is_refused_and_so_is_what_cannot_be_read() {
        assert_eq!(pull(&[("limit", "1000")]).map(|asked| asked.limit), Ok(1000));
        for bad in ["0", "1001", "-1", "ten", "", "1e2"] {
            assert!(
                pull(&[("limit", bad)]).is_err_and(|text| text.starts_with("limit must be")),
                "{bad:?}"
            );
        }
        assert!(pull(&[("limit", "5"), ("limit", "6")]).is_err());
        assert!(pull(&[("since", "null")]).is_err_and(|text| text.contains("RFC 3339")));
        assert!(pull(&[("cursor", "null")]).is_err_and(|text| text.contains("starts anew")));
        assert!(pull(&[("cursor", "x"), ("since", "2026-01-31T09:30:00Z")]).is_err());
    }

    #[test]
    fn a_plus_that_was_not_escaped_is_still_an_offset() {
        let asked = pull(&[("since", "2026-01-31T09:30:00 05:30")]).expect("a pull");
        assert_eq!(
            asked.start,
            Start::Since("2026-01-31T04:00:00Z".parse().expect("a time"))
        );
    }
}
