//! The loop: take the lease, wait for prompts, train a stage, conclude it.
//!
//! Whatever kills the process, the next one goes on: the stage's state is in the log, the trainer's in a checkpoint, and every draw is
//! a function of the settings and the place in the stage, so the trajectory is the one an uninterrupted run would have taken.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::config::LearnConfig;
use super::gate::anchor::LastScores;
use super::gate::measure::mean;
use super::generation::Generations;
use super::judging::{Dropped, PinnedJudge};
use super::publish::Publisher;
use super::record::{StageMetrics, UpdateNumbers};
use super::stage::{Draw, StageState};
use super::staleness::Ages;
use super::status::{LearnControl, Phase};
use super::trainer::{Trainer, Workshop};
use super::update::{Batch, PairMaker, UpdatePair, most_instructive};
use crate::fault;
use crate::model::WeightsLease;
use crate::preference::Principles;
use crate::preference::log::{LogError, RecordId, Stage, StageId, TrafficLog, TrainerLease};
use crate::service::Service;
use crate::train::TrainError;
use crate::train::checkpoint::CheckpointStore;
use crate::train::dpo::{PairExample, StepReport};

/// How long a trainer that hangs keeps others out.
const LEASE: Duration = Duration::from_secs(60);
/// Between two looks at a log that has too few prompts, and after a failure.
pub(super) const POLL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// Everything the learner works with.
#[derive(Clone)]
pub struct Learner {
    pub service: Service,
    pub log: TrafficLog,
    pub principles: Principles,
    pub workshop: Workshop,
    pub publisher: Publisher,
    pub generations: Generations,
    pub control: LearnControl,
    pub config: Arc<LearnConfig>,
    /// The model's own anchor set, which counts where the configuration names none.
    pub anchors: Option<PathBuf>,
    pub last_scores: LastScores,
    /// Checkpoints and curves of the running stage.
    pub dir: PathBuf,
    /// Names this trainer to others on the same log.
    pub holder: String,
}

/// What a checkpoint holds besides the trainer's own state.
#[derive(Debug, Serialize, Deserialize)]
struct Cursor {
    stage: StageId,
    /// Updates that are in the weights.
    update: u64,
}

const CURSOR: &str = "stage.json";

/// The running stage.
pub(super) struct Running<'a> {
    pub lease: &'a TrainerLease,
    pub id: StageId,
    pub state: StageState,
}

impl Running<'_> {
    pub async fn save(&self) -> Result<(), LearnError> {
        let state = serde_json::to_value(&self.state)?;
        Ok(self.lease.save_stage(self.id, &state).await?)
    }
}

impl Learner {
    /// Learns until the future is dropped. Nothing that fails ends it: what can be tried again is tried again.
    pub async fn run(self) {
        loop {
            let failed = match self.as_the_one_trainer().await {
                Ok(()) => continue,
                Err(LearnError::Log(LogError::Fenced { .. })) => {
                    "another trainer took over".to_owned()
                }
                Err(error) => error.to_string(),
            };
            tracing::warn!("learning: {failed}");
            self.control.change(|status| {
                status.state = Phase::Failed;
                status.error = Some(failed);
            });
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes what makes this process the only trainer, and trains stages until something fails. Returns at once, after a pause, where
    /// another one trains.
    async fn as_the_one_trainer(&self) -> Result<(), LearnError> {
        let checkpoints = match CheckpointStore::open(self.dir.join("checkpoints"), 2) {
            Ok(checkpoints) => Arc::new(checkpoints),
            Err(TrainError::BadFile { .. }) => return self.stand_by().await,
            Err(error) => return Err(error.into()),
        };
        let Some(lease) = self.log.acquire_trainer(&self.holder, LEASE).await? else {
            return self.stand_by().await;
        };
        self.generations.sweep()?;
        let trained = async {
            loop {
                self.next_stage(&lease, &checkpoints).await?;
            }
        };
        let renewed = async {
            loop {
                tokio::time::sleep(LEASE / 4).await;
                match lease.renew().await {
                    // The database may come back before the lease runs out.
                    Ok(()) | Err(LogError::Unavailable(_)) => {}
                    Err(error) => return LearnError::from(error),
                }
            }
        };
        let result: Result<(), LearnError> = tokio::select! {
            result = trained => result,
            error = renewed => Err(error),
        };
        // Where it failed for another reason than the lease, another trainer need not wait for it to run out.
        let _ = lease.release().await;
        result
    }

    /// Returns once learning is not paused. The switch is in the log: it may have been turned in another process, or before this one.
    pub(super) async fn unpaused(&self) -> Result<(), LearnError> {
        let phase = self.control.status().state;
        loop {
            self.control.follow(self.log.learning_switch().await?);
            if !self.control.is_paused() {
                self.control.enter(phase);
                return Ok(());
            }
            self.control.enter(Phase::Paused);
            // Told here, it goes on at once.
            let _ = tokio::time::timeout(POLL, self.control.resumed()).await;
        }
    }

    async fn stand_by(&self) -> Result<(), LearnError> {
        self.control.follow(self.log.learning_switch().await?);
        self.control.enter(Phase::Standby);
        tokio::time::sleep(RETRY).await;
        Ok(())
    }

    /// One stage, from the open one or from new prompts to its outcome.
    async fn next_stage(
        &self,
        lease: &TrainerLease,
        checkpoints: &Arc<CheckpointStore>,
    ) -> Result<(), LearnError> {
        let mut running = match self.log.current_stage().await? {
            Some(Stage { id, state, .. }) => Running {
                lease,
                id,
                state: serde_json::from_value(state)?,
            },
            None => self.begin(lease).await?,
        };
        self.claim(&mut running).await?;
        let planned = running.state.planned();
        self.control.change(|status| {
            status.error = None;
            status.stage = running.id.0;
            status.planned = planned;
            status.update = 0;
        });
        if running.state.candidate.is_none() {
            self.train(&mut running, checkpoints).await?;
        }
        self.conclude(&mut running).await
    }

    /// The pinned judge of a stage.
    pub(super) async fn judge(&self, state: &StageState) -> Result<PinnedJudge, LearnError> {
        Ok(PinnedJudge {
            weights: self.publisher.weights(&state.judge).await?,
            principles: state.principles.clone(),
        })
    }

    pub(super) fn pair_maker(
        &self,
        stage: StageId,
        state: &StageState,
        judge: PinnedJudge,
    ) -> PairMaker {
        PairMaker {
            service: self.service.clone(),
            log: self.log.clone(),
            judge,
            config: Arc::new(state.config.clone()),
            stage: stage.0,
        }
    }

    /// The updates of a stage, from the newest checkpoint on, and the candidate that comes of them.
    async fn train(
        &self,
        running: &mut Running<'_>,
        checkpoints: &Arc<CheckpointStore>,
    ) -> Result<(), LearnError> {
        let (id, config) = (running.id, running.state.config.clone());
        let planned = running.state.planned();
        let mut trainer = self.trainer(&running.state).await?;
        let mut update = resumed(&mut trainer, id, checkpoints).await?;
        let judge = self.judge(&running.state).await?;
        let mut training = Training {
            trainer,
            maker: self.pair_maker(id, &running.state, judge),
            metrics: StageMetrics::open(&self.dir, id, update)?,
            ages: Ages::read(&self.log, id).await?,
        };
        let start = self.start_weights(id, &running.state).await?;
        let opposed = self.opposed(running, &training.maker, &start).await?;
        let earlier = self.earlier_rows(id, &config).await?;

        while !running.state.is_over(update) {
            self.unpaused().await?;
            let trainer = &mut training.trainer;
            let policy = self.policy(&config, trainer, &start, id, update).await?;
            let opposed = opposed.as_ref().unwrap_or(&policy);
            let batch = self
                .batch(
                    &running.state,
                    &mut training,
                    &policy,
                    opposed,
                    &earlier,
                    update,
                )
                .await?;
            self.control.enter(Phase::Updating);
            self.update(running, &mut training, update, &batch).await?;
            update += 1;
            if update % config.stage.checkpoint_every == 0 || update == planned {
                save(&mut training.trainer, id, update, checkpoints).await?;
            }
        }
        self.control.enter(Phase::Gating);
        self.write_candidate(running, training.trainer, update)
            .await
    }

    /// A trainer where the stage starts, measured against its reference.
    async fn trainer(&self, state: &StageState) -> Result<Trainer, LearnError> {
        let start = self.generations.trained(&state.train)?;
        let workshop = &self.workshop;
        let mut trainer = workshop
            .trainer(&state.config.dpo, start, state.planned())
            .await?;
        if state.reference != state.train {
            let reference = self.generations.trained(&state.reference)?;
            trainer
                .with(move |trainer, _| trainer.set_reference(reference.as_ref()))
                .await?;
        }
        Ok(trainer)
    }

    /// The pairs of one update: fresh ones, those of them that teach most, and what is mixed in of the log's.
    async fn batch(
        &self,
        state: &StageState,
        training: &mut Training,
        policy: &WeightsLease,
        opposed: &WeightsLease,
        earlier: &[RecordId],
        update: u64,
    ) -> Result<Batch, LearnError> {
        let (maker, trainer) = (&training.maker, &mut training.trainer);
        self.control.enter(Phase::Sampling);
        let prompts = maker.prompts(Draw::Update, state.batch(update)).await?;
        let mut batch = maker.make(prompts, policy, opposed, trainer).await?;
        self.narrow(&state.config, trainer, &mut batch).await?;
        let replayed = maker.replayed(update, batch.pairs.len(), earlier).await?;
        let said = maker
            .said(state.feedback(update), state.corroborate)
            .await?;
        batch.pairs.extend(replayed);
        batch.extend(said);
        Ok(batch)
    }

    /// The weights that answer: the trainer's as the last update left them.
    async fn policy(
        &self,
        config: &LearnConfig,
        trainer: &mut Trainer,
        start: &WeightsLease,
        stage: StageId,
        update: u64,
    ) -> Result<WeightsLease, LearnError> {
        if update == 0 || !config.rollout.on_policy {
            return Ok(start.clone());
        }
        let adapter = trainer.with(|trainer, _| trainer.adapter()).await?;
        self.publisher
            .lend(&format!("stage-{stage}-update-{update}"), &adapter)
    }

    /// One optimiser step, its record in the log, and its numbers.
    async fn update(
        &self,
        running: &mut Running<'_>,
        training: &mut Training,
        update: u64,
        batch: &Batch,
    ) -> Result<(), LearnError> {
        let (usable, examples) = self.usable(&mut training.trainer, &batch.pairs).await?;
        let done = step(&mut training.trainer, examples).await?;
        fault::point("train.updated");
        let staleness = training.ages.of(update, &usable);
        self.persist(running, &training.maker, update, usable, batch, &done)
            .await?;
        fault::point("train.recorded");
        let numbers = UpdateNumbers {
            report: done.report,
            kl: mean(&batch.drift),
            staleness,
            accepted: batch.pairs.len(),
            dropped: batch.dropped.len(),
        };
        training
            .metrics
            .record(self.control.metrics(), update, &numbers)?;
        self.control.updated(update, &numbers, &batch.dropped);
        Ok(())
    }

    /// Puts what an update made into the log, with the stage's state: not a second time after a restart from a checkpoint before it.
    async fn persist(
        &self,
        running: &mut Running<'_>,
        maker: &PairMaker,
        update: u64,
        usable: Vec<UpdatePair>,
        batch: &Batch,
        done: &Step,
    ) -> Result<(), LearnError> {
        let state = &mut running.state;
        // Policy and reference are one where nothing was moved apart.
        if let Some(gap) = done.step_zero.filter(|_| state.train == state.reference) {
            state.step_zero = Some(gap);
        }
        if update < state.recorded {
            return Ok(());
        }
        state.recorded = update + 1;
        state.pairs += usable.len() as u64;
        if let Some(kl) = mean(&batch.drift).filter(|kl| *kl > state.config.stage.kl_budget) {
            state.stopped = Some(format!("the KL budget is used up: {kl:.2} nats"));
        }
        let additions = batch.additions(&usable, &state.config, &maker.judge);
        let state = serde_json::to_value(&running.state)?;
        running
            .lease
            .record_update(running.id, &state, &additions)
            .await?;
        Ok(())
    }

    /// The pairs that the trainer takes, as it takes them.
    async fn usable(
        &self,
        trainer: &mut Trainer,
        pairs: &[UpdatePair],
    ) -> Result<(Vec<UpdatePair>, Vec<PairExample>), LearnError> {
        let examples: Vec<PairExample> = pairs.iter().map(UpdatePair::example).collect();
        let (examples, fits) = trainer
            .with(move |trainer, _| {
                let fits: Vec<bool> = examples
                    .iter()
                    .map(|pair| trainer.check_pair(pair).is_ok())
                    .collect();
                Ok((examples, fits))
            })
            .await?;
        let kept = pairs.iter().cloned().zip(examples).zip(fits);
        let kept = kept.filter_map(|(pair, fits)| {
            if !fits {
                self.control.dropped(Dropped::TooLong);
            }
            fits.then_some(pair)
        });
        Ok(kept.unzip())
    }

    /// Active selection: of more pairs than a batch takes, the ones that teach most.
    async fn narrow(
        &self,
        config: &LearnConfig,
        trainer: &mut Trainer,
        batch: &mut Batch,
    ) -> Result<(), LearnError> {
        let wanted = config.stage.batch;
        if config.active.oversample < 2 || batch.pairs.len() <= wanted {
            return Ok(());
        }
        let (pairs, examples) = self.usable(trainer, &batch.pairs).await?;
        let logps = trainer.with(move |trainer, pace| {
            let policy = trainer.policy_logps(&examples, pace)?;
            let reference = trainer.reference_logps(&examples, pace)?;
            Ok((policy, reference))
        });
        let (policy, reference) = logps.await?;
        let margins = policy.iter().zip(&reference);
        let margins = margins.map(|(p, r)| f64::from((p.0 - r.0) - (p.1 - r.1)));
        let entropy = pairs.iter().map(|pair| {
            let answers = [&pair.pair.chosen, &pair.pair.rejected];
            -f64::from(
                answers
                    .map(|answer| answer.mean_logprob())
                    .iter()
                    .sum::<f32>(),
            ) / 2.0
        });
        let (entropy, margins): (Vec<f64>, Vec<f64>) = (entropy.collect(), margins.collect());
        let chosen = most_instructive(&entropy, &margins, config.active.entropy, wanted);
        let passed_over = pairs.len() - chosen.len();
        batch
            .dropped
            .extend(std::iter::repeat_n(Dropped::NotSelected, passed_over));
        batch.pairs = chosen.into_iter().map(|at| pairs[at].clone()).collect();
        Ok(())
    }

    /// Records of earlier stages, where some of them are to be mixed in.
    async fn earlier_rows(
        &self,
        stage: StageId,
        config: &LearnConfig,
    ) -> Result<Vec<RecordId>, LearnError> {
        if config.replay.share == 0.0 {
            return Ok(Vec::new());
        }
        let mut stages = self.log.stages().await?;
        // The newest come first; the order decides what is drawn, and new stages must not change it.
        stages.retain(|earlier| earlier.id.0 < stage.0);
        stages.sort_by_key(|earlier| earlier.id.0);
        let mut rows = Vec::new();
        for stage in stages {
            // Of a program of another version it may not be readable; its rows are not drawn again then.
            if let Ok(state) = serde_json::from_value::<StageState>(stage.state) {
                rows.extend(state.rows);
            }
        }
        Ok(rows)
    }

    /// The weights that a stage starts from, as they answer: the version itself, unless it serves another adapter than was trained.
    pub(super) async fn start_weights(
        &self,
        stage: StageId,
        state: &StageState,
    ) -> Result<WeightsLease, LearnError> {
        if !self.generations.is_extrapolated(&state.train)? {
            return self.publisher.weights(&state.train).await;
        }
        let trained = self.generations.trained(&state.train)?;
        let trained = trained.ok_or_else(|| LearnError::NoGeneration(state.train.clone()))?;
        self.publisher
            .lend(&format!("stage-{stage}-update-0"), &trained)
    }
}

/// What the updates of a stage are made with.
struct Training {
    trainer: Trainer,
    maker: PairMaker,
    metrics: StageMetrics,
    ages: Ages,
}

/// What an optimiser step showed.
struct Step {
    /// None where no pair was left to learn from.
    report: Option<StepReport>,
    /// See [`super::gate::Measurements::step_zero`]; none once a step was taken.
    step_zero: Option<f64>,
}

/// Measures, and takes one optimiser step where there are pairs for one.
async fn step(trainer: &mut Trainer, examples: Vec<PairExample>) -> Result<Step, LearnError> {
    let done = trainer.with(move |trainer, pace| {
        let reference = trainer.reference_logps(&examples, pace)?;
        let step_zero = match trainer.step() == 0 && !examples.is_empty() {
            true => Some(largest_gap(
                &trainer.policy_logps(&examples, pace)?,
                &reference,
            )),
            false => None,
        };
        let report = match examples.is_empty() {
            true => None,
            false => Some(trainer.update(&examples, &reference, pace)?),
        };
        Ok(Step { report, step_zero })
    });
    done.await
}

/// The largest difference between two scorers of the same answers; nats.
fn largest_gap(policy: &[(f32, f32)], reference: &[(f32, f32)]) -> f64 {
    let gaps = policy.iter().zip(reference);
    let gaps =
        gaps.flat_map(|(policy, reference)| [policy.0 - reference.0, policy.1 - reference.1]);
    gaps.fold(0.0, |most, gap| most.max(f64::from(gap.abs())))
}

/// Puts the trainer where the newest checkpoint of this stage left it: the number of updates in its weights.
async fn resumed(
    trainer: &mut Trainer,
    stage: StageId,
    checkpoints: &Arc<CheckpointStore>,
) -> Result<u64, LearnError> {
    let latest = checkpoints.latest()?;
    for (dir, problem) in &latest.rejected {
        tracing::warn!("checkpoint {} is not used: {problem}", dir.display());
    }
    let Some(checkpoint) = latest.checkpoint else {
        return Ok(0);
    };
    let path = checkpoint.dir.join(CURSOR);
    let text = std::fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
    let cursor: Cursor = serde_json::from_slice(&text)?;
    if cursor.stage != stage {
        return Ok(0);
    }
    let dir = checkpoint.dir;
    trainer
        .with(move |trainer, _| trainer.load_state(&dir))
        .await?;
    tracing::info!(
        "learning: stage {stage} goes on after update {}",
        cursor.update
    );
    Ok(cursor.update)
}

/// Checkpoints are numbered over all stages, so that the newest is the last: a stage has fewer than a million updates.
async fn save(
    trainer: &mut Trainer,
    stage: StageId,
    update: u64,
    checkpoints: &Arc<CheckpointStore>,
) -> Result<(), LearnError> {
    let cursor = serde_json::to_vec(&Cursor { stage, update })?;
    let number = stage.0 as u64 * 1_000_000 + update;
    let store = Arc::clone(checkpoints);
    trainer
        .with(move |trainer, _| {
            store.save(number, |dir| {
                trainer.save_state(dir)?;
                let path = dir.join(CURSOR);
                std::fs::write(&path, cursor).map_err(TrainError::io("cannot write", &path))
            })
        })
        .await?;
    fault::point("train.checkpoint");
    Ok(())
}
