//! The position of a run: at its beginning, or at the newest intact checkpoint of the same run.

use std::path::{Path, PathBuf};

use crate::checkpoint::{CheckpointStore, TrainerState};
use crate::config::JsftConfig;
use crate::continued::adapter_digest;
use crate::digest::{model_digest, sha256_bytes};
use crate::manifest::DataDigest;
use crate::{RunOptions, TrainError};

pub(super) const WEIGHTS: &str = "trainable.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "trainer_state.json";

/// Returns the digest of everything the result depends on: settings, starting weights, data.
pub(super) fn identity(
    config: &JsftConfig,
    model_dir: &Path,
    data: &[DataDigest],
) -> Result<String, TrainError> {
    let mut text = config.identity()?;
    text.push_str(&model_digest(model_dir, !config.from_scratch)?);
    if let Some(start) = &config.start {
        text.push_str(&adapter_digest(start)?);
    }
    for file in data {
        text.push_str(&file.sha256);
    }
    Ok(sha256_bytes(text.as_bytes()))
}

/// The state of the run, and the checkpoint it resumes from.
pub(super) struct Position {
    pub state: TrainerState,
    pub dir: Option<PathBuf>,
}

pub(super) fn resume(
    store: &CheckpointStore,
    config: &JsftConfig,
    options: &RunOptions,
    identity: &str,
    total_steps: u64,
) -> Result<Position, TrainError> {
    let Some(checkpoint) = store.latest()?.or_warn() else {
        return Ok(Position {
            state: TrainerState {
                step: 0,
                total_steps,
                epoch: 0,
                data_cursor: 0,
                num_tokens: 0,
                config_digest: identity.to_owned(),
            },
            dir: None,
        });
    };
    if !options.resume {
        return Err(TrainError::Config(format!(
            "{} holds the checkpoints of a run: resume it (`resume`), or choose another `output_dir`",
            config.output_dir.display()
        )));
    }
    let state = TrainerState::load(&checkpoint.dir.join(STATE))?;
    if state.config_digest != identity || state.total_steps != total_steps {
        return Err(TrainError::Config(format!(
            "the run in {} was started with another configuration or other data; it cannot be resumed with this one",
            config.output_dir.display()
        )));
    }
    Ok(Position {
        state,
        dir: Some(checkpoint.dir),
    })
}
