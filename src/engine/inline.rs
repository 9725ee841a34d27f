//! The engine on the caller's thread, for evaluation, tools and tests: the same steps as those of the server.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use futures::stream::{self, StreamExt, TryStreamExt};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use super::core::{Command, EngineCore};
use super::model_runner::block_bytes;
use super::scheduler::Scheduler;
use super::start::Parts;
use super::{
    Engine, EngineConfig, EngineError, FinishReason, GenerateRequest, PromptLogprobs, QueueLimits,
    RequestFailure, SamplingParams, StreamEvent, SubmitError, TenantShare, TokenLogprobs,
};
use kernels::{device::DeviceArbiter, device::team::Team};
use model::{Decoder, WeightStore};
use telemetry::Metrics;

/// The number of requests that are submitted at once for each one that can run: the queue is then never empty.
const SUBMITTED: usize = 2;

/// The length of a sequence that the cache can hold, whatever its memory, if the model has as many positions.
const CONTEXT: usize = 8192;

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The sampled tokens, including the stop token.
    pub ids: Vec<u32>,
    pub finished: FinishReason,
}

/// The reason for which prompts could not be completed or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InlineError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Failed(#[from] RequestFailure),
}

/// An engine whose steps are computed on the caller's thread, while the caller waits for a result.
pub struct InlineEngine {
    engine: Engine,
    core: EngineCore,
    inbox: mpsc::UnboundedReceiver<Command>,
    team: Team,
}

impl InlineEngine {
    /// Creates an engine with the default configuration, and a cache that is large enough for one sequence of the model's context or of
    /// 8192 tokens.
    ///
    /// # Errors
    /// Errors if memory or a thread cannot be allocated.
    pub fn new(weights: WeightStore) -> Result<Self, EngineError> {
        let config = config_for(weights.decoder());
        Self::with_config(weights, &config)
    }

    /// Creates an engine.
    ///
    /// # Errors
    /// Errors if the sizes are inconsistent (with the numbers), or if memory or a thread cannot be allocated.
    pub fn with_config(weights: WeightStore, config: &EngineConfig) -> Result<Self, EngineError> {
        let Parts {
            engine,
            inbox,
            warm,
            runner,
            kv,
            limits,
        } = Parts::new(weights, config)?;
        // There is no client before the first step, so there is no warm-up. The handle holds the receiver.
        let _ = warm.send(Some(Ok(())));
        let scheduler = Scheduler::new(limits, kv);
        let metrics = Metrics::new("inline").engine;
        let core = EngineCore::new(scheduler, runner, metrics, DeviceArbiter::default())
            .with_shared_prefix_cache(config.shared_prefix_cache);
        Ok(Self {
            engine,
            core,
            inbox,
            team: Team::new(rayon::current_num_threads())?,
        })
    }

    /// Returns the handle. Its requests are computed while [`Self::run`] runs.
    pub fn handle(&self) -> &Engine {
        &self.engine
    }

    /// Runs a future to its end, and computes steps of the engine in the meantime. Blocks the thread: asynchronous code must not call it.
    pub fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
        let alarm = Arc::new(Alarm {
            thread: thread::current(),
            rung: AtomicBool::new(true),
        });
        let waker = Waker::from(Arc::clone(&alarm));
        let mut context = Context::from_waker(&waker);
        let mut work = pin!(work);
        loop {
            if alarm.rung.swap(false, Ordering::Acquire)
                && let Poll::Ready(result) = work.as_mut().poll(&mut context)
            {
                return result;
            }
            while let Poll::Ready(Some(command)) = self.inbox.poll_recv(&mut context) {
                self.core.handle_command(command);
            }
            if !self.core.is_idle() {
                let core = &mut self.core;
                self.team.lead(|| core.step());
            } else if !alarm.rung.load(Ordering::Acquire) {
                // The future waits for another thread.
                thread::park();
            }
        }
    }

    /// Continues each prompt once. `params.seed` is the seed of all of them: each prompt has a random stream of its own, by its index.
    ///
    /// # Errors
    /// Errors if a prompt or a parameter is invalid, or if the model cannot compute.
    pub fn complete(
        &mut self,
        prompts: &[Vec<u32>],
        params: &SamplingParams,
    ) -> Result<Vec<Completion>, InlineError> {
        let seeded = (0_u64..).zip(prompts).map(|(index, prompt)| {
            let seed = params.seed.map(|seed| stream_seed(seed, index));
            let params = SamplingParams {
                seed,
                ..params.clone()
            };
            GenerateRequest::new(prompt.clone(), params)
        });
        let answers = self.answer(seeded)?;
        let completions = answers.into_iter().map(|answer| Completion {
            ids: answer.ids,
            finished: answer.finished,
        });
        Ok(completions.collect())
    }

    /// Returns the log-probabilities (natural logarithm, of the whole vocabulary) of the labels at the position after each prompt.
    ///
    /// # Errors
    /// Errors if a prompt or a label is invalid, or if the model cannot compute.
    pub fn label_logprobs<const N: usize>(
        &mut self,
        prompts: &[Vec<u32>],
        labels: [u32; N],
    ) -> Result<Vec<[f32; N]>, InlineError> {
        let mut params = SamplingParams::new(1, Vec::new());
        params.temperature = 0.0;
        params.logprob_ids = labels.to_vec();
        let requests = prompts
            .iter()
            .map(|prompt| GenerateRequest::new(prompt.clone(), params.clone()));
        let answers = self.answer(requests)?;
        let read = |answer: Answer| {
            let logprobs = answer.logprobs.and_then(|read| read.chosen.try_into().ok());
            logprobs.expect("a read has a log-probability for each label; this is a bug")
        };
        Ok(answers.into_iter().map(read).collect())
    }

    /// Returns the log-probabilities of each prompt's tokens from the second on, each with those of the `top` most probable ones.
    ///
    /// # Errors
    /// Errors if a prompt is invalid, or if the model cannot compute.
    pub fn prompt_logprobs(
        &mut self,
        prompts: &[Vec<u32>],
        top: usize,
    ) -> Result<Vec<Vec<PromptLogprobs>>, InlineError> {
        let mut params = SamplingParams::new(1, Vec::new());
        params.temperature = 0.0;
        params.prompt_logprobs = Some(top);
        let requests = prompts
            .iter()
            .map(|prompt| GenerateRequest::new(prompt.clone(), params.clone()));
        let answers = self.answer(requests)?;
        Ok(answers.into_iter().map(|answer| answer.prompt).collect())
    }

    /// Answers requests of one sample each, and returns the answers in the requests' order.
    fn answer(
        &mut self,
        requests: impl Iterator<Item = GenerateRequest>,
    ) -> Result<Vec<Answer>, InlineError> {
        let engine = self.engine.clone();
        let at_once = SUBMITTED * engine.capacity().max_concurrent;
        let mut answers: Vec<(usize, Answer)> = self.run(async {
            stream::iter(requests.enumerate())
                .map(|(at, request)| {
                    let engine = &engine;
                    async move { Ok::<_, InlineError>((at, answer(engine, request).await?)) }
                })
                // Not in order: a long answer would hold back the requests after it.
                .buffer_unordered(at_once)
                .try_collect()
                .await
        })?;
        answers.sort_by_key(|(at, _)| *at);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

/// The tokens of one sample, and the log-probabilities that were reported with its last token.
struct Answer {
    ids: Vec<u32>,
    /// The requested log-probabilities of the prompt's tokens.
    prompt: Vec<PromptLogprobs>,
    logprobs: Option<TokenLogprobs>,
    finished: FinishReason,
}

async fn answer(engine: &Engine, request: GenerateRequest) -> Result<Answer, InlineError> {
    let mut stream = engine.submit_in_turn(request).await?;
    let (mut ids, mut prompt) = (Vec::new(), Vec::new());
    loop {
        match stream.next().await {
            Some(StreamEvent::Token {
                id,
                logprobs,
                finished,
                ..
            }) => {
                ids.push(id);
                if let Some(finished) = finished {
                    return Ok(Answer {
                        ids,
                        prompt,
                        logprobs,
                        finished,
                    });
                }
            }
            Some(StreamEvent::Failed(failure)) => return Err(failure.into()),
            Some(StreamEvent::Prompt(scores)) => prompt = scores,
            Some(StreamEvent::Started { .. }) => {}
            None => return Err(RequestFailure::ShuttingDown.into()),
        }
    }
}

/// Returns the seed of one prompt. Adjacent seeds of calls have unrelated streams.
fn stream_seed(seed: u64, index: u64) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng.next_u64()
}

/// Returns the default configuration with a cache for at least one sequence of the model's context, or of [`CONTEXT`] tokens if that is
/// shorter. Longer sequences are allowed as far as the cache holds them.
fn config_for(decoder: &Decoder) -> EngineConfig {
    let config = EngineConfig::default();
    let (spec, dtype) = (decoder.spec(), config.kv_cache_dtype.of(decoder));
    let block = block_bytes(spec, config.block_size, dtype);
    let blocks = spec.max_context().min(CONTEXT).div_ceil(config.block_size);
    let memory = config.kv_cache_memory.max(blocks * block);
    let held = memory / block * config.block_size;
    EngineConfig {
        kv_cache_memory: memory,
        max_model_len: Some(spec.max_context().min(held)),
        // The only caller bounds its own work.
        queue: QueueLimits {
            max_requests: usize::MAX >> 8,
            max_tokens: usize::MAX >> 8,
        },
        tenant_share: TenantShare::WHOLE,
        ..config
    }
}

/// Wakes the thread that runs the future.
struct Alarm {
    thread: Thread,
    rung: AtomicBool,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
