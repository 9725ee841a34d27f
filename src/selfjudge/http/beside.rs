//! Bodies with parameters that several routes share: one JSON object is read as two types.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::openapi::{AllOfBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::error::ApiError;
use super::idempotency::ContentDigest;
use super::judge::JudgingBody;
use super::neutral::Tables;
use super::received::read;
use super::sampling::SamplingBody;
use super::typed::{AlsoKnown, typed};
use super::{json, neutral};

/// Parameters that several routes share.
pub trait Shared: DeserializeOwned + PartialSchema + ToSchema {
    /// Returns their names.
    fn names() -> &'static BTreeSet<String>;

    /// The fields without effect that [`Self::strip`] removes; with other values they are refused as not supported.
    const UNSUPPORTED: Tables = Tables::MESSAGES;

    /// Removes fields without effect from a body with these parameters.
    fn strip(body: &mut Map<String, Value>) {
        neutral::strip_messages(body);
    }
}

/// Returns the names of an object's properties.
pub fn properties(schema: RefOr<Schema>) -> BTreeSet<String> {
    match schema {
        RefOr::T(Schema::Object(object)) => object.properties.into_keys().collect(),
        _ => unreachable!("a struct's schema is an object; this is a bug"),
    }
}

impl Shared for SamplingBody {
    const UNSUPPORTED: Tables = Tables::GENERATING;

    fn strip(body: &mut Map<String, Value>) {
        neutral::strip_body(body);
    }

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

/// A body with shared parameters beside those of the route: one JSON object without unknown keys.
pub struct Beside<T, P> {
    pub own: T,
    pub shared: P,
}

/// A body with the sampling parameters.
pub type Generating<T> = Beside<T, SamplingBody>;

impl<T, P, S> FromRequest<S> for Beside<T, P>
where
    T: DeserializeOwned + Send + 'static,
    P: Shared + Send + 'static,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let named = request.extensions().get::<ContentDigest>().cloned();
        let body = read(request).await?;
        body.parsed(move |bytes| Self::parse(bytes, named)).await
    }
}

impl<T: DeserializeOwned, P: Shared> Beside<T, P> {
    fn parse(bytes: &[u8], named: Option<ContentDigest>) -> Result<Self, ApiError> {
        let mut body = json::parse(bytes)?;
        if let Value::Object(body) = &mut body {
            P::strip(body);
        }
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
            own: typed(
                Value::Object(own),
                AlsoKnown {
                    beside: Some(P::names()),
                    unsupported: P::UNSUPPORTED,
                },
            )?,
            shared: typed(
                Value::Object(shared),
                AlsoKnown {
                    beside: None,
                    unsupported: P::UNSUPPORTED,
                },
            )?,
        })
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
