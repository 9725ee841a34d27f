//! The optimizer's state on disk: one safetensors file, f32, keyed by parameter name and torch's name of the moment.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::adamw::Moments;
use super::{Optimizer, Param, Rule};
use crate::TrainError;

/// The metadata key of the step. Only one key is used: safetensors writes its metadata in hash-map order, and files are compared by
/// digest.
const STEP: &str = "selfjudge_optimizer_step";

impl Optimizer {
    /// Writes the state. The same state always gives the same bytes.
    ///
    /// # Errors
    /// Those of the file system and of the device.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let mut tensors = BTreeMap::new();
        for param in &self.params {
            for (key, values) in state_of(param)? {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.insert(key, (param.var.dims().to_vec(), bytes));
            }
        }
        let views = tensors
            .iter()
            .map(|(key, (shape, bytes))| {
                Ok((
                    key.as_str(),
                    TensorView::new(Dtype::F32, shape.clone(), bytes)?,
                ))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| TrainError::bad_file(path, e))?;
        let metadata = HashMap::from([(STEP.to_owned(), self.step.to_string())]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|e| TrainError::bad_file(path, e))?;
        std::fs::write(path, bytes).map_err(TrainError::io("cannot write", path))
    }

    /// Loads a state that [`Self::save`] wrote for the same parameters and the same kind of optimizer.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, of another shape or dtype, or not finite; the message names it, and nothing is changed.
    pub fn load(&mut self, path: &Path) -> Result<(), TrainError> {
        let bad = |detail: String| TrainError::bad_file(path, detail);
        let bytes = std::fs::read(path).map_err(TrainError::io("cannot read", path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let step = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(STEP))
            .and_then(|s| s.parse::<u64>().ok())
            .ok_or_else(|| bad(format!("no step count (`{STEP}`) in the metadata")))?;

        let mut found: HashMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
        let mut rules = Vec::with_capacity(self.params.len());
        for param in &self.params {
            let mut take = |key: &str| -> Result<Vec<f32>, TrainError> {
                let name = format!("{}.{key}", param.name);
                let view = found
                    .remove(&name)
                    .ok_or_else(|| bad(format!("tensor `{name}` is missing")))?;
                values(&view, param.var.dims()).map_err(|e| bad(format!("tensor `{name}` {e}")))
            };
            rules.push(match &param.rule {
                Rule::AdamW(old) => {
                    let (m, v) = (take(EXP_AVG)?, take(EXP_AVG_SQ)?);
                    Rule::AdamW(match old {
                        Moments::Host { .. } => Moments::Host { m, v },
                        Moments::Device { .. } => Moments::Device {
                            m: tensor(m, &param.var)?,
                            v: tensor(v, &param.var)?,
                        },
                    })
                }
                Rule::Muon(_) => {
                    Rule::Muon(super::muon::Momentum(tensor(take(MOMENTUM)?, &param.var)?))
                }
            });
        }
        if let Some(name) = found.keys().min() {
            return Err(bad(format!("tensor `{name}` belongs to no parameter")));
        }
        for (param, rule) in self.params.iter_mut().zip(rules) {
            param.rule = rule;
        }
        self.step = step;
        Ok(())
    }
}

const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";
const MOMENTUM: &str = "momentum_buffer";

/// Returns a parameter's state as (key, values).
fn state_of(param: &Param) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
    let key = |k: &str| format!("{}.{k}", param.name);
    let host = |t: &Tensor| -> Result<Vec<f32>, TrainError> {
        Ok(t.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    };
    Ok(match &param.rule {
        Rule::AdamW(Moments::Host { m, v }) => {
            vec![(key(EXP_AVG), m.clone()), (key(EXP_AVG_SQ), v.clone())]
        }
        Rule::AdamW(Moments::Device { m, v }) => {
            vec![(key(EXP_AVG), host(m)?), (key(EXP_AVG_SQ), host(v)?)]
        }
        Rule::Muon(momentum) => vec![(key(MOMENTUM), host(&momentum.0)?)],
    })
}

/// Returns the values of one tensor of the file, or the error in it.
fn values(view: &TensorView<'_>, shape: &[usize]) -> Result<Vec<f32>, String> {
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        return Err(format!(
            "is {:?} {:?}, expected F32 {shape:?}",
            view.dtype(),
            view.shape()
        ));
    }
    let (words, _) = view.data().as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
    if values.iter().all(|v| v.is_finite()) {
        Ok(values)
    } else {
        Err("holds a NaN or infinity".to_owned())
    }
}

fn tensor(values: Vec<f32>, var: &Var) -> Result<Tensor, TrainError> {
    Ok(Tensor::from_vec(values, var.shape(), &Device::Cpu)?.to_device(var.device())?)
}
