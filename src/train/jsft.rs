//! Judge-augmented supervised fine-tuning (SELF-JUDGE): one model learns to answer and to judge from one mixture.
//!
//! The order of [`run`] is the algorithm: mixture, start, resume, then steps of (learning rate, batch, forward and
//! backward, clip and update, log, checkpoint). Deviations from the released code, all listed in [`super::mixture`].
//!
//! A run is a function of its configuration and data: on the CPU a run that was killed and resumed ends with the same
//! bits as one that was not.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::TrainError;
use super::batch::pack;
use super::checkpoint::{CheckpointStore, TrainerState, load_weights, save_weights};
use super::config::{DataFile, JsftConfig};
use super::digest::{FileDigest, sha256_bytes};
use super::lanes::Lanes;
use super::manifest::{DataDigest, RunManifest};
use super::metrics::{MetricsLog, Progress, StepMetrics};
use super::mixture::{Examples, Mixture, MixtureReport, TrainExample};
use super::optim::Optimizer;
use super::schedule::Schedule;
use super::step::{Accumulator, BatchStats, forward_backward};
use super::trainable::{Start, Trainable};
use crate::judge::{JudgeTemplate, LabelTokens, TEMPLATE_FILE, principles_from_model_dir};
use crate::model::{ModelConfig, hub};
use crate::preference::{OnMismatch, PreferencePair, RecordError, RecordReader};
use crate::text::{ChatTemplate, SpecialTokens, Tokenizer};

/// How a run is driven; none of it changes the result.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub device: Device,
    pub threads: usize,
    /// No progress bar.
    pub quiet: bool,
    /// Go on from the newest checkpoint in the output directory; without it, a directory that has one is refused.
    pub resume: bool,
    /// Stop after this many steps of this process, with a checkpoint: the schedule stays that of the whole run.
    pub stop_after: Option<u64>,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Summary {
    pub steps: u64,
    pub total_steps: u64,
    pub num_tokens: u64,
    pub tokens_per_second: f64,
    pub last: Option<StepMetrics>,
    /// The trained model or adapter, once the run is complete.
    pub model_dir: Option<PathBuf>,
}

/// Files of a model directory that belong to a trained copy of it.
const COMPANIONS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "principles.toml",
    "LICENSE",
];

/// Trains. See the module's documentation.
pub fn run(config: &JsftConfig, options: &RunOptions) -> Result<Summary, TrainError> {
    config.validate()?;
    let model_dir = hub::resolve(&config.model)?;
    let Built {
        examples,
        report,
        data,
        template,
    } = build_mixture(config, &model_dir)?;
    let total_steps = total_steps(config, examples.len());
    let schedule = Schedule::new(&config.schedule, total_steps)?;

    let model_config = ModelConfig::from_dir(&model_dir)?;
    let start = if config.from_scratch {
        Start::Random { seed: config.seed }
    } else {
        Start::Checkpoint(&model_dir)
    };
    let spec = model_config.spec.clone();
    let longest = spec.max_position_embeddings;
    if config.mixture.max_length > longest {
        return Err(TrainError::Config(format!(
            "mixture.max_length {} is more than the model's {longest} positions",
            config.mixture.max_length
        )));
    }
    let trainable = match &config.lora {
        None => Trainable::full(spec, start, &options.device)?,
        Some(lora) => Trainable::adapter(spec, start, lora.clone(), config.seed, &options.device)?,
    };
    let mut optimizer = Optimizer::new(&trainable.vars, config.optim.clone())?;
    let mut lanes = Lanes::new(config.lanes, options.threads, || optimizer.grad_buffers())?;

    let store = CheckpointStore::open(
        config.output_dir.join("checkpoints"),
        config.keep_checkpoints,
    )?;
    let identity = identity(config, &model_dir, &data)?;
    let mut at = resume(&store, config, options, &identity, total_steps)?;
    if let Some(dir) = &at.dir {
        load_weights(&dir.join(WEIGHTS), &trainable.vars)?;
        optimizer.load(&dir.join(OPTIMIZER))?;
    }

    let device = format!("{:?}", options.device.location());
    let mut manifest = RunManifest::begin(options.threads, device, data);
    if at.state.step > 0 {
        manifest.continue_from(&config.output_dir);
    }
    manifest.write(&config.output_dir, config)?;
    write_json(&config.output_dir.join("mixture.json"), &report)?;
    if !options.quiet {
        eprintln!(
            "{} of {} numbers trained; {} examples, {} tokens; {total_steps} steps{}",
            trainable.num_trainable(),
            model_config.spec.num_parameters(),
            examples.len(),
            examples.total_tokens(),
            if at.state.step > 0 {
                format!(", resumed at {}", at.state.step)
            } else {
                String::new()
            },
        );
    }

    let mut log = MetricsLog::open(&config.output_dir, at.state.step)?;
    let mut progress = Progress::new(total_steps, at.state.step, options.quiet);
    let mut interval = Interval::default();
    let first_step = at.state.step;
    let mut order = examples.order(config.order, config.seed, at.state.epoch);
    let mut last = None;
    while at.state.step < total_steps {
        let batch: Vec<_> = take_batch(config, &examples, &mut order, &mut at.state)
            .into_iter()
            .map(|index| examples.get(index))
            .collect();
        let lr = schedule.learning_rate(at.state.step);
        let (stats, tokens) = gradients(config, &trainable, &batch, &mut lanes)?;
        let update = optimizer.clip_and_step(lanes.gradients(), lr)?;

        at.state.step += 1;
        at.state.num_tokens += tokens;
        interval.add(&stats, update.grad_norm);
        progress.update(at.state.step, stats.loss, tokens);
        let finished = at.state.step == total_steps;
        if at.state.step % config.log_every == 0 || finished {
            let epoch = at.state.epoch as f64 + at.state.data_cursor as f64 / examples.len() as f64;
            let row = interval.row(&at.state, epoch, lr, progress.tokens_per_second());
            log.record(&row)?;
            last = Some(row);
        }
        let stopping = options
            .stop_after
            .is_some_and(|n| at.state.step - first_step >= n);
        let due = config.save_every > 0 && at.state.step % config.save_every == 0;
        if due || finished || stopping {
            store.save(at.state.step, |dir| {
                save_weights(&dir.join(WEIGHTS), &trainable.vars)?;
                optimizer.save(&dir.join(OPTIMIZER))?;
                at.state.save(&dir.join(STATE))
            })?;
        }
        if stopping && !finished {
            break;
        }
    }
    progress.finish();

    let finished = at.state.step == total_steps;
    let model_dir = if finished {
        let dir = config.output_dir.join("model");
        write_model(config, &model_dir, &model_config, &trainable, &dir)?;
        write_template(&template, &dir)?;
        log.draw()?;
        manifest.end();
        manifest.write(&config.output_dir, config)?;
        manifest.write(&dir, config)?;
        Some(dir)
    } else {
        None
    };
    Ok(Summary {
        steps: at.state.step,
        total_steps,
        num_tokens: at.state.num_tokens,
        tokens_per_second: progress.tokens_per_second(),
        last,
        model_dir,
    })
}

const WEIGHTS: &str = "trainable.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";

/// The encoded data and what it was made with.
struct Built {
    examples: Examples,
    report: MixtureReport,
    data: Vec<DataDigest>,
    template: JudgeTemplate,
}

/// Reads the data and encodes it.
fn build_mixture(config: &JsftConfig, model_dir: &Path) -> Result<Built, TrainError> {
    let tokenizer = Tokenizer::from_file(&model_dir.join("tokenizer.json"))
        .map_err(|e| TrainError::Data(e.to_string()))?;
    let chat = chat_template(config, model_dir)?;
    let (_, template) =
        LabelTokens::resolve_or_bare(&tokenizer, &chat, judge_template(config, model_dir)?)
            .map_err(|e| TrainError::Data(e.to_string()))?;
    let principles =
        principles_from_model_dir(model_dir).map_err(|e| TrainError::Data(e.to_string()))?;
    let options = config.mixture.clone();
    let mixture = Mixture::new(tokenizer, chat, template.clone(), principles, options)
        .map_err(|e| TrainError::Data(e.to_string()))?;

    let mut counts = vec![0u64; config.data.len()];
    let pairs = config
        .data
        .iter()
        .zip(&mut counts)
        .flat_map(|(file, count)| pairs(file, count));
    let (examples, report) = mixture
        .build(pairs)
        .map_err(|e| TrainError::Data(e.to_string()))?;
    let data = config
        .data
        .iter()
        .zip(counts)
        .map(|(file, count)| DataDigest::of(&file.path, count))
        .collect::<Result<_, _>>()?;
    Ok(Built {
        examples,
        report,
        data,
        template,
    })
}

/// The pairs of one file, in order; counts its records. What opening it failed with is the first item.
fn pairs<'a>(
    file: &'a DataFile,
    count: &'a mut u64,
) -> impl Iterator<Item = Result<PreferencePair, RecordError>> + 'a {
    let (mut reader, mut failure) =
        match RecordReader::open(&file.path, file.format, OnMismatch::Skip) {
            Ok(reader) => (Some(reader), None),
            Err(error) => (None, Some(error)),
        };
    std::iter::from_fn(move || {
        if let Some(error) = failure.take() {
            return Some(Err(error));
        }
        let reader = reader.as_mut()?;
        for record in reader.by_ref() {
            *count += 1;
            match record.map(|record| record.into_pair(false)) {
                Err(error) => return Some(Err(error)),
                Ok(None) => continue,
                Ok(Some(mut pair)) => {
                    pair.sft &= file.sft;
                    pair.judge &= file.judge;
                    return Some(Ok(pair));
                }
            }
        }
        if reader.skipped() > 0 {
            tracing::warn!(
                "{}: {} records left out whose two answers follow different conversations",
                file.path.display(),
                reader.skipped()
            );
        }
        None
    })
}

/// The chat template that was given, or the model's own.
fn chat_template(config: &JsftConfig, model_dir: &Path) -> Result<ChatTemplate, TrainError> {
    let built = match &config.chat_template {
        None => ChatTemplate::from_model_dir(model_dir),
        Some(path) => {
            let source = fs::read_to_string(path).map_err(TrainError::io("cannot read", path))?;
            SpecialTokens::from_model_dir(model_dir)
                .and_then(|special| ChatTemplate::from_source(&source, special))
        }
    };
    built.map_err(|e| TrainError::Data(e.to_string()))
}

/// The judge template that was asked for, or the model's own.
fn judge_template(config: &JsftConfig, model_dir: &Path) -> Result<JudgeTemplate, TrainError> {
    match &config.judge_template {
        None => JudgeTemplate::from_model_dir(model_dir),
        Some(name) => match JudgeTemplate::built_in(name) {
            Some(template) => Ok(template),
            None => JudgeTemplate::from_file(Path::new(name)),
        },
    }
    .map_err(|e| TrainError::Data(e.to_string()))
}

fn total_steps(config: &JsftConfig, examples: usize) -> u64 {
    let steps = (config.epochs * examples as f64 / config.batch_size as f64).ceil() as u64;
    config.max_steps.map_or(steps, |max| steps.min(max)).max(1)
}

/// The digest of everything the result depends on: settings, starting weights, data.
fn identity(
    config: &JsftConfig,
    model_dir: &Path,
    data: &[DataDigest],
) -> Result<String, TrainError> {
    let mut text = config.identity()?;
    let mut start = vec![model_dir.join("config.json")];
    if !config.from_scratch {
        let entries = fs::read_dir(model_dir).map_err(TrainError::io("cannot list", model_dir))?;
        for entry in entries {
            let path = entry
                .map_err(TrainError::io("cannot list", model_dir))?
                .path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                start.push(path);
            }
        }
        start.sort();
    }
    for path in start {
        text.push_str(&FileDigest::of(&path)?.sha256);
    }
    for file in data {
        text.push_str(&file.sha256);
    }
    Ok(sha256_bytes(text.as_bytes()))
}

/// Where the run stands, and the checkpoint it goes on from.
struct Position {
    state: TrainerState,
    dir: Option<PathBuf>,
}

fn resume(
    store: &CheckpointStore,
    config: &JsftConfig,
    options: &RunOptions,
    identity: &str,
    total_steps: u64,
) -> Result<Position, TrainError> {
    let latest = store.latest()?;
    for (path, why) in &latest.rejected {
        tracing::warn!(
            "checkpoint {} is damaged and left out: {why}",
            path.display()
        );
    }
    let Some(checkpoint) = latest.checkpoint else {
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
            "{} holds the checkpoints of a run: resume it, or choose another output_dir",
            config.output_dir.display()
        )));
    }
    let state = TrainerState::load(&checkpoint.dir.join(STATE))?;
    if state.config_digest != identity || state.total_steps != total_steps {
        return Err(TrainError::Config(format!(
            "the run in {} was begun with another configuration or other data; it cannot be resumed with this one",
            config.output_dir.display()
        )));
    }
    Ok(Position {
        state,
        dir: Some(checkpoint.dir),
    })
}

/// The next examples, across the end of an epoch where it falls.
fn take_batch(
    config: &JsftConfig,
    examples: &Examples,
    order: &mut Vec<u32>,
    state: &mut TrainerState,
) -> Vec<usize> {
    let mut batch = Vec::with_capacity(config.batch_size);
    while batch.len() < config.batch_size {
        if state.data_cursor as usize == order.len() {
            state.epoch += 1;
            state.data_cursor = 0;
            *order = examples.order(config.order, config.seed, state.epoch);
        }
        batch.push(order[state.data_cursor as usize] as usize);
        state.data_cursor += 1;
    }
    batch
}

/// The gradients of one optimizer batch, its statistics and its size in tokens.
fn gradients(
    config: &JsftConfig,
    trainable: &Trainable,
    batch: &[TrainExample],
    lanes: &mut Lanes,
) -> Result<(BatchStats, u64), TrainError> {
    let weight: f64 = batch
        .iter()
        .flat_map(|example| example.weights.iter().skip(1))
        .map(|&w| f64::from(w))
        .sum();
    let micro_batches = pack(batch, config.micro_batch_tokens);
    let tokens = micro_batches.iter().map(|b| b.len() as u64).sum();
    let stats = lanes.run(&micro_batches, |micro_batch, grads| {
        let mut accumulator = Accumulator {
            vars: &trainable.vars,
            grads,
        };
        forward_backward(
            &trainable.decoder,
            micro_batch,
            weight,
            config.recompute,
            &mut accumulator,
        )
    })?;
    Ok((stats, tokens))
}

/// Sums since the last row of metrics.
#[derive(Default)]
struct Interval {
    steps: u64,
    stats: BatchStats,
    grad_norm: f64,
}

impl Interval {
    fn add(&mut self, stats: &BatchStats, grad_norm: f64) {
        self.steps += 1;
        self.stats.add(stats);
        self.grad_norm += grad_norm;
    }

    /// The means since the last row; starts the next interval.
    fn row(
        &mut self,
        state: &TrainerState,
        epoch: f64,
        lr: f64,
        tokens_per_second: f64,
    ) -> StepMetrics {
        let Self {
            steps,
            stats,
            grad_norm,
        } = std::mem::take(self);
        let (sft, judge) = (stats.sft, stats.judge);
        let share = |part: u64, of: u64| (of > 0).then(|| part as f64 / of as f64);
        let mean = |sum: f64, of: u64| (of > 0).then(|| sum / of as f64);
        let n = steps.max(1) as f64;
        StepMetrics {
            global_step: state.step,
            epoch,
            loss: stats.loss / n,
            learning_rate: lr,
            grad_norm: grad_norm / n,
            num_tokens: state.num_tokens,
            mean_token_accuracy: share(sft.top1 + judge.top1, sft.tokens + judge.tokens)
                .unwrap_or(0.0),
            sft_loss: mean(sft.nll, sft.tokens),
            sft_mean_token_accuracy: share(sft.top1, sft.tokens),
            judge_loss: mean(judge.nll, judge.tokens),
            judge_accuracy: share(judge.top1, judge.tokens),
            tokens_per_second,
        }
    }
}

/// Writes a directory that loads by itself: weights, configuration, tokenizer, templates.
fn write_model(
    config: &JsftConfig,
    from: &Path,
    model_config: &ModelConfig,
    trainable: &Trainable,
    dir: &Path,
) -> Result<(), TrainError> {
    fs::create_dir_all(dir).map_err(TrainError::io("cannot create", dir))?;
    trainable.save(dir, config.save_dtype.dtype())?;
    if config.lora.is_some() {
        return Ok(());
    }
    for name in COMPANIONS {
        let source = from.join(name);
        if source.exists() {
            let target = dir.join(name);
            fs::copy(&source, &target).map_err(TrainError::io("cannot write", &target))?;
        }
    }
    if let Some(template) = &config.chat_template {
        let target = dir.join("chat_template.jinja");
        fs::copy(template, &target).map_err(TrainError::io("cannot write", &target))?;
    }
    let mut json = model_config.json.clone();
    json.remove("dtype");
    json.insert("torch_dtype".into(), config.save_dtype.name().into());
    write_json(&dir.join("config.json"), &json)
}

/// The judge's question goes with the weights that were trained on it.
fn write_template(template: &JudgeTemplate, dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(TEMPLATE_FILE);
    fs::write(&path, template.to_toml()).map_err(TrainError::io("cannot write", &path))
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| TrainError::bad_file(path, e))?;
    fs::write(path, text + "\n").map_err(TrainError::io("cannot write", path))
}
