//! The server's functions without HTTP: text to tokens and back, generation, decisions and best-of-N.
//!
//! Everything here is a client of the engine. Work is accepted or refused at its first request to the engine; later requests of accepted
//! work wait their turn.

mod best_of;
mod deciding;
mod generate;
mod generation;
#[cfg(test)]
mod grammar_tests;
mod output;
mod prefill;
mod prompts;
mod recorded;
mod tally;
mod tools;
#[cfg(test)]
mod version_tests;
mod writer;

use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use deciding::{Decision, Question};
pub use generate::TextTask;
pub use generation::Generation;
pub use output::{Finish, Output, TokenText};
pub use prefill::Ending;
pub use prompts::{RawPrompt, ReadPrompt};
pub use recorded::{
    Answer, CallName, CallOrigin, CallRecords, Caller, ConsentRequest, GenerateCall, OnLogFailure,
    Permitted, PromptTask, Recordable, Recorded, RecordedCall, RecordedGeneration, RecordedService,
    StreamEnd, TrafficConfig,
};
pub use tally::{CallerEnds, Tallies, Tally};

use crate::call::{CallError, spawn_blocking};
use crate::judging::ModelJudge;
use engine::Engine;
use judge::{Judge, OptionReader};
use model::{LanguageModel, SamplingDefaults, WeightStore};
use telemetry::JudgeMetrics;
use text::{
    ChatTemplate, Grammar, GrammarEnv, GrammarError, GrammarSpec, MAX_STOP_BYTES, MAX_STOP_STRINGS,
    Message, OwnTrust, RenderOptions, StopStrings, TokenTexts, Tokenizer,
};

/// One model that serves as policy and judge. Clones share all state.
#[derive(Clone)]
pub struct Service {
    engine: Engine,
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    judge: ModelJudge,
    options: Arc<OptionReader>,
    stop_ids: Arc<[u32]>,
    token_texts: Arc<TokenTexts>,
    /// Initialised with the first grammar: it takes tens of megabytes, and most servers never need it.
    grammars: Arc<OnceLock<Result<GrammarEnv, GrammarError>>>,
    tallies: Tallies,
    /// Whether control tokens in text prompts are read as control tokens.
    reads_control: bool,
    sampling_defaults: SamplingDefaults,
}

impl Service {
    /// Returns a service for `model`, loaded from `dir`, which also holds its judge template and principle table. The judge's prompts are
    /// cut to the engine's context, which may be shorter than the model's. If the judge's question does not fit the chat template or the
    /// tokenizer, everything that needs a verdict is refused with the reason.
    ///
    /// # Errors
    /// Errors if a file is invalid.
    pub fn new(
        engine: Engine,
        model: &LanguageModel,
        dir: &Path,
        metrics: JudgeMetrics,
    ) -> Result<Self, CallError> {
        let judge = Judge::from_model_dir_or_unusable(
            dir,
            model.tokenizer().clone(),
            model.chat_template().clone(),
            engine.capacity().max_context,
        )?;
        if let Some(reason) = judge.unusable() {
            tracing::warn!("this model is served without a judge: {reason}");
        }
        if model.stop_ids().is_empty() {
            tracing::warn!(
                "this model has no end token: none is named by generation_config.json or config.json (`eos_token_id`), the tokenizer \
                 (`eos_token`) or the chat template. Answers end only at `max_tokens`, a stop string or the end of the context"
            );
        }
        let options =
            OptionReader::new_or_unusable(model.tokenizer().clone(), model.chat_template().clone());
        Ok(Self {
            judge: ModelJudge::new(engine.clone(), judge, metrics),
            engine,
            options: Arc::new(options),
            token_texts: Arc::new(TokenTexts::new(model.tokenizer())),
            tokenizer: model.tokenizer().clone(),
            chat: model.chat_template().clone(),
            stop_ids: model.stop_ids().into(),
            grammars: Arc::default(),
            tallies: Tallies::default(),
            reads_control: false,
            sampling_defaults: model.sampling_defaults(),
        })
    }

    /// Sets whether control tokens in text prompts are read as such: for clients that apply the chat template themselves.
    #[must_use]
    pub fn reading_control_tokens(self, reads: bool) -> Self {
        Self {
            reads_control: reads,
            ..self
        }
    }

    /// Sets the sampling parameters of calls that set none, in place of the checkpoint's.
    #[must_use]
    pub fn with_sampling_defaults(self, sampling_defaults: SamplingDefaults) -> Self {
        Self {
            sampling_defaults,
            ..self
        }
    }

    /// Returns the sampling parameters of calls that set none.
    pub fn sampling_defaults(&self) -> SamplingDefaults {
        self.sampling_defaults
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the weights that answer and judge.
    pub fn weights(&self) -> &WeightStore {
        self.engine.weights()
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the texts of single tokens.
    pub fn token_texts(&self) -> &Arc<TokenTexts> {
        &self.token_texts
    }

    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat
    }

    /// Returns the judge with its model.
    pub fn judge(&self) -> &ModelJudge {
        &self.judge
    }

    /// Encodes a conversation as the prompt for its next answer, without a limit of length: for the server's own work. Callers'
    /// conversations go through [`Self::read_chat`].
    ///
    /// # Errors
    /// Errors if the chat template refuses the conversation.
    pub async fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, CallError> {
        let (chat, tokenizer) = (self.chat.clone(), self.tokenizer.clone());
        let messages = messages.to_vec();
        spawn_blocking(move || {
            let options = RenderOptions::for_generation().with_own(OwnTrust::Markers);
            let rendered = chat.render(&messages, &options)?;
            Ok(tokenizer.encode_rendered(&rendered)?.ids)
        })
        .await
    }

    /// Encodes a complete conversation, including the end token of its last answer.
    ///
    /// # Errors
    /// Errors if the chat template refuses the conversation.
    pub async fn encode_conversation(&self, messages: &[Message]) -> Result<Vec<u32>, CallError> {
        let (chat, tokenizer) = (self.chat.clone(), self.tokenizer.clone());
        let messages = messages.to_vec();
        spawn_blocking(move || {
            let options = RenderOptions::default().with_own(OwnTrust::Markers);
            let rendered = chat.render(&messages, &options)?;
            Ok(tokenizer.encode_rendered(&rendered)?.ids)
        })
        .await
    }

    /// Encodes a text unchanged, without a limit of length: for the server's own work. Callers' texts go through [`Self::read_prompt`].
    ///
    /// # Errors
    /// Errors if the tokenizer fails.
    pub async fn encode_text(&self, text: String) -> Result<Vec<u32>, CallError> {
        let tokenizer = self.tokenizer.clone();
        spawn_blocking(move || Ok(tokenizer.encode_text(&text)?)).await
    }

    /// Returns a matcher for the stop strings of a call; none if there are no stop strings.
    ///
    /// # Errors
    /// Errors with [`CallError::Invalid`] for `stop` if the strings are too many, too long, or empty.
    pub async fn stop_strings(
        &self,
        stop: &Arc<[String]>,
        include: bool,
    ) -> Result<Option<StopStrings>, CallError> {
        /// Number of bytes that are read faster than another thread wakes up.
        const FEW: usize = 2048;
        let build = move |stop: &[String]| {
            let stop_strings = StopStrings::new(stop, include);
            stop_strings.map_err(|error| CallError::invalid("stop", error.to_string()))
        };
        if stop.is_empty() {
            return Ok(None);
        }
        let bytes: usize = stop.iter().map(String::len).sum();
        if bytes <= FEW || bytes > MAX_STOP_STRINGS * MAX_STOP_BYTES {
            return build(stop).map(Some);
        }
        let stop = Arc::clone(stop);
        spawn_blocking(move || build(&stop).map(Some)).await
    }

    /// Compiles a grammar for answers. `param` is the name of the caller's parameter.
    ///
    /// # Errors
    /// Errors with [`CallError::Invalid`] for `param` and the reason if the grammar cannot be used.
    pub async fn compile_grammar(
        &self,
        param: &'static str,
        spec: GrammarSpec,
    ) -> Result<Grammar, CallError> {
        let (grammars, tokenizer) = (Arc::clone(&self.grammars), self.tokenizer.clone());
        let vocab_size = self.engine.capacity().vocab_size;
        spawn_blocking(move || {
            let grammars = grammars.get_or_init(|| GrammarEnv::new(&tokenizer, vocab_size));
            let compiled = match grammars {
                Ok(grammars) => grammars.compile(&spec),
                Err(error) => Err(error.clone()),
            };
            compiled.map_err(|error| CallError::invalid(param, error.to_string()))
        })
        .await
    }

    /// Returns the tallies of how answers to callers ended; the server's own work is not counted.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Returns the ids of the tokens that end an answer.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }
}
