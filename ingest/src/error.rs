//! Why a batch is not taken, or a key not told. Each variant knows its HTTP status and whether a retry helps; the texts are for whoever
//! wrote the client and hold nothing of SQL, brokers or other tenants. What went wrong inside is logged where it does.

use http::StatusCode;
use tidelog_events::batch::BatchError;
use tidelog_http::Problem;
use tidelog_http::idempotency_key::KeyError;
use tidelog_http::turns::Refusal;

/// Why a batch is not taken, or a key not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// The body is no batch.
    #[error(transparent)]
    NoBatch(#[from] BatchError),
    /// Neither body nor token says which device posts.
    #[error("client_id is missing: the id of the device, since the token is not bound to one")]
    NoDevice,
    /// The body names another device than the token.
    #[error("client_id is another device than the token was given to")]
    OtherDevice,
    /// A mixed batch without a key.
    #[error("a mixed batch needs a key: the header Idempotency-Key, or idempotency_key in the body")]
    NoKey,
    /// Two keys that differ.
    #[error("the header Idempotency-Key and idempotency_key in the body are two different keys")]
    TwoKeys,
    /// The body's key is none.
    #[error("idempotency_key: {0}")]
    BadKey(KeyError),
    /// The key is known for another body.
    #[error("this idempotency key was used for another batch; a new batch needs a new key")]
    OtherBody,
    /// The same batch is being taken now.
    #[error("the same batch is being taken right now; its answer will be there soon")]
    InFlight {
        /// Seconds until asking again helps.
        retry_after: u32,
    },
    /// The key is known to nobody, or not to this caller, or was.
    #[error("there is no such idempotency key of yours")]
    UnknownKey,
    /// What is known of a key cannot be read now. Batches go on meanwhile.
    #[error("what is known of keys cannot be read now")]
    KeysUnreadable,
    /// More batches come in than this gateway can take, or more of this tenant's than its share.
    #[error("too many batches come in at once")]
    TooMuch(Refusal),
    /// The producer's queue is full: the log takes less than comes in, or nothing.
    #[error("the log does not keep up")]
    QueueFull,
    /// The log did not acknowledge all items in time.
    #[error("the log did not acknowledge the batch; send it again, nothing happens twice")]
    Undelivered,
    /// The gateway has not read yet what tenants have set.
    #[error("the gateway is starting: it has not read the settings of tenants from the log yet")]
    SettingsUnread,
    /// The gateway could not hear of destroyed keys yet.
    #[error("the gateway is starting: it does not follow the topic of keys yet")]
    SealsUnready,
    /// The gateway's secret is not the one that the deployment seals with, or it has none.
    #[error("this gateway is not set up as the others are, and cannot take personal fields; another one can")]
    OtherSecret,
    /// A defect of the service.
    #[error("the batch could not be taken")]
    Internal,
}

impl IngestError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            IngestError::NoBatch(error) => {
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST)
            }
            IngestError::NoDevice | IngestError::NoKey | IngestError::TwoKeys | IngestError::BadKey(_) => {
                StatusCode::BAD_REQUEST
            }
            IngestError::OtherDevice => StatusCode::FORBIDDEN,
            IngestError::OtherBody => StatusCode::UNPROCESSABLE_ENTITY,
            IngestError::InFlight { .. } => StatusCode::CONFLICT,
            IngestError::UnknownKey => StatusCode::NOT_FOUND,
            IngestError::TooMuch(refusal) => refusal.problem().status(),
            IngestError::KeysUnreadable
            | IngestError::QueueFull
            | IngestError::Undelivered
            | IngestError::SettingsUnread
            | IngestError::SealsUnready
            | IngestError::OtherSecret => StatusCode::SERVICE_UNAVAILABLE,
            IngestError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Seconds after which the same request may succeed; none where it never will.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            IngestError::InFlight { retry_after } => Some(*retry_after),
            IngestError::TooMuch(refusal) => Some(refusal.retry_after),
            IngestError::KeysUnreadable
            | IngestError::QueueFull
            | IngestError::SettingsUnread
            | IngestError::SealsUnready => Some(1),
            IngestError::Undelivered => Some(2),
            // Somebody has to mend it.
            IngestError::OtherSecret => Some(10),
            _ => None,
        }
    }
}

impl From<Refusal> for IngestError {
    fn from(refusal: Refusal) -> IngestError {
        IngestError::TooMuch(refusal)
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Problem {
        let detail = error.to_string();
        let retry_after = error.retry_after().unwrap_or(1);
        match &error {
            IngestError::NoBatch(BatchError::TooMany { .. }) => Problem::payload_too_large(detail),
            IngestError::NoBatch(BatchError::Malformed { line, column, .. }) => Problem::bad_request(detail)
                .with("line", *line)
                .with("column", *column),
            IngestError::NoBatch(BatchError::Member(_))
            | IngestError::NoDevice
            | IngestError::NoKey
            | IngestError::TwoKeys => Problem::bad_request(detail),
            IngestError::BadKey(error) => (*error).into(),
            IngestError::OtherDevice => Problem::forbidden(detail),
            IngestError::OtherBody => Problem::unprocessable(
                "idempotency-key-reused",
                "The idempotency key belongs to another request",
                detail,
            ),
            IngestError::InFlight { .. } => Problem::in_flight(detail, retry_after),
            IngestError::UnknownKey => Problem::not_found(detail),
            IngestError::TooMuch(refusal) => refusal.problem(),
            IngestError::KeysUnreadable
            | IngestError::QueueFull
            | IngestError::Undelivered
            | IngestError::SettingsUnread
            | IngestError::SealsUnready
            | IngestError::OtherSecret => Problem::unavailable(detail, retry_after),
            IngestError::Internal => Problem::internal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_status_and_says_whether_a_retry_helps() {
        let malformed = BatchError::Malformed {
            line: 2,
            column: 7,
            message: "x".into(),
        };
        let too_many = BatchError::TooMany {
            field: "entries",
            count: 1001,
            limit: 1000,
        };
        let too_much = |over_share| Refusal {
            over_share,
            retry_after: 2,
        };
        for (error, status, retry) in [
            (malformed.into(), 400, None),
            (BatchError::Member("entries is missing".into()).into(), 400, None),
            (too_many.into(), 413, None),
            (IngestError::NoDevice, 400, None),
            (IngestError::OtherDevice, 403, None),
            (IngestError::OtherBody, 422, None),
            (IngestError::InFlight { retry_after: 3 }, 409, Some(3)),
            (IngestError::UnknownKey, 404, None),
            (IngestError::KeysUnreadable, 503, Some(1)),
            (too_much(false).into(), 503, Some(2)),
            (too_much(true).into(), 429, Some(2)),
            (IngestError::QueueFull, 503, Some(1)),
            (IngestError::SealsUnready, 503, Some(1)),
            (IngestError::OtherSecret, 503, Some(10)),
            (IngestError::Undelivered, 503, Some(2)),
            (IngestError::Internal, 500, None),
        ] {
            assert_eq!(
                (error.status().as_u16(), error.retry_after()),
                (status, retry),
                "{error:?}"
            );
            let problem = Problem::from(error.clone());
            assert_eq!(problem.status(), error.status(), "{error:?}");
            assert_eq!(problem.is_retryable(), retry.is_some(), "{error:?}");
            let response: http::Response<bytes::Bytes> = problem.to_response();
            let header = response
                .headers()
                .get("retry-after")
                .map(|value| value.to_str().expect("text").to_owned());
            assert_eq!(header, retry.map(|seconds| seconds.to_string()), "{error:?}");
        }
    }

    #[test]
    fn what_is_not_json_is_told_where() {
        let error = BatchError::Malformed {
            line: 2,
            column: 7,
            message: "the body is not a batch in JSON".into(),
        };
        let document: serde_json::Value =
            serde_json::from_slice(&Problem::from(IngestError::from(error)).to_bytes()).expect("JSON");
        assert_eq!((&document["line"], &document["column"]), (&2.into(), &7.into()));
    }
}
