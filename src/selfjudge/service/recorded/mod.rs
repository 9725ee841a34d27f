//! Recording as a layer around service calls: a call is handed over with its origin and the requested consent, and its answer comes back
//! with the ids of its records.
//!
//! A record is a draft while the call is answered, and is committed before the answer names it. If the reader of a stream disconnects,
//! the tokens so far are recorded.

mod consent;
mod draft;
mod generate;
mod origin;
mod policy;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub use consent::{ConsentRequest, OnLogFailure, Permitted, TrafficConfig};
pub use generate::{
    Answer, GenerateCall, PromptTask, Recordable, RecordedCall, RecordedGeneration, StreamEnd,
};
pub use origin::{CallName, CallOrigin, Caller};

use super::Service;
use crate::call::CallError;
use crate::judging::{JudgeTask, Judged, Tournament, TournamentTask};
use draft::RecordDraft;
use judge::PairVerdict;
use policy::RecordPolicy;
use telemetry::LogMetrics;
use traffic_log::RecordId;

/// A service whose calls are recorded in the traffic log, as far as consent permits.
#[derive(Clone)]
pub struct RecordedService {
    service: Service,
    traffic: Arc<TrafficConfig>,
    metrics: LogMetrics,
    /// Lets one call at a time try a log whose last commit failed.
    log_probe: Arc<Semaphore>,
}

/// An answer and the records of its call.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<T> {
    pub result: T,
    pub records: CallRecords,
}

/// The records of a call after the commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallRecords {
    /// One record per prompt, in order.
    pub ids: Vec<RecordId>,
    /// Whether a record is missing that should have been committed, or that the caller requested without permission.
    pub missing: bool,
}

impl RecordedService {
    pub fn new(service: Service, traffic: TrafficConfig, metrics: LogMetrics) -> Self {
        Self {
            service,
            traffic: Arc::new(traffic),
            metrics,
            log_probe: Arc::new(Semaphore::new(1)),
        }
    }

    /// Returns the settings of recording.
    pub fn traffic(&self) -> &TrafficConfig {
        &self.traffic
    }

    fn service(&self) -> &Service {
        &self.service
    }

    fn metrics(&self) -> &LogMetrics {
        &self.metrics
    }

    fn log_probe(&self) -> Arc<Semaphore> {
        Arc::clone(&self.log_probe)
    }

    /// Judges the pair of `candidates` and records the verdict.
    ///
    /// # Errors
    /// Errors as [`ModelJudge::judge_pair`](crate::judging::ModelJudge::judge_pair) does, and if the call requests a record that is not possible.
    pub async fn judge_pair(
        &self,
        origin: CallOrigin,
        consent: Option<ConsentRequest>,
        task: JudgeTask,
        candidates: [&String; 2],
    ) -> Result<Recorded<Judged<PairVerdict>>, CallError> {
        let (policy, task, mut draft) = self.begin_judging(origin, consent, task).await?;
        let [a, b] = candidates;
        let judged = self.service.judge().judge_pair(&task, a, b).await?;
        draft.candidates(candidates);
        let verdict = (0, 1, &judged.result);
        draft.verdicts(&task, judged.weights.as_ref(), [verdict].into_iter());
        Ok(Recorded {
            result: judged,
            records: policy.commit(vec![draft]).await?,
        })
    }

    /// Holds a tournament and records its verdicts.
    ///
    /// # Errors
    /// Errors as [`ModelJudge::hold_tournament`](crate::judging::ModelJudge::hold_tournament) does, and if the call requests a record that is not possible.
    pub async fn hold_tournament(
        &self,
        origin: CallOrigin,
        consent: Option<ConsentRequest>,
        task: JudgeTask,
        how: TournamentTask,
        candidates: &[String],
    ) -> Result<Recorded<Judged<Tournament>>, CallError> {
        let (policy, task, mut draft) = self.begin_judging(origin, consent, task).await?;
        let held = self.service.judge().hold_tournament(&task, how, candidates);
        let judged = held.await?;
        draft.candidates(candidates);
        draft.tournament(&task, judged.weights.as_ref(), &judged.result);
        Ok(Recorded {
            result: judged,
            records: policy.commit(vec![draft]).await?,
        })
    }

    async fn begin_judging(
        &self,
        origin: CallOrigin,
        consent: Option<ConsentRequest>,
        task: JudgeTask,
    ) -> Result<(RecordPolicy, JudgeTask, RecordDraft), CallError> {
        let policy = self.policy(origin, consent).await?;
        let task = JudgeTask {
            turn: policy.turn(task.turn),
            ..task
        };
        let draft = policy.draft_of_judging(&task.context);
        Ok((policy, task, draft))
    }
}
