//! Errors of recording.

use traffic_log::LogError;

/// The reason why a call is refused because of its record. Each message but the log's follows the name of a parameter or stands alone.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("asks to train on a call that is not retained: `train` needs `retain`")]
    TrainWithoutRetain,
    /// The call requests a record, and there is no log.
    #[error("cannot be asked for: this server keeps no log")]
    NoLogToAskFor,
    /// The operation needs a log, and there is none.
    #[error("this server keeps no log")]
    NoLog,
    #[error("calls of a web page of another origin are kept only if the server allows that origin")]
    OriginNotAllowed,
    /// The user's name could be mistaken for another principal's.
    #[error("must be at most 1024 bytes without control characters")]
    InvalidUser,
    /// A caller without a key names its call, and the name could collide with another caller's.
    #[error(
        "callers without a key are one principal, so they have no idempotency keys of their own: leave the header out, or call with a key"
    )]
    NameNeedsKey,
}
