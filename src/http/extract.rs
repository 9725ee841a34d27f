//! Request bodies: JSON of a known shape, or an error that names the parameter and says what is wrong with it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::openapi::{AllOfBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::error::ApiError;
use super::json;
use super::sampling::SamplingBody;

/// A JSON body. Unlike axum's, its errors have the shape of all others, and the content type is not looked at.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = read(request, state).await?;
        // Syntax first: an error in it has a line and a column, and no parameter.
        typed(json::parse(&bytes)?).map(Self)
    }
}

/// The parameters of an address. Unlike axum's, its errors have the shape of all others.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
            .map(Self)
            .map_err(|error| {
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.to_string())
            })
    }
}

/// A body with the parameters of sampling beside those of the route: one JSON object, no key of which is unknown.
pub struct Generating<T> {
    pub own: T,
    pub sampling: SamplingBody,
}

/// The parameters that every generating route has.
static SAMPLING: LazyLock<BTreeSet<String>> =
    LazyLock::new(|| match <SamplingBody as PartialSchema>::schema() {
        RefOr::T(Schema::Object(object)) => object.properties.keys().cloned().collect(),
        _ => unreachable!("a struct's schema is an object; this is a bug"),
    });

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Generating<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = read(request, state).await?;
        let Value::Object(body) = json::parse(&bytes)? else {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_body",
                "the body must be a JSON object",
            ));
        };
        let (sampling, own): (Map<_, _>, Map<_, _>) = body
            .into_iter()
            .partition(|(key, _)| SAMPLING.contains(key));
        Ok(Self {
            own: typed(Value::Object(own))?,
            sampling: typed(Value::Object(sampling))?,
        })
    }
}

impl<T: ToSchema> PartialSchema for Generating<T> {
    fn schema() -> RefOr<Schema> {
        match (T::schema(), SamplingBody::schema()) {
            (RefOr::T(Schema::Object(mut own)), RefOr::T(Schema::Object(sampling))) => {
                own.properties.extend(sampling.properties);
                own.into()
            }
            (own, sampling) => AllOfBuilder::new().item(own).item(sampling).into(),
        }
    }
}

impl<T: ToSchema> ToSchema for Generating<T> {
    fn name() -> Cow<'static, str> {
        T::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
        SamplingBody::schemas(schemas);
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, state).await.map_err(|error| {
        let status = error.status();
        let code = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            _ => "invalid_body",
        };
        ApiError::new(status, code, error.body_text())
    })
}

/// `value` as a `T`; what does not fit is named by its path.
fn typed<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        let name = |message: &str, before: &str| {
            let rest = message.strip_prefix(before)?;
            rest.split('`').next().map(str::to_owned)
        };
        // Paths end at the object in which the field is, or is not.
        let within = |name: String| match path.as_str() {
            "." | "?" => name,
            path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
            path => format!("{path}.{name}"),
        };
        if let Some(name) = name(&message, "unknown field `").map(within) {
            return ApiError::new(
                StatusCode::BAD_REQUEST,
                "unknown_parameter",
                format!("`{name}` is not a parameter of this route"),
            )
            .about(name);
        }
        if let Some(name) = name(&message, "missing field `").map(within) {
            return ApiError::invalid(name, "must be given");
        }
        match path.as_str() {
            "." | "?" => ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message),
            _ => ApiError::invalid(path, message),
        }
    })
}
