//! Tools in OpenAI's format: definitions, the choice among them, messages with tool calls, and tool calls in answers.

mod choice;
mod definitions;
mod messages;
mod parsed;

pub use choice::ToolChoiceBody;
pub use definitions::ToolBody;
pub use messages::{ChatMessageBody, Conversation, conversation};
pub use parsed::{CallBody, ParsedMessage, Reading};

use crate::http::calls::{Calls, Choice};
use crate::http::error::ApiError;
use definitions::tools;

/// Returns the tools that the answer may call; none if there are none, or none may be called.
///
/// # Errors
/// Fails for invalid definitions, and for the choice of a tool that was not offered.
pub fn calls(
    given: Option<Vec<ToolBody>>,
    choice: Option<ToolChoiceBody>,
    parallel: Option<bool>,
) -> Result<Option<Calls>, ApiError> {
    let tools = tools(given.unwrap_or_default())?;
    let choice = match choice {
        None | Some(ToolChoiceBody::Auto) => Choice::Auto,
        Some(ToolChoiceBody::None) => return Ok(None),
        Some(ToolChoiceBody::Required) if tools.is_empty() => {
            let message = "cannot be \"required\" where `tools` offers none";
            return Err(ApiError::invalid("tool_choice", message));
        }
        Some(ToolChoiceBody::Required) => Choice::Required,
        Some(ToolChoiceBody::Named(name)) => {
            if !tools.iter().any(|tool| tool.name == name) {
                let message = format!("names the tool {name:?}, which is not among `tools`");
                return Err(ApiError::invalid("tool_choice", message));
            }
            Choice::Named(name)
        }
    };
    Ok((!tools.is_empty()).then_some(Calls {
        tools,
        choice,
        parallel: parallel.unwrap_or(true),
    }))
}
