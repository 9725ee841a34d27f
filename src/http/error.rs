//! The one error of the HTTP floor, and the one table from errors to status codes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::{RequestFailure, SubmitError};
use crate::judge::JudgeError;
use crate::service::ServiceError;

/// What a client is told: `{"error": {"code", "message", "param"}}`.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
}

/// Seconds after which trying again makes sense.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
        }
    }

    /// A parameter that cannot be served.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
        }
    }

    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
    }

    /// As a value, for a stream whose status has been sent already.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "code": self.code,
            "message": self.message,
            "param": self.param,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body {
            error: Fields {
                code: self.code,
                message: &self.message,
                param: self.param.as_deref(),
            },
        };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::Submit(error) => error.into(),
            ServiceError::Failed(failure) => failure.into(),
            ServiceError::Text(_) => Self::invalid("messages", message),
            ServiceError::Judge(JudgeError::NoRoom { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            ServiceError::Judge(JudgeError::NoCandidates) => Self::invalid("candidates", message),
            ServiceError::Judge(JudgeError::Text(_)) => Self::invalid("messages", message),
            ServiceError::Judge(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
            ServiceError::Invalid { param, message } => Self::invalid(param, message),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::EmptyPrompt => Self::invalid("prompt", message),
            SubmitError::PromptTooLong { .. } => Self {
                param: Some("prompt".into()),
                ..Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            },
            SubmitError::UnknownToken(_) => Self::invalid("prompt", message),
            SubmitError::TooManySamples { .. } => Self::invalid("n", message),
            SubmitError::Invalid(invalid) => Self::invalid(invalid.name, message),
            SubmitError::Overloaded(_) => Self::overloaded(message),
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
            RequestFailure::Model(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
        }
    }
}
