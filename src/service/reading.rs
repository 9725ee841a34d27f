//! Reads: one-token requests that ask for the raw log-probabilities of a few label tokens. Verdicts and decisions are made of
//! them.

use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Service, ServiceError, Usage, offload};
use crate::engine::{CacheSalt, Class, GenerateRequest, SamplingParams, StreamEvent, Tenant};
use crate::model::{PrincipalHash, Role, WeightsLease, WeightsName};
use crate::telemetry::CallTimes;

/// Reads of one call that are with the engine at once: enough to fill its batches, too few to crowd others out.
const WINDOW: usize = 64;

/// Who calls and when, how it is served among others, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Lower is served first.
    pub priority: i32,
    pub class: Class,
    /// Of the call; each of its reads comes to the engine at a time of its own.
    pub arrival: Instant,
    pub deadline: Option<Instant>,
    /// Decides whether the canary answers.
    pub principal: Option<PrincipalHash>,
    /// Between whom the server is shared: a call waits for its own tenant's calls, and finds only their prefixes in the cache.
    pub tenant: Tenant,
    /// Of the tenant's calls, only those with the same salt share prefixes.
    pub cache_salt: Option<CacheSalt>,
}

impl Turn {
    /// That of a local call that comes now, like any other.
    pub fn now() -> Self {
        Self {
            priority: 0,
            class: Class::Foreground,
            arrival: Instant::now(),
            deadline: None,
            principal: None,
            tenant: Tenant::local(),
            cache_salt: None,
        }
    }

    /// That of the server's own work, which nobody waits for.
    pub fn background() -> Self {
        Self {
            class: Class::Background,
            tenant: Tenant::server(),
            ..Self::now()
        }
    }
}

/// Results and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged<T> {
    pub result: T,
    pub usage: Usage,
    /// Which weights were asked; none where nothing had to be.
    pub weights: Option<WeightsName>,
}

/// What a call has cost so far, and the weights that all its reads ask.
#[derive(Debug)]
pub(super) struct Account {
    weights: WeightsLease,
    /// Whether the call has had a request accepted: what follows waits its turn.
    accepted: bool,
    asked: bool,
    usage: Usage,
}

impl Account {
    pub(super) fn new(weights: WeightsLease) -> Self {
        Self {
            weights,
            accepted: false,
            asked: false,
            usage: Usage::default(),
        }
    }

    /// Of a call that has been accepted already.
    pub(super) fn accepted(weights: WeightsLease) -> Self {
        Self {
            accepted: true,
            ..Self::new(weights)
        }
    }

    /// Returns the name of the weights that are asked.
    pub(super) fn weights(&self) -> &WeightsName {
        self.weights.name()
    }

    pub(super) fn close<T>(self, result: T) -> Judged<T> {
        Judged {
            result,
            usage: self.usage,
            weights: self.asked.then(|| self.weights.name().clone()),
        }
    }
}

/// A prompt, and the tokens that may follow.
#[derive(Debug)]
pub(super) struct LabelPrompt {
    pub prompt: Vec<u32>,
    pub labels: Vec<u32>,
    /// Of its first tokens, how many later prompts may begin with as well; none where that is not known.
    pub reusable: Option<usize>,
}

struct Read {
    logprobs: Vec<f32>,
    usage: Usage,
}

impl Service {
    /// The weights that judge, unless others are named: those of [`Role::Judge`], for callers and for training alike.
    pub(super) fn judging_weights(&self, named: Option<&WeightsLease>) -> WeightsLease {
        let store = self.engine.weights();
        named.map_or_else(|| store.lease(Role::Judge, None), WeightsLease::clone)
    }

    /// The log-probabilities of each prompt's labels. The first prompt finds the queue full or not; the others wait their turn.
    ///
    /// Prompts go to the engine in the order of their tokens. Those that begin alike then follow each other, and what they
    /// share is still in the cache, however many there are.
    pub(super) async fn read_labels(
        &self,
        turn: Turn,
        prompts: Vec<LabelPrompt>,
        account: &mut Account,
    ) -> Result<Vec<Vec<f32>>, ServiceError> {
        if let Some(call) = CallTimes::current() {
            call.arrived(turn.arrival);
        }
        let (accepted, weights) = (account.accepted, account.weights.clone());
        /// Prompts that are sorted sooner than another thread has woken up.
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
