//! The updates of a stage: fresh pairs, an optimizer step, and the results in the log and on disk.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::config::LearnConfig;
use super::gate::measure::mean;
use super::judging::Dropped;
use super::learner::{Learner, Running};
use super::record::{StageMetrics, UpdateNumbers};
use super::stage::{Draw, StageState};
use super::staleness::Ages;
use super::status::Phase;
use super::trainer::Trainer;
use super::update::{Batch, PairMaker, UpdatePair, most_instructive};
use model::WeightsLease;
use traffic_log::{RecordId, StageId};
use train::TrainError;
use train::checkpoint::CheckpointStore;
use train::dpo::{PairExample, StepReport};

/// Logs the results of an update.
fn say_update(running: &Running<'_>, update: u64, numbers: &UpdateNumbers) {
    let (stage, planned, made) = (running.id, running.state.planned(), update + 1);
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

impl Learner {
    /// Runs the updates of a stage from its newest checkpoint on, and writes the resulting candidate.
    pub(super) async fn train(
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

    /// Creates a trainer at the stage's start, with the stage's reference.
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

    /// Returns the pairs of one update: the fresh ones after active selection, and those mixed in from the log.
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

    /// Returns the answering weights: the trainer's after the last update.
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

    /// Takes one optimizer step, records it in the log, and returns its numbers.
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
        let numbers = UpdateNumbers {
            report: done.report,
            kl: mean(&batch.drift),
            staleness: training.ages.of(update, &usable),
            accepted: batch.pairs.len(),
            dropped: batch.dropped.len(),
        };
        // After a restart the updates since the last checkpoint are made again.
        let again = update < running.state.recorded;
        running.state.last_update = numbers.kept();
        self.persist(running, &training.maker, update, usable, batch, &done)
            .await?;
        fault::point("train.recorded");
        let metrics = self.control.metrics();
        if !again {
            metrics.updates.inc();
            metrics
                .pairs
                .inc_by(done.report.map_or(0, |report| report.pairs));
        }
        if let Some(report) = &done.report {
            metrics.step_seconds.observe(report.seconds);
        }
        training.metrics.record(metrics, update, &numbers)?;
        self.control
            .updated(update, &numbers, &batch.dropped, again);
        say_update(running, update, &numbers);
        Ok(())
    }

    /// Writes the results of an update with the stage's state to the log, but not again if a restart from an older checkpoint repeats it.
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
        // Policy and reference are expected to agree only if the stage starts from its reference.
        if let Some(gap) = done.step_zero.filter(|_| state.train == state.reference) {
            state.step_zero = Some(gap);
        }
        if update < state.recorded {
            return Ok(());
        }
        state.recorded = update + 1;
        state.pairs += usable.len() as u64;
        for why in &batch.dropped {
            *state.dropped.entry(why.name().to_owned()).or_default() += 1;
        }
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

    /// Returns the pairs that fit the trainer, in the trainer's form.
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

    /// Returns the most informative of more pairs than a batch uses (active selection).
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

    /// Returns the records of earlier stages, if replay is enabled.
    async fn earlier_rows(
        &self,
        stage: StageId,
        config: &LearnConfig,
    ) -> Result<Vec<RecordId>, LearnError> {
        match config.replay.share {
            0.0 => Ok(Vec::new()),
            _ => Ok(self.log.rows_before(stage).await?),
        }
    }
}

/// What the updates of a stage are made with.
struct Training {
    trainer: Trainer,
    maker: PairMaker,
    metrics: StageMetrics,
    ages: Ages,
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

/// Saves a checkpoint. Checkpoints are numbered across stages so that the newest comes last; a stage has fewer than a million updates.
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
