//! What a caller hears of its request.

use tokio::sync::mpsc;

use super::core::Command;
use super::request::{FinishReason, RequestId};
use super::sampler::{PromptLogprobs, TokenLogprobs};
use crate::model::WeightsName;
use crate::text::GrammarError;

/// One thing that happened to a request. Sample `index` counts from 0 to the number of samples asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The request's first tokens are being computed.
    Started {
        /// What it is computed with, to its end.
        weights: WeightsName,
        /// Prompt tokens that did not have to be computed.
        num_cached_tokens: usize,
    },
    /// What was asked to be known of the prompt's tokens, the second and all after it; before any token.
    Prompt(Vec<PromptLogprobs>),
    Token {
        index: usize,
        id: u32,
        logprobs: Option<TokenLogprobs>,
        /// Set with the sample's last token.
        finished: Option<FinishReason>,
    },
    /// Nothing more will come, for any sample.
    Failed(RequestFailure),
}

/// Why an accepted request was not finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    #[error("the request's deadline has passed")]
    DeadlineExceeded,
    #[error("the engine is shutting down")]
    ShuttingDown,
    #[error("computing the request failed: {0}")]
    Model(String),
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// The events of one request. Dropping it aborts the request: its blocks are free within one step.
#[derive(Debug)]
pub struct RequestStream {
    events: mpsc::UnboundedReceiver<StreamEvent>,
    first: RequestId,
    engine: mpsc::WeakUnboundedSender<Command>,
    /// Samples whose last token has not come.
    open: Vec<bool>,
}

impl RequestStream {
    pub(super) fn new(
        first: RequestId,
        samples: usize,
        events: mpsc::UnboundedReceiver<StreamEvent>,
        engine: mpsc::WeakUnboundedSender<Command>,
    ) -> Self {
        Self {
            events,
            first,
            engine,
            open: vec![true; samples],
        }
    }

    /// The next event; `None` after the last token of the last sample, or after a failure.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if !self.open.contains(&true) {
                return None;
            }
            let event = self
                .events
                .recv()
                .await
                // The engine thread is gone, and its senders with it.
                .unwrap_or(StreamEvent::Failed(RequestFailure::ShuttingDown));
            match &event {
                StreamEvent::Token { index, .. } if !self.open[*index] => continue,
                StreamEvent::Token {
                    index,
                    finished: Some(_),
                    ..
                } => self.open[*index] = false,
                StreamEvent::Failed(_) => self.open.fill(false),
                _ => {}
            }
            return Some(event);
        }
    }

    /// Ends one sample: nothing more of it is computed or heard.
    pub fn close(&mut self, index: usize) {
        if std::mem::take(&mut self.open[index])
            && let Some(engine) = self.engine.upgrade()
        {
            // An engine that is gone computes nothing either.
            let _ = engine.send(Command::Close(self.first.sample(index)));
        }
    }
}
