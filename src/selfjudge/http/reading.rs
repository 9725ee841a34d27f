//! Encoding of a conversation to the prompt of a call, common to all routes that answer one.

use super::AppState;
use super::error::ApiError;
use super::sampling::Sampling;
use crate::judging::JudgeTask;
use crate::service::PromptTask;
use text::{Message, Variables};
use traffic_log::Prompt;

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
    pub async fn read(self, state: &AppState, sampling: &Sampling) -> Result<PromptTask, ApiError> {
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
        let of_messages = |(task, how)| {
            let context = messages.clone();
            (JudgeTask { context, ..task }, how)
        };
        Ok(PromptTask {
            judging: judging.map(of_messages),
            text: sampling.task(tokens),
            asked: Prompt::Messages(messages),
        })
    }
}
