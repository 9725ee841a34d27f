//! The parameter `tools`: the definitions of the tools that a call offers.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::http::error::{ApiError, shortened};
use text::Tool;

/// Maximum number of tools per call.
const MOST_TOOLS: usize = 128;

/// Maximum bytes of all definitions.
const MOST_BYTES: usize = 128 << 10;

/// Maximum characters of a name.
const MOST_NAME: usize = 64;

/// A tool that the model may call. Functions are the only type.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolBody {
    /// Always `function`.
    #[serde(rename = "type")]
    _kind: ToolKind,
    /// The function.
    function: FunctionBody,
}

/// The type of a tool.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    Function,
}

/// A function that the model may call.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionBody {
    /// Up to 64 letters, digits, `_` and `-`.
    #[schema(max_length = 64, pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    /// A description of the function for the model.
    description: Option<String>,
    /// A JSON schema of the arguments, which are an object. Without it the function takes none.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// `true` refuses a schema that a grammar cannot enforce completely, and enforces it for calls under `"tool_choice": "auto"` too, if
    /// the model's calls begin with a marker.
    strict: Option<bool>,
}

/// Converts the definitions to tools.
///
/// # Errors
/// Names the first invalid definition; fails also if they are too many or too large.
pub fn tools(given: Vec<ToolBody>) -> Result<Vec<Tool>, ApiError> {
    if given.len() > MOST_TOOLS {
        let message = format!("must be at most {MOST_TOOLS} tools, not {}", given.len());
        return Err(ApiError::invalid("tools", message));
    }
    let mut names = HashSet::new();
    let mut bytes = 0;
    let mut tools = Vec::with_capacity(given.len());
    for (at, tool) in given.into_iter().enumerate() {
        let tool = tool.function.checked(at)?;
        if !names.insert(tool.name.clone()) {
            let message = format!("is {:?}, which names two tools", tool.name);
            return Err(ApiError::invalid(
                format!("tools[{at}].function.name"),
                message,
            ));
        }
        bytes += tool.name.len()
            + tool.description.as_ref().map_or(0, String::len)
            + tool.parameters.to_string().len();
        tools.push(tool);
    }
    if bytes > MOST_BYTES {
        let message = format!("must have at most {MOST_BYTES} bytes, not {bytes}");
        return Err(ApiError::invalid("tools", message));
    }
    Ok(tools)
}

/// Checks the name of a function at `place`.
///
/// # Errors
/// Fails for a name that OpenAI's API refuses.
pub fn check_name(name: &str, place: &str) -> Result<(), ApiError> {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match (1..=MOST_NAME).contains(&name.len()) && name.chars().all(letters) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            format!("{place}.name"),
            format!(
                "must be from 1 to {MOST_NAME} letters, digits, `_` and `-`, not {}",
                shortened(name)
            ),
        )),
    }
}

impl FunctionBody {
    fn checked(self, at: usize) -> Result<Tool, ApiError> {
        let place = format!("tools[{at}].function");
        check_name(&self.name, &place)?;
        let parameters = match self.parameters {
            None => json!({"type": "object", "properties": {}}),
            Some(schema) => schema,
        };
        let invalid = |field: &str, message: &str| {
            Err(ApiError::invalid(format!("{place}.{field}"), message))
        };
        if !parameters.is_object() {
            return invalid("parameters", "must be a JSON schema: an object");
        }
        match parameters.get("type") {
            None => {}
            Some(kind) if kind == "object" => {}
            Some(_) => {
                return invalid(
                    "parameters.type",
                    "must be \"object\": arguments are an object",
                );
            }
        }
        Ok(Tool {
            name: self.name,
            description: self.description,
            parameters,
            strict: self.strict.unwrap_or(false),
        })
    }
}
