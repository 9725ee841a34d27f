//! What shape an answer must have.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::error::ApiError;
use crate::text::GrammarSpec;

/// OpenAI's way to ask for JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    Text,
    /// Any JSON object.
    JsonObject,
    JsonSchema {
        json_schema: NamedSchema,
    },
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    schema: Value,
    /// What the schema is called; of no consequence here.
    #[serde(rename = "name")]
    _name: Option<String>,
    /// For people; the model does not see it.
    #[serde(rename = "description")]
    _description: Option<String>,
    /// Schemas are always kept to: `false` asks for less than is given.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// vLLM's way: exactly one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
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

/// The grammar that is asked for, and what asked for it.
pub fn grammar(
    format: Option<ResponseFormat>,
    structured: Option<StructuredOutputs>,
) -> Result<Option<(&'static str, GrammarSpec)>, ApiError> {
    let by_format = match format {
        None | Some(ResponseFormat::Text) => None,
        Some(ResponseFormat::JsonObject) => Some(GrammarSpec::JsonObject),
        Some(ResponseFormat::JsonSchema { json_schema }) => {
            Some(GrammarSpec::JsonSchema(json_schema.schema))
        }
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
            "cannot be given together with response_format",
        )),
        (Some(spec), None) => Ok(Some(("response_format", spec))),
        (None, spec) => Ok(spec.map(|spec| ("structured_outputs", spec))),
    }
}
