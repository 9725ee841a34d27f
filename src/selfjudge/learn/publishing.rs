//! The phase `Publishing`: the pointers move to a candidate that passed all gates.

use super::LearnError;
use super::learner::Learner;
use super::open_stage::OpenStage;
use super::phase::StageEvent;
use traffic_log::{GenerationId, GenerationState, LogError, Pointer, PointerMove};

/// Promotes the candidate of a stage.
pub(super) struct Publishing<'a> {
    learner: &'a Learner,
}

impl<'a> Publishing<'a> {
    pub fn new(learner: &'a Learner) -> Self {
        Self { learner }
    }

    /// Runs the phase: moves the pointers of the policy, the next stage's start and its reference to the candidate.
    ///
    /// # Errors
    /// Errors from the log.
    pub async fn run(&self, stage: &mut OpenStage<'_>) -> Result<(), LearnError> {
        let Some(candidate) = &stage.progress.candidate else {
            return Err(LearnError::Config(
                "a stage without a candidate was to be published".into(),
            ));
        };
        let (log, plan) = (&self.learner.log, &stage.plan);
        let id = GenerationId::new(candidate.as_str());
        if log.generations.pointers().await?.policy == id {
            return stage.advance(StageEvent::Served).await;
        }
        // An operator who paused learning during the evaluation does not want the weights to change now.
        self.learner.unpaused().await?;
        let step = |pointer, from: &str| PointerMove {
            pointer,
            from: GenerationId::new(from),
            to: id.clone(),
        };
        let canary = log.generations.pointers().await?.canary;
        let moves = [
            step(Pointer::Policy, &plan.policy),
            step(Pointer::Train, &plan.train),
            step(Pointer::Reference, &plan.reference),
            step(Pointer::Canary, canary.as_str()),
        ];
        match stage.promote(&moves).await {
            // An operator moved the policy while the stage ran. A candidate replaces only the policy it was trained from.
            Err(LearnError::Log(LogError::Conflict { .. })) => {
                tracing::warn!("learning: the policy was moved during stage {}", stage.id);
                let gates = log.generations.get(&id).await?.map(|found| found.gates);
                let rejected = Some(GenerationState::Rejected);
                stage
                    .lease
                    .record_gates(&id, &gates.unwrap_or_default(), rejected)
                    .await?;
                stage.advance(StageEvent::PolicyMoved).await
            }
            promoted => promoted,
        }
    }
}
