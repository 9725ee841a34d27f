//! What the log can fail with.

use super::{GenerationId, Pointer, StageId};

/// One enum for the log; the HTTP layer maps each variant to a status.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The queue before the writer is full. Said at once; nothing was written.
    #[error("the traffic log's queue is full")]
    Overloaded,
    /// The database cannot be reached or cannot write (disk full, connection lost). Nothing was acknowledged; a record whose
    /// commit was under way may yet be there, which an idempotency key makes harmless to repeat.
    #[error("the traffic log's database is unavailable: {0}")]
    Unavailable(String),
    /// The records of the principal take what they may. Nothing was written.
    #[error("the principal's records take up their quota of {quota} bytes: delete some of them")]
    PrincipalQuota { quota: u64 },
    /// All records together take what they may, or the disk has little room left. Nothing was written.
    #[error("the traffic log is full: {0}")]
    Full(String),
    /// The idempotency key stands for another request of the principal. Nothing was written.
    #[error("the idempotency key was used for another request before")]
    IdempotencyReused,
    /// Another trainer took the lease; this one must stop.
    #[error("the trainer's lease of epoch {epoch} is no longer valid")]
    Fenced { epoch: i64 },
    /// A pointer does not stand where the caller believed.
    #[error("pointer `{pointer}` is at {found}, not at {expected}")]
    Conflict {
        pointer: Pointer,
        expected: GenerationId,
        found: GenerationId,
    },
    /// A stage is open already: it must be resumed or closed first.
    #[error("stage {0} is still open")]
    StageOpen(StageId),
    #[error("there is no {what} `{id}`")]
    NotFound { what: &'static str, id: String },
    /// The record is larger than a record may be.
    #[error("the record has {bytes} bytes, and at most {most} are kept")]
    TooLarge { bytes: usize, most: usize },
    /// What was given cannot be stored.
    #[error("{0}")]
    Invalid(String),
    /// Personal data could not be taken out of the record, so it was not written.
    #[error("redaction failed: {0}")]
    Redaction(String),
    /// The URL, the migrations or the redaction rules cannot be used.
    #[error("traffic log: {0}")]
    Config(String),
    /// What is stored is not what was written.
    #[error("the traffic log is damaged: {0}")]
    Corrupt(String),
    /// An export or import file.
    #[error("{0}")]
    File(String),
}

/// Errors of the log.
pub type Result<T> = std::result::Result<T, LogError>;

impl From<sqlx::Error> for LogError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_) => LogError::Corrupt(error.to_string()),
            sqlx::Error::Configuration(_) => LogError::Config(error.to_string()),
            _ => LogError::Unavailable(error.to_string()),
        }
    }
}
