//! What a JSFT run is told: a TOML file, overridden by flags, checked once and then immutable.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::memory::Footprint;
use super::mixture::{MixtureOptions, Order};
use super::optim::OptimConfig;
use super::run::{self, RunLength};
use super::schedule::ScheduleConfig;
use crate::model::adapter::LoraConfig;
use crate::preference::{Format, PlainText, RankedSet};
use crate::settings;

/// A JSFT run. The defaults are SELF-JUDGE's (papers: 1 epoch, 128 examples a step, 2e-5 cosine, clip 1.0).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsftConfig {
    /// The model to start from: a directory or a hub id.
    pub model: String,
    /// Start from random weights of `model`'s `config.json` instead of its weights.
    pub from_scratch: bool,
    /// Where checkpoints, metrics and the trained model go.
    pub output_dir: PathBuf,
    /// Passes over the data; a fraction stops within the last one.
    pub epochs: f64,
    /// Stops after that many optimizer steps, however many the epochs would be. The schedule ends there too.
    pub max_steps: Option<u64>,
    /// Examples an optimizer step.
    pub batch_size: usize,
    /// Tokens that go through the model at once; a step is as many such parts as its examples need.
    pub micro_batch_tokens: usize,
    /// Micro-batches at once, each on its share of the threads. Two small ones beat one on all threads, which wait for each
    /// other at every op; their activations are all in memory. Sums are taken lane by lane, so another number is another
    /// rounding.
    pub lanes: usize,
    /// Compute block activations again in the backward pass instead of keeping them.
    pub recompute: bool,
    /// A checkpoint every so many steps; 0 keeps none but the last.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// A row of metrics every so many steps.
    pub log_every: u64,
    /// The order examples are taken in, every epoch anew.
    pub order: Order,
    /// Seeds initial weights, the order and the mixture's draws.
    pub seed: u64,
    /// The dtype the trained weights are saved in.
    pub save_dtype: SaveDtype,
    /// A built-in judge template by name (`hh`, `ultrafeedback`) or a file; absent means the model's own.
    pub judge_template: Option<String>,
    /// A chat template file (Jinja) for a model that has none, or instead of its own.
    pub chat_template: Option<PathBuf>,
    /// How records of plain strings are imitated: `raw` as TRL does, or `chat` as a user's turn and its answer. The judge is always shown
    /// them as a chat.
    #[serde(skip_serializing_if = "is_raw")]
    pub plain: PlainText,
    /// Train an adapter on the frozen model instead of the model.
    pub lora: Option<LoraConfig>,
    /// Train this adapter (a PEFT directory) further, on the frozen model: its rank, alpha and layers are the run's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    pub schedule: ScheduleConfig,
    pub optim: OptimConfig,
    pub mixture: MixtureOptions,
    /// Whether `mixture.max_length` was named, and is not the default.
    #[serde(skip)]
    pub own_length: bool,
    /// Keys of `lora` that were given, be it with the default.
    #[serde(skip)]
    pub own_lora: Vec<String>,
    /// Preference data, in this order.
    pub data: Vec<DataFile>,
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    pub path: PathBuf,
    /// The record shape; `auto` looks at each record.
    #[serde(default)]
    pub format: Format,
    /// Whether `chosen` is imitated (a harmlessness set, for one, is only judged).
    #[serde(default = "yes")]
    pub sft: bool,
    /// Whether its comparisons are judged.
    #[serde(default = "yes")]
    pub judge: bool,
    /// Which pairs are drawn from prompts with several rated responses (UltraFeedback): `base`, or `principled` for
    /// comparisons under each aspect, with rationales. Left out of a written configuration where it is `base`: a run that
    /// was begun before there was a choice is the same run.
    #[serde(default, skip_serializing_if = "is_base")]
    pub ranked: RankedSet,
}

/// Left out of a written configuration, so that a run that was begun before there was a choice is the same run.
pub(super) fn is_raw(plain: &PlainText) -> bool {
    *plain == PlainText::Raw
}

fn is_base(set: &RankedSet) -> bool {
    *set == RankedSet::Base
}

impl DataFile {
    /// A file whose shape is looked at and whose records are both imitated and judged.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            format: Format::default(),
            sft: true,
            judge: true,
            ranked: RankedSet::Base,
        }
    }
}

fn yes() -> bool {
    true
}

/// Number formats weights are saved in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    #[default]
    Bf16,
    F16,
    F32,
}

impl SaveDtype {
    pub fn dtype(self) -> candle_core::DType {
        match self {
            Self::Bf16 => candle_core::DType::BF16,
            Self::F16 => candle_core::DType::F16,
            Self::F32 => candle_core::DType::F32,
        }
    }

    /// The name `config.json` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }
}

impl Default for JsftConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            from_scratch: false,
            output_dir: PathBuf::new(),
            epochs: 1.0,
            max_steps: None,
            batch_size: 128,
            micro_batch_tokens: 4096,
            lanes: 1,
            recompute: false,
            save_every: 200,
            keep_checkpoints: 2,
            log_every: 10,
            order: Order::Shuffled,
            seed: 42,
            save_dtype: SaveDtype::Bf16,
            judge_template: None,
            chat_template: None,
            plain: PlainText::Raw,
            lora: None,
            start: None,
            schedule: ScheduleConfig::default(),
            optim: OptimConfig::default(),
            mixture: MixtureOptions::default(),
            own_length: false,
            own_lora: Vec::new(),
            data: Vec::new(),
        }
    }
}

impl JsftConfig {
    /// Reads a configuration file. Unknown keys are errors.
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io("cannot read", path))?;
        let mut config: Self =
            settings::from_toml(&text).map_err(|e| TrainError::bad_file(path, e))?;
        let named = |table: toml::Table| table.get("mixture")?.get("max_length").cloned();
        config.own_length = settings::parse(&text).is_ok_and(|table| named(table).is_some());
        config.own_lora = settings::given_keys(&text, &["lora"]);
        Ok(config)
    }

    /// Returns the configuration for a model of so many positions: where no `max_length` is named, it is no longer than that.
    pub fn fitted(&self, positions: usize) -> Self {
        let mut config = self.clone();
        if !self.own_length && self.mixture.max_length == MixtureOptions::default().max_length {
            config.mixture.max_length = self.mixture.max_length.min(positions);
        }
        config
    }

    /// # Errors
    /// Names the first setting that makes no sense.
    pub fn validate(&self) -> Result<(), TrainError> {
        run::validate(
            &self.model,
            &self.output_dir,
            self.data.len(),
            self.length(),
        )?;
        let refuse = |what: &str| Err(TrainError::Config(what.to_owned()));
        if self.micro_batch_tokens == 0 || self.lanes == 0 || self.log_every == 0 {
            return refuse("micro_batch_tokens, lanes and log_every must be at least 1");
        }
        if (self.lora.is_some() || self.start.is_some()) && self.from_scratch {
            return refuse(
                "an adapter on random weights trains nothing: drop `lora` and `start`, or `from_scratch`",
            );
        }
        self.optim.validate()
    }

    pub(super) fn footprint(&self) -> Footprint {
        Footprint {
            whole: self.lora.is_none(),
            lanes: self.lanes,
            tokens: self.micro_batch_tokens,
            recompute: self.recompute,
        }
    }

    pub(super) fn length(&self) -> RunLength {
        RunLength {
            epochs: self.epochs,
            batch_size: self.batch_size,
            max_steps: self.max_steps,
        }
    }

    /// What must not change between a run and its resume, as text: everything but where it is written and how it is logged.
    pub(super) fn identity(&self) -> Result<String, TrainError> {
        let fixed = Self {
            output_dir: PathBuf::new(),
            save_every: 0,
            keep_checkpoints: 0,
            log_every: 0,
            save_dtype: SaveDtype::default(),
            ..self.clone()
        };
        toml::to_string(&fixed).map_err(|e| TrainError::Config(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partly_given_table_keeps_the_defaults_of_its_place() {
        settings::assert_each_key_alone_keeps_the_rest::<JsftConfig>();
        let read = |text| settings::from_toml::<JsftConfig>(text).unwrap();
        // There is no adapter by default: its table has the defaults of an adapter.
        let lora = read("[lora]\nr = 4").lora.unwrap();
        assert_eq!(
            lora,
            LoraConfig {
                r: 4,
                ..LoraConfig::default()
            }
        );
        assert_eq!(read("[lora]").lora, Some(LoraConfig::default()));
    }
}
