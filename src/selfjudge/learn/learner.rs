//! The learner's loop: take the lease, open a stage or continue the open one, take it from phase to phase until it is closed.
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
use super::gating::Gating;
use super::generation::Generations;
use super::open_stage::OpenStage;
use super::opener::StageOpener;
use super::pair_maker::PairMaker;
use super::pairs::PinnedJudge;
use super::past::Past;
use super::phase::Phase;
use super::pooling::Pooling;
use super::publish::Publisher;
use super::publishing::Publishing;
use super::stage::{StagePlan, VERSION};
use super::stage_state::read_state;
use super::status::{LearnControl, LearnState};
use super::tidy::tidy;
use super::trainer_pool::TrainerPool;
use super::training::Training;
use super::waiting::{Waiting, WaitingReason};
use crate::principles::Principles;
use crate::service::Service;
use model::WeightsLease;
use traffic_log::{
    DrawSpec, LogError, MAX_DEATHS, Principal, Stage, StageId, StageOutcome, TrafficLog,
    TrainerLease,
};
use train::{TrainError, checkpoint::CheckpointStore};

/// Duration of the lease: how long a trainer that hangs blocks others.
const LEASE: Duration = Duration::from_secs(60);
/// Interval between counts of a log that has too few prompts, and between looks at what an operator changed.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// Pause after a failure.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// The learner with everything it depends on.
#[derive(Clone)]
pub struct Learner {
    pub service: Service,
    pub log: TrafficLog,
    pub principles: Principles,
    pub trainers: TrainerPool,
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

impl Learner {
    /// Learns until the future is dropped, and retries after failures. Only a panic of the trainer ends the loop; it is returned.
    pub async fn run(self) -> LearnError {
        self.restore_status().await;
        loop {
            let failed = match self.train_with_lease().await {
                Ok(()) => continue,
                Err(died @ LearnError::Panicked(_)) => return died,
                Err(failed) => failed,
            };
            let message = match &failed {
                LearnError::Log(LogError::Fenced { .. }) => "another trainer took over".to_owned(),
                other => other.to_string(),
            };
            if self.control.status().error.as_ref() != Some(&message) {
                tracing::warn!("learning: {message}");
            }
            self.show_failure(&failed, message);
            match failed {
                LearnError::OtherVersion { stage, .. } => self.outlast(StageId(stage)).await,
                _ => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Limits a draw to prompts that leave room for an answer in the server's context.
    pub(super) fn answerable(&self, spec: DrawSpec) -> DrawSpec {
        let context = self.service.engine().capacity().max_context;
        DrawSpec {
            longest: context.saturating_sub(1),
            ..spec
        }
    }

    pub(super) fn show_failure(&self, failed: &LearnError, message: String) {
        self.control
            .wait(LearnState::Failed, Waiting::after(failed));
        self.control.change(|status| status.error = Some(message));
    }

    /// Restores the summary of this log into the status, if this process has learned nothing yet.
    async fn restore_status(&self) {
        if !self.control.is_new() {
            return;
        }
        match Past::read(&self.log).await {
            Ok(past) => self.control.restore(&past),
            Err(error) => tracing::warn!("learning: the earlier stages cannot be shown: {error}"),
        }
    }

    /// Records a death of this process's learner in its status, the metrics and the log. A stage in which the learner dies
    /// [`MAX_DEATHS`] times is abandoned.
    pub async fn died(&self, message: &str) {
        let noted = async {
            match self.log.stages.current().await? {
                Some(stage) => Ok(Some((
                    stage.id,
                    self.log.stages.count_death(stage.id, message).await?,
                ))),
                None => Ok::<_, LogError>(None),
            }
        };
        let place = match noted.await {
            Ok(Some((stage, deaths))) => {
                format!(" (in stage {stage}, {deaths} of {MAX_DEATHS} times)")
            }
            Ok(None) => String::new(),
            Err(error) => format!(" (it cannot be recorded in the log: {error})"),
        };
        tracing::error!("the learner died{place}: {message}");
        self.control.metrics().deaths.inc();
        let waiting = Waiting::new(
            WaitingReason::Died,
            format!("the learner died{place}: {message}"),
        );
        self.control.wait(LearnState::Failed, waiting);
        self.control.change(|status| {
            status.deaths += 1;
            status.error = Some(message.to_owned());
        });
    }

    /// Acquires the checkpoint directory and the lease that make this process the only trainer, and trains stages until one fails. Returns
    /// after a pause if another process is the trainer.
    async fn train_with_lease(&self) -> Result<(), LearnError> {
        let checkpoints = match CheckpointStore::open(self.dir.join("checkpoints"), 2) {
            Ok(checkpoints) => Arc::new(checkpoints),
            Err(TrainError::BadFile { .. }) => return self.wait_in_standby().await,
            Err(error) => return Err(error.into()),
        };
        let Some(lease) = self.log.leases.acquire(&self.holder, LEASE).await? else {
            return self.wait_in_standby().await;
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
            self.control.follow(self.log.switch.get().await?);
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
                LearnState::Paused,
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

    async fn wait_in_standby(&self) -> Result<(), LearnError> {
        self.control.follow(self.log.switch.get().await?);
        let message = "another process learns from this log or in this data directory; this one stands by, and takes over when that one ends";
        let waiting = Waiting::new(WaitingReason::AnotherTrainer, message);
        self.control.wait(LearnState::Standby, waiting);
        tokio::time::sleep(RETRY).await;
        Ok(())
    }

    /// Waits, without the lease, until a stage that this program cannot continue is closed: by the program that opened it, or by an
    /// operator who abandons it.
    async fn outlast(&self, stage: StageId) {
        loop {
            tokio::time::sleep(POLL).await;
            // While the database cannot be reached, the stage is not known to be closed.
            if let Ok(Some(_)) = self.log.stages.outcome_of(stage).await {
                return;
            }
        }
    }

    /// Takes one stage to its outcome: the open stage, or a new one.
    async fn next_stage(
        &self,
        lease: &TrainerLease,
        checkpoints: &Arc<CheckpointStore>,
    ) -> Result<(), LearnError> {
        let mut stage = match self.log.stages.current().await? {
            Some(stage) => match self.resumable(lease, stage).await? {
                Some(stage) => stage,
                None => return Ok(()),
            },
            None => StageOpener::new(self, lease).open().await?,
        };
        let id = stage.id;
        let ended = tokio::select! {
            biased;
            ended = self.run_stage(&mut stage, checkpoints) => ended,
            outcome = self.closed_elsewhere(id) => Ok(outcome),
        };
        let outcome = match ended {
            // The stage may have been closed before it was noticed that it is.
            Err(LearnError::Log(error @ LogError::NotFound { .. })) => {
                self.log.stages.outcome_of(id).await?.ok_or(error)?
            }
            ended => ended?,
        };
        self.control.ended(outcome);
        if outcome == StageOutcome::Failed && stage.progress.phase != Phase::Closed(outcome) {
            let reason = "an operator abandoned it (POST /train/abandon)";
            tracing::warn!("learning: stage {id} {outcome}: {reason}");
            self.control.show_abandoned(id.0, reason.to_owned());
        } else {
            let candidate = stage.progress.candidate.as_deref().unwrap_or("none");
            tracing::info!("learning: stage {id} {outcome}: generation {candidate}");
        }
        self.control.follow(self.log.switch.get().await?);
        // `follow` logs its own errors, and it is retried every few seconds.
        let _ = self.publisher.follow().await;
        tidy(self, lease).await;
        Ok(())
    }

    /// Takes a stage from its phase to its outcome.
    async fn run_stage(
        &self,
        stage: &mut OpenStage<'_>,
        checkpoints: &Arc<CheckpointStore>,
    ) -> Result<StageOutcome, LearnError> {
        if stage.progress.phase == Phase::Pooling {
            Pooling::new(self).run(stage).await?;
        }
        self.announce(stage);
        fault::point("learn.stage");
        loop {
            match stage.progress.phase {
                Phase::Pooling => Pooling::new(self).run(stage).await?,
                Phase::Training => {
                    let training = Training::resume(self, stage, checkpoints).await?;
                    training.run(stage).await?;
                }
                Phase::Gating => Gating::new(self).run(stage).await?,
                Phase::Publishing => Publishing::new(self).run(stage).await?,
                Phase::Closed(outcome) => return Ok(outcome),
            }
        }
    }

    /// Returns the outcome of a stage once it is closed in the log.
    async fn closed_elsewhere(&self, stage: StageId) -> StageOutcome {
        loop {
            tokio::time::sleep(POLL).await;
            // While the database cannot be reached, the stage goes on.
            if let Ok(Some(outcome)) = self.log.stages.outcome_of(stage).await {
                return outcome;
            }
        }
    }

    /// Shows and logs the stage that runs.
    fn announce(&self, stage: &OpenStage<'_>) {
        let (id, planned) = (stage.id, stage.plan.planned());
        self.control.change(|status| {
            status.error = None;
            status.waiting = None;
            status.stage = id.0;
            status.planned = planned;
            status.update = 0;
        });
        tracing::info!(
            "stage {id}: {planned} updates of {} prompts each, {} held-out prompts for the gates{}",
            stage.plan.config.stage.batch,
            stage.plan.gate_rows.len(),
            match stage.progress.recorded {
                0 => String::new(),
                recorded => format!(", resumed after update {recorded}"),
            }
        );
    }

    /// Returns the open stage as it was left; none if it had to be abandoned.
    async fn resumable<'a>(
        &self,
        lease: &'a TrainerLease,
        stage: Stage,
    ) -> Result<Option<OpenStage<'a>>, LearnError> {
        let id = stage.id;
        let deaths = self.log.stages.deaths(id).await?;
        if deaths >= MAX_DEATHS {
            // One of its prompts may cause the deaths, so they stay marked as used.
            let why = format!("the learner died in it {deaths} times");
            self.abandon(lease, id, &why, false).await?;
            return Ok(None);
        }
        let (plan, progress) = read_state(&stage)?;
        if !plan.is_of(&self.bases, self.log.model.owns_unnamed())? {
            let why =
                "it was opened on another model, whose weights or tokenizer differ from this one's";
            self.abandon(lease, id, why, true).await?;
            return Ok(None);
        }
        let saved = stage.state["version"].as_u64();
        let open = OpenStage {
            lease,
            id,
            plan,
            progress,
        };
        if saved != Some(VERSION.into()) {
            open.save().await?;
        }
        Ok(Some(open))
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
        self.control.ended(StageOutcome::Failed);
        self.control.show_abandoned(id.0, why.to_owned());
        Ok(())
    }

    /// Returns the pinned judge of a stage.
    pub(super) async fn judge(&self, plan: &StagePlan) -> Result<PinnedJudge, LearnError> {
        Ok(PinnedJudge {
            weights: self.publisher.weights(&plan.judge).await?,
            principles: plan.principles.clone(),
        })
    }

    pub(super) fn pair_maker(
        &self,
        stage: StageId,
        plan: &StagePlan,
        judge: PinnedJudge,
    ) -> PairMaker {
        PairMaker {
            service: self.service.clone(),
            log: self.log.clone(),
            judge,
            config: Arc::new(plan.config.clone()),
            stage: stage.0,
        }
    }

    /// Returns the trained weights from which a stage starts: the version itself, unless it serves a scaled adapter.
    pub(super) async fn start_weights(
        &self,
        stage: StageId,
        plan: &StagePlan,
    ) -> Result<WeightsLease, LearnError> {
        if !self.generations.is_extrapolated(&plan.train)? {
            return self.publisher.weights(&plan.train).await;
        }
        let trained = self.generations.trained(&plan.train)?;
        let trained = trained.ok_or_else(|| LearnError::NoGeneration(plan.train.clone()))?;
        self.publisher
            .register(&format!("stage-{stage}-update-0"), &trained)
    }
}
