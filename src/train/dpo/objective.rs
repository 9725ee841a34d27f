//! What a batch of pairs costs, and what each token's log-probability contributes: the bridge from per-token scores to
//! [`super::loss`] and back.
//!
//! `loss = sum_i w_i l_i / sum_i w_i + nll * sum_i w_i (-log pi(chosen_i)) / sum_i w_i |chosen_i|`
//!
//! Both denominators belong to the whole batch, so how it is cut into micro-batches changes nothing but memory.

use super::loss::{Completion, token_weights};
use super::{DpoConfig, PairExample};

/// The denominators of one batch.
pub(super) struct Objective<'a> {
    config: &'a DpoConfig,
    weight: f64,
    chosen_tokens: f64,
}

/// What one pair scored.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairScore {
    /// Its share of the batch's loss.
    pub loss: f64,
    /// Counted as the loss counts them, under LD-DPO with its token weights.
    pub chosen: Completion,
    pub rejected: Completion,
    /// Summed log-probability of both completions, every token in full.
    pub plain: f64,
}

impl<'a> Objective<'a> {
    pub fn new(config: &'a DpoConfig, pairs: &[PairExample]) -> Self {
        let sum = |f: &dyn Fn(&PairExample) -> f64| pairs.iter().map(f).sum();
        Self {
            config,
            weight: sum(&|p| f64::from(p.weight)),
            chosen_tokens: sum(&|p| f64::from(p.weight) * p.chosen.len() as f64),
        }
    }

    /// Scores a pair from its tokens' log-probabilities and writes what the batch's loss changes by with each of them.
    pub fn score(
        &self,
        pair: &PairExample,
        reference: (f32, f32),
        logprobs: [&[f32]; 2],
        gradients: [&mut [f32]; 2],
    ) -> PairScore {
        let DpoConfig {
            beta,
            nll,
            ld_alpha,
            loss,
            ..
        } = self.config;
        let [chosen, rejected] = logprobs;
        let completion = |own: &[f32], other: &[f32], reference: f32| Completion {
            policy: f64::from(summed(*ld_alpha, own, other.len())),
            reference: f64::from(reference),
            tokens: own.len(),
        };
        let (w, l) = (
            completion(chosen, rejected, reference.0),
            completion(rejected, chosen, reference.1),
        );
        let costs = loss.evaluate(*beta, f64::from(pair.label), &w, &l);
        let share = f64::from(pair.weight) / self.weight;
        let imitation = nll * f64::from(pair.weight) / self.chosen_tokens;

        let [of_chosen, of_rejected] = gradients;
        for (g, weight) in
            of_chosen
                .iter_mut()
                .zip(token_weights(*ld_alpha, chosen.len(), rejected.len()))
        {
            *g = (share * costs.d_chosen * weight - imitation) as f32;
        }
        for (g, weight) in
            of_rejected
                .iter_mut()
                .zip(token_weights(*ld_alpha, rejected.len(), chosen.len()))
        {
            *g = (share * costs.d_rejected * weight) as f32;
        }
        let total = |logprobs: &[f32]| logprobs.iter().map(|&l| f64::from(l)).sum::<f64>();
        PairScore {
            loss: share * costs.loss - imitation * total(chosen),
            chosen: w,
            rejected: l,
            plain: total(chosen) + total(rejected),
        }
    }
}

/// A completion's log-probability as the loss counts it: summed in f64, given in f32, so that policy and reference are rounded
/// alike and are equal where their tokens' are.
pub(super) fn summed(ld_alpha: Option<f64>, logprobs: &[f32], others: usize) -> f32 {
    logprobs
        .iter()
        .zip(token_weights(ld_alpha, logprobs.len(), others))
        .map(|(&logprob, weight)| f64::from(logprob) * weight)
        .sum::<f64>() as f32
}
