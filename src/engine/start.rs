//! The start of an engine: its parts, and the thread that steps them.

use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, watch};

use super::admission::{Admission, TenantShare};
use super::config::EngineConfig;
use super::core::{Command, EngineCore};
use super::heartbeat::Heartbeat;
use super::kv_cache::KvCacheManager;
use super::model_runner::{ModelRunner, block_bytes};
use super::scheduler::{Scheduler, SchedulerConfig};
use super::warm_up::warm_up;
use super::{Capacity, Engine, EngineError, WarmedUp};
use kernels::{device::DeviceArbiter, device::team::Team};
use model::WeightStore;
use telemetry::EngineMetrics;

/// The engine's thread, which can be joined.
pub struct EngineThread(thread::JoinHandle<()>);

impl EngineThread {
    /// Waits until the engine has finished all requests, which happens once no handle is left.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the engine's thread panicked");
        }
    }
}

/// The parts of an engine, before its first step.
pub(super) struct Parts {
    pub engine: Engine,
    pub inbox: mpsc::UnboundedReceiver<Command>,
    pub warm: watch::Sender<WarmedUp>,
    pub runner: ModelRunner,
    pub kv: KvCacheManager,
    pub limits: SchedulerConfig,
}

impl Parts {
    /// Reserves the cache.
    ///
    /// # Errors
    /// Errors if the sizes are inconsistent (with the numbers), or if memory cannot be allocated.
    pub fn new(weights: WeightStore, config: &EngineConfig) -> Result<Self, EngineError> {
        let decoder = weights.decoder();
        let (spec, block_size) = (decoder.spec(), config.block_size);
        let background = &config.background;
        config.check()?;
        let max_context = config.max_model_len.unwrap_or(spec.max_context());
        if !(2..=spec.max_context()).contains(&max_context) {
            return Err(EngineError::Context {
                asked: max_context,
                most: spec.max_context(),
            });
        }
        let kv_dtype = config.kv_cache_dtype.of(decoder);
        let block_bytes = block_bytes(spec, block_size, kv_dtype);
        let max_blocks = u32::MAX as usize / block_size;
        let num_blocks = (config.kv_cache_memory / block_bytes).min(max_blocks);
        let capacity = Capacity {
            kv_tokens: num_blocks * block_size,
            kv_bytes: num_blocks * block_bytes,
            kv_dtype,
            max_context,
            max_concurrent: config.max_concurrent,
            vocab_size: spec.vocab_size,
        };
        if capacity.kv_tokens < capacity.max_context {
            return Err(EngineError::CacheTooSmall {
                memory: config.kv_cache_memory,
                held: capacity.kv_tokens,
                needed: capacity.max_context,
                least: capacity.max_context.div_ceil(block_size) * block_bytes,
            });
        }
        let kv = KvCacheManager::new(num_blocks as u32, block_size, config.prefix_caching);
        let limits = SchedulerConfig {
            max_batch_tokens: config.max_batch_tokens,
            max_sequences: config.max_concurrent,
            target_itl: config.target_itl,
            max_drafts: config.max_drafts,
            background: background.limits,
        };
        let runner = ModelRunner::new(decoder.clone(), num_blocks, block_size, kv_dtype)?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (warm, warmed_up) = watch::channel(None);
        let engine = Engine {
            commands,
            admission: [
                Admission::new(config.queue, config.tenant_share),
                // The server's own work is one tenant.
                Admission::new(background.queue, TenantShare::WHOLE),
            ],
            weights,
            capacity,
            next_id: Arc::default(),
            warmed_up,
            heartbeat: Heartbeat::default(),
        };
        Ok(Self {
            engine,
            inbox,
            warm,
            runner,
            kv,
            limits,
        })
    }
}

impl Engine {
    /// Reserves the cache and starts the thread, which has the device to itself and warms up: see [`Self::ready`].
    ///
    /// # Errors
    /// Errors if the sizes are inconsistent (with the numbers), or if memory or a thread cannot be allocated.
    pub fn start(
        weights: WeightStore,
        config: &EngineConfig,
        metrics: EngineMetrics,
    ) -> Result<(Self, EngineThread), EngineError> {
        Self::start_beside(weights, config, metrics, DeviceArbiter::default())
    }

    /// Works as [`Self::start`], for an engine that shares its device with other work: `arbiter` signals when foreground requests need the
    /// device.
    ///
    /// # Errors
    /// Same as [`Self::start`].
    pub fn start_beside(
        weights: WeightStore,
        config: &EngineConfig,
        metrics: EngineMetrics,
        arbiter: DeviceArbiter,
    ) -> Result<(Self, EngineThread), EngineError> {
        let base = weights.base().clone();
        let Parts {
            engine,
            inbox,
            warm,
            runner,
            kv,
            limits,
        } = Parts::new(weights, config)?;
        let decoder = engine.weights.decoder();
        let kind = decoder.weights();
        let held = metrics.weights_bytes.with_label_values(&[&kind]);
        held.set(i64::try_from(decoder.bytes()).unwrap_or(i64::MAX));
        let beats = engine.heartbeat.clone();
        let shared_prefix_cache = config.shared_prefix_cache;
        let mut team = Team::new(rayon::current_num_threads())?;
        let serve = move || match warm_up(runner, limits, base) {
            Ok(runner) => {
                let scheduler = Scheduler::new(limits, kv);
                let core = EngineCore::new(scheduler, runner, metrics, arbiter.clone())
                    .with_shared_prefix_cache(shared_prefix_cache);
                // The result is sent even if there is no receiver.
                let _ = warm.send(Some(Ok(())));
                run(core, inbox, &arbiter, &beats);
            }
            Err(failure) => {
                tracing::error!(%failure, "the model's first steps failed");
                // Requests submitted in the meantime fail when the inbox is dropped.
                let _ = warm.send(Some(Err(failure)));
            }
        };
        let thread = thread::Builder::new()
            .name("engine".into())
            .spawn(move || team.lead(serve))?;
        Ok((engine, EngineThread(thread)))
    }
}

/// Runs the engine thread: it receives commands, makes a step, and sleeps only when there is no work.
fn run(
    mut core: EngineCore,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    arbiter: &DeviceArbiter,
    heartbeat: &Heartbeat,
) {
    loop {
        if core.is_idle() {
            arbiter.foreground(false);
            heartbeat.beat(true);
            match inbox.blocking_recv() {
                Some(command) => core.handle_command(command),
                None => return,
            }
        }
        while let Ok(command) = inbox.try_recv() {
            core.handle_command(command);
        }
        heartbeat.beat(false);
        fault::point("engine.step");
        core.step();
    }
}
