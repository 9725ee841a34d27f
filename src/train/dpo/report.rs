//! The report of a training step.

use serde::{Deserialize, Serialize};

use super::objective::PairScore;
use super::{DpoConfig, PairExample};
use crate::optim::StepStats;
use kernels::logprob::Scores;

/// The report of one optimizer step. Means are over pairs, each counted once whatever its weight; log-probabilities are in nats.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps taken so far, this one included.
    pub step: u64,
    /// The objective before the step.
    pub loss: f64,
    /// Mean of `beta h(chosen)`.
    pub rewards_chosen: f64,
    pub rewards_rejected: f64,
    pub rewards_margin: f64,
    /// Fraction of the pairs in which the chosen completion has the higher reward.
    pub accuracy: f64,
    /// Mean summed log-probability of the chosen completions under the policy.
    pub logps_chosen: f64,
    pub logps_rejected: f64,
    /// Mean log-ratio to the reference, per completion: an unbiased estimate of KL(policy, reference) if the completions were sampled
    /// from the policy at temperature 1 and from its whole vocabulary; otherwise only a measure of the policy's shift on the data.
    pub kl: f64,
    /// Mean entropy of the policy's distribution over its whole vocabulary, at the tokens of the completions, before the step; nats.
    pub entropy: f64,
    /// Fraction of the completion tokens that were the most probable ones.
    pub token_accuracy: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// The factor applied to the gradients by clipping.
    pub clip_coef: f64,
    pub lr: f64,
    /// Mean length in tokens.
    pub len_chosen: f64,
    pub len_rejected: f64,
    pub pairs: u64,
    /// Tokens computed; each prompt counts once.
    pub tokens: u64,
    pub seconds: f64,
}

/// Sums over the pairs of a step.
#[derive(Debug, Default)]
pub(super) struct Sums {
    report: StepReport,
    completion_tokens: u64,
    top1: u64,
}

impl Sums {
    pub fn add(&mut self, config: &DpoConfig, pair: &PairExample, score: &PairScore) {
        let r = &mut self.report;
        let (chosen, rejected) = (&score.chosen, &score.rejected);
        let (w, l) = (chosen.log_ratio(), rejected.log_ratio());
        r.loss += score.loss;
        r.rewards_chosen += config.beta * w;
        r.rewards_rejected += config.beta * l;
        r.accuracy += f64::from(u8::from(w > l));
        r.logps_chosen += chosen.policy;
        r.logps_rejected += rejected.policy;
        r.kl += (w + l) / 2.0;
        r.len_chosen += chosen.tokens as f64;
        r.len_rejected += rejected.tokens as f64;
        r.pairs += 1;
        r.tokens += (pair.prompt.len() + chosen.tokens + rejected.tokens) as u64;
        self.completion_tokens += (chosen.tokens + rejected.tokens) as u64;
    }

    /// Adds the scores of the completions' tokens.
    pub fn add_tokens(&mut self, scores: &Scores) {
        self.top1 += scores.top1.iter().filter(|&&hit| hit).count() as u64;
        self.report.entropy += scores.entropy.iter().map(|&h| f64::from(h)).sum::<f64>();
    }

    /// Builds the report: the loss is already a sum of shares; everything else becomes a mean.
    pub fn report(self, step: &StepStats, lr: f64, seconds: f64) -> StepReport {
        let r = self.report;
        let n = r.pairs.max(1) as f64;
        let per_token = 1.0 / self.completion_tokens.max(1) as f64;
        StepReport {
            step: step.step,
            loss: r.loss,
            rewards_chosen: r.rewards_chosen / n,
            rewards_rejected: r.rewards_rejected / n,
            rewards_margin: (r.rewards_chosen - r.rewards_rejected) / n,
            accuracy: r.accuracy / n,
            logps_chosen: r.logps_chosen / n,
            logps_rejected: r.logps_rejected / n,
            kl: r.kl / n,
            entropy: r.entropy * per_token,
            token_accuracy: self.top1 as f64 * per_token,
            grad_norm: step.grad_norm,
            clip_coef: step.clip_coef,
            lr,
            len_chosen: r.len_chosen / n,
            len_rejected: r.len_rejected / n,
            pairs: r.pairs,
            tokens: r.tokens,
            seconds,
        }
    }
}
