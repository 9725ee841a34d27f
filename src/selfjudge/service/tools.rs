//! Prompts of conversations with tools, and grammars for tool calls.

use std::sync::Arc;

use serde_json::Value;

use super::Service;
use super::prompts::check_bytes;
use crate::call::{CallError, spawn_blocking};
use text::{
    CallGrammar, Grammar, GrammarSpec, Otherwise, Tokenizer, Tool, ToolChat, ToolFormat, ToolTurn,
    Variables,
};

/// The context length in tokens up to which a model counts as small. Such models often fail to end a string or a list of calls, and have
/// no room for long ones.
const SMALL_CONTEXT: usize = 1024;

impl Service {
    /// Encodes a conversation with tools as the prompt for its next answer, with the caller's template variables.
    ///
    /// # Errors
    /// Errors as [`Self::read_chat`] does, and with [`CallError::Invalid`] for `tools` or `messages` if a key of a schema or of
    /// arguments could spell a control token.
    pub async fn read_tool_chat(
        &self,
        chat: ToolChat,
        variables: Variables,
    ) -> Result<Vec<u32>, CallError> {
        let options = self.render_options(variables)?;
        let most = self.engine().capacity().max_context;
        check_bytes(
            chat.bytes() + chat.turns.len() * super::prompts::MESSAGE_BYTES,
            self.tokenizer().most_bytes(most),
        )?;
        let (template, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        spawn_blocking(move || {
            check_keys(&chat, &tokenizer)?;
            let doubtful = |text: &str| is_doubtful(&tokenizer, text);
            let rendered = template.render_tools(&chat, &options, &doubtful)?;
            Ok(tokenizer.encode_rendered_within(&rendered, most)?.ids)
        })
        .await
    }

    /// Returns the format in which the model writes tool calls.
    pub fn tool_format(&self) -> ToolFormat {
        self.chat_template().tool_format()
    }

    /// Returns the model's control tokens for the marks of calls, which are part of the text of an answer with tools.
    pub fn call_marks(&self) -> Arc<[u32]> {
        let marks = self.tool_format().marks();
        let ids = [marks.begin, marks.end].map(|mark| self.mark(mark));
        ids.into_iter().flatten().collect()
    }

    /// Compiles a grammar for answers that call these tools, at most `most` times.
    ///
    /// # Errors
    /// Errors with [`CallError::Invalid`] for `tools` and the reason if a schema cannot be used.
    pub async fn call_grammar(
        &self,
        tools: Vec<Tool>,
        most: usize,
        otherwise: Otherwise,
    ) -> Result<Grammar, CallError> {
        let format = self.tool_format();
        let marks = format.marks();
        let brief = self.engine().capacity().max_context <= SMALL_CONTEXT;
        let most = if brief { 1 } else { most };
        let spec = GrammarSpec::Calls(CallGrammar {
            format,
            tools,
            most: most.min(marks.most),
            begin: self.mark(marks.begin),
            end: self.mark(marks.end),
            otherwise,
            brief,
        });
        self.compile_grammar("tools", spec).await
    }

    /// Returns the control token of a mark, if the model has one.
    fn mark(&self, mark: &str) -> Option<u32> {
        let id = self.tokenizer().token_to_id(mark)?;
        self.tokenizer().is_control(id).then_some(id)
    }
}

/// Returns whether a string must be kept apart from the template's own text, because it could become a control token or a part of one.
/// The renderer's own marker characters count too.
fn is_doubtful(tokenizer: &Tokenizer, text: &str) -> bool {
    text.contains(['<', '>', '|', '[', ']'])
        || text.chars().any(|c| c as u32 >= 0xF_0000)
        || tokenizer.may_spell_control(text)
}

/// Refuses keys that templates would write into text in which control tokens are recognised.
fn check_keys(chat: &ToolChat, tokenizer: &Tokenizer) -> Result<(), CallError> {
    let refused = |param, place: String, key: &str| {
        let message =
            format!("must not have the key {key:?} {place}: it could spell a control token");
        Err(CallError::invalid(param, message))
    };
    for tool in &chat.tools {
        if let Some(key) = doubtful_key(tokenizer, &tool.parameters) {
            return refused("tools", format!("in the schema of {:?}", tool.name), key);
        }
    }
    for turn in &chat.turns {
        let ToolTurn::Called { calls, .. } = turn else {
            continue;
        };
        for call in calls {
            let keys = call.arguments.iter().find_map(|(key, value)| {
                let own = is_doubtful(tokenizer, key).then_some(key.as_str());
                own.or_else(|| doubtful_key(tokenizer, value))
            });
            if let Some(key) = keys {
                return refused("messages", format!("in arguments of {:?}", call.name), key);
            }
        }
    }
    Ok(())
}

fn doubtful_key<'a>(tokenizer: &Tokenizer, value: &'a Value) -> Option<&'a str> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let own = is_doubtful(tokenizer, key).then_some(key.as_str());
            own.or_else(|| doubtful_key(tokenizer, value))
        }),
        Value::Array(values) => values
            .iter()
            .find_map(|value| doubtful_key(tokenizer, value)),
        _ => None,
    }
}
