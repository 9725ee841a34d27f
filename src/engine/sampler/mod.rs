//! Sampling: from a row of logits to a token.
//!
//! The order is that of transformers: bias, repetition penalty (then presence and frequency, which transformers lacks), masking of
//! forbidden tokens, temperature, top-k, top-p, min-p. Each sample draws from its own random stream, so its draws depend on its seed and
//! its logits alone.
//!
//! With a grammar, only the tokens that it allows can be drawn, and stop ids exactly where the text matches: even a stop id that is also
//! a token of the grammar's text. Before the minimum number of tokens no stop id can be drawn.
//!
//! A [`Sampler`] holds the state of one sequence: it describes each draw before the forward pass, and takes the drawn token after it. The
//! draw itself, [`DrawSpec::draw`], has no state, so it can take place where the logits are.

mod draw;
mod logprobs;
mod penalties;
mod truncation;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use draw::{Draw, DrawError, DrawSpec};
pub use logprobs::{PromptLogprobs, TokenLogprobs};

use super::SamplingParams;
use penalties::Seen;
use text::{Grammar, GrammarError, GrammarMatcher};

/// A sampled token and its requested log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub id: u32,
    /// Whether the grammar allows no continuation.
    pub complete: bool,
    pub logprobs: Option<TokenLogprobs>,
}

/// The sampling state of one sequence.
#[derive(Debug)]
pub struct Sampler {
    rng: ChaCha8Rng,
    /// The chance of the next draw; none for a greedy one.
    share: Option<f64>,
    seen: Option<Seen>,
    grammar: Option<GrammarMatcher>,
    produced: usize,
}

impl Sampler {
    /// Creates the sampler of sample `index` of a prompt: siblings draw from different streams of one seed.
    pub fn new(params: &SamplingParams, prompt: &[u32], seed: u64, index: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index as u64);
        Self {
            rng,
            share: None,
            seen: Seen::new(params, prompt),
            grammar: None,
            produced: 0,
        }
    }

    /// Adds a grammar that the sample has to match.
    pub fn following(mut self, grammar: Option<&Grammar>) -> Self {
        self.grammar = grammar.map(Grammar::matcher);
        self
    }

    /// Takes the chance of the next draw from the random stream.
    pub fn advance(&mut self, params: &SamplingParams) {
        self.share = (params.temperature != 0.0).then(|| self.rng.random());
    }

    /// Returns the description of the next draw.
    pub fn spec<'a>(&'a self, params: &'a SamplingParams) -> DrawSpec<'a> {
        let allowed = self.grammar.as_ref().map(GrammarMatcher::allowed);
        let early = self.produced < params.stop.min_tokens;
        DrawSpec {
            params,
            share: self.share,
            seen: self.seen.as_ref(),
            allowed,
            may_end: !early && allowed.is_none_or(|allowed| allowed.may_end()),
        }
    }

    /// Returns the states after each of `drafts`, as if they were drawn, advanced to the next draw; none for a sampler with a grammar, whose
    /// state cannot be copied.
    pub fn ahead(&self, params: &SamplingParams, drafts: &[u32]) -> Vec<Self> {
        let mut states: Vec<Self> = Vec::with_capacity(drafts.len());
        for &draft in drafts {
            let Some(mut next) = states.last().unwrap_or(self).without_grammar() else {
                break;
            };
            next.produced += 1;
            if let Some(seen) = &mut next.seen {
                seen.push(draft);
            }
            next.advance(params);
            states.push(next);
        }
        states
    }

    /// Returns a copy, unless there is a grammar.
    fn without_grammar(&self) -> Option<Self> {
        self.grammar.is_none().then(|| Self {
            rng: self.rng.clone(),
            share: self.share,
            seen: self.seen.clone(),
            grammar: None,
            produced: self.produced,
        })
    }

    /// Takes the drawn token.
    ///
    /// # Errors
    /// Errors if the grammar's matcher fails.
    pub fn accept(
        &mut self,
        params: &SamplingParams,
        drawn: Draw,
    ) -> Result<SampledToken, GrammarError> {
        let Draw { id, logprobs } = drawn;
        self.produced += 1;
        let complete = match &mut self.grammar {
            Some(grammar) if !params.stop.stop_ids.contains(id) => {
                grammar.accept(id)?;
                grammar.is_complete()
            }
            _ => false,
        };
        if let Some(seen) = &mut self.seen {
            seen.push(id);
        }
        Ok(SampledToken {
            id,
            complete,
            logprobs,
        })
    }
}

#[cfg(test)]
mod tests;
