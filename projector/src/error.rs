//! What can go wrong while the log is projected. Every variant says whether waiting helps: a database or broker that is
//! away does come back, a partition that was lost does not.

use tidelog_events::drill;

/// Why a projector, or one of its lanes, stopped or has to wait.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    /// Postgres is away or refused a statement.
    #[error("Postgres: {}", said(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// Kafka is away or refused a call.
    #[error("Kafka: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// Another worker owns a partition that this one meant to write.
    #[error("another worker owns a partition of this chunk")]
    Fenced,
    /// A newer release has had the partition: what it wrote must not be gone on with by this one.
    #[error(
        "partition {partition} of {topic} was written by a newer tidelog (fold {theirs}; this is {own}): upgrade this one"
    )]
    Newer {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The fold that has had it.
        theirs: i32,
        /// This build's.
        own: u32,
    },
    /// A row in Postgres is not what the fold wrote there.
    #[error("a stored row cannot be read: {0}")]
    Stored(String),
    /// The log does not hold what is asked of it.
    #[error("{0}")]
    Log(String),
    /// Somebody else is at it.
    #[error("{0}")]
    Busy(String),
    /// The consumer's thread ended.
    #[error("the consumer stopped: {0}")]
    Consumer(String),
}

/// What Postgres said, with its hint; not its detail, which quotes rows.
fn said(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(said), _) => {
            let hint = said.hint().map_or(String::new(), |hint| format!(" {hint}"));
            format!("{} (SQLSTATE {}).{hint}", said.message(), said.code().code())
        }
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

impl ProjectorError {
    /// Whether the data is what Postgres refuses, so that trying the same again cannot help: a value (class 22), a
    /// constraint (23), or more than a row or an index holds (54).
    pub fn is_data(&self) -> bool {
        let ProjectorError::Postgres(error) = self else {
            return false;
        };
        error.code().is_some_and(|code| {
            ["22", "23", "54"].contains(&&code.code()[..2]) || !drill::guarded("transient")
        })
    }

    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            ProjectorError::Postgres(_) => !self.is_data(),
            ProjectorError::Kafka(_) => true,
            ProjectorError::Fenced
            | ProjectorError::Newer { .. }
            | ProjectorError::Stored(_)
            | ProjectorError::Log(_)
            | ProjectorError::Busy(_)
            | ProjectorError::Consumer(_) => false,
        }
    }
}
