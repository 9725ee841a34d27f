//! What shape an answer must have.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::error::ApiError;
use crate::text::GrammarSpec;

/// OpenAI's way to ask for JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    kind: FormatKind,
    /// With the type `json_schema`, and with no other.
    json_schema: Option<NamedSchema>,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema,
}

/// A schema and its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    /// The JSON schema that the answer is valid by.
    schema: Value,
    /// What the schema is called; of no consequence here.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// For people; the model does not see it.
    #[serde(rename = "description")]
    _description: Option<String>,
    /// `true` refuses a schema that cannot be kept to as a whole. Otherwise what cannot be kept is left out, and named in `warnings` of
    /// the answer.
    strict: Option<bool>,
}

/// vLLM's way: exactly one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", try_from = "StructuredFields")]
pub enum StructuredOutputs {
    /// JSON of this schema.
    Json(Value),
    /// A text that this expression matches as a whole.
    Regex(String),
    /// A grammar in llguidance's Lark.
    Grammar(String),
    /// One of these texts, 5000 at most.
    Choice(Vec<String>),
}

/// The same as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredFields {
    json: Option<Value>,
    regex: Option<String>,
    grammar: Option<String>,
    choice: Option<Vec<String>>,
}

impl TryFrom<StructuredFields> for StructuredOutputs {
    type Error = &'static str;

    /// # Errors
    /// None of the fields, or several.
    fn try_from(fields: StructuredFields) -> Result<Self, Self::Error> {
        let asked = [
            fields.json.map(Self::Json),
            fields.regex.map(Self::Regex),
            fields.grammar.map(Self::Grammar),
            fields.choice.map(Self::Choice),
        ];
        let mut asked = asked.into_iter().flatten();
        match (asked.next(), asked.next()) {
            (Some(only), None) => Ok(only),
            _ => Err("must have one of `json`, `regex`, `grammar` and `choice`"),
        }
    }
}

impl ResponseFormat {
    /// # Errors
    /// A schema that is missing, or has no meaning with the type.
    fn spec(self) -> Result<Option<GrammarSpec>, ApiError> {
        const SCHEMA: &str = "response_format.json_schema";
        match (self.kind, self.json_schema) {
            (FormatKind::JsonSchema, None) => Err(ApiError::invalid(SCHEMA, "must be given")),
            (FormatKind::JsonSchema, Some(named)) => Ok(Some(match named.strict {
                Some(true) => GrammarSpec::JsonSchema(named.schema),
                _ => GrammarSpec::LooseJsonSchema(named.schema),
            })),
            (_, Some(_)) => Err(ApiError::invalid(
                SCHEMA,
                "has no meaning without the type json_schema",
            )),
            (FormatKind::Text, None) => Ok(None),
            (FormatKind::JsonObject, None) => Ok(Some(GrammarSpec::JsonObject)),
        }
    }
}

/// The grammar that is asked for, and what asked for it.
pub fn grammar(
    format: Option<ResponseFormat>,
    structured: Option<StructuredOutputs>,
) -> Result<Option<(&'static str, GrammarSpec)>, ApiError> {
    let by_format = match format {
        Some(format) => format.spec()?,
        None => None,
    };
    let by_structure = structured.map(|structured| match structured {
        StructuredOutputs::Json(schema) => GrammarSpec::JsonSchema(schema),
        StructuredOutputs::Regex(regex) => GrammarSpec::Regex(regex),
        StructuredOutputs::Grammar(grammar) => GrammarSpec::Lark(grammar),
        StructuredOutputs::Choice(choices) => GrammarSpec::Choice(choices),
    });
    match (by_format, by_structure) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "structured_outputs",
            "cannot be given together with `response_format`",
        )),
        (Some(spec), None) => Ok(Some(("response_format", spec))),
        (None, spec) => Ok(spec.map(|spec| ("structured_outputs", spec))),
    }
}

/// A grammar, and the parameter that asks for it.
type Asked = Option<(&'static str, GrammarSpec)>;

/// Returns the one grammar that a call asks for, by a parameter of its route or by one that all routes have.
///
/// # Errors
/// Both of them asked for.
pub fn one_of(by_route: Asked, by_all: Asked) -> Result<Asked, ApiError> {
    match (by_route, by_all) {
        (Some((own, _)), Some((other, _))) => Err(ApiError::invalid(
            other,
            format!("cannot be given together with `{own}`"),
        )),
        (own, other) => Ok(own.or(other)),
    }
}
