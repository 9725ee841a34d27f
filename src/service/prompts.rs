//! Prompts as callers give them, checked and read before any of them is asked for: the length in bytes first, then the tokens.

use super::aside::aside;
use super::{Service, ServiceError};
use crate::engine::SubmitError;
use crate::preference::Message;
use crate::text::{RenderOptions, TextError};

/// What a message costs beside its text: no frame around one is shorter than a few tokens.
const MESSAGE_BYTES: usize = 16;

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
    /// A prompt as tokens and as text.
    ///
    /// # Errors
    /// [`SubmitError::PromptTooLong`] and [`TextError::TooManyTokens`] for what the context has no room for, found out before all of
    /// it is read; those of the tokenizer.
    pub async fn read_prompt(&self, prompt: RawPrompt) -> Result<ReadPrompt, ServiceError> {
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
        aside(move || {
            let tokens = match prompt {
                RawPrompt::Text(text) => tokenizer.encode_text_within(&text, max_context)?,
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

    /// A conversation as the prompt for its next answer.
    ///
    /// # Errors
    /// [`TextError::TooManyBytes`] and [`TextError::TooManyTokens`] for what the context has no room for, found out before all of it
    /// is read; what the chat template objects to; those of the tokenizer.
    pub async fn read_chat(&self, messages: &[Message]) -> Result<Vec<u32>, ServiceError> {
        let most = self.engine().capacity().max_context;
        self.check_messages(messages, self.tokenizer().most_bytes(most))?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        let messages = messages.to_vec();
        aside(move || {
            let rendered = chat.render(&messages, &RenderOptions::for_generation())?;
            Ok(tokenizer.encode_rendered_within(&rendered, most)?.ids)
        })
        .await
    }

    /// The tokens of a text, which need not fit the context.
    ///
    /// # Errors
    /// [`TextError::TooManyBytes`], and those of the tokenizer.
    pub async fn tokenize_text(&self, text: String) -> Result<Vec<u32>, ServiceError> {
        check_bytes(text.len(), self.most_counted())?;
        let tokenizer = self.tokenizer().clone();
        aside(move || Ok(tokenizer.encode_text(&text)?)).await
    }

    /// The tokens of a conversation as the prompt for its next answer, which need not fit the context.
    ///
    /// # Errors
    /// [`TextError::TooManyBytes`], what the chat template objects to, and those of the tokenizer.
    pub async fn tokenize_chat(&self, messages: Vec<Message>) -> Result<Vec<u32>, ServiceError> {
        self.check_messages(&messages, self.most_counted())?;
        let (chat, tokenizer) = (self.chat_template().clone(), self.tokenizer().clone());
        aside(move || {
            let rendered = chat.render(&messages, &RenderOptions::for_generation())?;
            Ok(tokenizer.encode_rendered(&rendered)?.ids)
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
            let message = format!("{id} is outside the vocabulary");
            return Err(ServiceError::invalid("tokens", message));
        }
        let tokenizer = self.tokenizer().clone();
        aside(move || Ok(tokenizer.decode(&tokens, skip_special)?)).await
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

/// Refuses a text that is too long to be read.
pub(super) fn check_bytes(bytes: usize, most: usize) -> Result<(), TextError> {
    match bytes <= most {
        true => Ok(()),
        false => Err(TextError::TooManyBytes { bytes, most }),
    }
}
