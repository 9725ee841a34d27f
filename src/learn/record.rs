//! The numbers of an update: Prometheus, and TensorBoard files named as TRL names them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::staleness::Staleness;
use crate::preference::log::StageId;
use crate::telemetry::LearnMetrics;
use crate::train::TrainError;
use crate::train::dpo::StepReport;
use crate::train::metrics::EventWriter;

/// What an update came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateNumbers {
    /// None where no pair was left to learn from.
    pub report: Option<StepReport>,
    /// Nats of an answer from generation 0; see [`super::gate::measure::divergence`].
    pub kl: Option<f64>,
    pub staleness: Staleness,
    /// Pairs that were made, and prompts that made none.
    pub accepted: usize,
    pub dropped: usize,
}

/// The curves of one stage, in a directory of its own.
pub struct StageMetrics {
    events: EventWriter,
}

impl StageMetrics {
    /// `resumed`: updates that were made before.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(dir: &Path, stage: StageId, resumed: u64) -> Result<Self, LearnError> {
        let dir = dir.join("curves").join(format!("stage-{stage}"));
        std::fs::create_dir_all(&dir).map_err(TrainError::io("cannot create", &dir))?;
        Ok(Self {
            events: EventWriter::create(&dir, resumed)?,
        })
    }

    /// `update` counts from 0.
    ///
    /// # Errors
    /// The file system's.
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
    /// Returns the numbers as a stage's state keeps them: without the time that the update took, which differs from run to run; none
    /// where one of them is not finite, which JSON cannot hold.
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

    /// Shows the numbers as those of the last update, and returns them by the names that TRL uses.
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
