//! Prompts as callers give them, checked and read before any of them is asked for: the length in bytes first, then the tokens.

use super::aside::aside;
use super::{Service, ServiceError};
use crate::engine::SubmitError;
use crate::preference::Message;
use crate::text::{
    OwnTrust, RenderOptions, Rendered, TextError, Tokenizer, Variables, check_variables,
};

/// What a message costs beside its text: no frame around one is shorter than a few tokens.
pub(super) const MESSAGE_BYTES: usize = 16;

/// Bytes of a text that any server counts the tokens of, however short its context is.
const LEAST_COUNTED: usize = 256 << 10;

/// A prompt that is continued as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPrompt {
    pub tokens: Vec<u32>,
    /// What the tokens say, control tokens written out.
    pub text: String,
    /// What they say to people, without control tokens.
    pub spoken: String,
}

impl Service {
    /// A prompt as tokens and as text. With `add_special` a text gets what the tokenizer's post-processor adds, such as BOS; tokens
    /// stay as they are.
    ///
    /// # Errors
    /// [`SubmitError::PromptTooLong`] and [`TextError::TooManyTokens`] for what the context has no room for, found out before all of
    /// it is read; those of the tokenizer.
    pub async fn read_prompt(
        &self,
        prompt: RawPrompt,
        add_special: bool,
    ) -> Result<ReadPrompt, ServiceError> {
        let max_context = self.engine().capacity().max_context;
        match &prompt {
            RawPrompt::Tokens(tokens) if tokens.len() >= max_context => {
                let tokens = tokens.len();
                return Err(SubmitError::PromptTooLong {
                    tokens,
                    max_context,
                }
                .into());
            }
            RawPrompt::Tokens(_) => {}
            RawPrompt::Text(text) => {
                check_bytes(text.len(), self.tokenizer().most_bytes(max_context))?;
            }
        }
        let tokenizer = self.tokenizer().clone();
        let reads_control = self.reads_control;
        aside(move || {
            let tokens = match prompt {
                RawPrompt::Text(text) => {
                    let text = raw_text(text, reads_control);
                    let ids = tokenizer.encode_rendered_within(&text, max_context)?.ids;
                    with_special(&tokenizer, ids, add_special)?
                }
                RawPrompt::Tokens(tokens) => tokens,
            };
            Ok(ReadPrompt {
                text: tokenizer.decode(&tokens, false)?,
                spoken: tokenizer.decode(&tokens, true)?,
                tokens,
            })
        })
        .await
    }

    /// A conversation as the prompt for its next answer, with a caller's template variables.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] for `chat_template_kwargs`; [`TextError::TooManyBytes`] and [`TextError::TooManyTokens`] for what the context has no room for, found out before all of it
    /// is read; what the chat template objects to; those of the tokenizer.
    pub async fn read_chat(
        &self,
        messages: &[Message],
        variables: Variables,
    ) -> Result<Vec<u32>, ServiceError> {
        let options = self.render_options(variables)?;
        let most = self.engine().capacity().max_context;
        self.check_messages(messages, self.tokenizer().most_bytes(most))?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        let messages = messages.to_vec();
        aside(move || {
            let rendered = chat.render(&messages, &options)?;
            Ok(tokenizer.encode_rendered_within(&rendered, most)?.ids)
        })
        .await
    }

    /// The tokens of a text, which need not fit the context, as [`Self::read_prompt`] reads it.
    ///
    /// # Errors
    /// [`TextError::TooManyBytes`], and those of the tokenizer.
    pub async fn tokenize_text(
        &self,
        text: String,
        add_special: bool,
    ) -> Result<Vec<u32>, ServiceError> {
        check_bytes(text.len(), self.most_counted())?;
        let tokenizer = self.tokenizer().clone();
        let reads_control = self.reads_control;
        aside(move || {
            let text = raw_text(text, reads_control);
            let ids = tokenizer.encode_rendered(&text)?.ids;
            Ok(with_special(&tokenizer, ids, add_special)?)
        })
        .await
    }

    /// The tokens of a conversation as the prompt for its next answer, which need not fit the context. Templates write BOS themselves,
    /// so `add_special` adds another one to most.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] for `chat_template_kwargs`, [`TextError::TooManyBytes`], what the chat template objects to, and those of the tokenizer.
    pub async fn tokenize_chat(
        &self,
        messages: Vec<Message>,
        variables: Variables,
        add_special: bool,
    ) -> Result<Vec<u32>, ServiceError> {
        let options = self.render_options(variables)?;
        self.check_messages(&messages, self.most_counted())?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        aside(move || {
            let rendered = chat.render(&messages, &options)?;
            let ids = tokenizer.encode_rendered(&rendered)?.ids;
            Ok(with_special(&tokenizer, ids, add_special)?)
        })
        .await
    }

    /// The text of tokens, of which there may be more than the context has room for.
    ///
    /// # Errors
    /// [`ServiceError::Invalid`] for `tokens`: an id outside the vocabulary, or too many; those of the tokenizer.
    pub async fn detokenize(
        &self,
        tokens: Vec<u32>,
        skip_special: bool,
    ) -> Result<String, ServiceError> {
        let vocab_size = self.engine().capacity().vocab_size;
        // Each of them may be as long as the longest.
        let most = self.most_counted() / self.tokenizer().longest_token();
        if tokens.len() > most {
            let message = format!("must be at most {most}, not {}", tokens.len());
            return Err(ServiceError::invalid("tokens", message));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            let message = format!("has the id {id}, which is outside the vocabulary");
            return Err(ServiceError::invalid("tokens", message));
        }
        let tokenizer = self.tokenizer().clone();
        aside(move || Ok(tokenizer.decode(&tokens, skip_special)?)).await
    }

    /// How a caller's conversation is rendered. Its variables stand in the frame, so what could spell a control token is refused.
    pub(super) fn render_options(
        &self,
        variables: Variables,
    ) -> Result<RenderOptions, ServiceError> {
        /// Bytes of a call's variables.
        const MOST: usize = 4096;
        let refuse = |message: String| Err(ServiceError::invalid("chat_template_kwargs", message));
        let bytes: usize = variables
            .iter()
            .map(|(name, value)| name.len() + value.to_string().len())
            .sum();
        if bytes > MOST {
            return refuse(format!("must have at most {MOST} bytes, not {bytes}"));
        }
        if let Err(message) = check_variables(&variables) {
            return refuse(message);
        }
        for (name, value) in &variables {
            if spells_control(self.tokenizer(), value) {
                return refuse(format!(
                    "`{name}` could spell a control token of this model"
                ));
            }
        }
        Ok(RenderOptions {
            variables,
            ..RenderOptions::for_generation().with_own(OwnTrust::Markers)
        })
    }

    /// Bytes of a text of which the tokens are counted.
    fn most_counted(&self) -> usize {
        let max_context = self.engine().capacity().max_context;
        max_context.saturating_mul(8).max(LEAST_COUNTED)
    }

    /// Refuses a conversation that is too long to be rendered, by its bytes.
    pub(super) fn check_messages(
        &self,
        messages: &[Message],
        most: usize,
    ) -> Result<(), TextError> {
        let bytes = messages.iter().map(|message| message.content.len());
        check_bytes(bytes.sum::<usize>() + messages.len() * MESSAGE_BYTES, most)
    }
}

/// Whether a string in a value, or a key, could spell a control token.
fn spells_control(tokenizer: &Tokenizer, value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::String(text) => tokenizer.may_spell_control(text),
        Value::Array(values) => values.iter().any(|value| spells_control(tokenizer, value)),
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            tokenizer.may_spell_control(key) || spells_control(tokenizer, value)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A text prompt with the trust that callers' text has here.
fn raw_text(text: String, reads_control: bool) -> Rendered {
    let mut raw = Rendered::new();
    match reads_control {
        true => raw.push_trusted(&text),
        false => drop(raw.push_untrusted(&text)),
    }
    raw
}

fn with_special(
    tokenizer: &Tokenizer,
    ids: Vec<u32>,
    add_special: bool,
) -> Result<Vec<u32>, TextError> {
    match add_special {
        true => tokenizer.add_special_tokens(ids),
        false => Ok(ids),
    }
}

/// Refuses a text that is too long to be read.
pub(super) fn check_bytes(bytes: usize, most: usize) -> Result<(), TextError> {
    match bytes <= most {
        true => Ok(()),
        false => Err(TextError::TooManyBytes { bytes, most }),
    }
}
