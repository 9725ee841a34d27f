//! Summary of what earlier processes learned, read from the log.

use std::collections::BTreeMap;

use super::LearnError;
use super::gate::GateResult;
use super::judging::Dropped;
use super::learner::Learner;
use super::record::UpdateNumbers;
use super::stage::StageState;
use traffic_log::{GenerationId, Stage, StageOutcome};

/// A summary of the log's stages.
#[derive(Debug, Default, PartialEq)]
pub struct Past {
    /// The newest stage, with its updates so far and as planned.
    pub stage: i64,
    pub update: u64,
    pub planned: u64,
    /// Updates of all stages.
    pub updates: u64,
    pub pairs: u64,
    pub dropped: BTreeMap<&'static str, u64>,
    pub outcomes: BTreeMap<&'static str, u64>,
    pub last_outcome: Option<StageOutcome>,
    /// The numbers of the newest update.
    pub last_update: Option<UpdateNumbers>,
    /// The newest candidate, with its gate results.
    pub candidate: Option<String>,
    pub gates: Vec<GateResult>,
}

impl Past {
    /// Summarises stages, the newest first. A stage written by another version of the program is counted without its numbers.
    fn of(stages: &[Stage]) -> Self {
        let mut past = Self::default();
        if let Some(newest) = stages.first() {
            past.stage = newest.id.0;
        }
        for (at, stage) in stages.iter().enumerate() {
            if let Some(outcome) = stage.outcome {
                *past.outcomes.entry(outcome.as_str()).or_default() += 1;
                past.last_outcome = past.last_outcome.or(Some(outcome));
            }
            let Ok(state) = serde_json::from_value::<StageState>(stage.state.clone()) else {
                continue;
            };
            past.updates += state.recorded;
            past.pairs += state.pairs;
            for why in Dropped::ALL {
                let dropped = state.dropped.get(why.name()).copied().unwrap_or(0);
                *past.dropped.entry(why.name()).or_default() += dropped;
            }
            if at == 0 {
                (past.update, past.planned) = (state.recorded, state.planned());
            }
            past.last_update = past.last_update.or(state.last_update);
            past.candidate = past.candidate.or(state.candidate);
        }
        past
    }
}

impl Learner {
    /// Restores the summary of this log into the status, if this process has learned nothing yet.
    pub(super) async fn remember(&self) {
        if !self.control.is_new() {
            return;
        }
        match self.past().await {
            Ok(past) => self.control.restore(&past),
            Err(error) => tracing::warn!("learning: the stages of before cannot be shown: {error}"),
        }
    }

    async fn past(&self) -> Result<Past, LearnError> {
        let mut past = Past::of(&self.log.stages().await?);
        if let Some(candidate) = &past.candidate {
            let found = self
                .log
                .generation(&GenerationId::new(candidate.as_str()))
                .await?;
            let gates = found.map(|generation| generation.gates).unwrap_or_default();
            past.gates = serde_json::from_value(gates).unwrap_or_default();
        }
        Ok(past)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::learn::LearnConfig;
    use traffic_log::{Pointers, StageId};

    fn pointers() -> Pointers {
        let base = || GenerationId::new("base");
        Pointers {
            policy: base(),
            train: base(),
            reference: base(),
            judge: base(),
            canary: base(),
        }
    }

    fn stage(
        id: i64,
        outcome: Option<StageOutcome>,
        change: impl FnOnce(&mut StageState),
    ) -> Stage {
        let mut state = StageState::new(
            LearnConfig::default(),
            &pointers(),
            Vec::new(),
            (Vec::new(), 0),
            Vec::new(),
        );
        change(&mut state);
        Stage {
            id: StageId(id),
            epoch: 1,
            reference: GenerationId::new("base"),
            state: serde_json::to_value(state).unwrap(),
            outcome,
            rows: 0,
            opened_at: 0,
            closed_at: None,
        }
    }

    #[test]
    fn stages_are_summed_up_and_the_newest_is_shown() {
        let newest = stage(3, None, |state| {
            state.recorded = 2;
            state.pairs = 20;
            state.dropped.insert("margin".into(), 4);
        });
        let before = stage(2, Some(StageOutcome::Promoted), |state| {
            state.recorded = 24;
            state.pairs = 300;
            state.dropped.insert("margin".into(), 5);
            state.candidate = Some("abc".into());
        });
        let first = stage(1, Some(StageOutcome::Rejected), |state| {
            state.candidate = Some("old".into());
        });
        let mut foreign = stage(0, Some(StageOutcome::Failed), |_| {});
        foreign.state = json!({"another": "version"});
        let past = Past::of(&[newest, before, first, foreign]);
        assert_eq!((past.stage, past.update), (3, 2));
        assert_eq!((past.updates, past.pairs), (26, 320));
        assert_eq!(past.dropped["margin"], 9);
        assert_eq!(past.last_outcome, Some(StageOutcome::Promoted));
        assert_eq!(past.candidate.as_deref(), Some("abc"));
        let outcomes = [("failed", 1), ("promoted", 1), ("rejected", 1)];
        assert_eq!(past.outcomes, outcomes.into());
        assert_eq!(Past::of(&[]), Past::default());
    }
}
