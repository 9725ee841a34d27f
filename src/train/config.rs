//! The configuration of a JSFT run: a TOML file, overridden by flags, checked once and then immutable.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::memory::Footprint;
use super::mixture::{MixtureOptions, Order};
use super::optim::OptimConfig;
use super::run::{self, RunLength};
use super::schedule::ScheduleConfig;
use super::{BaseWeights, TrainError};
use judge::{Format, PlainText, RankedSet};
use model::adapter::LoraConfig;

/// The configuration of a JSFT run. The defaults are SELF-JUDGE's (papers: 1 epoch, 128 examples per step, 2e-5 cosine, clip 1.0).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsftConfig {
    /// The model to start from: a directory, a GGUF file or a hub id.
    pub model: String,
    /// Start from random weights for `model`'s `config.json` instead of its weights.
    pub from_scratch: bool,
    /// Directory for checkpoints, metrics and the trained model.
    pub output_dir: PathBuf,
    /// Passes over the data; a fraction stops within the last pass.
    pub epochs: f64,
    /// Limit on optimizer steps, whatever the epochs would give. The schedule ends there too.
    pub max_steps: Option<u64>,
    /// Examples per optimizer step.
    pub batch_size: usize,
    /// Tokens per micro-batch (one pass through the model); a step takes as many micro-batches as its examples need.
    pub micro_batch_tokens: usize,
    /// Micro-batches computed at the same time, each on its share of the threads. Two small ones are faster than one on all threads,
    /// which synchronise at every op; the activations of all of them are in memory. Sums are taken lane by lane, so another number of
    /// lanes rounds differently.
    pub lanes: usize,
    /// Recompute block activations in the backward pass instead of keeping them.
    pub recompute: bool,
    /// Steps between checkpoints; with 0 only the last is kept.
    pub save_every: u64,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Steps between rows of metrics.
    pub log_every: u64,
    /// The order of the examples, drawn anew for every epoch.
    pub order: Order,
    /// Seed of the initial weights, the order and the mixture's draws.
    pub seed: u64,
    /// The dtype in which the trained weights are saved.
    pub save_dtype: SaveDtype,
    /// A built-in judge template by name (`hh`, `ultrafeedback`) or a file; if absent, the model's own.
    pub judge_template: Option<String>,
    /// A chat template file (Jinja), for a model without one or to replace its own.
    pub chat_template: Option<PathBuf>,
    /// How records of plain strings are imitated: `raw` as in TRL, or `chat` as a user turn and its answer. Judge prompts always show
    /// them as a chat.
    #[serde(skip_serializing_if = "is_raw")]
    pub plain: PlainText,
    /// The type of the frozen weights under an adapter: `auto` (the integers of a GGUF file, otherwise f32), `f32`, `int8` or `int4`.
    #[serde(skip_serializing_if = "BaseWeights::is_auto")]
    pub weights: BaseWeights,
    /// Train an adapter on the frozen model instead of the model itself.
    pub lora: Option<LoraConfig>,
    /// Continue training this adapter (a PEFT directory), on the frozen model; the run takes its rank, alpha and layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    pub schedule: ScheduleConfig,
    pub optim: OptimConfig,
    pub mixture: MixtureOptions,
    /// Whether `mixture.max_length` was set explicitly.
    #[serde(skip)]
    pub own_length: bool,
    /// Keys of `lora` that were set explicitly, even to the default value.
    #[serde(skip)]
    pub own_lora: Vec<String>,
    /// Files of preference data, in this order.
    pub data: Vec<DataFile>,
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The file: JSON lines, a JSON array or Parquet, gzipped or not.
    pub path: PathBuf,
    /// The record format; `auto` detects it for each record.
    #[serde(default)]
    pub format: Format,
    /// Whether `chosen` is imitated (a harmlessness set, for example, is only judged).
    #[serde(default = "yes")]
    pub sft: bool,
    /// Whether the file's comparisons are judged.
    #[serde(default = "yes")]
    pub judge: bool,
    /// The pairs drawn from prompts with several rated responses (UltraFeedback): `base`, or `principled` for comparisons under each
    /// aspect, with rationales. `base` is not written to a saved configuration, so that a run started before this option existed keeps
    /// its identity.
    #[serde(default, skip_serializing_if = "is_base")]
    pub ranked: RankedSet,
}

/// Returns whether the value is omitted from a saved configuration, so that a run started before this option existed keeps its identity.
pub(super) fn is_raw(plain: &PlainText) -> bool {
    *plain == PlainText::Raw
}

fn is_base(set: &RankedSet) -> bool {
    *set == RankedSet::Base
}

impl DataFile {
    /// Creates an entry for a file with a detected format, whose records are both imitated and judged.
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

/// The dtype of saved weights.
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

    /// Returns the name that `config.json` uses.
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
            weights: BaseWeights::default(),
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

    /// Returns the configuration for a model with so many positions: if `max_length` was not set, it is limited to that.
    pub fn fitted(&self, positions: usize) -> Self {
        let mut config = self.clone();
        if !self.own_length && self.mixture.max_length == MixtureOptions::default().max_length {
            config.mixture.max_length = self.mixture.max_length.min(positions);
        }
        config
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// If a setting is invalid; the message names the first.
    pub fn validate(&self) -> Result<(), TrainError> {
        run::validate(
            &self.model,
            &self.output_dir,
            self.data.len(),
            self.length(),
        )?;
        let refuse = |what: &str| Err(TrainError::Config(what.to_owned()));
        if (self.lora.is_none() && self.start.is_none()) || self.from_scratch {
            self.weights.check_whole()?;
        }
        if self.micro_batch_tokens == 0 || self.lanes == 0 || self.log_every == 0 {
            return refuse("`micro_batch_tokens`, `lanes` and `log_every` must be at least 1");
        }
        if (self.lora.is_some() || self.start.is_some()) && self.from_scratch {
            return refuse(
                "an adapter cannot be trained on random weights: remove `lora` and `start`, or `from_scratch`",
            );
        }
        self.optim.validate()
    }

    /// `quantised` are the bytes of frozen weights that are not all in f32.
    pub(super) fn footprint(&self, quantised: Option<u64>) -> Footprint {
        Footprint {
            whole: self.lora.is_none(),
            lanes: self.lanes,
            tokens: self.micro_batch_tokens,
            recompute: self.recompute,
            quantised: quantised.filter(|_| self.lora.is_some()),
        }
    }

    pub(super) fn length(&self) -> RunLength {
        RunLength {
            epochs: self.epochs,
            batch_size: self.batch_size,
            max_steps: self.max_steps,
        }
    }

    /// Returns, as text, what must not change between a run and its resume: everything but output and logging settings.
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
