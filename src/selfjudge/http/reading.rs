//! Encoding of a conversation to the prompt of a call, common to all routes that answer one.

use super::AppState;
use super::answering::{Asked, Prompt};
use super::error::ApiError;
use super::sampling::Sampling;
use crate::service::Ending;
use text::Message;
use text::Variables;

/// A conversation that is to be answered.
pub struct Chat {
    pub messages: Vec<Message>,
    /// Variables of the chat template.
    pub variables: Variables,
}

impl Chat {
    /// Encodes the conversation.
    ///
    /// # Errors
    /// Errors in the judging parameters, which are checked first; then errors of the encoding.
    pub async fn read(self, state: &AppState, sampling: &Sampling) -> Result<Prompt, ApiError> {
        let Self {
            messages,
            variables,
        } = self;
        let service = &state.service;
        let judging = sampling.judging(state, 1)?;
        let tokens = match sampling.ending {
            None => service.read_chat(&messages, variables).await?,
            Some(ending) => {
                let read = service.read_ended_chat(&messages, ending, variables);
                read.await?
            }
        };
        Ok(Prompt {
            judging: judging.map(|judging| judging.of(messages.clone())),
            tokens,
            continues: sampling.ending == Some(Ending::Continued),
            asked: Asked::Messages(messages),
        })
    }
}
