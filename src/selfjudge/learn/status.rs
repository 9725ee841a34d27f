//! The status of learning for `GET /train` and the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::gate::GateResult;
use super::pairs::Dropped;
use super::past::Past;
use super::record::UpdateNumbers;
use super::staleness::Staleness;
use super::waiting::{Waiting, WaitingReason};
use telemetry::LearnMetrics;
use traffic_log::{LearningSwitch, StageOutcome};
use train::dpo::StepReport;

/// What the learner does at present. The phases of a stage are in [`super::phase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnState {
    /// Another process trains on this log.
    Standby,
    /// The log has too few prompts for a stage.
    Waiting,
    Paused,
    Sampling,
    Judging,
    Updating,
    /// A candidate is evaluated.
    Gating,
    /// Something failed; it is retried.
    Failed,
}

impl LearnState {
    pub const ALL: [Self; 8] = [
        Self::Standby,
        Self::Waiting,
        Self::Paused,
        Self::Sampling,
        Self::Judging,
        Self::Updating,
        Self::Gating,
        Self::Failed,
    ];

    /// Returns the name used in `GET /train` and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Sampling => "sampling",
            Self::Judging => "judging",
            Self::Updating => "updating",
            Self::Gating => "gating",
            Self::Failed => "failed",
        }
    }
}

/// A stage that was abandoned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AbandonedStageBody)]
pub struct AbandonedStage {
    /// Number of the stage.
    pub stage: i64,
    /// Why it was abandoned.
    pub reason: String,
}

/// A snapshot of the learner's status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearnStatus {
    pub state: LearnState,
    /// Whether learning is paused, or will be after the current update.
    pub paused: bool,
    /// The number of the running stage, or of the last one.
    pub stage: i64,
    /// Updates of the running stage so far.
    pub update: u64,
    /// Planned updates of the stage.
    pub planned: u64,
    /// Prompts that wait for a stage, and how many it needs.
    pub prompts_waiting: u64,
    pub prompts_needed: u64,
    /// Updates of all stages in the log.
    pub updates: u64,
    pub pairs: u64,
    pub dropped: BTreeMap<&'static str, u64>,
    /// Stages that passed their gates since an operator last resumed learning.
    pub unattended: u64,
    pub last_update: Option<StepReport>,
    /// Staleness of the last update's pairs.
    pub staleness: Option<Staleness>,
    /// Mean KL divergence of an answer of the running stage from generation 0, nats.
    pub kl: Option<f64>,
    pub gates: Vec<GateResult>,
    pub last_outcome: Option<String>,
    /// The last stage that was abandoned since the program started.
    pub abandoned: Option<AbandonedStage>,
    /// Why no stage runs; none while one does.
    pub waiting: Option<Waiting>,
    /// How often the learner died since the program started.
    pub deaths: u64,
    /// Records that are not used because their token ids belong to another tokenizer.
    pub of_other_tokenizers: u64,
    pub error: Option<String>,
    /// Time of the last change, in seconds since 1970.
    pub changed: u64,
}

/// The state shared by the learner and the operator's controls.
#[derive(Debug, Clone)]
pub struct LearnControl {
    status: Arc<Mutex<LearnStatus>>,
    paused: watch::Sender<bool>,
    metrics: LearnMetrics,
}

impl LearnControl {
    pub fn new(metrics: LearnMetrics) -> Self {
        let status = LearnStatus {
            state: LearnState::Waiting,
            paused: false,
            stage: 0,
            update: 0,
            planned: 0,
            prompts_waiting: 0,
            prompts_needed: 0,
            updates: 0,
            pairs: 0,
            dropped: Dropped::ALL.map(|why| (why.name(), 0)).into(),
            unattended: 0,
            last_update: None,
            staleness: None,
            kl: None,
            gates: Vec::new(),
            last_outcome: None,
            abandoned: None,
            waiting: None,
            deaths: 0,
            of_other_tokenizers: 0,
            error: None,
            changed: 0,
        };
        for why in Dropped::ALL {
            metrics.dropped.with_label_values(&[why.name()]).inc_by(0);
        }
        for outcome in StageOutcome::ALL {
            metrics
                .stages
                .with_label_values(&[outcome.as_str()])
                .inc_by(0);
        }
        Self {
            status: Arc::new(Mutex::new(status)),
            paused: watch::Sender::new(false),
            metrics,
        }
    }

    pub fn status(&self) -> LearnStatus {
        self.lock().clone()
    }

    /// Applies the switch in the log: when paused, learning stops after the current update, and serving continues.
    pub fn follow(&self, switch: LearningSwitch) {
        self.change(|status| {
            status.paused = switch.paused;
            status.unattended = switch.unattended;
        });
        self.paused.send_replace(switch.paused);
    }

    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Returns once learning is resumed in this process.
    pub(super) async fn resumed(&self) {
        // The sender lives as long as self.
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }

    pub(super) fn metrics(&self) -> &LearnMetrics {
        &self.metrics
    }

    /// Enters a state in which a stage runs.
    pub(super) fn enter(&self, state: LearnState) {
        self.change(|status| {
            status.state = state;
            status.waiting = None;
        });
    }

    /// Enters a state in which no stage runs, and records the reason; a new reason is also logged.
    pub(super) fn wait(&self, state: LearnState, waiting: Waiting) {
        let news = self
            .status()
            .waiting
            .is_none_or(|before| before.reason != waiting.reason);
        if news && state == LearnState::Waiting {
            tracing::info!("learning waits: {}", waiting.message);
        }
        if news && state == LearnState::Standby {
            tracing::info!("learning stands by: {}", waiting.message);
        }
        self.change(|status| {
            status.state = state;
            status.waiting = Some(waiting);
        });
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut LearnStatus)) {
        let mut status = self.lock();
        change(&mut status);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        status.changed = since.map_or(0, |since| since.as_secs());
        for state in LearnState::ALL {
            let shown = self.metrics.state.with_label_values(&[state.name()]);
            shown.set((state == status.state).into());
        }
        for reason in WaitingReason::ALL {
            let now = status.waiting.as_ref();
            let now = now.is_some_and(|waiting| waiting.reason == reason);
            let shown = self.metrics.waiting.with_label_values(&[reason.name()]);
            shown.set(now.into());
        }
        let levels = [
            (
                &self.metrics.of_other_tokenizers,
                level(status.of_other_tokenizers),
            ),
            (&self.metrics.stage, status.stage),
            (&self.metrics.paused, status.paused.into()),
            (&self.metrics.unattended, level(status.unattended)),
            (&self.metrics.prompts_waiting, level(status.prompts_waiting)),
        ];
        for (gauge, value) in levels {
            gauge.set(value);
        }
    }

    /// Counts a stage that ended.
    pub(super) fn ended(&self, outcome: StageOutcome) {
        self.metrics
            .stages
            .with_label_values(&[outcome.as_str()])
            .inc();
        self.change(|status| status.last_outcome = Some(outcome.to_string()));
    }

    /// Shows the reason for which a stage was abandoned.
    pub(super) fn show_abandoned(&self, stage: i64, reason: String) {
        self.change(|status| status.abandoned = Some(AbandonedStage { stage, reason }));
    }

    /// Returns whether nothing has been learned or restored since the program started.
    pub(super) fn is_new(&self) -> bool {
        let status = self.lock();
        status.stage == 0 && status.updates == 0 && status.deaths == 0
    }

    /// Takes over the summary of earlier processes, if this one has learned nothing yet.
    pub(super) fn restore(&self, past: &Past) {
        let metrics = &self.metrics;
        for (outcome, stages) in &past.outcomes {
            let counter = metrics.stages.with_label_values(&[*outcome]);
            counter.inc_by(*stages);
        }
        metrics.updates.inc_by(past.updates);
        metrics.pairs.inc_by(past.pairs);
        for (why, pairs) in &past.dropped {
            metrics.dropped.with_label_values(&[*why]).inc_by(*pairs);
        }
        if let Some(last) = &past.last_update {
            last.show(metrics);
        }
        self.show_gates(&past.gates);
        self.change(|status| {
            status.stage = past.stage;
            status.update = past.update;
            status.planned = past.planned;
            status.updates = past.updates;
            status.pairs = past.pairs;
            for (why, pairs) in &past.dropped {
                *status.dropped.entry(why).or_default() = *pairs;
            }
            if let Some(last) = &past.last_update {
                status.last_update = last.report;
                status.kl = last.kl;
                status.staleness = last.report.map(|_| last.staleness);
            }
            status.last_outcome = past.last_outcome.map(|outcome| outcome.to_string());
        });
    }

    /// Exports the results of a candidate's gates.
    pub(super) fn show_gates(&self, gates: &[GateResult]) {
        for gate in gates {
            let of = [&gate.gate];
            let value = gate.value.unwrap_or(f64::NAN);
            self.metrics.gates.with_label_values(&of).set(value);
            let passed = self.metrics.gates_passed.with_label_values(&of);
            passed.set(gate.passed.into());
        }
        self.change(|status| status.gates = gates.to_vec());
    }

    /// Counts an update; `dropped` are the pairs that were not made. An update repeated after a restart is not counted again.
    pub(super) fn updated(
        &self,
        update: u64,
        numbers: &UpdateNumbers,
        dropped: &[Dropped],
        again: bool,
    ) {
        if !again {
            dropped.iter().for_each(|why| self.dropped(*why));
        }
        self.change(|status| {
            status.update = update + 1;
            status.updates += u64::from(!again);
            status.kl = numbers.kl.or(status.kl);
            if let Some(report) = numbers.report {
                status.pairs += if again { 0 } else { report.pairs };
                status.last_update = Some(report);
                status.staleness = Some(numbers.staleness);
            }
        });
    }

    /// Counts a pair that was not made, by reason.
    pub(super) fn dropped(&self, why: Dropped) {
        self.change(|status| *status.dropped.entry(why.name()).or_default() += 1);
        self.metrics.dropped.with_label_values(&[why.name()]).inc();
    }

    /// Locks the status. It is consistent after every change, so a panic in between leaves it usable.
    fn lock(&self) -> MutexGuard<'_, LearnStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Converts a count to a gauge value.
fn level(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::Metrics;

    #[tokio::test]
    async fn pausing_holds_the_learner_until_it_is_resumed() {
        let control = LearnControl::new(Metrics::new("m").learn);
        control.resumed().await;
        control.follow(LearningSwitch {
            paused: true,
            unattended: 3,
        });
        assert!(control.status().paused && control.is_paused());
        assert_eq!(control.metrics.paused.get(), 1);
        assert_eq!(control.status().unattended, 3);
        let held = tokio::spawn({
            let control = control.clone();
            async move { control.resumed().await }
        });
        tokio::task::yield_now().await;
        assert!(!held.is_finished());
        control.follow(LearningSwitch::default());
        held.await.unwrap();
        assert!(!control.status().paused);
    }

    #[test]
    fn a_state_has_one_name() {
        let control = LearnControl::new(Metrics::new("m").learn);
        for state in LearnState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
            control.enter(state);
            let shown =
                |of: LearnState| control.metrics.state.with_label_values(&[of.name()]).get();
            let now: Vec<_> = LearnState::ALL
                .into_iter()
                .filter(|&of| shown(of) == 1)
                .collect();
            assert_eq!(now, [state]);
        }
    }

    #[test]
    fn what_holds_learning_back_is_shown_until_a_stage_runs() {
        let control = LearnControl::new(Metrics::new("m").learn);
        let waiting = Waiting::new(WaitingReason::HeldOut, "3 of 4");
        control.wait(LearnState::Waiting, waiting.clone());
        assert_eq!(control.status().waiting, Some(waiting));
        let shown = |reason: WaitingReason| {
            let gauge = control.metrics.waiting.with_label_values(&[reason.name()]);
            gauge.get()
        };
        assert_eq!(
            (shown(WaitingReason::HeldOut), shown(WaitingReason::Died)),
            (1, 0)
        );
        control.enter(LearnState::Sampling);
        assert_eq!(control.status().waiting, None);
        assert_eq!(shown(WaitingReason::HeldOut), 0);
    }

    #[test]
    fn every_reason_is_shown_even_before_it_happens() {
        let control = LearnControl::new(Metrics::new("m").learn);
        control.dropped(Dropped::Margin);
        let dropped = control.status().dropped;
        assert_eq!(dropped.len(), Dropped::ALL.len());
        assert_eq!(dropped["margin"], 1);
    }
}
