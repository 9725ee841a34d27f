//! Errors of the traffic log.

use super::{GenerationId, Pointer, StageId};

/// An error of the log. The HTTP layer maps each variant to a status.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The writer's queue is full. Returned at once; nothing was written.
    #[error("the traffic log's queue is full")]
    Overloaded,
    /// The database cannot be reached or cannot write (disk full, connection lost). Nothing was acknowledged. A record whose commit was
    /// in progress may still have been written; with an idempotency key it is safe to send it again.
    #[error("the traffic log's database is unavailable: {0}")]
    Unavailable(String),
    /// The principal's records have reached their quota. Nothing was written.
    #[error(
        "the principal's records have reached their quota of {quota} bytes: delete some of them"
    )]
    PrincipalQuota { quota: u64 },
    /// All records together have reached their quota, or the disk is nearly full. Nothing was written.
    #[error("the traffic log is full: {0}")]
    Full(String),
    /// The principal has used the idempotency key for another request. Nothing was written.
    #[error("the idempotency key was already used for a different request")]
    IdempotencyReused,
    /// Another trainer holds the lease; this one must stop.
    #[error("the trainer's lease of epoch {epoch} is no longer valid")]
    Fenced { epoch: i64 },
    /// A pointer is not at the generation that the caller expected.
    #[error("pointer `{pointer}` is at {found}, not at {expected}")]
    Conflict {
        pointer: Pointer,
        expected: GenerationId,
        found: GenerationId,
    },
    /// Another stage is open: it must be resumed or closed first.
    #[error("stage {0} is still open")]
    StageOpen(StageId),
    #[error("there is no {what} `{id}`")]
    NotFound { what: &'static str, id: String },
    /// The record exceeds the maximum size.
    #[error("the record has {bytes} bytes, more than the maximum of {most}")]
    TooLarge { bytes: usize, most: usize },
    /// The input cannot be stored.
    #[error("{0}")]
    Invalid(String),
    /// Redaction of the record failed, so it was not written.
    #[error("redaction failed: {0}")]
    Redaction(String),
    /// The URL, a migration or a redaction rule is invalid.
    #[error("traffic log: {0}")]
    Config(String),
    /// The stored data differs from what was written.
    #[error("the traffic log is damaged: {0}")]
    Corrupt(String),
    /// An export or import file cannot be used.
    #[error("{0}")]
    File(String),
}

/// A result with the log's error.
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
