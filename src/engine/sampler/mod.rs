//! Sampling: from a row of logits to a token.
//!
//! The order is that of transformers: bias, repetition penalty (then presence and frequency, which transformers lacks), masking of
//! forbidden tokens, temperature, top-k, top-p, min-p. Each sample draws from its own random stream, so its draws depend on its seed and
//! its logits alone.
//!
//! With a grammar, only the tokens that it allows can be drawn, and stop ids exactly where the text matches: even a stop id that is also
//! a token of the grammar's text. Before the minimum number of tokens no stop id can be drawn.

mod logprobs;
mod penalties;
mod truncation;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use logprobs::{PromptLogprobs, TokenLogprobs};

use super::SamplingParams;
use kernels::logits::{argmax, sum, weights};
use penalties::Seen;
use text::{Grammar, GrammarError, GrammarMatcher};
use truncation::Candidate;

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

    /// Chooses the next token.
    ///
    /// # Errors
    /// Errors if the grammar allows no token, or if its matcher fails.
    pub fn sample(
        &mut self,
        params: &SamplingParams,
        logits: &[f32],
    ) -> Result<SampledToken, GrammarError> {
        let early = self.produced < params.stop.min_tokens && !params.stop.stop_ids.is_empty();
        let untouched =
            params.logit_bias.is_empty() && self.seen.is_none() && !early && self.grammar.is_none();
        let id = if untouched {
            self.choose(params, logits)
        } else {
            let mut changed = logits.to_vec();
            self.process(params, &mut changed, early)?;
            self.choose(params, &changed)
        };
        self.produced += 1;
        let complete = self.follow(params, id)?;
        if let Some(seen) = &mut self.seen {
            seen.push(id);
        }
        let wanted = params.logprobs.is_some() || !params.logprob_ids.is_empty();
        let top = params.logprobs.unwrap_or(0);
        Ok(SampledToken {
            id,
            complete,
            logprobs: wanted.then(|| TokenLogprobs::new(logits, id, top, &params.logprob_ids)),
        })
    }

    fn process(
        &self,
        params: &SamplingParams,
        logits: &mut [f32],
        early: bool,
    ) -> Result<(), GrammarError> {
        for &(id, bias) in &params.logit_bias {
            logits[id as usize] += bias;
        }
        if let Some(seen) = &self.seen {
            seen.penalise(params, logits);
        }
        let stop_ids = &params.stop.stop_ids;
        let mut may_end = !early;
        if let Some(grammar) = &self.grammar {
            may_end &= grammar.allowed().may_end();
            // Where the text may end, a stop id is allowed whether or not the grammar allows it as a token.
            let ends: Vec<(u32, f32)> = stop_ids
                .iter()
                .filter(|_| may_end)
                .map(|id| (id, logits[id as usize]))
                .collect();
            grammar.allowed().apply(logits);
            for (id, logit) in ends {
                logits[id as usize] = logit;
            }
        }
        if !may_end {
            for id in stop_ids.iter() {
                logits[id as usize] = f32::NEG_INFINITY;
            }
        }
        let possible = |logit: &f32| *logit > f32::NEG_INFINITY;
        match self.grammar.is_none() || logits.iter().any(possible) {
            true => Ok(()),
            false => Err(GrammarError::DeadEnd),
        }
    }

    /// Advances the grammar by a token and returns whether it allows no continuation.
    fn follow(&mut self, params: &SamplingParams, id: u32) -> Result<bool, GrammarError> {
        match &mut self.grammar {
            Some(grammar) if !params.stop.stop_ids.contains(id) => {
                grammar.accept(id)?;
                Ok(grammar.is_complete())
            }
            _ => Ok(false),
        }
    }

    fn choose(&mut self, params: &SamplingParams, logits: &[f32]) -> u32 {
        if params.temperature == 0.0 {
            return argmax(logits) as u32;
        }
        let share: f64 = self.rng.random();
        let chosen = if truncation::keeps_all(params) {
            draw_from_all(&weights(logits, params.temperature), share)
        } else {
            let candidates = truncation::candidates(params, logits);
            let total: f64 = candidates.iter().map(|c| c.1).sum();
            draw(&candidates, share * total)
        };
        chosen.unwrap_or_else(|| argmax(logits) as u32)
    }
}

/// Returns the candidate at which the cumulative weight exceeds `left`. Rounding can leave a remainder after the last one.
fn draw(candidates: &[Candidate], mut left: f64) -> Option<u32> {
    let at = |&&(_, weight): &&Candidate| {
        left -= weight;
        left < 0.0
    };
    candidates
        .iter()
        .find(at)
        .or(candidates.last())
        .map(|c| c.0)
}

/// Works as [`draw`] over a whole vocabulary, `weights` being indexed by token id: it first searches the sums of blocks.
fn draw_from_all(weights: &[f32], share: f64) -> Option<u32> {
    const BLOCK: usize = 256;
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut left = share * sums.iter().sum::<f64>();
    let mut block = 0;
    while block + 1 < sums.len() && left >= sums[block] {
        left -= sums[block];
        block += 1;
    }
    let from = block * BLOCK;
    let possible: Vec<Candidate> = (from as u32..)
        .zip(weights[from..].iter().take(BLOCK))
        .filter(|&(_, &weight)| weight > 0.0)
        .map(|(id, &weight)| (id, f64::from(weight)))
        .collect();
    draw(&possible, left)
}

#[cfg(test)]
mod tests;
