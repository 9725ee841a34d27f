//! Wiring of what serves generations, and of what makes them.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use candle_core::Device;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::model_files::ANCHORS;
use super::{AppError, DataDir, FOLLOW};
use crate::device::{DeviceArbiter, trainer_pool};
use crate::http;
use crate::learn::gate::anchor::LastScores;
use crate::learn::generation::Generations;
use crate::learn::{CanaryWatch, LearnConfig, LearnControl, Learner, Publisher, Workshop};
use crate::model::WeightStore;
use crate::preference::Principles;
use crate::preference::log::TrafficLog;
use crate::service::Service;
use crate::telemetry::LearnMetrics;
use crate::train::base::FrozenBase;
use crate::train::digest::weights_digest;

/// How the program learns.
pub struct LearnOptions {
    pub config: LearnConfig,
    /// Threads that the trainer computes on.
    pub threads: usize,
    /// Of the time in which serving needs every thread (or the GPU), the share that the trainer has all the same.
    pub min_share: f64,
    /// The share of the principals that the canary answers, while there is one.
    pub canary_share: f64,
}

/// What learning is wired to.
pub(super) struct Learning<'a> {
    pub store: WeightStore,
    pub service: Service,
    pub log: TrafficLog,
    pub principles: Principles,
    pub data_dir: &'a DataDir,
    pub metrics: LearnMetrics,
    pub arbiter: DeviceArbiter,
}

impl Learning<'_> {
    /// Serves what the pointers say, and goes on doing so; learns, where it is told to.
    pub async fn start(
        self,
        model_dir: &Path,
        device: &Device,
        learn: Option<LearnOptions>,
        tasks: &mut Vec<JoinHandle<()>>,
    ) -> Result<(http::Learning, Option<LearnerThread>), AppError> {
        let generations = Generations::open(self.data_dir.generations())?;
        // Who does not learn has no settings of it, and tries nothing out either.
        let watch = learn
            .as_ref()
            .map_or_else(CanaryWatch::default, |learn| CanaryWatch {
                share: learn.canary_share,
                bands: learn.config.publish.canary.clone(),
                tallies: self.service.tallies().clone(),
            });
        let publisher = Publisher::new(
            self.store,
            generations.clone(),
            self.log.clone(),
            watch,
            self.metrics.clone(),
        );
        // A generation that cannot be loaded must not keep the base from serving; `/train` and a metric say so.
        if let Err(error) = publisher.follow().await {
            tracing::error!("the base serves: {error}");
        }
        tasks.push(tokio::spawn(publisher.clone().run(FOLLOW)));
        let (mut control, mut thread) = (None, None);
        if let Some(learn) = learn {
            learn.config.validate()?;
            let (dir, device) = (model_dir.to_owned(), device.clone());
            let loaded = tokio::task::spawn_blocking(move || {
                let base = FrozenBase::load(&dir, &device)?;
                Ok::<_, crate::learn::LearnError>((base, weights_digest(&dir)?))
            });
            let (base, digest) = loaded
                .await
                .map_err(|error| AppError::Config(error.to_string()))??;
            let pool = trainer_pool(learn.threads)?;
            let switch = LearnControl::new(self.metrics);
            let learner = Learner {
                service: self.service,
                log: self.log.clone(),
                principles: self.principles,
                workshop: Workshop::new(base, digest, pool, self.arbiter),
                publisher: publisher.clone(),
                generations,
                control: switch.clone(),
                config: Arc::new(learn.config),
                anchors: Some(model_dir.join(ANCHORS)).filter(|path| path.is_file()),
                last_scores: LastScores::default(),
                dir: self.data_dir.training(),
                holder: format!("{}:{}", hostname(), self.data_dir.root().display()),
            };
            thread = Some(LearnerThread::start(learner)?);
            control = Some(switch);
        }
        let shown = http::Learning {
            control,
            publisher,
            log: self.log,
        };
        Ok((shown, thread))
    }
}

/// The learner on a thread of its own, which waits on the runtime that serves.
pub(super) struct LearnerThread {
    /// Dropped, it ends the learner where that next waits.
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl LearnerThread {
    fn start(learner: Learner) -> Result<Self, AppError> {
        let (stop, stopped) = oneshot::channel();
        let runtime = Handle::current();
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = learner.run() => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name("learner".into()).spawn(work);
        let thread = thread
            .map_err(|error| AppError::Config(format!("the learner has no thread: {error}")))?;
        Ok(Self { stop, thread })
    }

    /// Ends the learner. What it computes at the moment is thrown away: its state is in the log and in checkpoints.
    pub async fn stop(self) {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the learner's thread panicked");
        }
    }
}

/// This machine's name, as others on the same log see it.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
