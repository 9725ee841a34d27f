//! Judge-augmented supervised fine-tuning (SELF-JUDGE): training of one model to answer and to judge from one mixture.
//!
//! The order of [`run`] follows the algorithm: mixture, start, resume, then steps of (learning rate, batch, forward and backward, clip
//! and update, log, checkpoint). Deviations from the released code are all listed in [`super::mixture`].
//!
//! A run is a function of its configuration and data: on the CPU a run that was killed and resumed ends with the same bits as an
//! uninterrupted one.

mod data;
mod interval;
mod output;
mod resume;

use std::path::PathBuf;

use self::data::{Built, build_mixture};
use self::interval::Interval;
use self::output::{write_model, write_template};
use self::resume::{OPTIMIZER, STATE, WEIGHTS, identity, resume};
use super::TrainError;
use super::base::{Adapter, FrozenBase, Start, quantised_bytes};
use super::batch::{MicroBatch, pack};
use super::checkpoint::{CheckpointStore, TrainerState, load_weights, save_weights, write_json};
use super::config::JsftConfig;
use super::continued::LoraSettings;
use super::identity::Digested;
use super::lanes::Lanes;
use super::manifest::RunManifest;
use super::metrics::{MetricsLog, Progress, StepMetrics};
use super::mixture::{Examples, TrainExample};
use super::optim::Optimizer;
use super::pass::Accumulator;
use super::run::{Cadence, RunOptions};
use super::schedule::Schedule;
use super::step::{BatchStats, forward_backward};
use super::trainable::{Factors, Trainable};
use model::{ModelConfig, adapter::LoraConfig, hub};

/// The result of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    pub steps: u64,
    pub total_steps: u64,
    pub num_tokens: u64,
    pub tokens_per_second: f64,
    pub last: Option<StepMetrics>,
    /// The trained model or adapter, once the run is complete.
    pub model_dir: Option<PathBuf>,
    /// Whether an adapter was trained and not the whole model.
    pub is_adapter: bool,
}

/// Runs the training; see the module documentation.
pub fn run(config: &JsftConfig, options: &RunOptions) -> Result<Summary, TrainError> {
    config.validate()?;
    let files = hub::resolve(&config.model)?;
    let model_dir = files.path();
    let model_config = ModelConfig::from_dir(model_dir)?;
    let mut config = config.fitted(model_config.spec.max_context());
    let digested = Digested::new(model_dir);
    let given = begin_at(&mut config, &digested, &model_config)?;
    let config = &config;
    // Random weights are of f32, and the directory has no others.
    let quantised = match config.from_scratch {
        true => None,
        false => quantised_bytes(model_dir, config.weights, &options.device)?,
    };
    options.check_memory(&model_config.spec, config.footprint(quantised))?;
    let Built {
        examples,
        report,
        data,
        template,
    } = build_mixture(config, model_dir, model_config.spec.vocab_size)?;
    let total_steps = config.length().steps(examples.len());
    let schedule = Schedule::new(&config.schedule, total_steps)?;

    let start = if config.from_scratch {
        Start::Random { seed: config.seed }
    } else {
        Start::Checkpoint(model_dir)
    };
    let spec = model_config.spec.clone();
    let longest = spec.max_context();
    if config.mixture.max_length > longest {
        return Err(TrainError::Config(format!(
            "`mixture.max_length` {} is more than the model's {longest} positions",
            config.mixture.max_length
        )));
    }
    let trainable = match &config.lora {
        None => Trainable::full(spec, start, &options.device)?,
        Some(lora) => {
            let base = match start {
                Start::Checkpoint(dir) => {
                    FrozenBase::load_in(dir, config.weights, &options.device)?
                }
                Start::Random { .. } => FrozenBase::new(spec, start, &options.device)?,
            };
            let mut lora = lora.clone();
            // For programs that read the adapter: PEFT loads its base by this name.
            lora.base_model_name_or_path
                .get_or_insert_with(|| config.model.clone());
            let factors = match &given {
                Some(adapter) => Factors::From(adapter),
                None => Factors::Fresh { seed: config.seed },
            };
            Trainable::adapter(&base, lora, factors)?
        }
    };
    let mut optimizer = Optimizer::new(&trainable.vars, config.optim.clone())?;
    let mut lanes = Lanes::new(config.lanes, options.threads, || optimizer.grad_buffers())?;

    let store = CheckpointStore::open(
        config.output_dir.join("checkpoints"),
        config.keep_checkpoints,
    )?;
    let identity = identity(config, model_dir, &data)?;
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
    if report.sft_refused > 0 {
        let first = report
            .first_refusal
            .as_deref()
            .unwrap_or("see mixture.json");
        tracing::warn!(
            "{} dialogues are not imitated, because they cannot be encoded; the first: {first}",
            report.sft_refused
        );
    }
    if !options.quiet {
        eprintln!(
            "{} of {} parameters trained; {} examples, {} tokens; {total_steps} steps{}",
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
    let cadence = Cadence {
        first: first_step,
        total: total_steps,
        log_every: config.log_every,
        save_every: config.save_every,
        stop_after: options.stop_after,
    };
    let mut last = None;
    while at.state.step < total_steps {
        let batch: Vec<_> = take_batch(config, &examples, &mut order, &mut at.state)
            .into_iter()
            .map(|index| examples.get(index))
            .collect();
        let lr = schedule.learning_rate(at.state.step);
        let (stats, tokens) = gradients(config, &trainable, &batch, &mut lanes, at.state.step)?;
        let update = optimizer.clip_and_step(lanes.gradients(), lr)?;

        at.state.step += 1;
        at.state.num_tokens += tokens;
        interval.add(&stats, update.grad_norm);
        progress.update(at.state.step, stats.loss, tokens);
        let due = cadence.after(at.state.step);
        if due.log {
            let epoch = at.state.epoch as f64 + at.state.data_cursor as f64 / examples.len() as f64;
            let row = interval.row(&at.state, epoch, lr, progress.tokens_per_second());
            log.record(&row)?;
            last = Some(row);
        }
        if due.save {
            store.save(at.state.step, |dir| {
                save_weights(&dir.join(WEIGHTS), &trainable.vars)?;
                optimizer.save(&dir.join(OPTIMIZER))?;
                at.state.save(&dir.join(STATE))
            })?;
        }
        if due.stop {
            break;
        }
    }
    progress.finish();

    let finished = at.state.step == total_steps;
    let model_dir = if finished {
        let dir = config.output_dir.join("model");
        write_model(config, &digested, &model_config, &trainable, &dir)?;
        write_template(&template, &dir)?;
        #[cfg(feature = "plots")]
        log.draw()?;
        manifest.end(&config.output_dir, &dir, config)?;
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
        is_adapter: config.lora.is_some(),
    })
}

/// Loads the adapter that the run starts from, if any; its shape replaces the configuration's.
fn begin_at(
    config: &mut JsftConfig,
    digested: &Digested<'_>,
    model_config: &ModelConfig,
) -> Result<Option<Adapter>, TrainError> {
    let Some(dir) = &config.start else {
        return Ok(None);
    };
    let (default, requested) = (LoraConfig::default(), config.lora.clone());
    let settings = LoraSettings {
        requested: requested.as_ref().unwrap_or(&default),
        default: &default,
        given: &config.own_lora,
    };
    digested.check(dir)?;
    let adapter = Adapter::load(dir)?.continued(&model_config.spec, settings)?;
    config.lora = Some(adapter.config.clone());
    Ok(Some(adapter))
}

/// Returns the next batch of examples, which may cross the end of an epoch.
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

/// Computes the gradients of one optimizer batch; returns its statistics and its size in tokens.
fn gradients(
    config: &JsftConfig,
    trainable: &Trainable,
    batch: &[TrainExample],
    lanes: &mut Lanes,
    step: u64,
) -> Result<(BatchStats, u64), TrainError> {
    let weight: f64 = batch
        .iter()
        .flat_map(|example| example.weights.iter().skip(1))
        .map(|&w| f64::from(w))
        .sum();
    let micro_batches = pack(batch, config.micro_batch_tokens);
    let tokens = micro_batches.iter().map(MicroBatch::len).sum::<usize>() as u64;
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
            (config.seed, step),
            &mut accumulator,
        )
    })?;
    Ok((stats, tokens))
}
