//! Reads: one-token requests for the raw log-probabilities of a few label tokens, from which verdicts and decisions are computed.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::ModelJudge;
use crate::call::{CallError, Turn, Usage, offload};
use engine::{GenerateRequest, SamplingParams, StreamEvent};
use model::{Role, WeightsLease, WeightsName};
use telemetry::CallTimes;

/// The maximum number of a call's reads in the engine at once: enough to fill its batches, too few to crowd out other calls.
const WINDOW: usize = 64;

/// A result with its token counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged<T> {
    pub result: T,
    pub usage: Usage,
    /// The weights that were read; none if no read was needed.
    pub weights: Option<WeightsName>,
}

/// The token counts of a call so far, and the weights of all its reads.
#[derive(Debug)]
pub(crate) struct Account {
    weights: WeightsLease,
    /// Whether a request of the call has been accepted: later ones wait their turn.
    accepted: bool,
    asked: bool,
    usage: Usage,
}

impl Account {
    pub(crate) fn new(weights: WeightsLease) -> Self {
        Self {
            weights,
            accepted: false,
            asked: false,
            usage: Usage::default(),
        }
    }

    /// Returns the account of a call that has been accepted already.
    pub(crate) fn accepted(weights: WeightsLease) -> Self {
        Self {
            accepted: true,
            ..Self::new(weights)
        }
    }

    /// Returns the name of the weights.
    pub(super) fn weights(&self) -> &WeightsName {
        self.weights.name()
    }

    pub(crate) fn close<T>(self, result: T) -> Judged<T> {
        Judged {
            result,
            usage: self.usage,
            weights: self.asked.then(|| self.weights.name().clone()),
        }
    }
}

/// A prompt and the label tokens to read after it.
#[derive(Debug)]
pub(crate) struct LabelPrompt {
    pub prompt: Vec<u32>,
    pub labels: Vec<u32>,
    /// The number of leading tokens that later prompts may share; none if unknown.
    pub reusable: Option<usize>,
}

struct Read {
    logprobs: Vec<f32>,
    usage: Usage,
}

impl ModelJudge {
    /// Returns `named`, or the weights of [`Role::Judge`]: the same for callers and for training.
    pub(crate) fn judging_weights(&self, named: Option<&WeightsLease>) -> WeightsLease {
        let store = self.engine.weights();
        named.map_or_else(|| store.lease(Role::Judge, None), WeightsLease::clone)
    }

    /// Returns the log-probabilities of each prompt's labels. Only the first prompt can be refused by a full queue; the others wait their
    /// turn.
    ///
    /// Prompts are submitted in the order of their tokens. Prompts with a common prefix are then adjacent, so that the prefix is still in
    /// the cache, for any number of prompts.
    pub(crate) async fn read_labels(
        &self,
        turn: Turn,
        prompts: Vec<LabelPrompt>,
        account: &mut Account,
    ) -> Result<Vec<Vec<f32>>, CallError> {
        if let Some(call) = CallTimes::current() {
            call.arrived(turn.arrival);
        }
        let (accepted, weights) = (account.accepted, account.weights.clone());
        /// Number of prompts that are sorted faster than another thread wakes up.
        const FEW: usize = 64;
        let many = prompts.len() > FEW;
        let mut prompts: Vec<(usize, LabelPrompt)> = prompts.into_iter().enumerate().collect();
        let sort = move || {
            prompts.sort_by(|(_, a), (_, b)| a.prompt.cmp(&b.prompt));
            prompts
        };
        let prompts = match many {
            true => offload(sort).await?,
            false => sort(),
        };
        let order: Vec<usize> = prompts.iter().map(|(at, _)| *at).collect();
        let reads: Vec<Read> = stream::iter(prompts.into_iter().enumerate())
            .map(|(place, (_, prompt))| self.read(turn, &weights, prompt, accepted || place > 0))
            .buffered(WINDOW)
            .try_collect()
            .await?;
        let mut logprobs = vec![Vec::new(); reads.len()];
        for (at, read) in order.into_iter().zip(reads) {
            (account.accepted, account.asked) = (true, true);
            account.usage.add(read.usage);
            self.metrics
                .prompt_tokens
                .inc_by(read.usage.prompt_tokens as u64);
            self.metrics
                .cached_tokens
                .inc_by(read.usage.cached_tokens as u64);
            logprobs[at] = read.logprobs;
        }
        Ok(logprobs)
    }

    async fn read(
        &self,
        turn: Turn,
        weights: &WeightsLease,
        LabelPrompt {
            prompt,
            labels,
            reusable,
        }: LabelPrompt,
        accepted: bool,
    ) -> Result<Read, CallError> {
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
            class: turn.class,
            deadline: turn.deadline,
            weights: Some(weights.clone()),
            reusable_tokens: reusable,
            tenant: turn.tenant,
            cache_salt: turn.cache_salt,
            ..GenerateRequest::new(prompt, params)
        };
        let mut stream = match accepted {
            true => self.engine.submit_in_turn(request).await?,
            false => self.engine.submit(request)?,
        };
        let mut logprobs = None;
        while let Some(event) = stream.next().await {
            match event {
                StreamEvent::Started {
                    num_cached_tokens, ..
                } => usage.cached_tokens = num_cached_tokens,
                StreamEvent::Prompt(_) => {}
                StreamEvent::Token { logprobs: read, .. } => logprobs = read,
                StreamEvent::Failed(failure) => return Err(failure.into()),
            }
        }
        let read = logprobs.expect("log-probabilities were asked for; this is a bug");
        Ok(Read {
            logprobs: read.chosen,
            usage,
        })
    }
}
