//! Reads: one-token requests that ask for the raw log-probabilities of a few label tokens. Verdicts and decisions are made of
//! them.

use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Service, ServiceError, Usage};
use crate::engine::{GenerateRequest, SamplingParams, StreamEvent};
use crate::model::WeightsVersion;

/// Reads of one call that are with the engine at once: enough to fill its batches, too few to crowd others out.
const WINDOW: usize = 64;

/// When a call came, how it is served among others, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Lower is served first.
    pub priority: i32,
    pub arrival: Instant,
    pub deadline: Option<Instant>,
}

impl Turn {
    /// That of a call that comes now, like any other.
    pub fn now() -> Self {
        Self {
            priority: 0,
            arrival: Instant::now(),
            deadline: None,
        }
    }
}

/// Results and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged<T> {
    pub result: T,
    pub usage: Usage,
    /// Which weights were asked; none where nothing had to be.
    pub version: Option<WeightsVersion>,
}

/// What a call has cost so far.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Whether the call has had a request accepted: what follows waits its turn.
    accepted: bool,
    usage: Usage,
    version: Option<WeightsVersion>,
}

impl Account {
    /// Of a call that has been accepted already.
    pub(super) fn accepted() -> Self {
        Self {
            accepted: true,
            ..Self::default()
        }
    }

    pub(super) fn close<T>(self, result: T) -> Judged<T> {
        Judged {
            result,
            usage: self.usage,
            version: self.version,
        }
    }
}

/// A prompt, and the tokens that may follow.
#[derive(Debug)]
pub(super) struct LabelPrompt {
    pub prompt: Vec<u32>,
    pub labels: Vec<u32>,
}

struct Read {
    logprobs: Vec<f32>,
    usage: Usage,
    version: WeightsVersion,
}

impl Service {
    /// The log-probabilities of each prompt's labels. The first prompt finds the queue full or not; the others wait their turn.
    pub(super) async fn read_labels(
        &self,
        turn: Turn,
        prompts: Vec<LabelPrompt>,
        account: &mut Account,
    ) -> Result<Vec<Vec<f32>>, ServiceError> {
        let accepted = account.accepted;
        let reads: Vec<Read> = stream::iter(prompts.into_iter().enumerate())
            .map(|(at, prompt)| self.read(turn, prompt, accepted || at > 0))
            .buffered(WINDOW)
            .try_collect()
            .await?;
        for read in &reads {
            account.accepted = true;
            account.usage.add(read.usage);
            account.version = Some(read.version);
            self.metrics
                .prompt_tokens
                .inc_by(read.usage.prompt_tokens as u64);
            self.metrics
                .cached_tokens
                .inc_by(read.usage.cached_tokens as u64);
        }
        Ok(reads.into_iter().map(|read| read.logprobs).collect())
    }

    async fn read(
        &self,
        turn: Turn,
        LabelPrompt { prompt, labels }: LabelPrompt,
        accepted: bool,
    ) -> Result<Read, ServiceError> {
        let mut params = SamplingParams::new(1, Vec::new());
        params.temperature = 0.0;
        params.logprob_ids = labels;
        let mut usage = Usage {
            prompt_tokens: prompt.len(),
            completion_tokens: 1,
            cached_tokens: 0,
        };
        let request = GenerateRequest {
            priority: turn.priority,
            arrival: turn.arrival,
            deadline: turn.deadline,
            ..GenerateRequest::new(prompt, params)
        };
        let mut stream = match accepted {
            true => self.engine.submit_in_turn(request).await?,
            false => self.engine.submit(request)?,
        };
        let (mut version, mut logprobs) = (None, None);
        while let Some(event) = stream.next().await {
            match event {
                StreamEvent::Started {
                    version: with,
                    num_cached_tokens,
                } => {
                    version = Some(with);
                    usage.cached_tokens = num_cached_tokens;
                }
                StreamEvent::Token { logprobs: read, .. } => logprobs = read,
                StreamEvent::Failed(failure) => return Err(failure.into()),
            }
        }
        let read = logprobs.expect("log-probabilities were asked for; this is a bug");
        Ok(Read {
            logprobs: read.chosen,
            usage,
            version: version.expect("what has a token has started; this is a bug"),
        })
    }
}
