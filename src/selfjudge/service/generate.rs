//! The start of a generation: a task becomes the engine's request and a stream of increments.

use std::sync::Arc;

use futures::FutureExt;

use super::Service;
use super::generation::{Generation, Progress, Tokens};
use super::tally::CallerEnds;
use crate::call::{CallError, Turn, Usage};
use engine::{Class, GenerateRequest, SamplingParams, SubmitError};
use model::{Role, WeightsLease};
use telemetry::CallTimes;
use text::{Grammar, StopStrings};

/// A generation to run: a prompt and the settings of its answers.
#[derive(Debug, Clone)]
pub struct TextTask {
    pub prompt: Vec<u32>,
    /// Whether only the log-probabilities of the prompt are wanted and no answer; samples are then empty.
    pub silent: bool,
    /// Whether the answer continues the prompt's text instead of starting a new text.
    pub continues: bool,
    pub params: SamplingParams,
    /// The strings that end an answer, if any.
    pub stop: Option<StopStrings>,
    pub samples: usize,
    /// Special tokens that are included in the text of answers: the marks of tool calls.
    pub shown: Arc<[u32]>,
    /// The grammar of every sample; see [`Service::compile_grammar`].
    pub grammar: Option<Grammar>,
    /// The weights that answer; by default those that serve as policy for `turn.principal`.
    pub weights: Option<WeightsLease>,
    /// The caller's settings that affect how answers end.
    pub ends: CallerEnds,
    pub turn: Turn,
}

impl TextTask {
    pub fn new(prompt: Vec<u32>, params: SamplingParams) -> Self {
        Self {
            prompt,
            silent: false,
            continues: false,
            params,
            stop: None,
            samples: 1,
            shown: Arc::default(),
            grammar: None,
            weights: None,
            ends: CallerEnds::default(),
            turn: Turn::now(),
        }
    }
}

impl Service {
    /// Returns the weights that answer a call now. All prompts of the call should use the same.
    pub fn answering_weights(&self, turn: &Turn) -> WeightsLease {
        self.engine.weights().lease(Role::Policy, turn.principal)
    }

    /// Starts a generation if the queue has room for it.
    ///
    /// # Errors
    /// Errors if the task cannot be served or the queue is full.
    pub fn generate(&self, task: TextTask) -> Result<Generation, CallError> {
        let (request, start) = self.prepare(task)?;
        let stream = self.engine.submit(request)?;
        Ok(start(Tokens::Running(stream)))
    }

    /// Prepares a generation like [`Self::generate`], but waits for a place in the queue when its first increment is requested. For later
    /// prompts of a call that has been accepted, and for the server's own work.
    ///
    /// # Errors
    /// Errors if the task cannot be served.
    pub fn generate_in_turn(&self, task: TextTask) -> Result<Generation, CallError> {
        let (request, start) = self.prepare(task)?;
        let request = self.engine.check(request)?;
        let engine = self.engine.clone();
        let submit = async move { engine.submit_in_turn(request).await };
        // The times count for this call, even if another task requests the first increment.
        let submit = match CallTimes::current() {
            Some(call) => call.scope(submit).boxed(),
            None => submit.boxed(),
        };
        Ok(start(Tokens::InTurn(submit)))
    }

    /// Starts the generations of one call: the first if the queue has room for it, the others in turn.
    ///
    /// # Errors
    /// Errors if any of them cannot be served, or the queue is full.
    pub fn generate_all(
        &self,
        tasks: impl IntoIterator<Item = TextTask>,
    ) -> Result<Vec<Generation>, CallError> {
        let mut tasks = tasks.into_iter();
        let Some(first) = tasks.next() else {
            return Ok(Vec::new());
        };
        let rest = tasks.map(|task| self.generate_in_turn(task));
        let rest = rest.collect::<Result<Vec<_>, _>>()?;
        Ok(std::iter::once(self.generate(first)?).chain(rest).collect())
    }

    /// Returns the engine's request and a function that turns its token stream into a generation.
    fn prepare(
        &self,
        task: TextTask,
    ) -> Result<(GenerateRequest, impl FnOnce(Tokens) -> Generation + use<>), CallError> {
        // Checked before any allocation per sample, because a caller may request any number.
        let (asked, max) = (task.samples, self.engine.capacity().max_concurrent);
        if asked > max {
            return Err(SubmitError::TooManySamples { asked, max }.into());
        }
        let progress = (0..task.samples).map(|_| Progress::Waiting).collect();
        let (tokenizer, stop, shown) = (self.tokenizer.clone(), task.stop, task.shown);
        let token_texts = Arc::clone(&self.token_texts);
        // After control tokens only, an answer starts a new text.
        let continues = task.continues && tokenizer.has_text(&task.prompt);
        let continued = continues.then(|| task.prompt.clone());
        let grammar = match continues {
            true => task.grammar.map(Grammar::continuing),
            false => task.grammar,
        };
        let counted = task.turn.class == Class::Foreground && !task.silent;
        let max_context = self.engine.capacity().max_context;
        let room = max_context.saturating_sub(task.prompt.len());
        let ends = task
            .ends
            .within(room.min(task.params.stop.max_tokens), max_context);
        let counter = counted.then(|| {
            let stop_ids = Arc::clone(&self.stop_ids);
            self.tallies.counter(task.turn.principal, ends, stop_ids)
        });
        let mut params = task.params;
        if task.silent {
            // The prompt's last logits are computed anyway, so that sampling one token costs no further step.
            params.stop.max_tokens = 1;
        }
        let weights = match task.weights {
            Some(weights) => weights,
            None => self.answering_weights(&task.turn),
        };
        let request = GenerateRequest {
            prompt: task.prompt,
            params,
            samples: task.samples,
            reusable_tokens: None,
            grammar,
            priority: task.turn.priority,
            class: task.turn.class,
            weights: Some(weights),
            arrival: task.turn.arrival,
            deadline: task.turn.deadline,
            tenant: task.turn.tenant,
            cache_salt: task.turn.cache_salt,
        };
        let prompt_tokens = request.prompt.len();
        let (silent, min_tokens) = (task.silent, request.params.stop.min_tokens);
        let prompt_logprobs = request.params.prompt_logprobs.map(|_| Arc::default());
        let start = move |stream| Generation {
            stream,
            tokenizer,
            token_texts,
            continued,
            stop,
            shown,
            progress,
            usage: Usage {
                prompt_tokens,
                ..Usage::default()
            },
            weights: None,
            prompt_logprobs,
            silent,
            min_tokens,
            counter,
        };
        Ok((request, start))
    }
}
