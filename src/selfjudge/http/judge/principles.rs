//! The principles that a call is judged by.

use serde::de::{self, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::http::error::ApiError;
use crate::http::one_or_many::{Given, TextOr, one_or_many, text_or_object};
use crate::principles::VersionedTable;
use judge::{PrincipleTable, WEIGHTS, WeightedPrinciple};

/// Maximum number of principles per call.
const MAX_PRINCIPLES: usize = 64;

/// Maximum bytes of a principle's name or text.
const MAX_PRINCIPLE_BYTES: usize = 4096;

/// A principle by name or text, optionally with a weight.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PrincipleBody {
    Plain(String),
    Weighted(WeightedBody),
}

impl<'de> Deserialize<'de> for PrincipleBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a name, a text, or an object with `principle` and `weight`";
        let read = text_or_object(deserializer, expected);
        read.map(|read| match read {
            TextOr::Text(principle) => Self::Plain(principle),
            TextOr::Object(weighted) => Self::Weighted(weighted),
        })
    }
}

/// A principle with its own weight.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedBody {
    /// The name or the text of the principle.
    pub principle: String,
    /// The weight of its verdict: from 1e-6 to 1e6.
    #[schema(minimum = 0.000001, maximum = 1000000)]
    pub weight: Option<f64>,
}

/// The whole table, or a list of principles.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PrinciplesBody {
    Table(WholeTable),
    These(#[schema(inline)] PrincipleList),
}

impl<'de> Deserialize<'de> for PrinciplesBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str =
            "\"table\", or a list of names, texts, and objects with `principle` and `weight`";
        match one_or_many(deserializer, EXPECTED)? {
            Given::Text(text) if text == "table" => Ok(Self::Table(WholeTable::Table)),
            Given::Text(text) => Err(de::Error::invalid_value(Unexpected::Str(&text), &EXPECTED)),
            Given::List(principles) => Ok(Self::These(PrincipleList(principles))),
        }
    }
}

/// A list of at most [`MAX_PRINCIPLES`] principles.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PrincipleList(Vec<PrincipleBody>);

impl PartialSchema for PrincipleList {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new()
            .items(Ref::from_schema_name(PrincipleBody::name()))
            .max_items(Some(MAX_PRINCIPLES))
            .into()
    }
}

impl ToSchema for PrincipleList {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((PrincipleBody::name().into(), PrincipleBody::schema()));
        PrincipleBody::schemas(schemas);
    }
}

/// All principles of the server's table with a weight above 0.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WholeTable {
    Table,
}

impl Default for PrinciplesBody {
    fn default() -> Self {
        Self::These(PrincipleList::default())
    }
}

impl PrinciplesBody {
    /// Returns whether no principle is named.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::These(PrincipleList(these)) if these.is_empty())
    }

    /// Returns the principles to judge by. Principles with weight 0 in the table are left out, unless the call sets their weight.
    pub fn asked(&self, table: &VersionedTable) -> Result<Vec<WeightedPrinciple>, ApiError> {
        let VersionedTable { version, table } = table;
        let asked = match self {
            Self::Table(_) => WeightedPrinciple::of_table(table),
            _ if self.is_empty() => return Ok(Vec::new()),
            Self::These(PrincipleList(principles)) if principles.len() > MAX_PRINCIPLES => {
                return Err(ApiError::invalid(
                    "principles",
                    format!("must be at most {MAX_PRINCIPLES}, not {}", principles.len()),
                ));
            }
            Self::These(PrincipleList(principles)) => {
                let asked = principles.iter().map(|principle| principle.asked(table));
                asked
                    .filter_map(Result::transpose)
                    .collect::<Result<_, _>>()?
            }
        };
        match asked.is_empty() {
            true => Err(ApiError::invalid(
                "principles",
                format!("has no principle with a weight above 0 in version {version} of the table"),
            )),
            false => Ok(asked),
        }
    }
}

impl PrincipleBody {
    /// Returns the principle to judge by; `None` if its weight is 0.
    fn asked(&self, table: &PrincipleTable) -> Result<Option<WeightedPrinciple>, ApiError> {
        let (name, weight) = match self {
            Self::Plain(name) => (name, None),
            Self::Weighted(body) => (&body.principle, body.weight),
        };
        if name.trim().is_empty() {
            return Err(ApiError::invalid("principles", "must not be empty"));
        }
        if name.len() > MAX_PRINCIPLE_BYTES {
            let message = format!(
                "must be of at most {MAX_PRINCIPLE_BYTES} bytes each, not {}",
                name.len()
            );
            return Err(ApiError::invalid("principles", message));
        }
        if weight.is_some_and(|weight| !WEIGHTS.contains(&weight)) {
            return Err(ApiError::invalid(
                "principles",
                "has a weight that is not from 1e-6 to 1e6",
            ));
        }
        let mut asked = WeightedPrinciple::named(table, name);
        if let Some(weight) = weight {
            asked.weight = weight as f32;
        }
        Ok((asked.weight > 0.0).then_some(asked))
    }
}
