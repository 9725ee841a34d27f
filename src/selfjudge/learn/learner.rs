//! The learner's loop: take the lease, wait for prompts, train a stage, conclude it.
//!
//! If the process is killed, the next one continues: the stage's state is in the log, the trainer's in a checkpoint, and every random
//! draw is a function of the settings and the position in the stage, so the trajectory equals that of an uninterrupted run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::LearnError;
use super::base::Bases;
use super::config::LearnConfig;
use super::gate::anchor::LastScores;
use super::generation::Generations;
use super::judging::PinnedJudge;
use super::publish::Publisher;
use super::stage::StageState;
use super::status::{LearnControl, Phase};
use super::trainer::Workshop;
use super::update::PairMaker;
use super::waiting::{Waiting, WaitingReason};
use crate::principles::Principles;
use crate::service::Service;
use model::WeightsLease;
use traffic_log::{
    LogError, MAX_DEATHS, Principal, Stage, StageId, StageOutcome, TrafficLog, TrainerLease,
};
use train::TrainError;
use train::checkpoint::CheckpointStore;

/// Duration of the lease: how long a trainer that hangs blocks others.
const LEASE: Duration = Duration::from_secs(60);
/// Interval between counts of a log that has too few prompts, and after a failure.
pub(super) const POLL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// The learner with everything it depends on.
#[derive(Clone)]
pub struct Learner {
    pub service: Service,
    pub log: TrafficLog,
    pub principles: Principles,
    pub workshop: Workshop,
    pub publisher: Publisher,
    pub generations: Generations,
    pub bases: Bases,
    pub control: LearnControl,
    pub config: Arc<LearnConfig>,
    /// The model's own anchor set, used if the configuration names none.
    pub anchors: Option<PathBuf>,
    pub last_scores: LastScores,
    /// Directory of the checkpoints and curves of the running stage.
    pub dir: PathBuf,
    /// The principal to which the share cap does not apply: the one for indistinguishable callers, if all callers of this server are
    /// indistinguishable because it has no keys and does not trust `user`.
    pub uncapped: Option<Principal>,
    /// Name of this trainer for other processes on the same log.
    pub holder: String,
}

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
    /// Learns until the future is dropped, and retries after failures. Only a panic of the trainer ends the loop; it is returned.
    pub async fn run(self) -> LearnError {
        self.remember().await;
        loop {
            let failed = match self.as_the_one_trainer().await {
                Ok(()) => continue,
                Err(died @ LearnError::Panicked(_)) => return died,
                Err(failed) => failed,
            };
            let said = match &failed {
                LearnError::Log(LogError::Fenced { .. }) => "another trainer took over".to_owned(),
                other => other.to_string(),
            };
            if self.control.status().error.as_ref() != Some(&said) {
                tracing::warn!("learning: {said}");
            }
            self.control.wait(Phase::Failed, Waiting::after(&failed));
            self.control.change(|status| status.error = Some(said));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Records a death of this process's learner in its status, the metrics and the log. A stage in which the learner dies
    /// [`MAX_DEATHS`] times is abandoned.
    pub async fn died(&self, said: &str) {
        let noted = async {
            match self.log.current_stage().await? {
                Some(stage) => Ok(Some((
                    stage.id,
                    self.log.count_death(stage.id, said).await?,
                ))),
                None => Ok::<_, LogError>(None),
            }
        };
        let place = match noted.await {
            Ok(Some((stage, deaths))) => {
                format!(" (in stage {stage}, {deaths} of {MAX_DEATHS} times)")
            }
            Ok(None) => String::new(),
            Err(error) => format!(" (the log could not be told: {error})"),
        };
        tracing::error!("the learner died{place}: {said}");
        self.control.metrics().deaths.inc();
        let waiting = Waiting::new(
            WaitingReason::Died,
            format!("the learner died{place}: {said}"),
        );
        self.control.wait(Phase::Failed, waiting);
        self.control.change(|status| {
            status.deaths += 1;
            status.error = Some(said.to_owned());
        });
    }

    /// Acquires the checkpoint directory and the lease that make this process the only trainer, and trains stages until one fails. Returns
    /// after a pause if another process is the trainer.
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
                    // The database may come back before the lease expires.
                    Ok(()) | Err(LogError::Unavailable(_)) => {}
                    Err(error) => return LearnError::from(error),
                }
            }
        };
        let result: Result<(), LearnError> = tokio::select! {
            result = trained => result,
            error = renewed => Err(error),
        };
        // After a failure unrelated to the lease, another trainer should not have to wait until it expires.
        let _ = lease.release().await;
        result
    }

    /// Returns once learning is not paused. The switch is in the log, because another or an earlier process may have set it.
    pub(super) async fn unpaused(&self) -> Result<(), LearnError> {
        let before = self.control.status();
        loop {
            self.control.follow(self.log.learning_switch().await?);
            if !self.control.is_paused() {
                self.control.change(|status| {
                    status.state = before.state;
                    status.waiting = before.waiting;
                });
                return Ok(());
            }
            let (passed, may) = (
                self.control.status().unattended,
                self.config.stage.unattended,
            );
            self.control.wait(
                Phase::Paused,
                match passed >= may {
                    true => Waiting::new(
                        WaitingReason::Unattended,
                        format!("{passed} stages passed unattended, as many as may (stage.unattended = {may}): POST /train/resume"),
                    ),
                    false => Waiting::new(
                        WaitingReason::Paused,
                        "learning was paused by an operator: POST /train/resume",
                    ),
                },
            );
            // A resume in this process takes effect at once.
            let _ = tokio::time::timeout(POLL, self.control.resumed()).await;
        }
    }

    async fn stand_by(&self) -> Result<(), LearnError> {
        self.control.follow(self.log.learning_switch().await?);
        let message = "another process learns from this log or in this data directory; this one stands by, and takes over when that one ends";
        let waiting = Waiting::new(WaitingReason::AnotherTrainer, message);
        self.control.wait(Phase::Standby, waiting);
        tokio::time::sleep(RETRY).await;
        Ok(())
    }

    /// Runs one stage to its outcome, continuing the open stage or opening a new one.
    async fn next_stage(
        &self,
        lease: &TrainerLease,
        checkpoints: &Arc<CheckpointStore>,
    ) -> Result<(), LearnError> {
        let mut running = match self.log.current_stage().await? {
            Some(stage) => match self.resumable(lease, stage).await? {
                Some(running) => running,
                None => return Ok(()),
            },
            None => self.begin(lease).await?,
        };
        self.claim(&mut running).await?;
        let planned = running.state.planned();
        self.control.change(|status| {
            status.error = None;
            status.waiting = None;
            status.stage = running.id.0;
            status.planned = planned;
            status.update = 0;
        });
        tracing::info!(
            "stage {}: {planned} updates of {} prompts each, {} held-out prompts for the gates{}",
            running.id,
            running.state.config.stage.batch,
            running.state.gate_rows.len(),
            match running.state.recorded {
                0 => String::new(),
                recorded => format!(", resumed after update {recorded}"),
            }
        );
        fault::point("learn.stage");
        if running.state.candidate.is_none() {
            self.train(&mut running, checkpoints).await?;
        }
        self.conclude(&mut running).await
    }

    /// Returns the open stage as it was left; none if it had to be abandoned.
    async fn resumable<'a>(
        &self,
        lease: &'a TrainerLease,
        stage: Stage,
    ) -> Result<Option<Running<'a>>, LearnError> {
        let id = stage.id;
        let deaths = self.log.deaths(id).await?;
        if deaths >= MAX_DEATHS {
            // One of its prompts may cause the deaths, so they stay marked as used.
            let why = format!("the learner died in it {deaths} times");
            self.abandon(lease, id, &why, false).await?;
            return Ok(None);
        }
        let state: StageState =
            serde_json::from_value(stage.state).map_err(|error| LearnError::OtherVersion {
                stage: id.0,
                detail: error.to_string(),
            })?;
        if state.is_of(&self.bases, self.log.owns_unnamed())? {
            return Ok(Some(Running { lease, id, state }));
        }
        let why = "it was opened on another model, whose weights or tokenizer are not this one's";
        self.abandon(lease, id, why, true).await?;
        Ok(None)
    }

    async fn abandon(
        &self,
        lease: &TrainerLease,
        id: StageId,
        why: &str,
        release: bool,
    ) -> Result<(), LearnError> {
        lease.abandon_stage(id, why, release).await?;
        tracing::error!("learning: stage {id} is abandoned: {why}");
        let outcome = StageOutcome::Failed;
        let stages = &self.control.metrics().stages;
        stages.with_label_values(&[outcome.as_str()]).inc();
        self.control
            .change(|status| status.last_outcome = Some(outcome.to_string()));
        Ok(())
    }

    /// Returns the pinned judge of a stage.
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

    /// Returns the trained weights from which a stage starts: the version itself, unless it serves a scaled adapter.
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
