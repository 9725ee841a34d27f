//! Metrics of a run: JSONL, TensorBoard events, a loss curve, a progress bar.
//!
//! Names are TRL's if TRL has one, so that existing dashboards work; the split by kind of example (`sft/…`, `judge/…`) is this project's
//! own.

mod jsonl;
#[cfg(feature = "plots")]
mod plot;
mod progress;
mod tensorboard;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TrainError;
pub use progress::Progress;
pub use tensorboard::EventWriter;

/// A row of metrics of one kind of training.
pub trait MetricsRow: Serialize + DeserializeOwned + Clone {
    /// The scalars to plot as curves, the most important first.
    const CURVES: &'static [&'static str];
    /// The label of the curves' axis.
    const UNIT: &'static str;

    /// Returns the number of optimizer steps taken, including the row's.
    fn global_step(&self) -> u64;

    /// Returns names and values of everything except the step, which is the axis.
    fn scalars(&self) -> Vec<(&'static str, f64)>;
}

/// A row of JSFT metrics: one optimizer step, or the mean over a logging interval.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimizer steps taken, this one included.
    pub global_step: u64,
    /// Passes over the data, as a fraction.
    pub epoch: f64,
    /// Mean over the batch, by loss weight.
    pub loss: f64,
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens processed since the run began.
    pub num_tokens: u64,
    /// Fraction of the supervised tokens that were the most probable ones.
    pub mean_token_accuracy: f64,
    #[serde(rename = "sft/loss", default, skip_serializing_if = "Option::is_none")]
    pub sft_loss: Option<f64>,
    #[serde(
        rename = "sft/mean_token_accuracy",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub sft_mean_token_accuracy: Option<f64>,
    #[serde(
        rename = "judge/loss",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub judge_loss: Option<f64>,
    /// Fraction of the judge examples' supervised tokens (the label, and a rationale's) that were the most probable ones.
    #[serde(
        rename = "judge/accuracy",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub judge_accuracy: Option<f64>,
    pub tokens_per_second: f64,
}

impl MetricsRow for StepMetrics {
    const CURVES: &'static [&'static str] = &["loss", "sft/loss", "judge/loss"];
    const UNIT: &'static str = "loss (nats per token)";

    fn global_step(&self) -> u64 {
        self.global_step
    }

    fn scalars(&self) -> Vec<(&'static str, f64)> {
        let always = [
            ("loss", Some(self.loss)),
            ("learning_rate", Some(self.learning_rate)),
            ("grad_norm", Some(self.grad_norm)),
            ("epoch", Some(self.epoch)),
            ("num_tokens", Some(self.num_tokens as f64)),
            ("mean_token_accuracy", Some(self.mean_token_accuracy)),
            ("sft/loss", self.sft_loss),
            ("sft/mean_token_accuracy", self.sft_mean_token_accuracy),
            ("judge/loss", self.judge_loss),
            ("judge/accuracy", self.judge_accuracy),
            ("tokens_per_second", Some(self.tokens_per_second)),
        ];
        always
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// The files of one run: `metrics.jsonl`, `events.out.tfevents.*` and, at the end, `loss.svg`.
#[derive(Debug)]
pub struct MetricsLog<R> {
    #[cfg_attr(
        not(feature = "plots"),
        expect(dead_code, reason = "curves are plotted there")
    )]
    dir: PathBuf,
    jsonl: jsonl::JsonlLog,
    events: EventWriter,
    /// All rows of the run, including those before a resume: the points of the curve.
    rows: Vec<R>,
}

impl<R: MetricsRow> MetricsLog<R> {
    /// Opens the files in `dir`. A run resumed after `resumed_step` (0 for a new run) discards the rows beyond it: they will be written
    /// again.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(dir: &Path, resumed_step: u64) -> Result<Self, TrainError> {
        std::fs::create_dir_all(dir).map_err(TrainError::io("cannot create", dir))?;
        let (jsonl, rows) = jsonl::JsonlLog::open(&dir.join("metrics.jsonl"), resumed_step)?;
        Ok(Self {
            events: EventWriter::create(dir, resumed_step)?,
            dir: dir.to_path_buf(),
            jsonl,
            rows,
        })
    }

    /// Appends one row to every output; it is in the files when this returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn record(&mut self, row: &R) -> Result<(), TrainError> {
        self.jsonl.append(row)?;
        self.events.scalars(row.global_step(), &row.scalars())?;
        self.rows.push(row.clone());
        Ok(())
    }

    /// Returns all rows so far.
    pub fn rows(&self) -> &[R] {
        &self.rows
    }

    /// Plots the curves as `loss.svg` and returns its path.
    ///
    /// # Errors
    /// Those of the file system.
    #[cfg(feature = "plots")]
    pub fn draw(&self) -> Result<PathBuf, TrainError> {
        let path = self.dir.join("loss.svg");
        let svg = plot::loss_curve(&self.rows).map_err(|e| TrainError::bad_file(&path, e))?;
        std::fs::write(&path, svg).map_err(TrainError::io("cannot write", &path))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "plots")]
    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let row = |step: u64, loss: f64| StepMetrics {
            global_step: step,
            loss,
            judge_loss: Some(loss / 2.0),
            ..StepMetrics::default()
        };
        let mut log = MetricsLog::open(dir.path(), 0).unwrap();
        for step in 1..=5 {
            log.record(&row(step, 5.0)).unwrap();
        }
        drop(log);
        let mut log = MetricsLog::open(dir.path(), 3).unwrap();
        log.record(&row(4, 1.0)).unwrap();
        let losses: Vec<_> = log.rows().iter().map(|r| (r.global_step, r.loss)).collect();
        assert_eq!(losses, [(1, 5.0), (2, 5.0), (3, 5.0), (4, 1.0)]);
        let svg = std::fs::read_to_string(log.draw().unwrap()).unwrap();
        assert!(svg.starts_with("<svg"));
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("\"judge/loss\":2.5") && !text.contains("sft/loss"));
    }
}
