//! The numbers of an update: Prometheus, and TensorBoard files named as TRL names them.

use std::path::Path;

use super::LearnError;
use super::update::Batch;
use crate::preference::log::StageId;
use crate::telemetry::LearnMetrics;
use crate::train::TrainError;
use crate::train::dpo::StepReport;
use crate::train::metrics::EventWriter;

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

    /// `update` counts from 0. Without a report no pair was left to learn from.
    ///
    /// # Errors
    /// The file system's.
    pub fn record(
        &mut self,
        metrics: &LearnMetrics,
        update: u64,
        report: Option<&StepReport>,
        kl: f64,
        batch: &Batch,
    ) -> Result<(), LearnError> {
        metrics.updates.inc();
        let mut numbers = vec![
            ("kl/anchor", kl),
            ("pairs/accepted", batch.pairs.len() as f64),
            ("pairs/dropped", batch.dropped.len() as f64),
        ];
        if let Some(report) = report {
            metrics.pairs.inc_by(report.pairs);
            metrics.step_seconds.observe(report.seconds);
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
        Ok(self.events.scalars(update + 1, &numbers)?)
    }
}
