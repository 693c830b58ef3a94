//! What can go wrong with a read, as its caller is told it. The one error of this crate's boundary: each variant knows
//! its status and whether the same request may succeed later. What Postgres says goes to the log and never further.

use std::time::Duration;

use http::StatusCode;
use tidelog_events::token::TokenError;
use tidelog_http::Problem;
use tidelog_http::turns::Refusal;
use tokio_postgres::error::SqlState;

/// Seconds after which a read that found the database away is worth another try.
const RETRY_AFTER: u32 = 1;

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// No domain of that name is served here.
    #[error("there is no domain {0:?} here")]
    UnknownDomain(String),
    /// Absent, deleted, another tenant's, or not this caller's to see: one answer for all four.
    #[error("{0}")]
    NotFound(&'static str),
    /// A query parameter is not what it has to be.
    #[error("{name} {message}")]
    Parameter {
        /// The parameter.
        name: String,
        /// The rule it breaks, to follow its name.
        message: String,
    },
    /// The cursor cannot be used.
    #[error(
        "the cursor cannot be used: {0}; a pull without `cursor` and `since` starts anew with everything"
    )]
    Cursor(TokenError),
    /// What follows the cursor, or the time, is not kept any more.
    #[error(
        "what has changed since is not all kept any more; a pull without `cursor` and `since` starts anew with everything"
    )]
    GoneCursor,
    /// What became of a batch's items is not kept any more.
    #[error("what became of this batch is longer ago than is kept; the records say how they are now")]
    GoneBatch,
    /// The cursor of a list cannot be used.
    #[error("the cursor cannot be used: {0}; a request without `cursor` answers the first page")]
    PageCursor(TokenError),
    /// The cursor is of a page after which more follows, so that what its owner holds is of no one moment.
    #[error(
        "more follows after the page that this cursor came with: pull on until `has_more` is false, and ask with that page's cursor"
    )]
    Unfinished,
    /// The cursor has seen what is not applied: after a restore of the database, until the log is applied again.
    #[error("the cursor is ahead of what is applied here; ask again later")]
    Ahead,
    /// The caller asked to read its own write, and the write was not there in time.
    #[error("after {0:?} the batch of `wait_for` is not applied yet")]
    NotApplied(Duration),
    /// More is read than this gateway can serve, or more by this tenant than its share.
    #[error("too many reads come in at once")]
    TooMuch(Refusal),
    /// Something is under a key that has not been brought from the log yet.
    #[error("what was asked for cannot be opened yet: a key is still on its way")]
    KeyUnknown,
    /// The gateway's secret is not the one that the deployment seals with, or it has none.
    #[error("this gateway is not set up as the others are, and cannot open personal fields; another one can")]
    OtherSecret,
    /// Postgres is away, or too busy to be asked.
    #[error("the database cannot be reached")]
    Unavailable,
    /// Postgres refused a statement of ours: a defect here, or a schema that is not this release's.
    #[error("a statement failed")]
    Statement,
}

impl FeedError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            FeedError::UnknownDomain(_) | FeedError::NotFound(_) => StatusCode::NOT_FOUND,
            FeedError::Parameter { .. } | FeedError::Cursor(_) | FeedError::PageCursor(_) => {
                StatusCode::BAD_REQUEST
            }
            FeedError::TooMuch(refusal) => refusal.problem().status(),
            FeedError::Unfinished => StatusCode::CONFLICT,
            FeedError::GoneCursor | FeedError::GoneBatch => StatusCode::GONE,
            FeedError::NotApplied(_)
            | FeedError::Ahead
            | FeedError::Unavailable
            | FeedError::KeyUnknown
            | FeedError::OtherSecret => StatusCode::SERVICE_UNAVAILABLE,
            FeedError::Statement => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same request may succeed later, unchanged.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.status(),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        )
    }

    /// The answer.
    pub fn problem(&self) -> Problem {
        let detail = self.to_string();
        match self {
            FeedError::UnknownDomain(_) | FeedError::NotFound(_) => Problem::not_found(detail),
            FeedError::Parameter { name, .. } => {
                Problem::bad_request(detail).with("parameter", name.as_str())
            }
            FeedError::Cursor(_) | FeedError::PageCursor(_) => {
                Problem::new(self.status(), "bad-cursor", "The cursor cannot be used").detail(detail)
            }
            FeedError::GoneCursor => Problem::new(
                self.status(),
                "gone-cursor",
                "The cursor is older than what the feed keeps",
            )
            .detail(detail),
            FeedError::GoneBatch => Problem::new(
                self.status(),
                "gone-batch",
                "The batch is older than what is kept",
            )
            .detail(detail),
            FeedError::Unfinished => Problem::new(
                self.status(),
                "unfinished-cursor",
                "The cursor is of an unfinished pull",
            )
            .detail(detail),
            FeedError::NotApplied(_) | FeedError::Ahead => Problem::new(
                self.status(),
                "not-yet-applied",
                "What was to be waited for is not applied yet",
            )
            .detail(detail)
            .retry_after(RETRY_AFTER),
            FeedError::TooMuch(refusal) => refusal.problem(),
            FeedError::Unavailable | FeedError::KeyUnknown => Problem::unavailable(detail, RETRY_AFTER),
            // Somebody has to mend it.
            FeedError::OtherSecret => Problem::unavailable(detail, 10),
            FeedError::Statement => Problem::internal(),
        }
    }

    pub(crate) fn parameter(name: &str, message: impl Into<String>) -> FeedError {
        FeedError::Parameter {
            name: name.to_owned(),
            message: message.into(),
        }
    }
}

impl From<Refusal> for FeedError {
    fn from(refusal: Refusal) -> FeedError {
        FeedError::TooMuch(refusal)
    }
}

impl From<tokio_postgres::Error> for FeedError {
    fn from(error: tokio_postgres::Error) -> FeedError {
        match error.code() {
            // What the server said is about this statement, unless it is about its own state.
            Some(code) if !passing(code) => {
                tracing::error!(%error, code = code.code(), detail = ?error.as_db_error(), "a statement failed");
                FeedError::Statement
            }
            None if is_ours(&error) => {
                tracing::error!(%error, "a row is not of the shape asked for");
                FeedError::Statement
            }
            _ => {
                tracing::warn!(%error, "Postgres is away");
                FeedError::Unavailable
            }
        }
    }
}

impl From<deadpool_postgres::PoolError> for FeedError {
    fn from(error: deadpool_postgres::PoolError) -> FeedError {
        tracing::warn!(%error, "no connection to Postgres");
        FeedError::Unavailable
    }
}

/// Errors of the server that pass by themselves: connections, resources, restarts, locks.
fn passing(code: &SqlState) -> bool {
    matches!(
        code.code().get(..2),
        Some("08" | "40" | "53" | "55" | "57" | "58")
    )
}

/// Whether reading a value out of a row failed, rather than getting the row.
fn is_ours(error: &tokio_postgres::Error) -> bool {
    use std::error::Error;
    let io = error.source().is_some_and(|source| source.is::<std::io::Error>());
    !io && !error.is_closed() && error.source().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_retryable_and_says_when() {
        for error in [
            FeedError::Unavailable,
            FeedError::KeyUnknown,
            FeedError::OtherSecret,
            FeedError::NotApplied(Duration::from_secs(2)),
            FeedError::Ahead,
            FeedError::TooMuch(Refusal {
                over_share: true,
                retry_after: 2,
            }),
        ] {
            assert!(error.is_retryable());
            assert!(error.problem().is_retryable());
        }
        assert!(!FeedError::Statement.problem().is_retryable());
    }

    #[test]
    fn a_bad_cursor_says_how_to_go_on() {
        let problem = FeedError::Cursor(TokenError::NotOurs).problem();
        assert_eq!(problem.status(), 400);
        assert!(problem.to_string().contains("starts anew"), "{problem}");
        let problem = FeedError::GoneCursor.problem();
        assert_eq!((problem.status().as_u16(), problem.is_retryable()), (410, false));
        assert!(problem.to_string().contains("starts anew"), "{problem}");
    }
}
