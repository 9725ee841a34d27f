//! The parameters common to all generating routes: sampling, stops, the number of answers, and streaming.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::calls::{Bound, Calls};
use super::error::{ApiError, GRAMMAR, shortened};
use super::format::{self, ResponseFormat, StructuredOutputs};
use super::judging::{JudgingBody, check_reads};
use super::limits::{CallSize, MAX_STOP_TOKEN_IDS};
use super::one_or_many::{Given, one_or_many};
use crate::service::{
    CallerEnds, ConsentRequest, Ending, GenerateCall, JudgeTask, PromptTask, Recordable,
    ServiceError, TextTask, TournamentTask, Turn,
};
use engine::{CacheSalt, MAX_LOGIT_BIAS, PRIORITIES, SamplingParams, StopIds, SubmitError, Tenant};
use text::{Grammar, GrammarSpec, StopStrings};

/// One string or several.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = one_or_many(deserializer, "a string or a list of strings");
        read.map(|read| match read {
            Given::Text(string) => Self::One(string),
            Given::List(strings) => Self::Many(strings),
        })
    }
}

impl From<OneOrMany> for Vec<String> {
    fn from(strings: OneOrMany) -> Self {
        match strings {
            OneOrMany::One(string) => vec![string],
            OneOrMany::Many(strings) => strings,
        }
    }
}

/// Options of a stream.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StreamOptions {
    /// Send a last event with the token counts of the whole call.
    #[schema(value_type = Option<bool>)]
    pub include_usage: bool,
    /// Send the current token counts with every event.
    #[schema(value_type = Option<bool>)]
    pub continuous_usage_stats: bool,
}

/// The parameters. All are optional, and `null` means absent.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingBody {
    /// 0 is greedy; 1 is the model's own distribution.
    #[schema(minimum = 0, maximum = 100, default = 1.0)]
    temperature: Option<f32>,
    /// Sample only from the k most probable tokens; 0 or -1 is all.
    #[schema(minimum = -1, default = 0)]
    top_k: Option<usize>,
    /// Sample only from the most probable tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1.0)]
    top_p: Option<f32>,
    /// Sample only from tokens at least this probable, relative to the most probable one.
    #[schema(minimum = 0, maximum = 1, default = 0.0)]
    min_p: Option<f32>,
    /// Above 1, tokens of prompt and answer become less probable.
    #[schema(exclusive_minimum = 0, default = 1.0)]
    repetition_penalty: Option<f32>,
    /// Subtracted from the logit of every token that is in the answer so far.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for every occurrence in the answer so far.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    frequency_penalty: Option<f32>,
    /// Values added to logits, by token id as a string; at most 1024.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same answer, whatever else the server does. -1 is none. At temperature 0 nothing is sampled, and a seed has
    /// no effect.
    #[schema(minimum = -1)]
    seed: Option<u64>,
    /// Strings that end an answer: at most 16, of at most 1024 bytes each.
    stop: Option<OneOrMany>,
    /// Tokens that end an answer, besides the model's own; at most 1024.
    #[schema(max_items = 1024)]
    stop_token_ids: Option<Vec<u32>>,
    /// Whether a stop string is part of the text.
    #[schema(default = false)]
    include_stop_str_in_output: Option<bool>,
    /// Whether an answer continues after the model's own end token.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// Minimum tokens before an answer may end; a complete grammar ends it earlier.
    #[schema(default = 0)]
    min_tokens: Option<usize>,
    /// Number of answers.
    #[schema(minimum = 1, default = 1)]
    n: Option<usize>,
    /// Number of candidates: a tournament finds the best `n` of them. 1 has no effect. Refused at temperature 0, where all candidates
    /// would be the same, and if the model failed its self-test as a judge.
    #[schema(minimum = 1)]
    best_of: Option<usize>,
    /// The settings of that tournament.
    judge: Option<JudgingBody>,
    /// Send server-sent events, one per token.
    #[schema(default = false)]
    stream: Option<bool>,
    /// Options of the stream. They need `"stream": true`.
    stream_options: Option<StreamOptions>,
    /// The format of the answer.
    response_format: Option<ResponseFormat>,
    /// The format of the answer, in vLLM's syntax; not together with `response_format`.
    structured_outputs: Option<StructuredOutputs>,
    /// Lower is served first; each level is worth a bounded head start.
    #[schema(minimum = -100, maximum = 100, default = 0)]
    priority: Option<i32>,
    /// Maximum duration of the call in seconds.
    #[schema(exclusive_minimum = 0)]
    timeout: Option<f64>,
    /// Only calls of the same key (without keys: address) with the same salt share the prefix cache; at least one character.
    #[schema(min_length = 1)]
    cache_salt: Option<String>,
    /// The permitted use of the call.
    log: Option<ConsentRequest>,
    /// The end user. It has an effect only if the server trusts it: records then belong to the user.
    user: Option<String>,
}

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
    /// Returns whether every event of a stream has token counts.
    pub fn wants_continuous_usage(&self) -> bool {
        self.stream_options
            .is_some_and(|options| options.continuous_usage_stats)
    }

    /// Validates the parameters.
    ///
    /// # Errors
    /// Fails for contradictions and above the limits of a call; the engine checks ranges.
    pub async fn check(
        self,
        arrival: Instant,
        tenant: Tenant,
        wanted: Wanted<'_>,
        state: &AppState,
    ) -> Result<Sampling, ApiError> {
        let service = &state.service;
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
            service.judge().check().map_err(ServiceError::from)?;
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
        let shapes_ends = self.shapes_ends();
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

    /// Returns whether only the most probable token can be sampled.
    fn draws_nothing(&self) -> bool {
        /// Smaller than the largest probability in any vocabulary.
        const ONE_TOKEN: f32 = 1e-6;
        self.temperature == Some(0.0)
            || self.top_k == Some(1)
            || self.min_p == Some(1.0)
            || self.top_p.is_some_and(|top_p| top_p <= ONE_TOKEN)
    }

    /// Returns whether the call overrides where the model would end its answers.
    fn shapes_ends(&self) -> bool {
        let other = |said: Option<f32>, neutral: f32| said.is_some_and(|said| said != neutral);
        self.ignore_eos == Some(true)
            || self.min_tokens.is_some_and(|tokens| tokens > 0)
            || self
                .logit_bias
                .as_ref()
                .is_some_and(|bias| !bias.is_empty())
            // In a distribution flatter than the model's own, the end comes by chance.
            || self.temperature.is_some_and(|temperature| temperature > 1.0)
            || other(self.repetition_penalty, 1.0)
            || other(self.presence_penalty, 0.0)
            || other(self.frequency_penalty, 0.0)
    }

    fn params(&self, max_tokens: usize, stop_ids: &[u32]) -> Result<SamplingParams, ApiError> {
        let given = self.stop_token_ids.as_deref().unwrap_or_default();
        if given.len() > MAX_STOP_TOKEN_IDS {
            let message = format!(
                "must be at most {MAX_STOP_TOKEN_IDS} token ids, not {}",
                given.len()
            );
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        let own = match self.ignore_eos.unwrap_or(false) {
            true => &[],
            false => stop_ids,
        };
        let stop_token_ids = given.iter().chain(own).copied();
        let mut params = SamplingParams::new(max_tokens, stop_token_ids.collect::<StopIds>());
        fn set<T: Copy>(field: &mut T, said: Option<T>) {
            *field = said.unwrap_or(*field);
        }
        set(&mut params.temperature, self.temperature);
        set(&mut params.top_k, self.top_k);
        set(&mut params.top_p, self.top_p);
        set(&mut params.min_p, self.min_p);
        set(&mut params.repetition_penalty, self.repetition_penalty);
        set(&mut params.presence_penalty, self.presence_penalty);
        set(&mut params.frequency_penalty, self.frequency_penalty);
        set(&mut params.stop.min_tokens, self.min_tokens);
        params.seed = self.seed;
        params.logit_bias = self.logit_bias()?;
        Ok(params)
    }

    /// Returns the values to be added to logits, by token id.
    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let invalid = |message: String| ApiError::invalid("logit_bias", message);
        let Some(given) = &self.logit_bias else {
            return Ok(Vec::new());
        };
        if given.len() > MAX_LOGIT_BIAS {
            let message = format!(
                "must be at most {MAX_LOGIT_BIAS} token ids, not {}",
                given.len()
            );
            return Err(invalid(message));
        }
        let mut biases = BTreeMap::new();
        for (id, &bias) in given {
            // `u32::parse` alone would accept "+7" too.
            let digits = id.bytes().all(|byte| byte.is_ascii_digit());
            let Some(token) = id.parse::<u32>().ok().filter(|_| digits) else {
                let message = format!("names {}, which is not a token id", shortened(id));
                return Err(invalid(message));
            };
            if biases.insert(token, bias).is_some() {
                return Err(invalid(format!("gives token {token} twice")));
            }
        }
        Ok(biases.into_iter().collect())
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
        let top = self.params.logprobs.map_or(0, |top| top + 1);
        top + self.params.logprob_ids.len()
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

/// Returns the salt for a call's prefixes.
///
/// # Errors
/// Fails for an empty salt, which would separate nothing.
pub fn cache_salt(given: Option<&str>) -> Result<Option<CacheSalt>, ApiError> {
    match given {
        Some("") => Err(ApiError::invalid("cache_salt", "must not be empty")),
        given => Ok(given.map(CacheSalt::new)),
    }
}

/// Returns the turn of a call that may take `seconds`.
pub fn turn(
    arrival: Instant,
    priority: Option<i32>,
    seconds: Option<f64>,
) -> Result<Turn, ApiError> {
    let priority = priority.unwrap_or(0);
    if !PRIORITIES.contains(&priority) {
        let (least, most) = PRIORITIES.into_inner();
        return Err(ApiError::invalid(
            "priority",
            format!("must be from {least} to {most}"),
        ));
    }
    let deadline = |seconds: f64| {
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|duration| !duration.is_zero())
            .and_then(|duration| arrival.checked_add(duration))
            .ok_or_else(|| ApiError::invalid("timeout", "must be a number of seconds above 0"))
    };
    Ok(Turn {
        priority,
        arrival,
        deadline: seconds.map(deadline).transpose()?,
        ..Turn::now()
    })
}
