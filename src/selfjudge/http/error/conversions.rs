//! The mapping from errors of the program's parts to status codes and to messages for callers.
//!
//! A message for a caller names neither files of the server nor flags: these are for the log.

use axum::http::StatusCode;

use super::{ApiError, GRAMMAR};
use crate::call::{CallError, RecordError};
use crate::principles::PrinciplesError;
use engine::{RequestFailure, SubmitError};
use judge::JudgeError;
use text::{GrammarError, TextError};
use traffic_log::LogError;

impl ApiError {
    /// Creates the error for a defect of the server. The log has its reason, which may name files or flags; the caller learns only `what`.
    fn of_server(what: &str, reason: &dyn std::error::Error) -> Self {
        tracing::error!(error = reason.to_string(), "{what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", what)
    }

    /// Creates the error for a text that cannot be encoded.
    fn of_text(error: &TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::TooManyTokens { .. } | TextError::TooManyBytes { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
                    .about("prompt")
            }
            // The error's own message names the model's folder and the operator's flag.
            TextError::NoChatTemplate(_) => Self::new(
                StatusCode::BAD_REQUEST,
                "no_chat_template",
                "the served model has no chat template, so it cannot read conversations: use prompts of text or tokens",
            )
            .about("messages"),
            TextError::Read { .. }
            | TextError::Json { .. }
            | TextError::BadTokenizer { .. }
            | TextError::BadConfig { .. }
            | TextError::NoDefaultTemplate { .. }
            | TextError::TemplateSyntax(_)
            | TextError::BadRange { .. }
            | TextError::Decode(_) => {
                Self::of_server("the model's tokenizer or template failed", error)
            }
            TextError::Encode(_)
            | TextError::UnspeakableCharacter(_)
            | TextError::NoToolsInTemplate(_)
            | TextError::Render(_)
            | TextError::TooManyCharacters(_)
            | TextError::StopStrings(_) => Self::invalid("messages", message),
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        let message = error.to_string();
        match error {
            CallError::Submit(error) => error.into(),
            CallError::Failed(failure) => failure.into(),
            CallError::Text(error) | CallError::Judge(JudgeError::Text(error)) => {
                Self::of_text(&error)
            }
            CallError::Judge(JudgeError::NoRoom { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            // The reason was logged at the start.
            CallError::Judge(JudgeError::Unusable(_)) => Self::new(
                StatusCode::BAD_REQUEST,
                "no_judge",
                "the served model cannot compare answers or answer questions by options",
            ),
            // Templates that rewrite every text are rejected at the start, so the cause here is these texts.
            CallError::Judge(JudgeError::NoCandidates | JudgeError::TextRewritten) => {
                Self::invalid("candidates", message)
            }
            CallError::Judge(error) => Self::of_server("the judge failed", &error),
            CallError::Invalid { param, message } => Self::invalid(param, message),
            CallError::Record(error) => error.into(),
        }
    }
}

impl From<RecordError> for ApiError {
    fn from(error: RecordError) -> Self {
        let message = error.to_string();
        match error {
            RecordError::Log(error) => error.into(),
            RecordError::TrainWithoutRetain | RecordError::NoLogToAskFor => {
                Self::invalid("log", message)
            }
            RecordError::NoLog => Self::new(StatusCode::NOT_FOUND, "no_log", message),
            RecordError::OriginNotAllowed => {
                Self::new(StatusCode::FORBIDDEN, "origin_not_allowed", message).about("log")
            }
            RecordError::InvalidUser => Self::invalid("user", message),
            RecordError::NameNeedsKey => {
                Self::new(StatusCode::BAD_REQUEST, "idempotency_needs_key", message)
                    .about("Idempotency-Key")
            }
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::EmptyPrompt => Self::invalid("prompt", message),
            SubmitError::PromptTooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
                    .about("prompt")
            }
            SubmitError::UnknownToken(_) => Self::invalid("prompt", message),
            SubmitError::TooManySamples { .. } => Self::invalid("n", message),
            SubmitError::Invalid(invalid) => Self::invalid(invalid.name, invalid.message),
            SubmitError::Overloaded(load) => Self::overloaded(message, load.retry_after),
            SubmitError::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            }
        }
    }
}

impl From<RequestFailure> for ApiError {
    fn from(failure: RequestFailure) -> Self {
        let message = failure.to_string();
        match failure {
            RequestFailure::DeadlineExceeded => {
                // Only a call's own `timeout` sets a deadline.
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
                    .about("timeout")
            }
            RequestFailure::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            }
            // The answer could not satisfy the requested grammar. Other errors of grammars are the server's.
            RequestFailure::Grammar(
                GrammarError::DeadEnd | GrammarError::Failed(_) | GrammarError::OnlyEmpty,
            ) => Self::new(StatusCode::BAD_REQUEST, "invalid_grammar", message).about(GRAMMAR),
            RequestFailure::Model(_) | RequestFailure::Grammar(_) => {
                Self::of_server("computing the answer failed", &failure)
            }
        }
    }
}

/// Seconds until a retry when the log's queue is full; its commits take milliseconds.
const LOG_QUEUE_RETRY_AFTER: u64 = 1;

/// Seconds until a retry when the log does not accept records.
const LOG_RETRY_AFTER: u64 = 5;

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        let message = error.to_string();
        match error {
            LogError::Overloaded => Self::new(StatusCode::SERVICE_UNAVAILABLE, "log_full", message)
                .retry_after(LOG_QUEUE_RETRY_AFTER),
            // The database's own message is for the operator only.
            LogError::Unavailable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "log_unavailable",
                "the traffic log cannot be read or written now",
            )
            .retry_after(LOG_RETRY_AFTER),
            LogError::Redaction(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "log_unavailable",
                "personal data could not be redacted, so the record was not written",
            )
            .retry_after(LOG_RETRY_AFTER),
            LogError::PrincipalQuota { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "records_quota", message)
            }
            LogError::Full(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "log_full", message)
                .retry_after(LOG_RETRY_AFTER),
            LogError::IdempotencyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                message,
            )
            .about("Idempotency-Key"),
            LogError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", message),
            LogError::Conflict { .. } | LogError::StageOpen(_) | LogError::Fenced { .. } => {
                Self::new(StatusCode::CONFLICT, "conflict", message)
            }
            LogError::Invalid(_) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
            }
            LogError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "record_too_large", message)
            }
            LogError::Config(_) | LogError::Corrupt(_) | LogError::File(_) => {
                tracing::error!(%error, "the traffic log");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "the traffic log is damaged",
                )
            }
        }
    }
}

impl From<PrinciplesError> for ApiError {
    fn from(error: PrinciplesError) -> Self {
        match error {
            PrinciplesError::Stale { .. } => {
                Self::new(StatusCode::CONFLICT, "stale_version", error.to_string()).about("version")
            }
            PrinciplesError::Io { .. }
            | PrinciplesError::Toml { .. }
            | PrinciplesError::Table { .. } => {
                tracing::error!(%error, "the table of principles cannot be saved");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "not_kept",
                    "the table cannot be written to disk, so the old one remains in force",
                )
                .retry_after(LOG_RETRY_AFTER)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_for_a_caller_names_a_file_or_a_flag() {
        let io = || std::io::Error::other("cannot read /models/x");
        let texts = [
            TextError::NoChatTemplate("/models/x".into()),
            TextError::Read {
                path: "/models/x".into(),
                source: io(),
            },
            TextError::BadTokenizer {
                origin: "/models/x".into(),
                reason: "x".into(),
            },
            TextError::NoDefaultTemplate {
                path: "/models/x".into(),
                names: Vec::new(),
            },
            TextError::BadConfig {
                path: "/models/x".into(),
                what: "x".into(),
            },
        ];
        let judges = [
            JudgeError::Unusable(TextError::NoChatTemplate("/models/x".into()).to_string()),
            JudgeError::Io {
                path: "/models/x".into(),
                source: io(),
            },
            JudgeError::Principles("/models/x: bad".into()),
        ];
        let records = [
            RecordError::NoLog,
            RecordError::NoLogToAskFor,
            RecordError::OriginNotAllowed,
            RecordError::Log(LogError::File("/data/x".into())),
            RecordError::Log(LogError::Unavailable("/data/x".into())),
        ];
        let errors = (texts.into_iter().map(CallError::from))
            .chain(judges.into_iter().map(CallError::from))
            .chain(records.into_iter().map(CallError::from))
            .chain([RequestFailure::Model("/models/x".into()).into()]);
        for error in errors {
            let message = ApiError::from(error).into_body().error.message;
            assert!(
                !message.contains("--")
                    && !message.contains("/models")
                    && !message.contains("/data"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_deadline_is_an_error_of_its_parameter() {
        let late = ApiError::from(RequestFailure::DeadlineExceeded);
        assert_eq!(late.into_body().error.param.as_deref(), Some("timeout"));
    }
}
