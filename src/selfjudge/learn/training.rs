//! The phase `Training`, the updates of a stage: fresh pairs, an optimizer step, and the results in the log and on disk; at the end the
//! candidate.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::active::most_instructive;
use super::batch::{Batch, UpdatePair};
use super::config::LearnConfig;
use super::gate::measure::mean;
use super::generation::Lineage;
use super::generator::opposed;
use super::learner::Learner;
use super::open_stage::OpenStage;
use super::pair_maker::PairMaker;
use super::pairs::Dropped;
use super::phase::StageEvent;
use super::record::{StageMetrics, UpdateNumbers};
use super::seed::Draw;
use super::stage::StagePlan;
use super::staleness::Ages;
use super::status::LearnState;
use super::trainer_pool::Trainer;
use model::WeightsLease;
use traffic_log::{GenerationId, NewGeneration, RecordId, StageId};
use train::{
    TrainError,
    checkpoint::CheckpointStore,
    dpo::{PairExample, StepReport},
    identity::BaseIdentity,
};

/// Logs the results of an update.
fn log_update(open: &OpenStage<'_>, update: u64, numbers: &UpdateNumbers) {
    let (stage, planned, made) = (open.id, open.plan.planned(), update + 1);
    let kl = numbers
        .kl
        .map_or(String::new(), |kl| format!(", KL {kl:.2} nats"));
    match &numbers.report {
        Some(report) => tracing::info!(
            "stage {stage}: update {made}/{planned}, {} pairs, loss {:.3}, reward margin {:.2}{kl}",
            report.pairs,
            report.loss,
            report.rewards_margin
        ),
        None => tracing::info!(
            "stage {stage}: update {made}/{planned}, no pair to learn from, {} dropped{kl}",
            numbers.dropped
        ),
    }
}

/// The contents of a checkpoint besides the trainer's own state.
#[derive(Debug, Serialize, Deserialize)]
struct Cursor {
    stage: StageId,
    /// Number of updates in the weights.
    update: u64,
}

const CURSOR: &str = "stage.json";

/// The updates of a stage.
pub(super) struct Training<'a> {
    learner: &'a Learner,
    checkpoints: Arc<CheckpointStore>,
    trainer: Trainer,
    maker: PairMaker,
    metrics: StageMetrics,
    ages: Ages,
    /// The weights from which the stage starts.
    start: WeightsLease,
    /// The weights that answer under opposed principles, if they are not the policy's.
    opposed: Option<WeightsLease>,
    /// The records of earlier stages, if replay is enabled.
    earlier: Vec<RecordId>,
    /// Number of updates in the trainer's weights.
    update: u64,
}

impl<'a> Training<'a> {
    /// Prepares the updates of a stage from its newest checkpoint on.
    ///
    /// # Errors
    /// Errors from the log, the trainer and the file system.
    pub async fn resume(
        learner: &'a Learner,
        stage: &OpenStage<'_>,
        checkpoints: &Arc<CheckpointStore>,
    ) -> Result<Self, LearnError> {
        let (id, plan) = (stage.id, &stage.plan);
        let mut trainer = start_trainer(learner, plan).await?;
        let update = restored(&mut trainer, id, checkpoints).await?;
        let judge = learner.judge(plan).await?;
        let maker = learner.pair_maker(id, plan, judge);
        let metrics = StageMetrics::open(&learner.dir, id, update)?;
        let ages = Ages::read(&learner.log, id).await?;
        let start = learner.start_weights(id, plan).await?;
        let opposed = opposed(learner, stage, &maker, &start).await?;
        let earlier = match plan.config.replay.share {
            0.0 => Vec::new(),
            _ => learner.log.stages.rows_before(id).await?,
        };
        Ok(Self {
            learner,
            checkpoints: Arc::clone(checkpoints),
            trainer,
            maker,
            metrics,
            ages,
            start,
            opposed,
            earlier,
            update,
        })
    }

    /// Runs the phase: makes the updates, and writes the resulting candidate.
    ///
    /// # Errors
    /// Errors from the log, the service, the trainer and the file system.
    pub async fn run(mut self, stage: &mut OpenStage<'_>) -> Result<(), LearnError> {
        let control = &self.learner.control;
        while !stage.progress.is_over(&stage.plan, self.update) {
            self.learner.unpaused().await?;
            let batch = self.batch(stage).await?;
            control.enter(LearnState::Updating);
            self.update(stage, &batch).await?;
            self.update += 1;
            let every = stage.plan.config.stage.checkpoint_every;
            if self.update.is_multiple_of(every) || self.update == stage.plan.planned() {
                save(&mut self.trainer, stage.id, self.update, &self.checkpoints).await?;
            }
        }
        control.enter(LearnState::Gating);
        self.write_candidate(stage).await
    }

    /// Returns the pairs of the next update: the fresh ones after active selection, and those mixed in from the log.
    async fn batch(&mut self, stage: &OpenStage<'_>) -> Result<Batch, LearnError> {
        let (plan, update) = (&stage.plan, self.update);
        let policy = self.policy(stage).await?;
        let opposed = self.opposed.as_ref().unwrap_or(&policy).clone();
        self.learner.control.enter(LearnState::Sampling);
        let maker = &self.maker;
        let prompts = maker.prompts(Draw::Update, plan.batch(update)).await?;
        let trainer = &mut self.trainer;
        let mut batch = maker.make(prompts, &policy, &opposed, trainer).await?;
        self.narrow(&plan.config, &mut batch).await?;
        let maker = &self.maker;
        let fresh = batch.pairs.len();
        let replayed = maker.replayed(update, fresh, &self.earlier).await?;
        let feedback = plan.feedback(update);
        let feedback = maker.feedback_pairs(feedback, plan.corroborate).await?;
        batch.pairs.extend(replayed);
        batch.extend(feedback);
        Ok(batch)
    }

    /// Returns the answering weights: the trainer's after the last update.
    async fn policy(&mut self, stage: &OpenStage<'_>) -> Result<WeightsLease, LearnError> {
        let update = self.update;
        if update == 0 || !stage.plan.config.rollout.on_policy {
            return Ok(self.start.clone());
        }
        let adapter = self.trainer.with(|trainer, _| trainer.adapter()).await?;
        let name = format!("stage-{}-update-{update}", stage.id);
        self.learner.publisher.register(&name, &adapter)
    }

    /// Takes one optimizer step, records it in the log, and shows its numbers.
    async fn update(&mut self, stage: &mut OpenStage<'_>, batch: &Batch) -> Result<(), LearnError> {
        let update = self.update;
        let (usable, examples) = self.usable(&batch.pairs).await?;
        let done = step(&mut self.trainer, examples).await?;
        fault::point("train.updated");
        let numbers = UpdateNumbers {
            report: done.report,
            kl: mean(&batch.drift),
            staleness: self.ages.of(update, &usable),
            accepted: batch.pairs.len(),
            dropped: batch.dropped.len(),
        };
        // After a restart the updates since the last checkpoint are made again.
        let again = update < stage.progress.recorded;
        stage.progress.last_update = numbers.kept();
        self.persist(stage, usable, batch, &done).await?;
        fault::point("train.recorded");
        let control = &self.learner.control;
        let metrics = control.metrics();
        if !again {
            metrics.updates.inc();
            metrics
                .pairs
                .inc_by(done.report.map_or(0, |report| report.pairs));
        }
        if let Some(report) = &done.report {
            metrics.step_seconds.observe(report.seconds);
        }
        self.metrics.record(metrics, update, &numbers)?;
        control.updated(update, &numbers, &batch.dropped, again);
        log_update(stage, update, &numbers);
        Ok(())
    }

    /// Writes the results of an update with the stage's progress to the log, but not again if a restart from an older checkpoint repeats
    /// it.
    async fn persist(
        &self,
        stage: &mut OpenStage<'_>,
        usable: Vec<UpdatePair>,
        batch: &Batch,
        done: &Step,
    ) -> Result<(), LearnError> {
        let (plan, progress, update) = (&stage.plan, &mut stage.progress, self.update);
        // Policy and reference are expected to agree only if the stage starts from its reference.
        if let Some(gap) = done.step_zero.filter(|_| plan.train == plan.reference) {
            progress.step_zero = Some(gap);
        }
        if update < progress.recorded {
            return Ok(());
        }
        progress.recorded = update + 1;
        progress.pairs += usable.len() as u64;
        for why in &batch.dropped {
            *progress.dropped.entry(why.name().to_owned()).or_default() += 1;
        }
        if let Some(kl) = mean(&batch.drift).filter(|kl| *kl > plan.config.stage.kl_budget) {
            progress.stopped = Some(format!("the KL budget is used up: {kl:.2} nats"));
        }
        let additions = batch.additions(&usable, &plan.config, &self.maker.judge);
        stage.record_update(&additions).await
    }

    /// Returns the pairs that fit the trainer, in the trainer's form.
    async fn usable(
        &mut self,
        pairs: &[UpdatePair],
    ) -> Result<(Vec<UpdatePair>, Vec<PairExample>), LearnError> {
        let examples: Vec<PairExample> = pairs.iter().map(UpdatePair::example).collect();
        let (examples, fits) = self
            .trainer
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
                self.learner.control.dropped(Dropped::TooLong);
            }
            fits.then_some(pair)
        });
        Ok(kept.unzip())
    }

    /// Returns the most informative of more pairs than a batch uses (active selection).
    async fn narrow(&mut self, config: &LearnConfig, batch: &mut Batch) -> Result<(), LearnError> {
        let wanted = config.stage.batch;
        if config.active.oversample < 2 || batch.pairs.len() <= wanted {
            return Ok(());
        }
        let (pairs, examples) = self.usable(&batch.pairs).await?;
        let logps = self.trainer.with(move |trainer, pace| {
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

    /// Writes the trained adapter as a generation, and records its id in the stage's progress.
    async fn write_candidate(mut self, stage: &mut OpenStage<'_>) -> Result<(), LearnError> {
        let (learner, plan) = (self.learner, &stage.plan);
        let lineage = Lineage {
            parent: plan.train.clone(),
            reference: plan.reference.clone(),
            judge: plan.judge.clone(),
            stage: stage.id.0 as u64,
            updates: self.update,
            pairs: stage.progress.pairs,
            made_with: BaseIdentity {
                base: learner.trainers.base_digest.clone(),
                adapter: learner.bases.adapter()?,
                tokenizer: Some(learner.bases.tokenizer().to_owned()),
                weights: learner.bases.weights().map(str::to_owned),
            },
            extrapolate: plan.config.publish.extrapolate,
            config: serde_json::to_value(&plan.config)?,
        };
        let generations = learner.generations.clone();
        let written = self.trainer.with(move |trainer, _| {
            let trained = trainer.adapter()?;
            Ok(generations.write_adapter(lineage, trained))
        });
        let (id, manifest) = written.await??;
        let generation = NewGeneration {
            id: GenerationId::new(id.as_str()),
            parent: GenerationId::new(plan.train.as_str()),
            reference: GenerationId::new(plan.reference.as_str()),
            stage: Some(stage.id),
            manifest: serde_json::to_value(&manifest)?,
        };
        stage.lease.insert_generation(generation).await?;
        fault::point("generation.inserted");
        stage.progress.candidate = Some(id);
        stage.advance(StageEvent::CandidateWritten).await
    }
}

/// Creates a trainer at the stage's start, with the stage's reference.
async fn start_trainer(learner: &Learner, plan: &StagePlan) -> Result<Trainer, LearnError> {
    let (generations, trainers) = (&learner.generations, &learner.trainers);
    let start = generations.trained(&plan.train)?;
    let mut trainer = trainers
        .trainer(&plan.config.dpo, start, plan.planned())
        .await?;
    if plan.reference != plan.train {
        let reference = generations.trained(&plan.reference)?;
        trainer
            .with(move |trainer, _| trainer.set_reference(reference.as_ref()))
            .await?;
    }
    Ok(trainer)
}

/// The results of an optimizer step.
struct Step {
    /// The trainer's report; none if no pair was left to train on.
    report: Option<StepReport>,
    /// See [`super::gate::Measurements::step_zero`]; none after the first step.
    step_zero: Option<f64>,
}

/// Measures the policy, and takes one optimizer step if there are pairs.
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

/// Returns the largest absolute difference between two scorers' log-probabilities of the same answers, in nats.
fn largest_gap(policy: &[(f32, f32)], reference: &[(f32, f32)]) -> f64 {
    let gaps = policy.iter().zip(reference);
    let gaps =
        gaps.flat_map(|(policy, reference)| [policy.0 - reference.0, policy.1 - reference.1]);
    gaps.fold(0.0, |most, gap| most.max(f64::from(gap.abs())))
}

/// Restores the trainer from the newest checkpoint of this stage, and returns the number of updates in its weights.
async fn restored(
    trainer: &mut Trainer,
    stage: StageId,
    checkpoints: &Arc<CheckpointStore>,
) -> Result<u64, LearnError> {
    let latest = checkpoints.latest_from(number(stage, 0))?;
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

/// Returns the number of a checkpoint. Checkpoints are numbered across stages so that the newest comes last; a stage has fewer than a
/// million updates.
fn number(stage: StageId, update: u64) -> u64 {
    stage.0 as u64 * 1_000_000 + update
}

/// Saves a checkpoint.
async fn save(
    trainer: &mut Trainer,
    stage: StageId,
    update: u64,
    checkpoints: &Arc<CheckpointStore>,
) -> Result<(), LearnError> {
    let cursor = serde_json::to_vec(&Cursor { stage, update })?;
    let number = number(stage, update);
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
