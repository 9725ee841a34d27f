//! The requested format of an answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::error::ApiError;
use text::GrammarSpec;

/// OpenAI's parameter for JSON answers.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    kind: FormatKind,
    /// The schema; required with the type `json_schema`, refused with other types.
    json_schema: Option<NamedSchema>,
}

/// The format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that matches a schema.
    JsonSchema,
}

/// A schema with its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    /// The JSON schema of the answer.
    schema: Value,
    /// The name of the schema, which has no effect.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// A description for people; the model does not see it.
    #[serde(rename = "description")]
    _description: Option<String>,
    /// `true` refuses a schema that cannot be enforced completely. Otherwise constraints that cannot be enforced are ignored, and listed in
    /// `warnings` of the answer.
    strict: Option<bool>,
}

/// vLLM's parameter; exactly one of these must be given.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", try_from = "StructuredFields")]
pub enum StructuredOutputs {
    /// JSON that matches this schema.
    Json(Value),
    /// A regular expression that matches the whole answer.
    Regex(String),
    /// A grammar in llguidance's Lark dialect.
    Grammar(String),
    /// One of these texts, at most 5000.
    Choice(Vec<String>),
}

/// The serialized form of [`StructuredOutputs`].
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

    /// Converts the serialized form.
    ///
    /// # Errors
    /// Fails unless exactly one field is set.
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
    /// Returns the requested grammar.
    ///
    /// # Errors
    /// Fails if a schema is missing, or given with a type that takes none.
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

/// Returns the requested grammar with the parameter that requested it.
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

/// A grammar, and the parameter that requested it.
type Asked = Option<(&'static str, GrammarSpec)>;

/// Returns the single grammar that a call requests, through a parameter of its route or through one common to all routes.
///
/// # Errors
/// Fails if both are set.
pub fn one_of(by_route: Asked, by_all: Asked) -> Result<Asked, ApiError> {
    match (by_route, by_all) {
        (Some((own, _)), Some((other, _))) => Err(ApiError::invalid(
            other,
            format!("cannot be given together with `{own}`"),
        )),
        (own, other) => Ok(own.or(other)),
    }
}
