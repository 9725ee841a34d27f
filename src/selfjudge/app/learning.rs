//! Wiring of the publisher, which serves generations, and of the learner, which makes them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use candle_core::Device;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::model_files::ANCHORS;
use super::self_test::{check_teacher, test_judge};
use super::supervise::{BackOff, supervised};
use super::{AppError, DataDir, FOLLOW};
use crate::http;
use crate::judging::SelfTestSet;
use crate::learn::base::Bases;
use crate::learn::gate::anchor::LastScores;
use crate::learn::generation::Generations;
use crate::learn::{
    CanaryWatch, LearnConfig, LearnControl, LearnError, Learner, Publisher, TrainerPool, judged_by,
    panic_message,
};
use crate::principles::Principles;
use crate::service::Service;
use kernels::device::{DeviceArbiter, trainer_pool};
use model::WeightStore;
use telemetry::LearnMetrics;
use traffic_log::{Principal, TrafficLog};
use train::{
    BaseWeights,
    base::{Adapter, FrozenBase},
    trainable::check_targets,
};

/// Number of generations whose adapters a learner keeps in memory: the candidate, the policy that it was trained from, and one more.
const RESIDENT: usize = 3;

/// The settings of learning in the program.
pub struct LearnOptions {
    pub config: LearnConfig,
    /// Number of threads of the trainer.
    pub threads: usize,
    /// Minimum share of the time that the trainer gets while serving needs every thread (or the GPU).
    pub min_share: f64,
    /// Share of the principals that a canary answers.
    pub canary_share: f64,
    /// What the program does when the learner dies.
    pub on_death: OnDeath,
}

/// The reaction of the program to the learner's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeath {
    /// The program keeps serving, and restarts the learner after a pause.
    Restart,
    /// The program ends, because it has no other purpose.
    End,
}

/// The parts of the program that learning is wired to.
pub(super) struct Learning<'a> {
    pub store: WeightStore,
    pub service: Service,
    pub log: TrafficLog,
    pub principles: Principles,
    pub data_dir: &'a DataDir,
    pub metrics: LearnMetrics,
    pub arbiter: DeviceArbiter,
    pub bases: Bases,
    /// The type of the weights that are trained over.
    pub weights: BaseWeights,
    /// The adapter that the model serves before any training.
    pub first: Option<Adapter>,
    /// Whether this server can distinguish its callers: by keys, or by a trusted `user`.
    pub knows_callers: bool,
    /// The test that the judge must pass before learning.
    pub self_test: Option<&'a SelfTestSet>,
    pub allow_untrained: bool,
}

impl Learning<'_> {
    /// Serves the weights that the pointers name and keeps following them; starts the learner if learning is enabled.
    pub async fn start(
        self,
        model_dir: &Path,
        device: &Device,
        learn: Option<LearnOptions>,
        tasks: &mut Vec<JoinHandle<()>>,
    ) -> Result<(http::Learning, Option<LearnerThread>), AppError> {
        let (mut learn, mut first) = (learn, self.first);
        if let (Some(options), Some(adapter)) = (&mut learn, first.take()) {
            let spec = self.service.weights().decoder().spec();
            let (config, adapter) = options.config.clone().beginning_at(adapter, spec)?;
            options.config = config;
            first = Some(adapter);
        }
        let resident = if learn.is_some() { RESIDENT } else { 0 };
        let generations = Generations::open(self.data_dir.generations())?
            .keeping(resident)
            .of(self.bases.clone())
            .beginning_with(first.clone());
        // Digesting weights takes long, so it is skipped if there are no generations to compare with.
        if learn.is_some() || !generations.ids()?.is_empty() {
            let bases = self.bases.clone();
            let digested = tokio::task::spawn_blocking(move || bases.base().map(drop));
            digested
                .await
                .map_err(|error| AppError::Config(error.to_string()))??;
        }
        if learn.is_some() {
            generations.check_first().map_err(of_another_adapter)?;
        }
        self.log.model.bind(&self.bases.identity()).await?;
        // A server that does not learn has no settings for canaries and runs none.
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
        // If a generation cannot be loaded the base must serve anyway; `/train`, `/generations` and a metric show the problem.
        let _ = publisher.follow().await;
        if let (Some(set), true) = (self.self_test, learn.is_some()) {
            test_judge(&self.service, set).await?;
            check_teacher(&self.service, self.allow_untrained)?;
        }
        let (follows, restarts) = (publisher.clone(), self.metrics.tasks_restarted.clone());
        tasks.push(supervised("publisher", restarts, move || {
            follows.clone().run(FOLLOW)
        }));
        let (mut control, mut thread) = (None, None);
        if let Some(learn) = learn {
            say_what_to_expect(&learn.config, self.knows_callers);
            let (dir, device, weights) = (model_dir.to_owned(), device.clone(), self.weights);
            let loaded = tokio::task::spawn_blocking(move || {
                Ok::<_, LearnError>(FrozenBase::load_in(&dir, weights, &device)?.with_first(first))
            });
            let base = loaded
                .await
                .map_err(|error| AppError::Config(error.to_string()))??;
            // Checks settings that depend on the model and the table now, because otherwise every stage would fail on them.
            check_targets(base.spec(), &learn.config.dpo.lora).map_err(LearnError::from)?;
            let table = self.principles.current();
            judged_by(&table.table, &learn.config.judging.principles)?;
            let digest = self.bases.base()?.to_owned();
            let pool = trainer_pool(learn.threads)?;
            let switch = LearnControl::new(self.metrics);
            let learner = Learner {
                service: self.service,
                log: self.log.clone(),
                principles: self.principles,
                trainers: TrainerPool::new(base, digest, pool, self.arbiter),
                publisher: publisher.clone(),
                generations,
                bases: self.bases,
                control: switch.clone(),
                config: Arc::new(learn.config),
                anchors: Some(model_dir.join(ANCHORS)).filter(|path| path.is_file()),
                last_scores: LastScores::default(),
                dir: self.data_dir.training(),
                uncapped: (!self.knows_callers).then(Principal::anonymous),
                holder: format!("{}:{}", hostname(), self.data_dir.root().display()),
            };
            thread = Some(LearnerThread::start(learner, learn.on_death)?);
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

/// Adds advice to the error about generations that started from another adapter.
fn of_another_adapter(error: LearnError) -> AppError {
    match error {
        LearnError::OtherBase { id, made, here, .. } => AppError::Config(format!(
            "the generations in the data directory start from another adapter ({id} from {made}, this server from {here}): pass the \
             adapter that they start from (--adapter), or another --data-dir"
        )),
        error => error.into(),
    }
}

/// Logs what the settings imply: how often the gates pass a candidate, and to which callers the share cap applies.
fn say_what_to_expect(config: &LearnConfig, knows_callers: bool) {
    let gates = &config.gates;
    let passes = |rate: f64| 100.0 * gates.pass_rate(rate);
    tracing::info!(
        "learning: candidates with a true win rate of .50, .55 and .60 against the live policy pass the win_rate gate with probability \
         {:.0} %, {:.0} % and {:.0} % ({} duels)",
        passes(0.5),
        passes(0.55),
        passes(0.6),
        gates.duels(),
    );
    if gates.pass_rate(gates.win_rate.p1.max(0.6)) < 0.5 {
        tracing::warn!(
            "gates.prompts = {} is too small for the win_rate gate: most good candidates will be rejected as undecided; use more prompts",
            gates.prompts
        );
    }
    if !knows_callers && config.stage.principal_share < 1.0 {
        tracing::info!(
            "learning: callers have no API keys and cannot be distinguished, so stage.principal_share does not apply"
        );
    }
}

/// The learner on its own thread, which waits on the serving runtime. A learner that dies is restarted.
pub(super) struct LearnerThread {
    /// When dropped, ends the learner at its next wait.
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
    /// Why the learner died, if its death ends the program.
    died: watch::Receiver<Option<String>>,
}

impl LearnerThread {
    fn start(learner: Learner, on_death: OnDeath) -> Result<Self, AppError> {
        let (stop, stopped) = oneshot::channel();
        let (death, died) = watch::channel(None);
        let runtime = Handle::current();
        let work = move || {
            if let Some(message) = live(&runtime, &learner, on_death, stopped) {
                death.send_replace(Some(message));
            }
        };
        let thread = thread::Builder::new().name("learner".into()).spawn(work);
        let thread = thread.map_err(|error| {
            AppError::Config(format!("cannot start the learner's thread: {error}"))
        })?;
        Ok(Self { stop, thread, died })
    }

    /// Returns why the learner died, once it has died and will not be restarted.
    pub async fn death(&self) -> String {
        let mut died = self.died.clone();
        match died.wait_for(Option::is_some).await {
            Ok(message) => message.clone().unwrap_or_default(),
            // It was stopped.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends the learner. Its current computation is discarded, because its state is in the log and in checkpoints.
    pub async fn stop(self) {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the learner's thread panicked");
        }
    }
}

/// Runs a learner until it is stopped. Returns why it died, if it will not be restarted.
fn live(
    runtime: &Handle,
    learner: &Learner,
    on_death: OnDeath,
    mut stopped: oneshot::Receiver<()>,
) -> Option<String> {
    let mut pause = BackOff::default();
    loop {
        let updates = learner.control.status().updates;
        let one = learner.clone();
        // Only consistent state survives a learner: the log, checkpoints, its status.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                tokio::select! {
                    died = one.run() => Some(died.to_string()),
                    _ = &mut stopped => None,
                }
            })
        }));
        let died = match ended {
            Ok(None) => return None,
            Ok(Some(error)) => error,
            Err(panic) => panic_message(&*panic),
        };
        if learner.control.status().updates > updates {
            pause.reset();
        }
        let stays_stopped = runtime.block_on(async {
            learner.died(&died).await;
            if on_death == OnDeath::End {
                return false;
            }
            let pause = pause.next();
            tracing::info!("the learner is restarted in {pause:.1?}");
            tokio::select! {
                () = tokio::time::sleep(pause) => false,
                _ = &mut stopped => true,
            }
        });
        match (on_death, stays_stopped) {
            (OnDeath::End, _) => return Some(died),
            (OnDeath::Restart, true) => return None,
            (OnDeath::Restart, false) => {}
        }
    }
}

/// Returns this machine's name, as shown to other processes on the same log.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}
