//! The parameters common to all generating routes: sampling, stops, the number of answers, and streaming.

mod checked;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, shortened};
use super::format::{ResponseFormat, StructuredOutputs};
use super::judge::JudgingBody;
use super::limits::MAX_STOP_TOKEN_IDS;
use super::one_or_many::{Given, one_or_many};
use crate::call::Turn;
use crate::service::ConsentRequest;
use engine::{CacheSalt, MAX_LOGIT_BIAS, PRIORITIES, SamplingParams, StopIds};
use model::SamplingDefaults;

pub use checked::{Sampling, Wanted};

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
    /// 0 is greedy; 1 is the model's own distribution. By default that of the model's generation_config.json, or 1; `top_k`, `top_p`,
    /// `min_p` and `repetition_penalty` likewise, or without effect.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// Sample only from the k most probable tokens; 0 or -1 is all.
    #[schema(minimum = -1)]
    top_k: Option<usize>,
    /// Sample only from the most probable tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Sample only from tokens at least this probable, relative to the most probable one.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// Above 1, tokens of prompt and answer become less probable.
    #[schema(exclusive_minimum = 0)]
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

impl SamplingBody {
    /// Returns whether every event of a stream has token counts.
    pub fn wants_continuous_usage(&self) -> bool {
        self.stream_options
            .is_some_and(|options| options.continuous_usage_stats)
    }

    /// Fills in the parameters that the call does not set.
    fn or(mut self, defaults: SamplingDefaults) -> Self {
        let SamplingDefaults {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
        } = defaults;
        self.temperature = self.temperature.or(temperature);
        self.top_k = self.top_k.or(top_k);
        self.top_p = self.top_p.or(top_p);
        self.min_p = self.min_p.or(min_p);
        self.repetition_penalty = self.repetition_penalty.or(repetition_penalty);
        self
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
        let other = |given: Option<f32>, neutral: f32| given.is_some_and(|given| given != neutral);
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
        fn set<T: Copy>(field: &mut T, given: Option<T>) {
            *field = given.unwrap_or(*field);
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
