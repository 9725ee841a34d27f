//! The engine: one thread that answers any number of requests from one model by continuous batching.
//!
//! Every step computes a few tokens of many requests (prompts in chunks, one token for each request that decodes) under one token
//! budget. Keys and values are in a paged cache whose blocks are shared by content, to the token. The engine handles requests, tokens and
//! blocks. Judging and HTTP are outside it, and text enters only through a grammar, which gives the tokens that are allowed next.
//!
//! | file | content |
//! |---|---|
//! | `core` | one step: expire, schedule, compute, sample, send events |
//! | `scheduler/`, `request` | which requests compute how many tokens; pure policy |
//! | `tenant` | the identities between which the engine is shared |
//! | `kv_cache/` | block allocation for the paged cache; pure policy |
//! | `model_runner` | the forward pass of a step |
//! | `sampler/`, `sampling_params` | logits to tokens |
//! | `admission`, `output` | queueing of requests, streams of events |
//! | `start`, `warm_up` | the engine's thread; the first steps, before the first request |
//! | `inline` | the engine on the caller's thread, for evaluation |
//! | `heartbeat` | liveness of the thread |
//! | `stats` | metrics |
//!
//! # Batch invariance
//! On the CPU a request's tokens and log-probabilities are the same bits alone and in any mix, whatever the chunks, preemptions
//! and cache hits: every kernel computes a row in an order that only its own sequence decides. This also holds for a cache that rounds
//! keys and values: a token's own step reads them from the cache too. With dynamic rotary scaling
//! ([`RotaryEmbedding::extend`](kernels::nn::rotary::RotaryEmbedding::extend)) a prompt beyond the trained length shares cached blocks only
//! with prompts of the same length.
//!
//! # Versions
//! A request is computed to its end with the weights with which it was submitted, whatever is published or swapped in the meantime. Steps
//! mix versions: the base is computed once for all rows, each adapter for its own rows. A request never finds cached blocks of another
//! version.

mod admission;
#[cfg(test)]
mod by_hand;
mod config;
mod core;
#[cfg(test)]
mod dynamic_tests;
#[cfg(test)]
mod fairness_tests;
#[cfg(test)]
mod grammar_tests;
mod heartbeat;
mod inline;
#[cfg(test)]
mod inline_tests;
mod kv_cache;
#[cfg(test)]
mod longrope_tests;
mod model_runner;
mod output;
#[cfg(test)]
mod pace_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod prompt_tests;
#[cfg(test)]
mod reference_tests;
mod request;
mod sampler;
mod sampling_params;
mod scheduler;
#[cfg(test)]
mod scheduler_tests;
#[cfg(test)]
mod speculation_tests;
mod start;
mod stats;
mod stop_ids;
mod tenant;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;
mod warm_up;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::DType;
use tokio::sync::{mpsc, oneshot, watch};

pub use admission::{Admission, QueueLimits, QueueLoad, QueuePlace, TenantShare};
pub use config::{BackgroundConfig, EngineConfig};
pub use inline::{Completion, InlineEngine, InlineError};
pub use kv_cache::CacheSalt;
pub use model_runner::{KvCacheDtype, block_bytes};
pub use output::{RequestFailure, RequestStream, StreamEvent};
pub use request::{Class, FinishReason, StopCriteria};
pub use sampler::{PromptLogprobs, TokenLogprobs};
pub use sampling_params::{
    InvalidParameter, MAX_LOGIT_BIAS, MAX_LOGPROB_IDS, MAX_LOGPROBS, SamplingParams,
};
pub use scheduler::{BackgroundLimits, PRIORITIES};
pub use start::EngineThread;
pub use stop_ids::StopIds;
pub use tenant::Tenant;

use self::core::{Command, Submission};
use heartbeat::{Heartbeat, Pulse, STUCK};
use model::{ModelError, Role, WeightStore, WeightsLease};
use request::RequestId;
use telemetry::CallTimes;
use text::Grammar;

/// The reason for which an engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "a KV cache of {memory} bytes holds {held} tokens, but one request may need {needed}: reserve at least {least} bytes \
         (--kv-cache-memory), or allow only shorter contexts (--max-model-len)"
    )]
    CacheTooSmall {
        memory: usize,
        held: usize,
        needed: usize,
        least: usize,
    },
    #[error(
        "--max-model-len ({asked}) must be from 2 to {most}, the number of positions of this model"
    )]
    Context { asked: usize, most: usize },
    #[error(
        "--max-batch-tokens ({max_batch_tokens}) must be more than --max-concurrent ({max_concurrent}), so that prompts make progress \
         while all sequences decode"
    )]
    Sizes {
        max_batch_tokens: usize,
        max_concurrent: usize,
    },
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the model's first steps failed: {0}")]
    WarmUp(RequestFailure),
    #[error("the engine's thread ended before its first step finished")]
    Ended,
}

/// The reason for which a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error(
        "the prompt has {tokens} tokens, which leaves no room for an answer in a context of {max_context}"
    )]
    PromptTooLong { tokens: usize, max_context: usize },
    #[error("token {0} is outside the vocabulary")]
    UnknownToken(u32),
    #[error(
        "{asked} samples are requested, but at most {max} sequences can run at once; request fewer"
    )]
    TooManySamples { asked: usize, max: usize },
    #[error(transparent)]
    Invalid(#[from] InvalidParameter),
    #[error("the queue is full: {} requests with {} prompt tokens are waiting already", .0.requests, .0.tokens)]
    Overloaded(QueueLoad),
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// A prompt, and how to answer it.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    pub prompt: Vec<u32>,
    /// `max_tokens` may exceed the room in the context: it is then reduced to that room.
    pub params: SamplingParams,
    /// The number of samples. The prompt is computed once for all of them.
    pub samples: usize,
    /// The number of the prompt's first tokens that later prompts are likely to start with, if the caller can tell: the cache evicts the
    /// blocks after them first.
    pub reusable_tokens: Option<usize>,
    /// The grammar that every sample has to match.
    pub grammar: Option<Grammar>,
    /// The priority: lower numbers are served first. One of [`PRIORITIES`]; a level is worth a bounded head start.
    pub priority: i32,
    pub class: Class,
    /// The weights that compute the request; by default those of the policy role at submission.
    pub weights: Option<WeightsLease>,
    /// The arrival time of the caller's request, or of this part of its work. Latencies are counted from here; the scheduler orders by
    /// submission instead.
    pub arrival: Instant,
    pub deadline: Option<Instant>,
    /// The tenant of the request: tenants share the engine fairly and do not share cached prefixes.
    pub tenant: Tenant,
    /// Requests of one tenant share prefixes only if they have the same salt.
    pub cache_salt: Option<CacheSalt>,
}

impl GenerateRequest {
    pub fn new(prompt: Vec<u32>, params: SamplingParams) -> Self {
        Self {
            prompt,
            params,
            samples: 1,
            reusable_tokens: None,
            grammar: None,
            priority: 0,
            class: Class::default(),
            weights: None,
            arrival: Instant::now(),
            deadline: None,
            tenant: Tenant::default(),
            cache_salt: None,
        }
    }
}

/// The capacity of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens that the KV cache holds.
    pub kv_tokens: usize,
    /// Bytes of the KV cache.
    pub kv_bytes: usize,
    /// The dtype of cached keys and values.
    pub kv_dtype: DType,
    /// The maximum length of a sequence, prompt and answer together.
    pub max_context: usize,
    pub max_concurrent: usize,
    pub vocab_size: usize,
}

/// The engine's readiness to answer requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The model's first steps are not finished. Requests submitted in the meantime wait.
    WarmingUp,
    Ready,
    /// The engine's thread has ended.
    Down,
}

/// The result of the warm-up, once it has ended.
type WarmedUp = Option<Result<(), RequestFailure>>;

/// A handle to the engine; clones share it. After the last handle is dropped the engine finishes its requests and stops.
#[derive(Debug, Clone)]
pub struct Engine {
    commands: mpsc::UnboundedSender<Command>,
    /// One queue per [`Class`].
    admission: [Admission; 2],
    weights: WeightStore,
    capacity: Capacity,
    next_id: Arc<AtomicU64>,
    warmed_up: watch::Receiver<WarmedUp>,
    heartbeat: Heartbeat,
}

impl Engine {
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Returns the weights that the engine serves.
    pub fn weights(&self) -> &WeightStore {
        &self.weights
    }

    /// Returns whether requests can be answered now.
    pub fn readiness(&self) -> Readiness {
        match &*self.warmed_up.borrow() {
            _ if self.commands.is_closed() => Readiness::Down,
            None => Readiness::WarmingUp,
            Some(Ok(())) => Readiness::Ready,
            Some(Err(_)) => Readiness::Down,
        }
    }

    /// Waits until the engine's thread has ended, by a panic or because its model failed. No request is answered after that.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Returns whether the engine's thread is alive and not stuck: it made a step recently, or replies to a probe now.
    pub async fn is_alive(&self) -> bool {
        if self.readiness() == Readiness::WarmingUp {
            return true;
        }
        match self.heartbeat.pulse() {
            _ if self.commands.is_closed() => false,
            Pulse::Beating => true,
            Pulse::Stuck => false,
            Pulse::Idle => {
                let (reply, answer) = oneshot::channel();
                let asked = self.commands.send(Command::Ping(reply)).is_ok();
                let answered = tokio::time::timeout(STUCK, answer).await;
                asked && matches!(answered, Ok(Ok(())))
            }
        }
    }

    /// Waits until the model has computed its first steps.
    ///
    /// # Errors
    /// Errors if the model cannot compute, with the reason.
    pub async fn ready(&self) -> Result<(), EngineError> {
        let mut warmed_up = self.warmed_up.clone();
        let outcome = warmed_up.wait_for(Option::is_some).await;
        match outcome.as_deref() {
            Ok(Some(Err(failure))) => Err(EngineError::WarmUp(failure.clone())),
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::Ended),
        }
    }

    /// Returns the load of the queue of one class.
    pub fn queue_load(&self, class: Class) -> QueueLoad {
        self.admission[class as usize].load()
    }

    /// Submits a request, if the queue and the tenant's share of it have a place for it.
    ///
    /// # Errors
    /// Errors if the request is invalid, with the reason; with [`SubmitError::Overloaded`] if the queue or the tenant's share is full.
    pub fn submit(&self, request: GenerateRequest) -> Result<RequestStream, SubmitError> {
        let request = self.check(request)?;
        let admission = &self.admission[request.class as usize];
        let place = admission.try_enter(request.tenant, request.prompt.len());
        let place = place.ok_or_else(|| SubmitError::Overloaded(admission.load()))?;
        self.send(request, place)
    }

    /// Submits a request once the queue has a place for it: for parts of work that was already accepted.
    ///
    /// # Errors
    /// Errors if the request is invalid, with the reason.
    pub async fn submit_in_turn(
        &self,
        request: GenerateRequest,
    ) -> Result<RequestStream, SubmitError> {
        let request = self.check(request)?;
        let admission = &self.admission[request.class as usize];
        let place = admission.enter(request.tenant, request.prompt.len());
        let place = place.await;
        self.send(request, place)
    }

    /// Checks a request as [`Self::submit`] does, and limits `max_tokens` to the room in the context.
    ///
    /// # Errors
    /// Errors if the request is invalid, with the reason.
    pub fn check(&self, mut request: GenerateRequest) -> Result<GenerateRequest, SubmitError> {
        let Capacity {
            max_context,
            vocab_size,
            max_concurrent,
            ..
        } = self.capacity;
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if tokens >= max_context {
            return Err(SubmitError::PromptTooLong {
                tokens,
                max_context,
            });
        }
        let unknown = |id: &&u32| **id as usize >= vocab_size;
        if let Some(&id) = request.prompt.iter().find(unknown) {
            return Err(SubmitError::UnknownToken(id));
        }
        if !(1..=max_concurrent).contains(&request.samples) {
            return Err(SubmitError::TooManySamples {
                asked: request.samples,
                max: max_concurrent,
            });
        }
        request.params.validate(vocab_size)?;
        if !PRIORITIES.contains(&request.priority) {
            let (least, most) = PRIORITIES.into_inner();
            let message = format!("must be from {least} to {most}");
            let name = "priority";
            return Err(InvalidParameter { name, message }.into());
        }
        let fits = |grammar: &Grammar| grammar.vocab_size() == vocab_size;
        if !request.grammar.as_ref().is_none_or(fits) {
            let message = "was compiled for another vocabulary".into();
            let name = "grammar";
            return Err(InvalidParameter { name, message }.into());
        }
        if !request
            .weights
            .as_ref()
            .is_none_or(|weights| self.weights.owns(weights))
        {
            let message = "belong to another weight store".into();
            let name = "weights";
            return Err(InvalidParameter { name, message }.into());
        }
        let stop = &mut request.params.stop;
        stop.max_tokens = stop.max_tokens.min(max_context - tokens);
        Ok(request)
    }

    fn send(
        &self,
        request: GenerateRequest,
        place: QueuePlace,
    ) -> Result<RequestStream, SubmitError> {
        // The channel has no bound of its own: the engine never waits for a reader. Unread events are bounded anyway: a request has at most
        // `samples` times `max_context` events, each with at most MAX_LOGPROBS and MAX_LOGPROB_IDS log-probabilities (under 1 KiB; about
        // 100 bytes without them), and the number of requests in progress is bounded by the layer above.
        let (events, receiver) = mpsc::unbounded_channel();
        let samples = request.samples;
        let ids = &self.next_id;
        let first = RequestId(ids.fetch_add(samples as u64, Ordering::Relaxed));
        let weights = match &request.weights {
            Some(weights) => weights.clone(),
            None => self.weights.lease(Role::Policy, None),
        };
        let submission = Submission {
            first,
            request,
            weights,
            events,
            place,
            call: CallTimes::current(),
        };
        self.commands
            .send(Command::Submit(Box::new(submission)))
            .map_err(|_| SubmitError::ShuttingDown)?;
        let engine = self.commands.downgrade();
        Ok(RequestStream::new(first, samples, receiver, engine))
    }
}
