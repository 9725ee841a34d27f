//! The checked form of the parameters.

use std::sync::Arc;
use std::time::Instant;

use super::{SamplingBody, StreamOptions, cache_salt, turn};
use crate::call::{CallError, Turn};
use crate::http::AppState;
use crate::http::calls::{Bound, Calls};
use crate::http::error::{ApiError, GRAMMAR};
use crate::http::format;
use crate::http::judge::{JudgingBody, check_reads};
use crate::http::limits::CallSize;
use crate::judging::{JudgeTask, TournamentTask};
use crate::service::{
    CallerEnds, ConsentRequest, Ending, GenerateCall, PromptTask, Recordable, TextTask,
};
use engine::{SamplingParams, SubmitError, Tenant};
use text::{Grammar, GrammarSpec, StopStrings};

/// The validated sampling settings of a call.
#[derive(Debug)]
pub struct Sampling {
    params: SamplingParams,
    /// The strings that end an answer.
    pub stop: Arc<[String]>,
    /// The matcher for the stop strings, shared by all prompts and samples of the call.
    stop_strings: Option<StopStrings>,
    /// Number of answers per prompt.
    pub n: usize,
    samples: usize,
    judging: Option<JudgingBody>,
    grammar: Option<Grammar>,
    /// The call's own settings about the ends of its answers.
    ends: CallerEnds,
    /// Whether no answer is wanted.
    pub silent: bool,
    /// Whether the conversation has tools.
    pub tools: bool,
    /// Special tokens that are part of the answers' texts.
    shown: Arc<[u32]>,
    /// How the prompt ends, unless it opens an answer.
    pub ending: Option<Ending>,
    /// Requests that are not fulfilled.
    pub warnings: Vec<String>,
    /// The parameter that requested the grammar.
    pub grammar_param: &'static str,
    /// The options of the stream, if the answer is streamed.
    pub stream: Option<StreamOptions>,
    pub turn: Turn,
    /// The caller's own settings for the use of its traffic.
    pub log: Option<ConsentRequest>,
    pub user: Option<String>,
}

/// The parameters specific to a route.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    pub prompts: usize,
    /// Maximum tokens of each answer.
    pub max_tokens: usize,
    /// Number of most probable tokens returned with each token.
    pub logprobs: Option<usize>,
    /// Ids whose log-probabilities are returned with each token.
    pub logprob_ids: Vec<u32>,
    /// Number of most probable tokens returned with each token of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Whether no answer is wanted, regardless of `max_tokens`.
    pub silent: bool,
    /// The tools that answers may call.
    pub calls: Option<&'a Calls>,
    /// Whether the conversation has tools: the offered ones, or earlier calls.
    pub tools: bool,
    /// The grammar requested by a parameter of the route, and that parameter.
    pub format: Option<(&'static str, GrammarSpec)>,
}

impl SamplingBody {
    /// Validates the parameters.
    ///
    /// # Errors
    /// Fails for contradictions and above the limits of a call; the engine checks ranges.
    pub async fn check(
        mut self,
        arrival: Instant,
        tenant: Tenant,
        wanted: Wanted<'_>,
        state: &AppState,
    ) -> Result<Sampling, ApiError> {
        let service = &state.service;
        // The checkpoint's own parameters do not override where the model would end.
        let shapes_ends = self.shapes_ends();
        self = self.or(service.sampling_defaults());
        let n = self.n.unwrap_or(1);
        let samples = self.best_of.unwrap_or(n);
        if n == 0 {
            return Err(ApiError::invalid("n", "must be at least 1"));
        }
        if samples < n {
            return Err(ApiError::invalid("best_of", "must be at least `n`"));
        }
        let param = match self.best_of {
            Some(_) => "best_of",
            None => "n",
        };
        let max = service.engine().capacity().max_concurrent;
        if samples > max {
            // Checked before anything is allocated per sample.
            let asked = samples;
            return Err(ApiError::from(SubmitError::TooManySamples { asked, max }).about(param));
        }
        let judged = self.best_of.is_some_and(|candidates| candidates > 1);
        let says_how = |judge: &JudgingBody| !judge.is_empty();
        if self.judge.as_ref().is_some_and(says_how) && !judged {
            return Err(ApiError::invalid(
                "judge",
                "has no meaning without a `best_of` above 1",
            ));
        }
        if judged {
            // Checked before candidates are sampled that could not be compared.
            service.judge().check().map_err(CallError::from)?;
            state.check_judge()?;
            if self.draws_nothing() {
                return Err(ApiError::invalid(
                    "best_of",
                    "must be 1 where nothing is drawn (`temperature` 0, `top_k` 1, `min_p` 1 or `top_p` near 0): all candidates would be \
                     the same",
                ));
            }
        }
        if judged && wanted.tools {
            return Err(ApiError::invalid(
                "best_of",
                "cannot be combined with tools: the judge compares answers as texts",
            ));
        }
        if wanted.silent && judged {
            return Err(ApiError::invalid(
                "best_of",
                "must be 1 where `max_tokens` is 0: there is no answer to compare",
            ));
        }
        if wanted.silent && self.min_tokens.is_some_and(|tokens| tokens > 0) {
            return Err(ApiError::invalid(
                "min_tokens",
                "must be at most `max_tokens`",
            ));
        }
        let stream = self.stream.unwrap_or(false);
        if stream && judged {
            return Err(ApiError::invalid(
                "stream",
                "cannot be combined with `best_of`: the best answer is known at the end",
            ));
        }
        if self.stream_options.is_some() && !stream {
            return Err(ApiError::invalid(
                "stream_options",
                "has no meaning without `\"stream\": true`",
            ));
        }
        let turn = Turn {
            tenant,
            cache_salt: cache_salt(self.cache_salt.as_deref())?,
            ..turn(arrival, self.priority, self.timeout)?
        };
        let logprobs = wanted.logprobs.map_or(0, |top| top.saturating_add(1));
        state.limits.check(CallSize {
            prompts: wanted.prompts,
            samples,
            samples_param: param,
            max_tokens: wanted.max_tokens,
            logprobs: logprobs.saturating_add(wanted.logprob_ids.len()),
        })?;
        let mut params = self.params(wanted.max_tokens, service.stop_ids())?;
        params.logprobs = wanted.logprobs;
        params.logprob_ids = wanted.logprob_ids;
        params.prompt_logprobs = wanted.prompt_logprobs;
        let stop: Arc<[String]> = self.stop.map(Vec::from).unwrap_or_default().into();
        let include_stop = self.include_stop_str_in_output.unwrap_or(false);
        let stop_strings = service.stop_strings(&stop, include_stop).await?;
        let asked = format::grammar(self.response_format, self.structured_outputs)?;
        let asked = format::one_of(wanted.format, asked)?;
        if let Some((param, _)) = asked.as_ref().filter(|_| wanted.silent) {
            return Err(ApiError::invalid(
                *param,
                "has no meaning where `max_tokens` is 0: there is no answer to shape",
            ));
        }
        let (bound, grammar_param) = match (wanted.calls, asked) {
            (Some(calls), asked) => (calls.bind(asked, service).await?, "tools"),
            (None, Some((param, spec))) => {
                let grammar = service.compile_grammar(param, spec).await?;
                (Bound::by(grammar, param), param)
            }
            (None, None) => (Bound::default(), GRAMMAR),
        };
        let Bound { grammar, warnings } = bound;
        let shown = match wanted.calls {
            Some(_) => service.call_marks(),
            None => Arc::default(),
        };
        let ends = CallerEnds {
            limit: false,
            shape: grammar.is_some() || shapes_ends,
        };
        Ok(Sampling {
            ends,
            params,
            silent: wanted.silent,
            tools: wanted.tools,
            shown,
            ending: None,
            grammar,
            warnings,
            grammar_param,
            n,
            samples,
            judging: judged.then(|| self.judge.unwrap_or_default()),
            stream: stream.then(|| self.stream_options.unwrap_or_default()),
            turn,
            stop,
            stop_strings,
            log: self.log,
            user: self.user,
        })
    }
}

impl Sampling {
    /// Records whether the caller set the token limit.
    pub fn limited(mut self, by_caller: bool) -> Self {
        self.ends.limit = by_caller;
        self
    }

    /// Sets the ending of the prompt.
    ///
    /// # Errors
    /// Fails if candidates are to be judged: the judge compares whole answers, and such answers are parts.
    pub fn ending(mut self, ending: Option<Ending>) -> Result<Self, ApiError> {
        if ending.is_some() && self.judging.is_some() {
            return Err(ApiError::invalid(
                "best_of",
                "cannot be combined with continue_final_message or add_generation_prompt: the judge compares whole answers",
            ));
        }
        self.ending = ending;
        Ok(self)
    }

    /// Returns the temperature and `top_p` of the call.
    pub fn drawn_by(&self) -> (f32, f32) {
        (self.params.temperature, self.params.top_p)
    }

    /// Returns whether the samples are answers to the prompt that can be trained on.
    fn recordable(&self) -> Recordable {
        match self.silent || self.ending.is_some() {
            _ if self.tools => Recordable::Tools,
            true => Recordable::NoAnswers,
            false => Recordable::Yes,
        }
    }

    /// Returns whether a grammar constrains the answers.
    pub fn is_bound(&self) -> bool {
        self.grammar.is_some()
    }

    /// Returns whether the caller wants log-probabilities with the tokens.
    pub fn shows_logprobs(&self) -> bool {
        self.params.logprobs.is_some() || !self.params.logprob_ids.is_empty()
    }

    /// Returns the number of log-probabilities returned with each token.
    pub fn logprobs(&self) -> usize {
        let top = self.params.logprobs.map_or(0, |top| top.saturating_add(1));
        top.saturating_add(self.params.logprob_ids.len())
    }

    /// Returns the call with these prompts.
    pub fn call(&self, prompts: Vec<PromptTask>) -> GenerateCall {
        GenerateCall {
            prompts,
            n: self.n,
            stop: Arc::clone(&self.stop),
            shows_logprobs: self.shows_logprobs(),
            turn: self.turn,
            recordable: self.recordable(),
        }
    }

    /// Returns the task of sampling all answers to one prompt.
    pub fn task(&self, prompt: Vec<u32>) -> TextTask {
        TextTask {
            continues: self.ending == Some(Ending::Continued),
            stop: self.stop_strings.clone(),
            samples: self.samples,
            silent: self.silent,
            shown: Arc::clone(&self.shown),
            grammar: self.grammar.clone(),
            ends: self.ends,
            turn: self.turn,
            ..TextTask::new(prompt, self.params.clone())
        }
    }

    /// Returns how the candidates of each of `prompts` prompts are judged, if only the best are wanted; the context is still empty.
    ///
    /// # Errors
    /// Fails for invalid principles, for parameters that exclude each other, and above the limit of forward passes.
    pub fn judging(
        &self,
        state: &AppState,
        prompts: usize,
    ) -> Result<Option<(JudgeTask, TournamentTask)>, ApiError> {
        let Some(judging) = &self.judging else {
            return Ok(None);
        };
        let within = |error: ApiError| error.within("judge");
        let how = judging.tournament().map_err(within)?;
        let table = state.principles.current();
        let on_disagreement = state.judging.on_disagreement;
        let task = judging.task(Vec::new(), self.turn, &table, on_disagreement);
        let task = task.map_err(within)?;
        check_reads("best_of", &task, how.method, self.samples, prompts)?;
        Ok(Some((task, how)))
    }
}
