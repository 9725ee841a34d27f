//! Prompts from callers, checked and encoded before any of them is submitted: first the length in bytes, then the tokens.

use super::Service;
use crate::call::{CallError, spawn_blocking};
use engine::SubmitError;
use text::{
    Message, OwnTrust, RenderOptions, Rendered, TextError, Tokenizer, Variables, check_variables,
};

/// The cost of a message in bytes beside its text: every template writes at least a few tokens around it.
pub(super) const MESSAGE_BYTES: usize = 16;

/// The length in bytes up to which a text is tokenised on request, regardless of the context length.
const LEAST_COUNTED: usize = 256 << 10;

/// A prompt that is continued without a chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A prompt as tokens and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPrompt {
    pub tokens: Vec<u32>,
    /// The text of the tokens, including control tokens.
    pub text: String,
    /// The text of the tokens without control tokens.
    pub spoken: String,
}

impl Service {
    /// Encodes a prompt and returns it as tokens and text. With `add_special` a text prompt gets the additions of the tokenizer's
    /// post-processor, such as BOS; token prompts stay unchanged.
    ///
    /// # Errors
    /// Errors with [`SubmitError::PromptTooLong`] or [`TextError::TooManyTokens`] if the prompt does not fit the context, before all of
    /// it is encoded; errors if the tokenizer fails.
    pub async fn read_prompt(
        &self,
        prompt: RawPrompt,
        add_special: bool,
    ) -> Result<ReadPrompt, CallError> {
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
        spawn_blocking(move || {
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

    /// Encodes a conversation as the prompt for its next answer, with the caller's template variables.
    ///
    /// # Errors
    /// Errors with [`CallError::Invalid`] for `chat_template_kwargs`; with [`TextError::TooManyBytes`] or [`TextError::TooManyTokens`]
    /// if the conversation does not fit the context, before all of it is encoded; and if the chat template refuses it or the tokenizer
    /// fails.
    pub async fn read_chat(
        &self,
        messages: &[Message],
        variables: Variables,
    ) -> Result<Vec<u32>, CallError> {
        let options = self.render_options(variables)?;
        let most = self.engine().capacity().max_context;
        self.check_messages(messages, self.tokenizer().most_bytes(most))?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        let messages = messages.to_vec();
        spawn_blocking(move || {
            let rendered = chat.render(&messages, &options)?;
            Ok(tokenizer.encode_rendered_within(&rendered, most)?.ids)
        })
        .await
    }

    /// Returns the tokens of a text, encoded as by [`Self::read_prompt`]. The text need not fit the context.
    ///
    /// # Errors
    /// Errors with [`TextError::TooManyBytes`], or if the tokenizer fails.
    pub async fn tokenize_text(
        &self,
        text: String,
        add_special: bool,
    ) -> Result<Vec<u32>, CallError> {
        check_bytes(text.len(), self.most_counted())?;
        let tokenizer = self.tokenizer().clone();
        let reads_control = self.reads_control;
        spawn_blocking(move || {
            let text = raw_text(text, reads_control);
            let ids = tokenizer.encode_rendered(&text)?.ids;
            Ok(with_special(&tokenizer, ids, add_special)?)
        })
        .await
    }

    /// Returns the tokens of a conversation as the prompt for its next answer. It need not fit the context. Most templates write BOS
    /// themselves, so that `add_special` adds a second one.
    ///
    /// # Errors
    /// Errors with [`CallError::Invalid`] for `chat_template_kwargs`, with [`TextError::TooManyBytes`], or if the chat template
    /// refuses the conversation or the tokenizer fails.
    pub async fn tokenize_chat(
        &self,
        messages: Vec<Message>,
        variables: Variables,
        add_special: bool,
    ) -> Result<Vec<u32>, CallError> {
        let options = self.render_options(variables)?;
        self.check_messages(&messages, self.most_counted())?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        spawn_blocking(move || {
            let rendered = chat.render(&messages, &options)?;
            let ids = tokenizer.encode_rendered(&rendered)?.ids;
            Ok(with_special(&tokenizer, ids, add_special)?)
        })
        .await
    }

    /// Returns the text of tokens, which may be more than the context holds.
    ///
    /// # Errors
    /// Errors with [`CallError::Invalid`] for `tokens` if an id is outside the vocabulary or there are too many; errors if the
    /// tokenizer fails.
    pub async fn detokenize(
        &self,
        tokens: Vec<u32>,
        skip_special: bool,
    ) -> Result<String, CallError> {
        let vocab_size = self.engine().capacity().vocab_size;
        // Each token may have the length of the longest one.
        let most = self.most_counted() / self.tokenizer().longest_token();
        if tokens.len() > most {
            let message = format!("must be at most {most}, not {}", tokens.len());
            return Err(CallError::invalid("tokens", message));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            let message = format!("has the id {id}, which is outside the vocabulary");
            return Err(CallError::invalid("tokens", message));
        }
        let tokenizer = self.tokenizer().clone();
        spawn_blocking(move || Ok(tokenizer.decode(&tokens, skip_special)?)).await
    }

    /// Returns the render options of a caller's conversation. Its variables become part of the template's own text, so values that could
    /// spell a control token are refused.
    pub(super) fn render_options(&self, variables: Variables) -> Result<RenderOptions, CallError> {
        /// The maximum size of a call's variables in bytes.
        const MOST: usize = 4096;
        let refuse = |message: String| Err(CallError::invalid("chat_template_kwargs", message));
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

    /// Returns the maximum length in bytes of a text to tokenise.
    fn most_counted(&self) -> usize {
        let max_context = self.engine().capacity().max_context;
        max_context.saturating_mul(8).max(LEAST_COUNTED)
    }

    /// Refuses a conversation that is too long to be rendered, by its length in bytes.
    pub(super) fn check_messages(
        &self,
        messages: &[Message],
        most: usize,
    ) -> Result<(), TextError> {
        let bytes = messages.iter().map(|message| message.content.len());
        check_bytes(bytes.sum::<usize>() + messages.len() * MESSAGE_BYTES, most)
    }
}

/// Returns whether a string or key within a value could spell a control token.
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

/// Returns a text prompt with the trust of callers' texts: control tokens are read only if `reads_control` is set.
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

/// Refuses a text that is too long to be encoded.
pub(super) fn check_bytes(bytes: usize, most: usize) -> Result<(), TextError> {
    match bytes <= most {
        true => Ok(()),
        false => Err(TextError::TooManyBytes { bytes, most }),
    }
}
