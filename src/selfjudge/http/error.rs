//! The error type of the HTTP API, and the mapping from errors to status codes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::call::{CallError, RecordError};
use crate::principles::PrinciplesError;
use engine::{RequestFailure, SubmitError};
use judge::JudgeError;
use text::{GrammarError, TextError};
use traffic_log::LogError;

/// The parameter named in errors of grammars until the actual one is known.
pub const GRAMMAR: &str = "structured_outputs";

/// An error answer: `{"error": {"code", "message", "param", "type"}}`, with `type` as OpenAI's clients expect it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u64>,
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorFields,
}

/// The fields of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorFields {
    /// The error's code, for programs.
    pub code: &'static str,
    /// The error's message, for people.
    pub message: String,
    /// The parameter that the error is about.
    pub param: Option<String>,
    /// The class of the error: `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    /// Creates the error for a parameter that cannot be served.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", message).about(param)
    }

    /// Creates the error for a full queue, to be retried after `retry_after` seconds.
    pub fn overloaded(message: impl Into<String>, retry_after: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message).retry_after(retry_after)
    }

    pub fn shutting_down() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting_down",
            "the server is being stopped",
        )
    }

    /// Sets the parameter that the error is about.
    pub fn about(self, param: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..self
        }
    }

    /// Returns whether the error names a parameter.
    pub fn is_about_a_parameter(&self) -> bool {
        self.param.is_some()
    }

    /// Replaces the parameter `inner` by `outer`, the name that the caller used.
    pub fn renamed(self, inner: &str, outer: &str) -> Self {
        match self.param.as_deref() == Some(inner) {
            true => self.about(outer),
            false => self,
        }
    }

    /// Prefixes the parameter with the name of the object `outer` that contains it.
    pub fn within(self, outer: &str) -> Self {
        let param = self.param.as_ref().map(|param| format!("{outer}.{param}"));
        Self { param, ..self }
    }

    /// Creates the error for a text that cannot be encoded.
    fn of_text(error: &TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::TooManyTokens { .. } | TextError::TooManyBytes { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
                    .about("prompt")
            }
            TextError::NoChatTemplate(_) => {
                Self::new(StatusCode::BAD_REQUEST, "no_chat_template", message).about("messages")
            }
            _ => Self::invalid("messages", message),
        }
    }

    /// Sets the number of seconds after which a retry makes sense.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// Returns the body, for a response or for a stream whose status has been sent already.
    pub fn into_body(self) -> ErrorBody {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        ErrorBody {
            error: ErrorFields {
                code: self.code,
                message: short_line(whole(self.message, self.param.as_deref())),
                param: self.param.map(short_line),
                kind,
            },
        }
    }
}

/// Beginnings of messages that follow the name of a parameter.
const PREDICATES: [&str; 16] = [
    "must ", "has ", "have ", "cannot ", "can ", "is ", "are ", "needs ", "takes ", "names ",
    "permits ", "does ", "asks ", "gives ", "was ", "holds ",
];

/// Prefixes a message that is a predicate with its parameter, because many clients show only the message.
fn whole(message: String, param: Option<&str>) -> String {
    let goes_on = PREDICATES.iter().any(|start| message.starts_with(start));
    match param.filter(|_| goes_on) {
        Some(param) => format!("`{param}` {message}"),
        None => message,
    }
}

/// Returns a caller's text quoted for an error, cut off after its beginning.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Returns a text that may quote a caller's as a single line of limited length.
fn short_line(text: String) -> String {
    /// Maximum bytes of a line.
    const MOST: usize = 1000;
    if text.len() <= MOST && !text.contains(['\n', '\r']) {
        return text;
    }
    let end = text.floor_char_boundary(MOST);
    let line = text[..end].replace(['\n', '\r'], " ");
    match end < text.len() {
        true => line + "…",
        false => line,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, retry_after) = (self.status, self.code, self.retry_after);
        let mut response = (status, Json(self.into_body())).into_response();
        // Refusals are counted by reason.
        response.extensions_mut().insert(ErrorCode(code));
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The error code of a response, as an extension.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode(pub &'static str);

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
            CallError::Judge(JudgeError::Unusable(_)) => {
                Self::new(StatusCode::BAD_REQUEST, "no_judge", message)
            }
            // Templates that rewrite every text are rejected at the start, so the cause here is these texts.
            CallError::Judge(JudgeError::NoCandidates | JudgeError::TextRewritten) => {
                Self::invalid("candidates", message)
            }
            CallError::Judge(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
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
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
            }
            RequestFailure::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            }
            // The answer could not satisfy the requested grammar. Other errors of grammars are the server's.
            RequestFailure::Grammar(
                GrammarError::DeadEnd | GrammarError::Failed(_) | GrammarError::OnlyEmpty,
            ) => Self::new(StatusCode::BAD_REQUEST, "invalid_grammar", message).about(GRAMMAR),
            RequestFailure::Model(_) | RequestFailure::Grammar(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
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
    fn an_error_is_one_short_line_whatever_it_quotes() {
        let long = "é".repeat(1 << 20);
        let error = ApiError::invalid(long.clone(), format!("no\n{long}"))
            .into_body()
            .error;
        assert!(error.message.starts_with("no é") && error.message.ends_with("é…"));
        assert!(error.message.len() < 1010);
        assert!(error.param.is_some_and(|param| param.len() < 1010));
        let short = ApiError::invalid("n", "must be at least 1")
            .into_body()
            .error;
        assert_eq!(short.message, "`n` must be at least 1");
        let renamed = ApiError::invalid("max_tokens", "must be at least 1")
            .renamed("max_tokens", "max_completion_tokens");
        let message = renamed.into_body().error.message;
        assert_eq!(message, "`max_completion_tokens` must be at least 1");
        let inner = ApiError::invalid("seed", "has no meaning here").within("judge");
        let message = inner.into_body().error.message;
        assert_eq!(message, "`judge.seed` has no meaning here");
    }
}
