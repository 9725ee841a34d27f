//! Summary of what earlier processes learned, read from the log.

use std::collections::BTreeMap;

use super::LearnError;
use super::gate::GateResult;
use super::pairs::Dropped;
use super::record::UpdateNumbers;
use super::stage::StageProgress;
use super::stage_state::read_state;
use traffic_log::{GenerationId, StageOutcome, StageSummary, TrafficLog};

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
    /// Reads the summary of a log.
    ///
    /// # Errors
    /// Errors from the log.
    pub async fn read(log: &TrafficLog) -> Result<Self, LearnError> {
        let mut past = Self::of(&log.stages.summaries().await?);
        // The plan of a stage of another version cannot be read.
        if let Some(newest) = log.stages.last().await?
            && let Ok((plan, _)) = read_state(&newest)
        {
            past.planned = plan.planned();
        }
        if let Some(candidate) = &past.candidate {
            let id = GenerationId::new(candidate.as_str());
            let found = log.generations.get(&id).await?;
            let gates = found.map(|generation| generation.gates).unwrap_or_default();
            past.gates = serde_json::from_value(gates).unwrap_or_default();
        }
        Ok(past)
    }

    /// Summarises stages, the newest first. A stage whose progress cannot be read is counted without its numbers.
    fn of(stages: &[StageSummary]) -> Self {
        let mut past = Self::default();
        if let Some(newest) = stages.first() {
            past.stage = newest.id.0;
        }
        for (at, stage) in stages.iter().enumerate() {
            if let Some(outcome) = stage.outcome {
                *past.outcomes.entry(outcome.as_str()).or_default() += 1;
                past.last_outcome = past.last_outcome.or(Some(outcome));
            }
            let Ok(progress) = serde_json::from_value::<StageProgress>(stage.progress.clone())
            else {
                continue;
            };
            past.updates += progress.recorded;
            past.pairs += progress.pairs;
            for why in Dropped::ALL {
                let dropped = progress.dropped.get(why.name()).copied().unwrap_or(0);
                *past.dropped.entry(why.name()).or_default() += dropped;
            }
            if at == 0 {
                past.update = progress.recorded;
            }
            past.last_update = past.last_update.or(progress.last_update);
            past.candidate = past.candidate.or(progress.candidate);
        }
        past
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use traffic_log::StageId;

    fn stage(
        id: i64,
        outcome: Option<StageOutcome>,
        change: impl FnOnce(&mut StageProgress),
    ) -> StageSummary {
        let mut progress = StageProgress::default();
        change(&mut progress);
        StageSummary {
            id: StageId(id),
            outcome,
            progress: serde_json::to_value(progress).unwrap(),
        }
    }

    #[test]
    fn stages_are_summed_up_and_the_newest_is_shown() {
        let newest = stage(3, None, |progress| {
            progress.recorded = 2;
            progress.pairs = 20;
            progress.dropped.insert("margin".into(), 4);
        });
        let before = stage(2, Some(StageOutcome::Promoted), |progress| {
            progress.recorded = 24;
            progress.pairs = 300;
            progress.dropped.insert("margin".into(), 5);
            progress.candidate = Some("abc".into());
        });
        let first = stage(1, Some(StageOutcome::Rejected), |progress| {
            progress.candidate = Some("old".into());
        });
        let mut foreign = stage(0, Some(StageOutcome::Failed), |_| {});
        foreign.progress = json!({"recorded": "another version"});
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
