//! The contents of a checkpoint besides the optimizer's state: the trainable tensors and the position of the run.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Everything besides weights and moments that a resumed run needs in order to continue exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Total steps of the run: the schedule depends on it, so a resume with another number is an error.
    pub total_steps: u64,
    /// Finished passes over the data.
    pub epoch: u64,
    /// Examples consumed in the current pass.
    pub data_cursor: u64,
    /// Non-padding tokens seen so far.
    pub num_tokens: u64,
    /// SHA-256 of everything that must not change between a run and its resume (configuration, data).
    pub config_digest: String,
}

impl TrainerState {
    /// Writes the state to a file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        super::write_json(path, self)
    }

    /// Reads a state that [`Self::save`] wrote.
    ///
    /// # Errors
    /// If the file has another structure; also those of the file system.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let text = fs::read(path).map_err(TrainError::io("cannot read", path))?;
        serde_json::from_slice(&text).map_err(|e| TrainError::bad_file(path, e))
    }
}

/// Writes tensors as safetensors in their own dtype. The same values always give the same bytes.
///
/// # Errors
/// Those of the file system and of the device.
pub fn save_weights(path: &Path, params: &[(String, Var)]) -> Result<(), TrainError> {
    let mut tensors: Vec<(&str, Tensor)> = params
        .iter()
        .map(|(name, var)| Ok((name.as_str(), var.as_detached_tensor().contiguous()?)))
        .collect::<Result<_, candle_core::Error>>()?;
    tensors.sort_by_key(|(name, _)| *name);
    let bytes = safetensors::serialize(tensors, None).map_err(|e| TrainError::bad_file(path, e))?;
    fs::write(path, bytes).map_err(TrainError::io("cannot write", path))
}

/// Loads a file written by [`save_weights`] into the `Var`s, in place.
///
/// # Errors
/// If a tensor is missing, superfluous or of another shape or dtype; the message names it, and nothing is changed.
pub fn load_weights(path: &Path, params: &[(String, Var)]) -> Result<(), TrainError> {
    let bad = |detail: String| TrainError::bad_file(path, detail);
    let bytes = fs::read(path).map_err(TrainError::io("cannot read", path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let mut found: HashMap<String, _> = file.tensors().into_iter().collect();
    let mut loaded = Vec::with_capacity(params.len());
    for (name, var) in params {
        let view = found
            .remove(name)
            .ok_or_else(|| bad(format!("tensor `{name}` is missing")))?;
        let dtype = DType::try_from(view.dtype())?;
        if dtype != var.dtype() || view.shape() != var.dims() {
            return Err(bad(format!(
                "tensor `{name}` is {dtype:?} {:?}, expected {:?} {:?}",
                view.shape(),
                var.dtype(),
                var.dims()
            )));
        }
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        loaded.push((var, tensor.to_device(var.device())?));
    }
    if let Some(name) = found.keys().min() {
        return Err(bad(format!(
            "tensor `{name}` is not a trained parameter of this run"
        )));
    }
    for (var, tensor) in loaded {
        var.set(&tensor)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(a: f32) -> Vec<(String, Var)> {
        let var = |v: &[f32], shape: &[usize]| Var::from_slice(v, shape, &Device::Cpu).unwrap();
        vec![
            ("b.weight".to_owned(), var(&[a, -2.5, 3.0, 0.5], &[2, 2])),
            ("a.weight".to_owned(), var(&[1e-30, a], &[2])),
        ]
    }

    #[test]
    fn weights_come_back_bit_by_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let saved = params(0.1);
        save_weights(&path, &saved).unwrap();
        let loaded = params(7.0);
        load_weights(&path, &loaded).unwrap();
        for ((_, a), (_, b)) in saved.iter().zip(&loaded) {
            let flat = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(a), flat(b));
        }
        let bytes = fs::read(&path).unwrap();
        save_weights(&path, &loaded).unwrap();
        assert_eq!(bytes, fs::read(&path).unwrap());
    }

    #[test]
    fn weights_are_checked_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let all = params(0.1);
        let complaint = |on_disk: &[(String, Var)], wanted: &[(String, Var)]| {
            save_weights(&path, on_disk).unwrap();
            load_weights(&path, wanted).unwrap_err().to_string()
        };
        assert!(complaint(&all[..1], &all).contains("`a.weight` is missing"));
        assert!(complaint(&all, &all[..1]).contains("`a.weight` is not a trained parameter"));
        let mut reshaped = params(0.1);
        reshaped[0].1 = Var::zeros((4, 1), DType::F32, &Device::Cpu).unwrap();
        assert!(
            complaint(&all, &reshaped).contains("`b.weight` is F32 [2, 2], expected F32 [4, 1]")
        );
        fs::write(&path, b"\x10\0\0\0\0\0\0\0{").unwrap();
        assert!(load_weights(&path, &all).is_err());
    }

    #[test]
    fn the_state_comes_back_and_another_shape_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trainer_state.json");
        let state = TrainerState {
            step: 5,
            total_steps: 10,
            epoch: 0,
            data_cursor: 80,
            num_tokens: 12_345,
            config_digest: "d".to_owned(),
        };
        state.save(&path).unwrap();
        assert_eq!(TrainerState::load(&path).unwrap(), state);
        fs::write(&path, "{\"step\": 5}").unwrap();
        assert!(TrainerState::load(&path).is_err());
    }
}
