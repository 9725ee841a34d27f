//! Sampling parameters of a request, validated once.

use super::StopIds;
use super::request::StopCriteria;

/// The maximum number of most probable tokens reported with every token; the same as OpenAI's and vLLM's servers.
pub const MAX_LOGPROBS: usize = 20;

/// The maximum number of requested ids whose log-probabilities are reported with every token.
pub const MAX_LOGPROB_IDS: usize = 128;

/// The maximum number of tokens with a logit bias.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// The parameters by which the next token is chosen. The defaults draw from the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy: the most probable token, whatever the truncations are.
    pub temperature: f32,
    /// Keeps the k most probable tokens (and ties with the last); 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens that together hold this probability mass.
    pub top_p: f32,
    /// Keeps the tokens whose probability is at least this fraction of the largest one.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or output (CTRL, Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token in the output.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for every time it occurs in the output.
    pub frequency_penalty: f32,
    /// Added to logits before anything else; at most [`MAX_LOGIT_BIAS`].
    pub logit_bias: Vec<(u32, f32)>,
    /// The seed: draws are a function of it and the sample's index; `None` takes one from the operating system.
    pub seed: Option<u64>,
    pub stop: StopCriteria,
    /// Reports with each token its log-probability and those of this many most probable tokens, before any of the
    /// above; at most [`MAX_LOGPROBS`], or the whole vocabulary if that is smaller.
    pub logprobs: Option<usize>,
    /// Reports with each token the log-probabilities of these ids, before any of the above; at most [`MAX_LOGPROB_IDS`].
    pub logprob_ids: Vec<u32>,
    /// Reports with each prompt token but the first its log-probability and those of this many most probable tokens; at most
    /// [`MAX_LOGPROBS`]. The whole prompt is computed for it, even where it is cached.
    pub prompt_logprobs: Option<usize>,
}

impl SamplingParams {
    pub fn new(max_tokens: usize, stop_ids: impl Into<StopIds>) -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            stop: StopCriteria {
                max_tokens,
                min_tokens: 0,
                stop_ids: stop_ids.into(),
            },
            logprobs: None,
            logprob_ids: Vec::new(),
            prompt_logprobs: None,
        }
    }

    /// # Errors
    /// Errors if a parameter is out of range, with its name and the range. Token ids must be below `vocab_size`.
    pub fn validate(&self, vocab_size: usize) -> Result<(), InvalidParameter> {
        let check = |ok: bool, name: &'static str, range: &str| match ok {
            true => Ok(()),
            false => Err(InvalidParameter {
                name,
                message: format!("must be {range}"),
            }),
        };
        // Written so that NaN is outside every range.
        let within = |x: f32, low: f32, high: f32| x >= low && x <= high;
        check(
            within(self.temperature, 0.0, 100.0),
            "temperature",
            "from 0 to 100",
        )?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "above 0 and at most 1",
        )?;
        check(within(self.min_p, 0.0, 1.0), "min_p", "from 0 to 1")?;
        check(
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "repetition_penalty",
            "above 0",
        )?;
        check(
            within(self.presence_penalty, -2.0, 2.0),
            "presence_penalty",
            "from -2 to 2",
        )?;
        check(
            within(self.frequency_penalty, -2.0, 2.0),
            "frequency_penalty",
            "from -2 to 2",
        )?;
        check(
            self.logit_bias
                .iter()
                .all(|&(_, bias)| within(bias, -100.0, 100.0)),
            "logit_bias",
            "from -100 to 100",
        )?;
        check(self.stop.max_tokens > 0, "max_tokens", "at least 1")?;
        check(
            self.stop.min_tokens <= self.stop.max_tokens,
            "min_tokens",
            "at most max_tokens",
        )?;
        check(
            self.logprobs.is_none_or(|n| n <= MAX_LOGPROBS),
            "logprobs",
            &format!("at most {MAX_LOGPROBS}"),
        )?;
        check(
            self.prompt_logprobs.is_none_or(|n| n <= MAX_LOGPROBS),
            "prompt_logprobs",
            &format!("at most {MAX_LOGPROBS}"),
        )?;
        check(
            self.logprob_ids.len() <= MAX_LOGPROB_IDS,
            "logprob_token_ids",
            &format!("at most {MAX_LOGPROB_IDS} token ids"),
        )?;
        check(
            self.logit_bias.len() <= MAX_LOGIT_BIAS,
            "logit_bias",
            &format!("at most {MAX_LOGIT_BIAS} token ids"),
        )?;
        let known = |id: u32| (id as usize) < vocab_size;
        let all_known = [
            ("stop_token_ids", self.stop.stop_ids.iter().all(known)),
            (
                "logit_bias",
                self.logit_bias.iter().all(|&(id, _)| known(id)),
            ),
            (
                "logprob_token_ids",
                self.logprob_ids.iter().copied().all(known),
            ),
        ];
        let below = format!("token ids below {vocab_size}");
        all_known
            .into_iter()
            .try_for_each(|(name, known)| check(known, name, &below))
    }
}

/// An invalid parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {message}")]
pub struct InvalidParameter {
    pub name: &'static str,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_and_not_a_number_are_refused_by_name() {
        let valid = SamplingParams::new(4, vec![3]);
        assert_eq!(valid.validate(8), Ok(()));
        let most = SamplingParams {
            logprobs: Some(MAX_LOGPROBS),
            logprob_ids: vec![1; MAX_LOGPROB_IDS],
            logit_bias: vec![(1, 1.0); MAX_LOGIT_BIAS],
            ..valid.clone()
        };
        assert_eq!(most.validate(8), Ok(()));
        type Spoil = fn(&mut SamplingParams);
        let spoilt: [(&str, Spoil); 19] = [
            ("temperature", |p| p.temperature = f32::NAN),
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = f32::INFINITY),
            ("top_p", |p| p.top_p = 0.0),
            ("top_p", |p| p.top_p = f32::NAN),
            ("min_p", |p| p.min_p = 1.5),
            ("repetition_penalty", |p| p.repetition_penalty = 0.0),
            ("presence_penalty", |p| p.presence_penalty = 2.5),
            ("frequency_penalty", |p| p.frequency_penalty = f32::NAN),
            ("logit_bias", |p| p.logit_bias = vec![(1, f32::INFINITY)]),
            ("logit_bias", |p| p.logit_bias = vec![(8, 1.0)]),
            ("logit_bias", |p| {
                p.logit_bias = vec![(1, 1.0); MAX_LOGIT_BIAS + 1]
            }),
            ("max_tokens", |p| p.stop.max_tokens = 0),
            ("min_tokens", |p| p.stop.min_tokens = 5),
            ("logprobs", |p| p.logprobs = Some(MAX_LOGPROBS + 1)),
            ("prompt_logprobs", |p| {
                p.prompt_logprobs = Some(MAX_LOGPROBS + 1)
            }),
            ("stop_token_ids", |p| p.stop.stop_ids = vec![3, 8].into()),
            ("logprob_token_ids", |p| p.logprob_ids.push(8)),
            ("logprob_token_ids", |p| {
                p.logprob_ids = vec![1; MAX_LOGPROB_IDS + 1]
            }),
        ];
        for (name, spoil) in spoilt {
            let mut params = valid.clone();
            spoil(&mut params);
            let error = params.validate(8).unwrap_err();
            assert_eq!(error.name, name, "{error}");
        }
    }
}
