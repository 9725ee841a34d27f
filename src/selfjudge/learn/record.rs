//! The numbers of an update, for Prometheus and for TensorBoard files with TRL's names.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::staleness::Staleness;
use telemetry::LearnMetrics;
use traffic_log::StageId;
use train::{TrainError, dpo::StepReport, metrics::EventWriter};

/// The results of one update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateNumbers {
    /// The trainer's report; none if no pair was left to train on.
    pub report: Option<StepReport>,
    /// Estimated KL divergence from generation 0, nats per answer; see [`super::gate::measure::divergence`].
    pub kl: Option<f64>,
    pub staleness: Staleness,
    /// Pairs that were made, and prompts without a pair.
    pub accepted: usize,
    pub dropped: usize,
}

/// The curves of one stage, in a directory of their own.
pub struct StageMetrics {
    events: EventWriter,
}

impl StageMetrics {
    /// Opens the curves of a stage; `resumed` is the number of updates made so far.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn open(dir: &Path, stage: StageId, resumed: u64) -> Result<Self, LearnError> {
        let dir = dir.join("curves").join(format!("stage-{stage}"));
        std::fs::create_dir_all(&dir).map_err(TrainError::io("cannot create", &dir))?;
        Ok(Self {
            events: EventWriter::create(&dir, resumed)?,
        })
    }

    /// Appends the numbers of `update`, which counts from 0.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn record(
        &mut self,
        metrics: &LearnMetrics,
        update: u64,
        of: &UpdateNumbers,
    ) -> Result<(), LearnError> {
        let numbers = of.show(metrics);
        Ok(self.events.scalars(update + 1, &numbers)?)
    }
}

impl UpdateNumbers {
    /// Returns the numbers for the stage's saved state: without the update's duration, which differs from run to run, and none if one is
    /// not finite, because JSON cannot represent it.
    pub fn kept(&self) -> Option<Self> {
        let report = self.report.map(|report| StepReport {
            seconds: 0.0,
            ..report
        });
        let kept = Self {
            report,
            ..self.clone()
        };
        let stored = serde_json::to_value(&kept).ok()?;
        let read = serde_json::from_value::<Self>(stored);
        read.is_ok().then_some(kept)
    }

    /// Exports the numbers as the last update's metrics, and returns them under TRL's names.
    pub fn show(&self, metrics: &LearnMetrics) -> Vec<(&'static str, f64)> {
        let of = self;
        let mut numbers = vec![
            ("pairs/accepted", of.accepted as f64),
            ("pairs/dropped", of.dropped as f64),
        ];
        numbers.extend(of.kl.map(|kl| ("kl/anchor", kl)));
        if let Some(report) = &of.report {
            numbers.extend([
                ("staleness/versions", of.staleness.versions),
                ("staleness/updates", of.staleness.updates),
            ]);
            numbers.extend([
                ("loss", report.loss),
                ("learning_rate", report.lr),
                ("grad_norm", report.grad_norm),
                ("num_tokens", report.tokens as f64),
                ("entropy", report.entropy),
                ("mean_token_accuracy", report.token_accuracy),
                ("logps/chosen", report.logps_chosen),
                ("logps/rejected", report.logps_rejected),
                ("rewards/chosen", report.rewards_chosen),
                ("rewards/rejected", report.rewards_rejected),
                ("rewards/margins", report.rewards_margin),
                ("rewards/accuracies", report.accuracy),
                ("objective/kl", report.kl),
                ("len/chosen", report.len_chosen),
                ("len/rejected", report.len_rejected),
                ("len/delta", report.len_chosen - report.len_rejected),
            ]);
        }
        for (name, value) in &numbers {
            metrics.last.with_label_values(&[name]).set(*value);
        }
        numbers
    }
}
