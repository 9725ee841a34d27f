//! Generation of text: detokenisation, stop strings, and whole outputs as a fold over the stream.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::Service;
use super::tally::{CallerEnds, Counter};
use crate::call::{CallError, Turn, Usage};
use engine::{
    Class, FinishReason, GenerateRequest, PromptLogprobs, RequestFailure, RequestStream,
    SamplingParams, StreamEvent, SubmitError, TokenLogprobs,
};
use model::{Role, WeightsLease, WeightsName};
use telemetry::CallTimes;
use text::{
    Detokenizer, Grammar, StopStrings, TextError, TokenPlace, TokenPlaces, TokenTexts, Tokenizer,
};

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

/// The reason why a sample ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model generated this end token.
    EndToken(u32),
    /// The text contains the stop string with this index.
    StopString(usize),
    /// The grammar permits no further token; the last token is part of the text.
    Complete,
    Length,
}

/// A token and the requested data about it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
    /// The token's position in the text of the answer; set if log-probabilities were requested.
    pub place: TokenPlace,
}

/// One complete sample, or its increment by one token. The concatenated increments of a sample are the complete one.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The index of the sample.
    pub index: usize,
    /// The text, in an increment the new text that the token completed.
    pub text: String,
    /// The tokens; none if the task is silent.
    pub tokens: Vec<TokenText>,
    /// The reason why the sample ended; none in an increment before the last one.
    pub finish: Option<Finish>,
}

impl Output {
    /// Returns an output without tokens.
    pub fn empty(index: usize) -> Self {
        Self {
            index,
            text: String::new(),
            tokens: Vec::new(),
            finish: None,
        }
    }

    /// Adds an increment.
    fn add(&mut self, more: Self) {
        self.text.push_str(&more.text);
        self.tokens.extend(more.tokens);
        self.finish = more.finish.or(self.finish);
    }
}

/// The state of a sample's text.
struct Writer {
    detokenizer: Detokenizer,
    places: TokenPlaces,
    stop: Option<StopStrings>,
    /// The number of tokens before which no stop string ends the text.
    min_tokens: usize,
    tokens: usize,
}

/// The progress of a sample.
enum Progress {
    /// No token yet; no memory is allocated.
    Waiting,
    Writing(Box<Writer>),
    Ended,
}

/// The source of a generation's tokens.
enum Tokens {
    /// Waiting for a place in the queue.
    InTurn(BoxFuture<'static, Result<RequestStream, SubmitError>>),
    Running(RequestStream),
}

/// A generation that runs or waits for its place in the queue. Dropping it cancels it.
pub struct Generation {
    stream: Tokens,
    tokenizer: Tokenizer,
    token_texts: Arc<TokenTexts>,
    /// The prompt, if the answers continue its text.
    continued: Option<Vec<u32>>,
    stop: Option<StopStrings>,
    /// Special tokens that are included in the text.
    shown: Arc<[u32]>,
    /// One per sample.
    progress: Vec<Progress>,
    usage: Usage,
    weights: Option<WeightsName>,
    /// Log-probabilities of the prompt's tokens except the first, if requested; complete once a sample has begun.
    prompt_logprobs: Option<Arc<[PromptLogprobs]>>,
    silent: bool,
    min_tokens: usize,
    /// None for the server's own work.
    counter: Option<Counter>,
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
        let (request, start) = self.written(task)?;
        let stream = self.engine.submit(request)?;
        Ok(start(Tokens::Running(stream)))
    }

    /// Prepares a generation like [`Self::generate`], but waits for a place in the queue when its first increment is requested. For later
    /// prompts of a call that has been accepted, and for the server's own work.
    ///
    /// # Errors
    /// Errors if the task cannot be served.
    pub fn generate_in_turn(&self, task: TextTask) -> Result<Generation, CallError> {
        let (request, start) = self.written(task)?;
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
    fn written(
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

impl Generation {
    /// Returns the token counts so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Returns the weights that answer; known once the generation has started.
    pub fn weights(&self) -> Option<WeightsName> {
        self.weights.clone()
    }

    /// Returns the log-probabilities of the prompt's tokens except the first, if requested; complete once a sample has begun.
    pub fn prompt_logprobs(&self) -> Option<Arc<[PromptLogprobs]>> {
        self.prompt_logprobs.clone()
    }

    /// Returns the next increment of a sample; `None` after the last increment of the last sample.
    ///
    /// # Errors
    /// Errors if the engine failed the request.
    pub async fn next(&mut self) -> Result<Option<Output>, CallError> {
        if let Tokens::InTurn(submit) = &mut self.stream {
            self.stream = Tokens::Running(submit.await?);
        }
        let event = loop {
            let event = match &mut self.stream {
                Tokens::Running(stream) => stream.next().await,
                Tokens::InTurn(_) => unreachable!("it was submitted above; this is a bug"),
            };
            match event {
                Some(StreamEvent::Prompt(tokens)) => self.prompt_logprobs = Some(tokens.into()),
                Some(StreamEvent::Started {
                    weights,
                    num_cached_tokens,
                }) => {
                    self.weights = Some(weights);
                    self.usage.cached_tokens = num_cached_tokens;
                }
                Some(StreamEvent::Failed(failure)) => {
                    self.count_failure(&failure);
                    return Err(failure.into());
                }
                Some(StreamEvent::Token {
                    index,
                    id,
                    logprobs,
                    finished,
                }) => break (index, id, logprobs, finished),
                None => return Ok(None),
            }
        };
        let (index, id, logprobs, finished) = event;
        if self.silent {
            return Ok(Some(Output {
                finish: finished.map(|_| Finish::Length),
                ..Output::empty(index)
            }));
        }
        self.usage.completion_tokens += 1;
        let texts = Arc::clone(&self.token_texts);
        let writer = self.writer(index)?;
        let place = match logprobs {
            Some(_) => writer.places.next(id, &texts),
            None => TokenPlace::default(),
        };
        let (text, finish) = writer.write(id, finished)?;
        if matches!(finish, Some(Finish::StopString(_)))
            && let Tokens::Running(stream) = &mut self.stream
        {
            stream.close(index);
        }
        if let Some(finish) = finish {
            self.count_end(index, finish);
        }
        let token = TokenText {
            id,
            logprobs,
            place,
        };
        Ok(Some(Output {
            index,
            text,
            tokens: vec![token],
            finish,
        }))
    }

    /// Returns the writer of a sample, and creates it at the sample's first token.
    fn writer(&mut self, index: usize) -> Result<&mut Writer, TextError> {
        let progress = &mut self.progress[index];
        if !matches!(progress, Progress::Writing(_)) {
            let (detokenizer, places) = match &self.continued {
                Some(prompt) => (
                    Detokenizer::after(&self.tokenizer, true, prompt)?,
                    TokenPlaces::continuing(),
                ),
                None => (self.tokenizer.detokenizer(true), TokenPlaces::default()),
            };
            *progress = Progress::Writing(Box::new(Writer {
                detokenizer: detokenizer.showing(Arc::clone(&self.shown)),
                places,
                stop: self.stop.clone(),
                min_tokens: self.min_tokens,
                tokens: 0,
            }));
        }
        match progress {
            Progress::Writing(writer) => Ok(writer),
            _ => unreachable!("it was made above; this is a bug"),
        }
    }

    /// Counts the end of a sample in the tally of the weights that generated it.
    fn count_end(&mut self, index: usize, finish: Finish) {
        let ended = std::mem::replace(&mut self.progress[index], Progress::Ended);
        let Progress::Writing(writer) = ended else {
            return;
        };
        if let (Some(counter), Some(weights)) = (&self.counter, &self.weights) {
            counter.ended(weights, writer.tokens, finish);
        }
    }

    /// Counts the samples that have begun and will not end.
    fn count_failure(&self, failure: &RequestFailure) {
        if let (Some(counter), Some(weights)) = (&self.counter, &self.weights) {
            let open = self.progress.iter();
            let open = open.filter(|progress| !matches!(progress, Progress::Ended));
            counter.failed(weights, open.count(), failure);
        }
    }

    /// Returns all samples, complete.
    ///
    /// # Errors
    /// Errors as [`Self::next`] does.
    pub async fn outputs(&mut self) -> Result<Vec<Output>, CallError> {
        let outputs = self.outputs_while(|_| true).await?;
        Ok(outputs.unwrap_or_default())
    }

    /// Returns all samples, complete; `None` once `go_on` returns false for a token, which means that there is no room for it.
    ///
    /// # Errors
    /// Errors as [`Self::next`] does.
    pub async fn outputs_while(
        &mut self,
        mut go_on: impl FnMut(&TokenText) -> bool,
    ) -> Result<Option<Vec<Output>>, CallError> {
        let mut outputs: Vec<Output> = (0..self.progress.len()).map(Output::empty).collect();
        while let Some(increment) = self.next().await? {
            if !increment.tokens.iter().all(&mut go_on) {
                return Ok(None);
            }
            outputs[increment.index].add(increment);
        }
        Ok(Some(outputs))
    }
}

impl Writer {
    /// Takes a token. Returns the text that is now final, and the reason if the sample has ended.
    fn write(
        &mut self,
        id: u32,
        finished: Option<FinishReason>,
    ) -> Result<(String, Option<Finish>), TextError> {
        self.tokens += 1;
        // A token that ends an answer is not part of its text.
        let mut new = match finished {
            Some(FinishReason::Stop) => String::new(),
            _ => self.detokenizer.push(id)?,
        };
        if finished.is_some() {
            new.push_str(&self.detokenizer.finish()?);
        }
        let mut text = new;
        if let Some(stop) = &mut self.stop {
            if self.tokens < self.min_tokens {
                text = stop.pass(&text);
            } else {
                let fed = stop.feed(&text);
                text = fed.text;
                if let Some(stop) = fed.stopped {
                    return Ok((text, Some(Finish::StopString(stop))));
                }
            }
            if finished.is_some() {
                text.push_str(&stop.finish());
            }
        }
        let finish = finished.map(|reason| match reason {
            FinishReason::Stop => Finish::EndToken(id),
            FinishReason::Complete => Finish::Complete,
            FinishReason::Length => Finish::Length,
        });
        Ok((text, finish))
    }
}
