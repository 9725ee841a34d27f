//! The configuration of DPO updates.

use serde::{Deserialize, Serialize};

use super::loss::PreferenceLoss;
use crate::TrainError;
use crate::optim::OptimConfig;
use crate::schedule::{Schedule, ScheduleConfig, ScheduleKind};
use model::adapter::{AdapterError, LoraConfig};

/// The configuration of DPO with a LoRA adapter. The defaults are SELF-JUDGE's (beta 0.1, 5e-6 constant after 10 % warm-up), with rank
/// 16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// Strength of the tie to the reference policy: the scale of the implicit reward.
    pub beta: f64,
    /// Coefficient of the negative log-likelihood of the chosen completions, mean over their tokens, which is added to the loss (Pang et
    /// al. 2024, RPO); 0 omits it.
    pub nll: f64,
    /// LD-DPO: the weight, in [0, 1], of tokens beyond the length of a pair's shorter completion; if absent, they count fully.
    pub ld_alpha: Option<f64>,
    /// The probability, below 0.5, that a label is wrong: it smooths the labels (cDPO), or corrects for wrong ones (`robust` loss).
    #[serde(skip_serializing_if = "is_zero")]
    pub label_smoothing: f64,
    /// Tokens per micro-batch, with a pair's prompt counted once; a longer pair is computed alone.
    pub micro_batch_tokens: usize,
    /// Recompute block activations in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Seed of a fresh adapter.
    pub seed: u64,
    /// The loss of a pair, a table with a `type`: `sigmoid` (DPO), `robust`, `sigmoid_norm`, `ipo`, `hinge`, or `dpop` with its `lambda`
    /// (docs/training.md has the formulas).
    pub loss: PreferenceLoss,
    /// The shape of the trained adapter, in PEFT's words: rank `r`, `lora_alpha`, `lora_dropout`, `target_modules` and so on.
    pub lora: LoraConfig,
    pub schedule: ScheduleConfig,
    pub optim: OptimConfig,
}

/// Returns whether the value is omitted from a saved configuration, so that a run started before this option existed keeps its identity.
fn is_zero(smoothing: &f64) -> bool {
    *smoothing == 0.0
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            beta: 0.1,
            nll: 0.0,
            ld_alpha: None,
            label_smoothing: 0.0,
            micro_batch_tokens: 1024,
            recompute: false,
            seed: 42,
            loss: PreferenceLoss::Sigmoid,
            lora: LoraConfig {
                r: 16,
                lora_alpha: 32.0,
                ..LoraConfig::default()
            },
            schedule: ScheduleConfig {
                learning_rate: 5e-6,
                lr_scheduler: ScheduleKind::Constant,
                warmup_ratio: 0.1,
                ..ScheduleConfig::default()
            },
            optim: OptimConfig::default(),
        }
    }
}

impl DpoConfig {
    /// Checks the configuration.
    ///
    /// # Errors
    /// If a setting is invalid; the message names the first.
    pub fn validate(&self) -> Result<(), TrainError> {
        let refuse = |what: String| Err(TrainError::Config(what));
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return refuse(format!("`beta` must be positive, not {}", self.beta));
        }
        if !(self.nll.is_finite() && self.nll >= 0.0) {
            return refuse(format!("`nll` must not be negative, not {}", self.nll));
        }
        if let Some(alpha) = self.ld_alpha
            && !(0.0..=1.0).contains(&alpha)
        {
            return refuse(format!("`ld_alpha` must be in [0, 1], not {alpha}"));
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return refuse(format!(
                "`label_smoothing` must be from 0 to less than 0.5, not {}",
                self.label_smoothing
            ));
        }
        if self.micro_batch_tokens == 0 {
            return refuse("`micro_batch_tokens` must be at least 1".to_owned());
        }
        self.loss.validate().or_else(refuse)?;
        let lora = self.lora.validate();
        lora.and_then(|()| self.lora.check_trainable())
            .map_err(|error| {
                TrainError::Config(match error {
                    AdapterError::Unsupported(problem) => format!("lora: {problem}"),
                    other => other.to_string(),
                })
            })?;
        // Any number of steps gives the same errors.
        Schedule::new(&self.schedule, 1)?;
        self.optim.validate()
    }

    /// Returns, as text, what must not change between a state and its resume: everything.
    pub(super) fn identity(&self) -> Result<String, TrainError> {
        toml::to_string(self).map_err(|e| TrainError::Config(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::DpoRunConfig;
    use super::*;

    #[test]
    fn a_partly_given_table_keeps_the_defaults_of_its_place() {
        settings::assert_each_key_alone_keeps_the_rest::<DpoRunConfig>();
        let read = |text| settings::from_toml::<DpoRunConfig>(text).unwrap().dpo;
        let warmer = read("[dpo.schedule]\nwarmup_ratio = 0.2").schedule;
        assert_eq!(warmer.learning_rate, 5e-6);
        assert_eq!(warmer.lr_scheduler, ScheduleKind::Constant);
        let narrower = read("[dpo.lora]\ntarget_modules = ['q_proj']").lora;
        assert_eq!((narrower.r, narrower.lora_alpha), (16, 32.0));
        let dpop = read("[dpo.loss]\ntype = 'dpop'").loss;
        assert_eq!(dpop, PreferenceLoss::Dpop { lambda: 50.0 });
    }
}
