//! Offline DPO over preference files.
//!
//! The order of [`run`] follows the algorithm: pairs, base, resume, then steps of (batch, reference, update, log, checkpoint). The
//! reference is scored anew for each batch, in the batch's own packing, so a step depends only on the weights, the moments and its pairs:
//! on the CPU a run that was killed and resumed ends with the same bits as an uninterrupted one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data::{Built, build};
use super::{DpoConfig, DpoMetrics, DpoTrainer, PairExample, StepReport};
use crate::base::{Adapter, FrozenBase, quantised_bytes};
use crate::checkpoint::{CheckpointStore, write_json};
use crate::config::is_raw;
use crate::continued::{LoraSettings, adapter_digest};
use crate::digest::{model_digest, sha256_bytes};
use crate::identity::Digested;
use crate::manifest::RunManifest;
use crate::memory::Footprint;
use crate::metrics::{MetricsLog, Progress};
use crate::mixture::Order;
use crate::run::{self, Cadence, RunLength, RunOptions};
use crate::{BaseWeights, TrainError};
use judge::{Format, PlainText};
use model::{ModelConfig, hub};

/// The configuration of an offline run: a TOML file, overridden by flags, checked once and then immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoRunConfig {
    /// The frozen model: a directory, a GGUF file or a hub id.
    pub model: String,
    /// Directory for checkpoints, metrics and the trained adapter.
    pub output_dir: PathBuf,
    /// The adapter the policy starts from (a PEFT directory), whose rank, alpha and layers the run takes; if absent, the policy starts at
    /// the model itself.
    pub start: Option<PathBuf>,
    /// The adapter of the reference policy; if absent, that is the start.
    pub reference: Option<PathBuf>,
    /// Passes over the data; a fraction stops within the last pass.
    pub epochs: f64,
    /// Limit on optimizer steps, whatever the epochs would give. The schedule ends there too.
    pub max_steps: Option<u64>,
    /// Pairs per optimizer step.
    pub batch_size: usize,
    /// Limit of prompt and completion together, in tokens, and at most the model's context; a longer completion is cut, and so has no
    /// end.
    pub max_length: usize,
    /// Steps between checkpoints; with 0 only the last is kept.
    pub save_every: u64,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Steps between rows of metrics.
    pub log_every: u64,
    /// The order of the pairs, drawn anew for every epoch.
    pub order: Order,
    /// A chat template file (Jinja), for a model without one or to replace its own.
    pub chat_template: Option<PathBuf>,
    /// How records of plain strings are read: `raw` as in TRL, or `chat` as a user turn and its answer.
    #[serde(skip_serializing_if = "is_raw")]
    pub plain: PlainText,
    /// The type of the frozen weights: `auto` (the integers of a GGUF file, otherwise f32), `f32`, `int8` or `int4`.
    #[serde(skip_serializing_if = "BaseWeights::is_auto")]
    pub weights: BaseWeights,
    /// Use each record's `margin`, from 0 to 1, as the probability that its chosen answer is the better one, instead of certainty. The
    /// output of `records export` has it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub soft_labels: bool,
    /// The settings of the update. Its seed also draws the order.
    pub dpo: DpoConfig,
    /// Files of preference data, in this order.
    pub data: Vec<PairFile>,
    /// Keys of `dpo.lora` that were set explicitly, even to the default value.
    #[serde(skip)]
    pub own_lora: Vec<String>,
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairFile {
    /// The file: JSON lines, a JSON array or Parquet, gzipped or not.
    pub path: PathBuf,
    /// The record format; `auto` detects it for each record.
    #[serde(default)]
    pub format: Format,
}

impl Default for DpoRunConfig {
    /// Returns SELF-JUDGE's settings: 3 epochs, 8 pairs per step, 2048 tokens.
    fn default() -> Self {
        Self {
            model: String::new(),
            output_dir: PathBuf::new(),
            start: None,
            reference: None,
            epochs: 3.0,
            max_steps: None,
            batch_size: 8,
            max_length: 2048,
            save_every: 200,
            keep_checkpoints: 2,
            log_every: 10,
            order: Order::Shuffled,
            chat_template: None,
            plain: PlainText::Raw,
            weights: BaseWeights::default(),
            soft_labels: false,
            dpo: DpoConfig::default(),
            data: Vec::new(),
            own_lora: Vec::new(),
        }
    }
}

impl DpoRunConfig {
    /// Reads a configuration file. Unknown keys are errors.
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io("cannot read", path))?;
        let mut config: Self =
            settings::from_toml(&text).map_err(|e| TrainError::bad_file(path, e))?;
        config.own_lora = settings::given_keys(&text, &["dpo", "lora"]);
        Ok(config)
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
        if self.log_every == 0 || self.max_length < 2 {
            let what = "`log_every` must be at least 1 and `max_length` at least 2";
            return Err(TrainError::Config(what.to_owned()));
        }
        self.dpo.validate()
    }

    /// Returns, as text, what must not change between a run and its resume: everything but output and logging settings.
    fn identity(&self) -> Result<String, TrainError> {
        let fixed = Self {
            output_dir: PathBuf::new(),
            save_every: 0,
            keep_checkpoints: 0,
            log_every: 0,
            ..self.clone()
        };
        toml::to_string(&fixed).map_err(|e| TrainError::Config(e.to_string()))
    }

    fn length(&self) -> RunLength {
        RunLength {
            epochs: self.epochs,
            batch_size: self.batch_size,
            max_steps: self.max_steps,
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    pub steps: u64,
    pub total_steps: u64,
    pub num_tokens: u64,
    pub tokens_per_second: f64,
    pub last: Option<DpoMetrics>,
    /// The trained adapter (a PEFT directory), once the run is complete.
    pub adapter_dir: Option<PathBuf>,
}

/// Runs the training; see the module documentation.
pub fn run(config: &DpoRunConfig, options: &RunOptions) -> Result<Summary, TrainError> {
    config.validate()?;
    let files = hub::resolve(&config.model)?;
    let model_dir = files.path();
    let model_config = ModelConfig::from_dir(model_dir)?;
    let footprint = Footprint {
        whole: false,
        lanes: 1,
        tokens: config.dpo.micro_batch_tokens,
        recompute: config.dpo.recompute,
        quantised: quantised_bytes(model_dir, config.weights, &options.device)?,
    };
    options.check_memory(&model_config.spec, footprint)?;
    let base = FrozenBase::load_in(model_dir, config.weights, &options.device)?;
    let Built {
        examples,
        report,
        data,
    } = build(config, model_dir, &model_config)?;
    let total_steps = config.length().steps(examples.len());

    let digested = Digested::new(model_dir);
    let start = match &config.start {
        Some(dir) => {
            let settings = LoraSettings {
                requested: &config.dpo.lora,
                default: &DpoConfig::default().lora,
                given: &config.own_lora,
            };
            digested.check(dir)?;
            Some(Adapter::load(dir)?.continued(base.spec(), settings)?)
        }
        None => None,
    };
    let reference = match &config.reference {
        Some(dir) => {
            digested.check(dir)?;
            Some(Adapter::load(dir)?)
        }
        None => start.clone(),
    };
    let mut update = config.dpo.clone();
    if let Some(start) = &start {
        update.lora = start.config.clone();
    }
    update.lora.base_model_name_or_path = Some(config.model.clone());
    let (start, reference) = (start.as_ref(), reference.as_ref());
    let mut trainer = DpoTrainer::new(&base, reference, start, update, total_steps)?;
    let mut identity = config.identity()? + &model_digest(model_dir, true)?;
    for dir in [&config.start, &config.reference].into_iter().flatten() {
        identity.push_str(&adapter_digest(dir)?);
    }
    identity.extend(data.iter().map(|file| file.sha256.as_str()));
    trainer.bind(&sha256_bytes(identity.as_bytes()));

    let store = CheckpointStore::open(
        config.output_dir.join("checkpoints"),
        config.keep_checkpoints,
    )?;
    if let Some(checkpoint) = store.latest()?.or_warn() {
        if !options.resume {
            return Err(TrainError::Config(format!(
                "{} holds the checkpoints of a run: resume it (`resume`), or choose another `output_dir`",
                config.output_dir.display()
            )));
        }
        trainer.load_state(&checkpoint.dir)?;
    }
    let first_step = trainer.step();

    let device = format!("{:?}", options.device.location());
    let mut manifest = RunManifest::begin(options.threads, device, data);
    if first_step > 0 {
        manifest.continue_from(&config.output_dir);
    }
    manifest.write(&config.output_dir, config)?;
    write_json(&config.output_dir.join("data.json"), &report)?;
    if !options.quiet {
        eprintln!(
            "{} of {} pairs; {total_steps} steps of {}{}",
            examples.len(),
            report.pairs,
            config.batch_size,
            if first_step > 0 {
                format!(", resumed at {first_step}")
            } else {
                String::new()
            },
        );
    }

    let mut log: MetricsLog<DpoMetrics> = MetricsLog::open(&config.output_dir, first_step)?;
    let mut progress = Progress::new(total_steps, first_step, options.quiet);
    let mut interval: Vec<StepReport> = Vec::new();
    let mut cursor = Cursor::at(config, examples.len(), trainer.state().num_pairs);
    let cadence = Cadence {
        first: first_step,
        total: total_steps,
        log_every: config.log_every,
        save_every: config.save_every,
        stop_after: options.stop_after,
    };
    let mut last = None;
    while trainer.step() < total_steps {
        let batch = cursor.batch(config, &examples);
        let logps = trainer.reference_logps(&batch, &mut || {})?;
        let report = trainer.update(&batch, &logps, &mut || {})?;
        progress.update(report.step, report.loss, report.tokens);
        interval.push(report);

        let due = cadence.after(report.step);
        if due.log {
            let (epoch, tokens) = (cursor.epochs(), trainer.state().num_tokens);
            let row = DpoMetrics::mean(&interval, epoch, tokens, progress.tokens_per_second());
            log.record(&row)?;
            last = Some(row);
            interval.clear();
        }
        if due.save {
            store.save(report.step, |dir| trainer.save_state(dir))?;
        }
        if due.stop {
            break;
        }
    }
    progress.finish();

    let finished = trainer.step() == total_steps;
    let adapter_dir = if finished {
        let dir = config.output_dir.join("adapter");
        trainer.adapter()?.save(&dir)?;
        digested.identity(base.weights()?)?.write(&dir)?;
        #[cfg(feature = "plots")]
        log.draw()?;
        manifest.end(&config.output_dir, &dir, config)?;
        Some(dir)
    } else {
        None
    };
    Ok(Summary {
        steps: trainer.step(),
        total_steps,
        num_tokens: trainer.state().num_tokens,
        tokens_per_second: progress.tokens_per_second(),
        last,
        adapter_dir,
    })
}

/// The position of a run in the data: a function of the number of pairs it has taken.
struct Cursor {
    pairs: usize,
    taken: u64,
    order: Vec<u32>,
}

impl Cursor {
    fn at(config: &DpoRunConfig, pairs: usize, taken: u64) -> Self {
        let epoch = taken / pairs as u64;
        Self {
            pairs,
            taken,
            order: config.order.indices(pairs, config.dpo.seed, epoch),
        }
    }

    /// Returns the next batch of pairs, which may cross the end of an epoch.
    fn batch(&mut self, config: &DpoRunConfig, examples: &[PairExample]) -> Vec<PairExample> {
        let mut batch = Vec::with_capacity(config.batch_size);
        while batch.len() < config.batch_size {
            let place = (self.taken % self.pairs as u64) as usize;
            if place == 0 && self.taken > 0 {
                *self = Self::at(config, self.pairs, self.taken);
            }
            batch.push(examples[self.order[place] as usize].clone());
            self.taken += 1;
        }
        batch
    }

    fn epochs(&self) -> f64 {
        self.taken as f64 / self.pairs as f64
    }
}
