//! Extraction of request bodies and parameters: JSON of a known type, or an error that names the parameter and the problem.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::error::ApiError;
use super::json;
use super::neutral::{self, Tables};
use super::received::read;
use super::typed::{AlsoKnown, refusal, typed};

/// A JSON body. Unlike with axum's extractor, errors have the API's format, and the content type is ignored.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + Send + 'static, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read(request).await?;
        // The syntax is checked first: its errors have a line and a column, and no parameter.
        let parse = |bytes: &[u8]| {
            let mut body = json::parse(bytes)?;
            if let Value::Object(body) = &mut body {
                neutral::strip_messages(body);
            }
            let also = AlsoKnown {
                beside: None,
                unsupported: Tables::MESSAGES,
            };
            typed(body, also).map(Self)
        };
        body.parsed(parse).await
    }
}

/// The query parameters. Unlike with axum's extractor, errors have the API's format.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
            .map(Self)
            .map_err(
                |error| match refusal(".", &error.to_string(), AlsoKnown::NOTHING) {
                    unknown if unknown.is_about_a_parameter() => unknown,
                    _ => ApiError::new(
                        StatusCode::BAD_REQUEST,
                        "invalid_query",
                        format!("the URL's parameters cannot be read: {error}"),
                    ),
                },
            )
    }
}

/// The path parameter that names a resource. Unlike with axum's extractor, errors have the API's format.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        named.map(|Path(name)| Self(name)).map_err(|error| {
            let message = format!("the name in the URL cannot be read: {}", error.body_text());
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", message)
        })
    }
}

/// Deserializes a value for which null means the same as absence.
pub fn null_is_absent<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
