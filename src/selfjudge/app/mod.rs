//! Wiring: weights, engine, service, log, learner and routers, and the order in which they start and stop.
//!
//! ```text
//! model files -> WeightStore -> Engine -> Service -> routers
//!                    ^             ^         ^
//!                Publisher     Arbiter    Learner <- TrafficLog <- routers
//! ```

mod data_dir;
mod learning;
mod look;
mod memory;
mod model_files;
mod self_test;
mod sizes;
mod supervise;

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use candle_core::Device;
use tokio::task::JoinHandle;

pub use data_dir::{DataDir, LOG_FILE};
use learning::LearnerThread;
pub use learning::{LearnOptions, OnDeath};
use look::look_into;
use memory::Footprint;
pub use model_files::{ModelFiles, model_name};
use self_test::{test_judge, tested_at_the_start, watch_judge};
use sizes::Sizes;
use supervise::supervised;

use crate::call::CallError;
use crate::http::{HttpConfig, Shared, admin_router, metrics_router, router};
use crate::judging::SelfTestSet;
use crate::learn::base::Bases;
use crate::learn::{LearnControl, LearnError, Publisher};
use crate::principles::{Principles, PrinciplesError};
use crate::service::{OnLogFailure, Permitted, Service, TrafficConfig};
use engine::{Capacity, Engine, EngineConfig, EngineError, EngineThread};
use kernels::{
    device::{ArbiterConfig, DeviceArbiter, available},
    linear::WeightFormat,
};
use model::{LanguageModel, LoadOptions, ModelError, SamplingDefaults, WeightStore};
use telemetry::Metrics;
use text::ChatSetup;
use traffic_log::{Consent, LogConfig, LogError, TrafficLog, now};
use train::{BaseWeights, base::Adapter, identity::check_adapter};

/// An error at the start of the program.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Service(#[from] CallError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Principles(#[from] PrinciplesError),
    #[error(transparent)]
    Learn(#[from] LearnError),
    #[error(transparent)]
    Device(#[from] kernels::device::DeviceError),
    #[error("{0}")]
    Config(String),
}

/// All settings of serving and learning.
pub struct AppConfig {
    /// The model's name in answers and metrics.
    pub model_name: String,
    pub model: ModelFiles,
    /// The type of the weights in memory; none keeps the checkpoint's.
    pub format: Option<WeightFormat>,
    /// A PEFT adapter directory to apply to the model. Learning continues from this adapter.
    pub adapter: Option<PathBuf>,
    pub prompts: PromptOptions,
    pub device: Device,
    /// The engine's settings. Its cache takes `kv_cache_memory` bytes; by default as many as suit the model and the machine, and contexts
    /// are shortened to what the cache holds.
    pub engine: EngineConfig,
    pub kv_cache_memory: Option<usize>,
    pub http: HttpConfig,
    /// Directory for all written files; without it nothing is stored.
    pub data_dir: Option<DataDir>,
    pub traffic: TrafficOptions,
    pub learn: Option<LearnOptions>,
    /// Whether the needed memory is compared with the available memory.
    pub memory_check: bool,
    /// Whether the judge is tested at the start.
    pub self_test: bool,
}

/// How prompts are encoded.
#[derive(Debug, Clone, Default)]
pub struct PromptOptions {
    /// The chat template and its variables; by default the model's own.
    pub chat: ChatSetup,
    /// Whether control tokens written in text prompts are encoded as control tokens.
    pub control_tokens: bool,
    /// Whether the sampling parameters of the checkpoint's `generation_config.json` are ignored.
    pub neutral_sampling: bool,
}

/// How traffic is logged, and where.
pub struct TrafficOptions {
    /// The log's settings; none selects the file in the data directory.
    pub log: Option<LogConfig>,
    pub default: Consent,
    pub allowed: Permitted,
    /// The maximum use of calls without a key.
    pub strangers: Permitted,
    pub on_failure: OnLogFailure,
    pub trust_user: bool,
}

/// A running program without its sockets.
pub struct App {
    pub model_name: String,
    /// The type of the weights in memory; see [`Decoder::weights`](model::Decoder::weights).
    pub weights: String,
    /// The callers' routes.
    pub router: Router,
    /// The operators' routes, for a separate listener.
    pub admin_router: Router,
    /// The metrics routes, for a separate listener.
    pub metrics_router: Router,
    pub capacity: Capacity,
    pub metrics: Metrics,
    /// The learner's controls; none without learning.
    pub control: Option<LearnControl>,
    pub publisher: Option<Publisher>,
    pub log: Option<TrafficLog>,
    pub service: Service,
    engine_thread: EngineThread,
    tasks: Vec<JoinHandle<()>>,
    learner: Option<LearnerThread>,
    arbiter: DeviceArbiter,
    /// The model's files; an embedded model's unpacked files are deleted when this is dropped.
    model: ModelFiles,
}

/// Interval at which changes by other processes on the same log and data directory (pointers, principles) are followed.
const FOLLOW: Duration = Duration::from_secs(2);

/// Interval at which expired records are deleted.
const SWEEP: Duration = Duration::from_secs(60);

impl App {
    /// Starts all parts in dependency order. Needs a tokio runtime.
    ///
    /// # Errors
    /// Names what is missing or does not fit together.
    pub async fn start(config: AppConfig) -> Result<Self, AppError> {
        let dir = config.model.path().to_owned();
        config.engine.check()?;
        let engine_config = fit(&config, &dir)?;
        let weights_below = match &config.learn {
            Some(_) => BaseWeights::of_server(config.format).map_err(LearnError::from)?,
            None => BaseWeights::Auto,
        };
        if let Some(learn) = &config.learn {
            learn.config.validate()?;
            if !config.self_test && !config.http.judging.allow_untrained {
                return Err(AppError::Config(
                    "learning needs the judge's self-test: remove --no-self-test, or use --allow-untrained-judge".into(),
                ));
            }
        }
        let options = LoadOptions {
            device: config.device.clone(),
            format: config.format,
            chat: config.prompts.chat.clone(),
        };
        let model = LanguageModel::load(&dir, &options)?;
        let metrics = Metrics::new(&config.model_name);
        let first = match config.adapter.as_deref() {
            Some(adapter) => {
                let checked = check_adapter(adapter, &dir);
                let read = checked.and_then(|()| Adapter::load(adapter));
                Some(read.map_err(LearnError::from)?)
            }
            None => None,
        };
        let decoder = model.decoder().clone();
        let weights = decoder.weights();
        let store = match &first {
            Some(Adapter { config, weights }) => {
                WeightStore::with_adapter(decoder, config, weights)?
            }
            None => WeightStore::new(decoder),
        };
        let min_share = config.learn.as_ref().map_or(0.0, |learn| learn.min_share);
        let arbiter = DeviceArbiter::new(ArbiterConfig { min_share }, config.device.clone())?;
        let (engine, engine_thread) = Engine::start_beside(
            store.clone(),
            &engine_config,
            metrics.engine.clone(),
            arbiter.clone(),
        )?;
        let capacity = engine.capacity();
        let service = Service::new(engine, &model, &dir, metrics.judge.clone())?
            .reading_control_tokens(config.prompts.control_tokens);
        let service = match config.prompts.neutral_sampling {
            true => service.with_sampling_defaults(SamplingDefaults::default()),
            false => service,
        };
        if let (Some(_), Some(reason)) = (&config.learn, service.judge().unusable()) {
            return Err(AppError::Config(format!(
                "learning needs a judge, but this model cannot judge: {reason}"
            )));
        }
        if let Some(reason) = service.judge().unusable() {
            tracing::warn!(
                "this model cannot judge, so calls that need verdicts are refused: {reason}"
            );
        }
        drop(model);
        service.engine().ready().await?;

        let log = match log_config(&config)? {
            Some(log) => Some(TrafficLog::open(&log).await?),
            None => None,
        };
        if let Some(log) = &log {
            look_into(log, &config).await?;
        }
        let table = service.judge().table().clone();
        let principles = match &config.data_dir {
            Some(data_dir) => Principles::open(data_dir.root(), table)?,
            None => Principles::in_memory(table),
        };
        let restarts = &metrics.learn.tasks_restarted;
        let watched = principles.clone();
        let mut tasks = vec![supervised("principles", restarts.clone(), move || {
            watch_principles(watched.clone())
        })];
        if let Some(log) = log.clone() {
            tasks.push(supervised("sweep", restarts.clone(), move || {
                sweep(log.clone())
            }));
        }
        let bases = Bases::of(&dir, config.adapter.as_deref(), &weights)?;
        if let (None, Some(log)) = (&config.data_dir, &log) {
            log.model.bind(&bases.identity()).await?;
        }
        // There is nothing to test if the judge cannot use the model's template or tokenizer.
        let self_test = match config.self_test && service.judge().check().is_ok() {
            true => Some(SelfTestSet::of_model_dir(&dir).map_err(CallError::from)?),
            false => None,
        };
        if let Some(set) = self_test.clone() {
            let judge = service.clone();
            tasks.push(supervised("self_test", restarts.clone(), move || {
                watch_judge(judge.clone(), set.clone())
            }));
        }
        let (learning, learner) = match (&config.data_dir, &log) {
            (Some(data_dir), Some(log)) => {
                let parts = learning::Learning {
                    store,
                    service: service.clone(),
                    log: log.clone(),
                    principles: principles.clone(),
                    data_dir,
                    metrics: metrics.learn.clone(),
                    arbiter: arbiter.clone(),
                    bases,
                    weights: weights_below,
                    first,
                    knows_callers: !config.http.keys.is_empty() || config.traffic.trust_user,
                    self_test: self_test.as_ref(),
                    allow_untrained: config.http.judging.allow_untrained,
                };
                let started = parts.start(&dir, &config.device, config.learn, &mut tasks);
                let (learning, learner) = started.await?;
                (Some(learning), learner)
            }
            _ if config.learn.is_some() => {
                return Err(AppError::Config(
                    "learning needs a data directory for its results (--data-dir)".into(),
                ));
            }
            _ => {
                for role in ["policy", "judge"] {
                    let labels = ["base", role];
                    metrics.learn.generation.with_label_values(&labels).set(1);
                }
                (None, None)
            }
        };
        if let (Some(set), None) = (&self_test, service.judge().self_test())
            && tested_at_the_start(service.weights().decoder().spec())
        {
            test_judge(&service, set).await?;
        }

        let traffic = TrafficConfig {
            log: log.clone(),
            default: config.traffic.default,
            allowed: config.traffic.allowed,
            strangers: config.traffic.strangers,
            on_failure: config.traffic.on_failure,
            trust_user: config.traffic.trust_user,
        };
        let control = learning
            .as_ref()
            .and_then(|learning| learning.control.clone());
        let publisher = learning.as_ref().map(|learning| learning.publisher.clone());
        let mut shared = Shared::new(
            service.clone(),
            &config.model_name,
            metrics.clone(),
            &config.http,
        )
        .with_traffic(traffic)
        .with_principles(principles);
        if let Some(learning) = learning {
            shared = shared.with_learning(learning);
        }
        let state = shared.into_state();
        Ok(Self {
            model_name: config.model_name,
            weights,
            router: router(state.clone(), &config.http),
            admin_router: admin_router(state.clone(), &config.http),
            metrics_router: metrics_router(state, &config.http),
            capacity,
            metrics,
            control,
            publisher,
            log,
            service,
            engine_thread,
            tasks,
            learner,
            arbiter,
            model: config.model,
        })
    }

    /// Returns the directory of the model's files.
    pub fn model_dir(&self) -> &Path {
        self.model.path()
    }

    /// Waits for a fatal failure and returns its reason: the engine died, or the learner of a program that only learns.
    pub async fn failure(&self) -> String {
        let learner = async {
            match &self.learner {
                Some(learner) => learner.death().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.service.engine().ended() => "the engine's thread has died".to_owned(),
            died = learner => format!("the learner has died: {died}"),
        }
    }

    /// Stops all parts in reverse order; the sockets must be closed and the requests finished.
    pub async fn stop(self) -> Stopped {
        self.arbiter.shut_down();
        if let Some(learner) = self.learner {
            learner.stop().await;
        }
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            // The task was aborted or had ended before.
            let _ = task.await;
        }
        if let Some(log) = &self.log {
            log.close().await;
        }
        Stopped(self.engine_thread)
    }
}

/// A stopped program whose engine may still hold memory.
pub struct Stopped(EngineThread);

impl Stopped {
    /// Waits for the engine's thread, which ends once the runtime with its connections is gone.
    pub fn join(self) {
        self.0.join();
    }
}

/// Returns the engine's settings with the sizes that fit the machine.
///
/// # Errors
/// Errors if the model's files are broken, or if the machine's memory does not suffice.
fn fit(config: &AppConfig, dir: &Path) -> Result<EngineConfig, AppError> {
    let footprint = Footprint::of(dir, config.format)?;
    let (learns, engine) = (config.learn.as_ref(), &config.engine);
    let dpo = learns.map(|learn| &learn.config.dpo);
    let available = available().filter(|_| config.device.is_cpu());
    let rest = available.map_or(u64::MAX, |available| {
        let others = footprint.needed(engine, dpo).without_cache();
        available.bytes.saturating_sub(others)
    });
    let sizes = Sizes::choose(&footprint, engine, config.kv_cache_memory, rest);
    let fitted = EngineConfig {
        kv_cache_memory: sizes.kv_cache_memory,
        max_model_len: sizes.max_model_len,
        ..engine.clone()
    };
    if config.memory_check {
        // The stand-alone learner has no flags for the engine.
        let flags = learns.is_none_or(|learn| learn.on_death == OnDeath::Restart);
        footprint.needed(&fitted, dpo).check(available, flags)?;
    }
    if let Some(line) = sizes.shortened {
        tracing::warn!("{line}");
    }
    Ok(fitted)
}

/// Returns the configured log, or the data directory's own.
fn log_config(config: &AppConfig) -> Result<Option<LogConfig>, AppError> {
    match (&config.traffic.log, &config.data_dir) {
        (Some(log), _) => Ok(Some(log.clone())),
        (None, Some(data_dir)) => Ok(Some(data_dir.log())),
        (None, None) if config.traffic.default.retain => Err(AppError::Config(
            "calls are to be kept (--retain), but there is no place for them: set --data-dir or --log-url".into(),
        )),
        (None, None) => Ok(None),
    }
}

/// Follows changes of the table of principles by other processes on the same data directory.
async fn watch_principles(principles: Principles) {
    loop {
        tokio::time::sleep(FOLLOW).await;
        let watched = principles.clone();
        match tokio::task::spawn_blocking(move || watched.refresh()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!("the principles could not be reloaded and are unchanged: {error}")
            }
            Err(error) => tracing::error!("cannot watch the principles' file: {error}"),
        }
    }
}

/// Periodically deletes records whose retention has expired.
async fn sweep(log: TrafficLog) {
    loop {
        match log.deletions.expire(now()).await {
            Ok(0) => {}
            Ok(deleted) => {
                tracing::info!("deleted {deleted} records that were older than their retention")
            }
            Err(error) => tracing::warn!("old records could not be deleted: {error}"),
        }
        tokio::time::sleep(SWEEP).await;
    }
}
