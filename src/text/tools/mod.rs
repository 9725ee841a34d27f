//! Tools: functions that a model may call, conversations that hold calls and their results, and parsing of calls in answers.
//!
//! A [`ToolFormat`] defines how a model writes a call. It is that of the model's family, detected from its chat template; a model without
//! a known one gets a JSON format ([`json_form`]), which any model can be instructed, or forced by a grammar, to write.

mod fitting;
mod format;
pub(super) mod json_form;
mod object_scan;
mod opening;
mod reader;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod render_tests;

pub use format::{Marks, ToolFormat};
pub use reader::{CallReader, Read};

use serde_json::{Map, Value, json};

use crate::Message;

/// A function that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// The JSON schema of its arguments, which form an object.
    pub parameters: Value,
    /// Whether every call has to follow the schema completely.
    pub strict: bool,
}

/// A call that a model made earlier in a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    pub arguments: Map<String, Value>,
}

/// One turn of a conversation that may hold calls.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolTurn {
    Message(Message),
    /// The assistant calls tools, possibly after some text.
    Called {
        content: String,
        calls: Vec<ToolCall>,
    },
    /// The result of an earlier call.
    Answered {
        call: ToolCall,
        content: String,
    },
}

/// A conversation with the tools that its next answer may call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolChat {
    pub turns: Vec<ToolTurn>,
    pub tools: Vec<Tool>,
}

impl Tool {
    /// Returns the tool as chat templates expect it: in OpenAI's format, without `strict`, which no model was trained on.
    pub(super) fn to_json(&self) -> Value {
        json!({"type": "function", "function": self.function()})
    }

    /// Returns the description of the function for the model.
    fn function(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_owned(), json!(self.name));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), json!(description));
        }
        function.insert("parameters".to_owned(), self.parameters.clone());
        Value::Object(function)
    }
}

impl ToolChat {
    /// Returns whether an earlier turn calls a tool.
    pub(super) fn has_calls(&self) -> bool {
        let mut turns = self.turns.iter();
        turns.any(|turn| matches!(turn, ToolTurn::Called { .. }))
    }

    /// Returns the bytes of all texts of the conversation and of its tools: a bound on the input of a rendering.
    pub fn bytes(&self) -> usize {
        let turns = self.turns.iter().map(|turn| match turn {
            ToolTurn::Message(message) => message.content.len(),
            ToolTurn::Called { content, calls } => {
                content.len() + calls.iter().map(call_bytes).sum::<usize>()
            }
            ToolTurn::Answered { content, .. } => content.len(),
        });
        let tools = self.tools.iter().map(|tool| {
            let description = tool.description.as_ref().map_or(0, String::len);
            tool.name.len() + description + tool.parameters.to_string().len()
        });
        turns.chain(tools).sum()
    }
}

fn call_bytes(call: &ToolCall) -> usize {
    let arguments = call.arguments.iter();
    let arguments = arguments.map(|(name, value)| name.len() + value.to_string().len());
    call.id.len() + call.name.len() + arguments.sum::<usize>()
}
