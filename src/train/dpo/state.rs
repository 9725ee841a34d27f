//! Saved trainer states: the adapter in PEFT's format, the optimizer's moments, the counts.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DpoConfig, DpoTrainer, StepReport};
use crate::TrainError;
use crate::base::Adapter;
use crate::checkpoint::write_json;
use crate::digest::sha256_bytes;
use crate::optim::Optimizer;

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";

/// The contents of `trainer_state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Total steps of the run: the schedule depends on it.
    pub total_steps: u64,
    /// Pairs trained on.
    pub num_pairs: u64,
    /// Tokens computed in updates.
    pub num_tokens: u64,
    /// SHA-256 of everything that must not change between a state and its resume: the configuration, and the identities added by
    /// [`DpoTrainer::bind`].
    pub config_digest: String,
}

impl DpoState {
    pub(super) fn begin(config: &DpoConfig, total_steps: u64) -> Result<Self, TrainError> {
        Ok(Self {
            step: 0,
            total_steps,
            num_pairs: 0,
            num_tokens: 0,
            config_digest: sha256_bytes(config.identity()?.as_bytes()),
        })
    }

    pub(super) fn advance(&mut self, report: &StepReport) {
        self.step = report.step;
        self.num_pairs += report.pairs;
        self.num_tokens += report.tokens;
    }
}

impl DpoTrainer {
    /// Adds an identity on which a loaded state must agree: digests of the base, the reference, the data.
    pub fn bind(&mut self, identity: &str) {
        let text = format!("{}\n{identity}", self.state.config_digest);
        self.state.config_digest = sha256_bytes(text.as_bytes());
    }

    /// Writes the state into a directory: `adapter_config.json` and `adapter_model.safetensors`, which PEFT and the server read,
    /// `optimizer.safetensors` and `trainer_state.json`. The same state always gives the same bytes. Files are not synced: the code that
    /// renames the directory into place must do that.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save_state(&self, dir: &Path) -> Result<(), TrainError> {
        self.adapter()?.save(dir)?;
        self.optimizer.save(&dir.join(OPTIMIZER))?;
        write_json(&dir.join(STATE), &self.state)
    }

    /// Restores a saved state: on the CPU the following steps give the same bits as without a break.
    ///
    /// # Errors
    /// If a file is damaged, or the state is of another configuration or another model; nothing is changed then.
    pub fn load_state(&mut self, dir: &Path) -> Result<(), TrainError> {
        let path = dir.join(STATE);
        let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
        let state: DpoState =
            serde_json::from_slice(&text).map_err(|e| TrainError::bad_file(&path, e))?;
        if (&state.config_digest, state.total_steps)
            != (&self.state.config_digest, self.state.total_steps)
        {
            return Err(TrainError::bad_file(
                &path,
                "belongs to a run with another configuration, base, reference or data",
            ));
        }
        let adapter = Adapter::load(dir)?;
        adapter.check_is_of(self.base.spec(), &self.config.lora)?;
        let mut optimizer = Optimizer::new(&self.policy.vars, self.config.optim.clone())?;
        let moments = dir.join(OPTIMIZER);
        optimizer.load(&moments)?;
        if optimizer.step() != state.step {
            let steps = optimizer.step();
            return Err(TrainError::bad_file(
                &moments,
                format!(
                    "belongs to step {steps}, but {STATE} to step {}",
                    state.step
                ),
            ));
        }
        self.policy.set_adapter(&adapter)?;
        self.optimizer = optimizer;
        self.state = state;
        Ok(())
    }
}
