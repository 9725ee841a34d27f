//! Metric rows as means over the steps of a logging interval.

use crate::checkpoint::TrainerState;
use crate::metrics::StepMetrics;
use crate::step::BatchStats;

/// Sums since the last row of metrics.
#[derive(Default)]
pub(super) struct Interval {
    steps: u64,
    stats: BatchStats,
    grad_norm: f64,
}

impl Interval {
    pub(super) fn add(&mut self, stats: &BatchStats, grad_norm: f64) {
        self.steps += 1;
        self.stats.add(stats);
        self.grad_norm += grad_norm;
    }

    /// Returns the means since the last row, and starts the next interval.
    pub(super) fn row(
        &mut self,
        state: &TrainerState,
        epoch: f64,
        lr: f64,
        tokens_per_second: f64,
    ) -> StepMetrics {
        let Self {
            steps,
            stats,
            grad_norm,
        } = std::mem::take(self);
        let (sft, judge) = (stats.sft, stats.judge);
        let share = |part: u64, of: u64| (of > 0).then(|| part as f64 / of as f64);
        let mean = |sum: f64, of: u64| (of > 0).then(|| sum / of as f64);
        let n = steps.max(1) as f64;
        StepMetrics {
            global_step: state.step,
            epoch,
            loss: stats.loss / n,
            learning_rate: lr,
            grad_norm: grad_norm / n,
            num_tokens: state.num_tokens,
            mean_token_accuracy: share(sft.top1 + judge.top1, sft.tokens + judge.tokens)
                .unwrap_or(0.0),
            sft_loss: mean(sft.nll, sft.tokens),
            sft_mean_token_accuracy: share(sft.top1, sft.tokens),
            judge_loss: mean(judge.nll, judge.tokens),
            judge_accuracy: share(judge.top1, judge.tokens),
            tokens_per_second,
        }
    }
}
