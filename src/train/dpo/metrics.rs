//! The metric rows of an offline run, under TRL's names.

use serde::{Deserialize, Serialize};

use super::StepReport;
use crate::metrics::MetricsRow;

/// One row: means over the steps of a logging interval.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DpoMetrics {
    pub global_step: u64,
    /// Passes over the data, as a fraction.
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens computed since the run began; each prompt counts once.
    pub num_tokens: u64,
    /// Mean entropy of the policy at the completion tokens, nats.
    #[serde(default)]
    pub entropy: f64,
    /// Fraction of the completion tokens that were the most probable ones.
    pub mean_token_accuracy: f64,
    #[serde(rename = "rewards/chosen")]
    pub rewards_chosen: f64,
    #[serde(rename = "rewards/rejected")]
    pub rewards_rejected: f64,
    #[serde(rename = "rewards/margins")]
    pub rewards_margins: f64,
    #[serde(rename = "rewards/accuracies")]
    pub rewards_accuracies: f64,
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    #[serde(rename = "logps/rejected")]
    pub logps_rejected: f64,
    /// Mean log-ratio to the reference per completion; not a KL divergence on data that the policy did not sample.
    #[serde(rename = "objective/kl")]
    pub kl: f64,
    #[serde(rename = "len/chosen")]
    pub len_chosen: f64,
    #[serde(rename = "len/rejected")]
    pub len_rejected: f64,
    pub tokens_per_second: f64,
}

impl MetricsRow for DpoMetrics {
    const CURVES: &'static [&'static str] = &["loss", "rewards/accuracies"];
    const UNIT: &'static str = "loss (nats per pair), share of pairs";

    fn global_step(&self) -> u64 {
        self.global_step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("loss", self.loss),
            ("learning_rate", self.learning_rate),
            ("grad_norm", self.grad_norm),
            ("epoch", self.epoch),
            ("num_tokens", self.num_tokens as f64),
            ("entropy", self.entropy),
            ("mean_token_accuracy", self.mean_token_accuracy),
            ("rewards/chosen", self.rewards_chosen),
            ("rewards/rejected", self.rewards_rejected),
            ("rewards/margins", self.rewards_margins),
            ("rewards/accuracies", self.rewards_accuracies),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
            ("objective/kl", self.kl),
            ("len/chosen", self.len_chosen),
            ("len/rejected", self.len_rejected),
            ("tokens_per_second", self.tokens_per_second),
        ]
    }
}

impl DpoMetrics {
    /// Returns the means over the reports of one or more steps; learning rate, step and counts are those of the last.
    pub(super) fn mean(
        reports: &[StepReport],
        epoch: f64,
        num_tokens: u64,
        tokens_per_second: f64,
    ) -> Self {
        let mean = |f: fn(&StepReport) -> f64| {
            reports.iter().map(f).sum::<f64>() / reports.len().max(1) as f64
        };
        let last = reports.last().copied().unwrap_or_default();
        Self {
            global_step: last.step,
            epoch,
            loss: mean(|r| r.loss),
            learning_rate: last.lr,
            grad_norm: mean(|r| r.grad_norm),
            num_tokens,
            entropy: mean(|r| r.entropy),
            mean_token_accuracy: mean(|r| r.token_accuracy),
            rewards_chosen: mean(|r| r.rewards_chosen),
            rewards_rejected: mean(|r| r.rewards_rejected),
            rewards_margins: mean(|r| r.rewards_margin),
            rewards_accuracies: mean(|r| r.accuracy),
            logps_chosen: mean(|r| r.logps_chosen),
            logps_rejected: mean(|r| r.logps_rejected),
            kl: mean(|r| r.kl),
            len_chosen: mean(|r| r.len_chosen),
            len_rejected: mean(|r| r.len_rejected),
            tokens_per_second,
        }
    }
}
