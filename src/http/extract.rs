//! Request bodies: JSON of a known shape, or an error that names the parameter and says what is wrong with it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::openapi::{AllOfBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::error::ApiError;
use super::idempotency::Asked;
use super::json;
use super::judging::JudgingBody;
use super::sampling::SamplingBody;
use crate::service::offload;

/// A JSON body. Unlike axum's, its errors have the shape of all others, and the content type is not looked at.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + Send + 'static, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = read(request, state).await?;
        // Syntax first: an error in it has a line and a column, and no parameter.
        parsed(bytes, |bytes| typed(json::parse(bytes)?).map(Self)).await
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

/// The part of an address that names something. Unlike axum's, its errors have the shape of all others.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        named.map(|Path(name)| Self(name)).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", error.body_text())
        })
    }
}

/// Parameters that several routes have: they are written down once.
pub trait Shared: DeserializeOwned + PartialSchema + ToSchema {
    /// Their names.
    fn names() -> &'static BTreeSet<String>;
}

/// The names of an object's properties.
fn properties(schema: RefOr<Schema>) -> BTreeSet<String> {
    match schema {
        RefOr::T(Schema::Object(object)) => object.properties.into_keys().collect(),
        _ => unreachable!("a struct's schema is an object; this is a bug"),
    }
}

impl Shared for SamplingBody {
    fn names() -> &'static BTreeSet<String> {
        static NAMES: LazyLock<BTreeSet<String>> =
            LazyLock::new(|| properties(SamplingBody::schema()));
        &NAMES
    }
}

impl Shared for JudgingBody {
    fn names() -> &'static BTreeSet<String> {
        static NAMES: LazyLock<BTreeSet<String>> =
            LazyLock::new(|| properties(JudgingBody::schema()));
        &NAMES
    }
}

/// A body with shared parameters beside those of the route: one JSON object, no key of which is unknown.
pub struct Beside<T, P> {
    pub own: T,
    pub shared: P,
}

/// A body with the parameters of sampling.
pub type Generating<T> = Beside<T, SamplingBody>;

impl<T, P, S> FromRequest<S> for Beside<T, P>
where
    T: DeserializeOwned + Send + 'static,
    P: Shared + Send + 'static,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let named = request.extensions().get::<Asked>().cloned();
        let bytes = read(request, state).await?;
        parsed(bytes, move |bytes| Self::parse(bytes, named)).await
    }
}

impl<T: DeserializeOwned, P: Shared> Beside<T, P> {
    fn parse(bytes: &[u8], named: Option<Asked>) -> Result<Self, ApiError> {
        let body = json::parse(bytes)?;
        if let Some(asked) = named {
            asked.note(&body);
        }
        let Value::Object(body) = body else {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_body",
                "the body must be a JSON object",
            ));
        };
        let (shared, own): (Map<_, _>, Map<_, _>) = body
            .into_iter()
            .partition(|(key, _)| P::names().contains(key));
        Ok(Self {
            own: typed(Value::Object(own))?,
            shared: typed(Value::Object(shared))?,
        })
    }
}

/// Bytes of a body that is parsed where it came in; more take longer than others there should wait.
const PARSED_AT_ONCE: usize = 64 << 10;

/// What `parse` makes of a body.
async fn parsed<T: Send + 'static>(
    bytes: Bytes,
    parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match bytes.len() <= PARSED_AT_ONCE {
        true => parse(&bytes),
        false => offload(move || parse(&bytes)).await?,
    }
}

impl<T: ToSchema, P: ToSchema> PartialSchema for Beside<T, P> {
    fn schema() -> RefOr<Schema> {
        match (T::schema(), P::schema()) {
            (RefOr::T(Schema::Object(mut own)), RefOr::T(Schema::Object(shared))) => {
                own.properties.extend(shared.properties);
                own.into()
            }
            (own, shared) => AllOfBuilder::new().item(own).item(shared).into(),
        }
    }
}

impl<T: ToSchema, P: ToSchema> ToSchema for Beside<T, P> {
    fn name() -> Cow<'static, str> {
        T::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
        P::schemas(schemas);
    }
}

/// What a body may take to come. Whoever sends one has a place among the calls that are answered, and must not keep it by sending
/// slowly.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    read_within(BODY_TIMEOUT, request, state).await
}

async fn read_within<S: Send + Sync>(
    limit: Duration,
    request: Request,
    state: &S,
) -> Result<Bytes, ApiError> {
    let bytes = tokio::time::timeout(limit, Bytes::from_request(request, state));
    let bytes = bytes.await.map_err(|_| {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body has not come within {} seconds", limit.as_secs()),
        )
    })?;
    bytes.map_err(|error| {
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse;
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let request = Request::new(Body::from_stream(stream::pending::<
            Result<Bytes, std::io::Error>,
        >()));
        let error = read_within(Duration::ZERO, request, &()).await.unwrap_err();
        assert_eq!(error.into_response().status(), StatusCode::REQUEST_TIMEOUT);
        let request = Request::new(Body::from("{}"));
        assert_eq!(read(request, &()).await.unwrap(), "{}");
    }
}
