//! The optimizer: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.
//!
//! Parameters are kept sorted by name, so sums, state files and reports never depend on the order of a hash map. The arithmetic of AdamW
//! and of the clipping is PyTorch's (`torch.optim.AdamW`, `clip_grad_norm_`), in f32 with f64 scalars and an f64 norm. On the CPU the
//! result has the same bits for any number of threads: elements are independent and the norm is summed over fixed chunks in a fixed
//! order.
//!
//! The optimizer writes its `Var`s **in place**. That is safe for tensors which only the trainer holds; code that publishes weights must
//! copy them (`Tensor::copy`), because a clone or a `detach()` shares the storage.

mod adamw;
mod grads;
mod muon;
mod state;

use candle_core::{DType, Var};
use serde::{Deserialize, Serialize};

use super::TrainError;
pub use grads::GradBuffers;

/// The update rule of the hidden matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    #[default]
    AdamW,
    /// Muon (Jordan 2024) for two-dimensional hidden matrices, AdamW for embeddings, head, norms, biases and LoRA
    /// factors. Updates are scaled to AdamW's usual RMS (Liu et al. 2025, "Muon is scalable for LLM training",
    /// section 2.2), so a learning rate and weight decay tuned for AdamW carry over.
    Muon,
}

/// The optimizer's settings, except for the learning rate, which the schedule gives for each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// The update rule: `adamw`, or `muon` for two-dimensional hidden matrices with AdamW for all others.
    pub optimizer: OptimizerKind,
    /// AdamW's decay of the gradients' running mean.
    pub beta1: f64,
    /// AdamW's decay of the running mean of their squares.
    pub beta2: f64,
    /// AdamW's addend to the denominator, against division by zero.
    pub eps: f64,
    /// Decoupled weight decay: a step multiplies the weights by `1 - lr * weight_decay`. Norms and biases (anything of fewer than two
    /// dimensions) never decay.
    pub weight_decay: f64,
    /// Whether the token embeddings decay too.
    pub decay_embeddings: bool,
    /// Limit of the gradients' global norm, to which they are scaled down; 0 disables clipping (the norm is still reported).
    pub max_grad_norm: f64,
    /// Muon's momentum (Nesterov).
    pub muon_momentum: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::AdamW,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay_embeddings: true,
            max_grad_norm: 1.0,
            muon_momentum: 0.95,
        }
    }
}

impl OptimConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// If a field is invalid; the message names the first.
    pub fn validate(&self) -> Result<(), TrainError> {
        let unit = |name: &str, v: f64| {
            if (0.0..1.0).contains(&v) {
                Ok(())
            } else {
                Err(TrainError::Config(format!(
                    "{name} must be in [0, 1), not {v}"
                )))
            }
        };
        unit("beta1", self.beta1)?;
        unit("beta2", self.beta2)?;
        unit("muon_momentum", self.muon_momentum)?;
        for (name, v) in [
            ("eps", self.eps),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            if !(v.is_finite() && v >= 0.0) {
                return Err(TrainError::Config(format!(
                    "{name} must be finite and not negative, not {v}"
                )));
            }
        }
        Ok(())
    }
}

/// Statistics of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Steps taken so far, this one included.
    pub step: u64,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The factor applied to the gradients; 1 without clipping.
    pub clip_coef: f64,
}

/// The update rule and f32 state of one parameter.
#[derive(Debug)]
enum Rule {
    AdamW(adamw::Moments),
    Muon(muon::Momentum),
}

#[derive(Debug)]
struct Param {
    name: String,
    var: Var,
    decays: bool,
    rule: Rule,
}

/// The optimizer; see the module documentation.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimConfig,
    /// Sorted by name.
    params: Vec<Param>,
    step: u64,
}

impl Optimizer {
    /// Creates an optimizer of the trainable tensors (as handles: the caller's `Var`s see every update). Order does not matter.
    ///
    /// # Errors
    /// If a name occurs twice, a dtype is not f32, a tensor is not contiguous, or the configuration is invalid.
    pub fn new(params: &[(String, Var)], config: OptimConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let params = sorted(params)?
            .into_iter()
            .map(|(name, var)| {
                if var.dtype() != DType::F32 || !var.is_contiguous() {
                    return Err(TrainError::Mismatch(format!(
                        "trainable tensor `{name}` must be contiguous f32, not {:?}",
                        var.dtype()
                    )));
                }
                let rule = if config.optimizer == OptimizerKind::Muon && muon::applies(&name, &var)
                {
                    Rule::Muon(muon::Momentum::zeros(&var)?)
                } else {
                    Rule::AdamW(adamw::Moments::zeros(&var)?)
                };
                Ok(Param {
                    decays: decays(&name, &var, &config),
                    rule,
                    name,
                    var,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            config,
            params,
            step: 0,
        })
    }

    /// Creates zeroed accumulators that fit these parameters.
    ///
    /// # Errors
    /// If allocation on a device fails.
    pub fn grad_buffers(&self) -> Result<GradBuffers, TrainError> {
        let params: Vec<_> = self
            .params
            .iter()
            .map(|p| (p.name.clone(), p.var.clone()))
            .collect();
        GradBuffers::new(&params)
    }

    /// Returns the number of steps taken so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the parameters' names, in the order of every index.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(|p| p.name.as_str())
    }

    /// Clips `grads` to the global norm and updates every parameter once. `grads` is not changed.
    ///
    /// # Errors
    /// [`TrainError::NonFiniteGradient`] names the first tensor with a NaN or infinity, before anything is changed: parameters, state and
    /// step count stay as they were and the caller may go on with the next batch.
    pub fn clip_and_step(&mut self, grads: &GradBuffers, lr: f64) -> Result<StepStats, TrainError> {
        if !grads
            .names()
            .eq(self.params.iter().map(|p| p.name.as_str()))
        {
            return Err(TrainError::Mismatch(
                "the gradient buffers were made for other parameters".to_owned(),
            ));
        }
        let grad_norm = grads.global_norm()?;
        // `clip_grad_norm_` divides by norm + 1e-6 and clamps.
        let clip_coef = if self.config.max_grad_norm > 0.0 {
            (self.config.max_grad_norm / (grad_norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        let step = self.step + 1;
        for (param, grad) in self.params.iter_mut().zip(grads.buffers()) {
            let weight_decay = if param.decays {
                self.config.weight_decay
            } else {
                0.0
            };
            match &mut param.rule {
                Rule::AdamW(moments) => {
                    let k = adamw::Coefficients::new(&self.config, lr, weight_decay, step);
                    moments.step(&param.var, grad, clip_coef as f32, &k)?;
                }
                Rule::Muon(momentum) => momentum.step(
                    &param.var,
                    grad,
                    clip_coef as f32,
                    lr,
                    weight_decay,
                    self.config.muon_momentum as f32,
                )?,
            }
        }
        self.step = step;
        Ok(StepStats {
            step,
            grad_norm,
            clip_coef,
        })
    }
}

/// Returns a copy of the list, sorted by name.
fn sorted(params: &[(String, Var)]) -> Result<Vec<(String, Var)>, TrainError> {
    let mut params = params.to_vec();
    params.sort_by(|a, b| a.0.cmp(&b.0));
    for pair in params.windows(2) {
        if pair[0].0 == pair[1].0 {
            return Err(TrainError::Mismatch(format!(
                "trainable tensor `{}` is listed twice",
                pair[0].0
            )));
        }
    }
    Ok(params)
}

fn is_embedding(name: &str) -> bool {
    name.contains("embed_tokens") || name.contains("lora_embedding")
}

fn decays(name: &str, var: &Var, config: &OptimConfig) -> bool {
    var.rank() >= 2 && (config.decay_embeddings || !is_embedding(name))
}

#[cfg(test)]
mod tests;
