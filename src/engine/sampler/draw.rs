//! One draw: a row of logits and the description of the draw in, a token out.

use super::SamplingParams;
use super::logprobs::TokenLogprobs;
use super::penalties::Seen;
use super::truncation::{self, Candidate};
use kernels::logits::{all_finite, argmax, sum, weights};
use text::TokenMask;

/// The description of one draw. Equal descriptions and equal logits give equal tokens: whatever chance there is lies in `share`.
#[derive(Debug, Clone, Copy)]
pub struct DrawSpec<'a> {
    /// Bias, penalties, temperature, truncation and the requested log-probabilities.
    pub params: &'a SamplingParams,
    /// The point of the cumulative distribution to take, from 0 to 1; none takes the most probable token.
    pub share: Option<f64>,
    /// The tokens that penalties count, if there are penalties.
    pub seen: Option<&'a Seen>,
    /// The tokens that the grammar allows, if there is one.
    pub allowed: Option<&'a TokenMask>,
    /// Whether stop ids may be drawn. With a grammar they may be drawn even if it does not allow them as tokens.
    pub may_end: bool,
}

/// A drawn token and its requested log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
}

/// An error that prevented a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    #[error("its logits are not finite")]
    NotFinite,
    #[error("no token is allowed")]
    DeadEnd,
}

impl DrawSpec<'_> {
    /// Draws a token from a row of logits, as the model gave them.
    ///
    /// # Errors
    /// Errors if a logit is not finite, or if the grammar allows no token.
    pub fn draw(&self, logits: &[f32]) -> Result<Draw, DrawError> {
        if !all_finite(logits) {
            return Err(DrawError::NotFinite);
        }
        let params = self.params;
        let id = if self.changes_nothing() {
            self.choose(logits)
        } else {
            let mut changed = logits.to_vec();
            self.process(&mut changed)?;
            self.choose(&changed)
        };
        let wanted = params.logprobs.is_some() || !params.logprob_ids.is_empty();
        let top = params.logprobs.unwrap_or(0);
        Ok(Draw {
            id,
            logprobs: wanted.then(|| TokenLogprobs::new(logits, id, top, &params.logprob_ids)),
        })
    }

    /// Returns whether the logits are drawn from as they are.
    fn changes_nothing(&self) -> bool {
        let params = self.params;
        params.logit_bias.is_empty()
            && self.seen.is_none()
            && self.allowed.is_none()
            && (self.may_end || params.stop.stop_ids.is_empty())
    }

    /// Adds the bias, applies the penalties and masks forbidden tokens.
    fn process(&self, logits: &mut [f32]) -> Result<(), DrawError> {
        for &(id, bias) in &self.params.logit_bias {
            logits[id as usize] += bias;
        }
        if let Some(seen) = self.seen {
            seen.penalise(self.params, logits);
        }
        let stop_ids = &self.params.stop.stop_ids;
        if let Some(allowed) = self.allowed {
            // Where the text may end, a stop id is allowed whether or not the grammar allows it as a token.
            let ends: Vec<(u32, f32)> = stop_ids
                .iter()
                .filter(|_| self.may_end)
                .map(|id| (id, logits[id as usize]))
                .collect();
            allowed.apply(logits);
            for (id, logit) in ends {
                logits[id as usize] = logit;
            }
        }
        if !self.may_end {
            for id in stop_ids.iter() {
                logits[id as usize] = f32::NEG_INFINITY;
            }
        }
        let possible = |logit: &f32| *logit > f32::NEG_INFINITY;
        match self.allowed.is_none() || logits.iter().any(possible) {
            true => Ok(()),
            false => Err(DrawError::DeadEnd),
        }
    }

    fn choose(&self, logits: &[f32]) -> u32 {
        let Some(share) = self.share else {
            return argmax(logits) as u32;
        };
        let chosen = if truncation::keeps_all(self.params) {
            draw_from_all(&weights(logits, self.params.temperature), share)
        } else {
            let candidates = truncation::candidates(self.params, logits);
            let total: f64 = candidates.iter().map(|c| c.1).sum();
            draw(&candidates, share * total)
        };
        chosen.unwrap_or_else(|| argmax(logits) as u32)
    }
}

/// Returns the candidate at which the cumulative weight exceeds `left`. Rounding can leave a remainder after the last one.
pub(super) fn draw(candidates: &[Candidate], mut left: f64) -> Option<u32> {
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
pub(super) fn draw_from_all(weights: &[f32], share: f64) -> Option<u32> {
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
