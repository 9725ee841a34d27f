//! The events that a caller receives for its request.

use tokio::sync::mpsc;

use super::core::Command;
use super::request::{FinishReason, RequestId};
use super::sampler::{PromptLogprobs, TokenLogprobs};
use model::WeightsName;
use text::GrammarError;

/// An event of a request. Sample `index` counts from 0 and is below the number of samples.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The request's first tokens are being computed.
    Started {
        /// The weights that compute the request, until its end.
        weights: WeightsName,
        /// Prompt tokens that were found in the KV cache.
        num_cached_tokens: usize,
    },
    /// The requested log-probabilities of the prompt's tokens, from the second token on; sent before any `Token`.
    Prompt(Vec<PromptLogprobs>),
    Token {
        index: usize,
        id: u32,
        logprobs: Option<TokenLogprobs>,
        /// Set on the sample's last token.
        finished: Option<FinishReason>,
    },
    /// The request has failed; no further event follows, for any sample.
    Failed(RequestFailure),
}

/// The reason for which an accepted request was not finished.
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
    /// The samples whose last token has not arrived.
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

    /// Returns the next event; `None` after the last token of the last sample, or after a failure.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if !self.open.contains(&true) {
                return None;
            }
            let event = self
                .events
                .recv()
                .await
                // The engine thread has ended, and dropped its senders.
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

    /// Closes one sample: no further token of it is computed or delivered.
    pub fn close(&mut self, index: usize) {
        if std::mem::take(&mut self.open[index])
            && let Some(engine) = self.engine.upgrade()
        {
            // An engine that has ended computes nothing anyway.
            let _ = engine.send(Command::Close(self.first.sample(index)));
        }
    }
}
