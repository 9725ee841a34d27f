//! Settings and checks common to every kind of training run.

use std::path::Path;

use candle_core::Device;

use super::memory::Footprint;
use super::{TrainError, interrupt};
use kernels::device::available;
use model::DecoderSpec;

/// Options of how a run is executed; none of them changes its result.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub device: Device,
    pub threads: usize,
    /// Whether to show no progress bar.
    pub quiet: bool,
    /// Whether to resume from the newest checkpoint in the output directory; without it, a directory that has one is an error.
    pub resume: bool,
    /// Stop after this many steps of this process, with a checkpoint: the schedule stays that of the whole run.
    pub stop_after: Option<u64>,
    /// Whether the required memory is compared with the available memory.
    pub memory_check: bool,
}

impl RunOptions {
    /// Checks the available memory.
    ///
    /// # Errors
    /// If the run needs more memory than is available.
    pub(super) fn check_memory(
        &self,
        spec: &DecoderSpec,
        footprint: Footprint,
    ) -> Result<(), TrainError> {
        match self.memory_check && self.device.is_cpu() {
            true => footprint.check(spec, available()),
            false => Ok(()),
        }
    }
}

/// The steps at which a run logs, saves and ends.
pub(super) struct Cadence {
    /// The step at which this process began.
    pub first: u64,
    /// The last step of the whole run.
    pub total: u64,
    pub log_every: u64,
    /// With 0 only the last step is saved.
    pub save_every: u64,
    /// Limit on the steps of this process.
    pub stop_after: Option<u64>,
}

/// The work that follows a step.
pub(super) struct Due {
    pub log: bool,
    pub save: bool,
    /// Whether this process ends here, though the run may not.
    pub stop: bool,
}

impl Cadence {
    /// Returns the work that follows step `step`, which is counted from 1.
    pub fn after(&self, step: u64) -> Due {
        let finished = step == self.total;
        let reached = self.stop_after.is_some_and(|n| step - self.first >= n);
        let stop = finished || reached || interrupt::stop_requested();
        Due {
            log: finished || step.is_multiple_of(self.log_every),
            save: stop || (self.save_every > 0 && step.is_multiple_of(self.save_every)),
            stop,
        }
    }
}

/// The length of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RunLength {
    /// Passes over the data; a fraction stops within the last pass.
    pub epochs: f64,
    pub batch_size: usize,
    /// Limit on optimizer steps.
    pub max_steps: Option<u64>,
}

impl RunLength {
    /// Returns the optimizer steps over so many examples, at least one.
    pub fn steps(self, examples: usize) -> u64 {
        let steps = (self.epochs * examples as f64 / self.batch_size as f64).ceil() as u64;
        self.max_steps.map_or(steps, |max| steps.min(max)).max(1)
    }

    fn validate(self) -> Result<(), &'static str> {
        if self.batch_size == 0 {
            return Err("`batch_size` must be at least 1");
        }
        if !(self.epochs.is_finite() && self.epochs > 0.0) {
            return Err("`epochs` must be positive");
        }
        if self.max_steps == Some(0) {
            return Err("`max_steps` must be at least 1");
        }
        Ok(())
    }
}

/// Checks the settings that every run has.
///
/// # Errors
/// If a setting is missing or invalid; the message names the first.
pub(super) fn validate(
    model: &str,
    output_dir: &Path,
    data_files: usize,
    length: RunLength,
) -> Result<(), TrainError> {
    let checked = if model.is_empty() {
        Err("`model` is missing: set it to a model directory, a GGUF file or a hub id")
    } else if output_dir.as_os_str().is_empty() {
        Err("`output_dir` is missing: set it to a directory")
    } else if data_files == 0 {
        Err("`data` is missing: name at least one file of preference pairs")
    } else {
        length.validate()
    };
    checked.map_err(|what| TrainError::Config(what.to_owned()))
}
