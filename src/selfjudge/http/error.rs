//! The error type of the HTTP API.

mod conversions;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

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
