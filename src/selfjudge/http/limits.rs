//! Limits of a single call, checked before any work is done for it; docs/limits.md lists them all.

use std::num::NonZeroUsize;

use super::error::ApiError;
use engine::Capacity;

/// Maximum answers of one call: prompts × samples of each.
pub const MAX_ANSWERS: usize = 8192;

/// Maximum stop token ids of one call, including repeated ones.
pub const MAX_STOP_TOKEN_IDS: usize = 1024;

/// Tokens that any call may request, however small the server is.
const LEAST_CALL_TOKENS: usize = 1 << 20;

/// Log-probabilities that any call may request, however short the context is.
const LEAST_CALL_LOGPROBS: usize = 1 << 19;

/// The limits of one call that depend on the server's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Maximum of prompts × samples × tokens per answer.
    tokens: usize,
    /// Maximum of prompts × samples × tokens per answer × log-probabilities per token.
    logprobs: usize,
    /// Maximum tokens of an answer.
    max_answer: usize,
}

/// The size of a call.
#[derive(Debug, Clone, Copy)]
pub struct CallSize {
    pub prompts: usize,
    /// Samples per prompt.
    pub samples: usize,
    /// The parameter that sets the samples.
    pub samples_param: &'static str,
    /// Tokens per sample, set by the caller or a default; effectively bounded by the context's length.
    pub max_tokens: usize,
    /// Log-probabilities per token.
    pub logprobs: usize,
}

impl CallLimits {
    /// Creates the limits. `tokens` is the operator's bound; by default 1,048,576, or what `capacity` can compute at once if that is more.
    pub fn new(tokens: Option<NonZeroUsize>, capacity: Capacity) -> Self {
        let at_once = capacity.max_concurrent.saturating_mul(capacity.max_context);
        Self {
            tokens: tokens.map_or(at_once.max(LEAST_CALL_TOKENS), NonZeroUsize::get),
            logprobs: capacity
                .max_context
                .saturating_mul(8)
                .max(LEAST_CALL_LOGPROBS),
            max_answer: capacity.max_context.saturating_sub(1),
        }
    }

    /// Checks the size of a call.
    ///
    /// # Errors
    /// Names the parameter that exceeds a limit, and the limit.
    pub fn check(&self, size: CallSize) -> Result<(), ApiError> {
        let CallSize {
            prompts, samples, ..
        } = size;
        let answers = prompts.saturating_mul(samples);
        if answers > MAX_ANSWERS {
            let message = format!(
                "{samples} answers to each of {prompts} prompts are {answers} answers, which exceeds the limit of {MAX_ANSWERS} per call"
            );
            return Err(ApiError::invalid(size.samples_param, message));
        }
        let each = size.max_tokens.min(self.max_answer);
        let tokens = answers.saturating_mul(each);
        if tokens > self.tokens {
            let message = format!(
                "{each} tokens for each of {answers} answers are {tokens} tokens, which exceeds the limit of {} per call",
                self.tokens
            );
            return Err(ApiError::invalid("max_tokens", message));
        }
        let logprobs = tokens.saturating_mul(size.logprobs);
        if logprobs > self.logprobs {
            let message = format!(
                "{} log-probabilities with each of {tokens} tokens are {logprobs}, which exceeds the limit of {} per call: ask for fewer, \
                 or set max_tokens",
                size.logprobs, self.logprobs
            );
            return Err(ApiError::invalid("logprobs", message));
        }
        Ok(())
    }

    /// Checks the log-probabilities of prompts: `logprobs` of them for each of `tokens` tokens.
    ///
    /// # Errors
    /// Fails above the limit of log-probabilities, with an error about `param`.
    pub fn check_prompts(
        &self,
        tokens: usize,
        logprobs: usize,
        param: &str,
    ) -> Result<(), ApiError> {
        let values = tokens.saturating_mul(logprobs);
        if values <= self.logprobs {
            return Ok(());
        }
        let message = format!(
            "{logprobs} log-probabilities with each of {tokens} tokens of prompts are {values}, which exceeds the limit of {} per call: ask \
             for fewer, or send fewer prompts",
            self.logprobs
        );
        Err(ApiError::invalid(param, message))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn capacity(max_concurrent: usize, max_context: usize) -> Capacity {
        Capacity {
            kv_tokens: 0,
            kv_bytes: 0,
            kv_dtype: DType::F32,
            max_context,
            max_concurrent,
            vocab_size: 384,
        }
    }

    #[test]
    fn a_call_is_accepted_at_its_bounds_and_refused_above_them() {
        let small = CallLimits::new(None, capacity(128, 512));
        let large = CallLimits::new(None, capacity(256, 32_768));
        let set = CallLimits::new(NonZeroUsize::new(1000), capacity(128, 512));
        let size = |prompts, samples, max_tokens, logprobs| CallSize {
            prompts,
            samples,
            samples_param: "n",
            max_tokens,
            logprobs,
        };
        // The limits, a call at one of them, a call above it, and the named parameter.
        let table = [
            (small, size(64, 128, 1, 0), size(65, 128, 1, 0), "n"),
            (
                small,
                size(1, 8192, 128, 0),
                size(1, 8192, 129, 0),
                "max_tokens",
            ),
            (
                small,
                size(2, 1026, 511, 0),
                size(3, 1026, 511, 0),
                "max_tokens",
            ),
            (
                large,
                size(1, 256, 32_767, 0),
                size(1, 257, 32_767, 0),
                "max_tokens",
            ),
            (set, size(10, 10, 10, 0), size(10, 10, 11, 0), "max_tokens"),
            (
                small,
                size(1, 1024, 64, 8),
                size(1, 1024, 64, 9),
                "logprobs",
            ),
            (
                large,
                size(1, 1, 32_767, 16),
                size(1, 1, 32_767, 17),
                "logprobs",
            ),
        ];
        for (limits, at, above, param) in table {
            assert!(limits.check(at).is_ok(), "{at:?}");
            let error = limits.check(above).unwrap_err().into_body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{above:?}");
            assert_eq!(error.code, "invalid_parameter");
        }
    }

    #[test]
    fn an_answer_without_a_limit_counts_as_the_longest_there_is() {
        let limits = CallLimits::new(None, capacity(128, 512));
        let asked = |samples| CallSize {
            prompts: 1,
            samples,
            samples_param: "n",
            max_tokens: usize::MAX,
            logprobs: 0,
        };
        assert!(limits.check(asked(2052)).is_ok());
        assert!(limits.check(asked(2053)).is_err());
    }
}
