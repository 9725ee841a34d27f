//! Reads the saved state of a stage.
//!
//! The state has a version. A stage of a later version, or one that cannot be read, is neither continued nor closed: the learner waits
//! until the program that opened it has ended it or an operator abandons it.

use serde::Deserialize;

use super::LearnError;
use super::phase::Phase;
use super::stage::{StagePlan, StageProgress, VERSION, first_version};
use traffic_log::Stage;

/// The fields of version 1 that tell the phase.
#[derive(Deserialize)]
struct FirstVersion {
    ordered: bool,
    candidate: Option<String>,
}

impl FirstVersion {
    fn phase(&self) -> Phase {
        match (self.ordered, &self.candidate) {
            (false, _) => Phase::Pooling,
            (true, None) => Phase::Training,
            (true, Some(_)) => Phase::Gating,
        }
    }
}

/// Reads the state of a stage; a state of version 1 becomes one of this version.
///
/// # Errors
/// Fails with [`LearnError::OtherVersion`] if another version of the program wrote it.
pub fn read_state(stage: &Stage) -> Result<(StagePlan, StageProgress), LearnError> {
    let other = |detail: String| LearnError::OtherVersion {
        stage: stage.id.0,
        detail,
    };
    let version = &stage.state["version"];
    if version.as_u64().is_some_and(|found| found > VERSION.into()) {
        return Err(other(format!(
            "its state has version {version}, and this program reads versions up to {VERSION}"
        )));
    }
    let unreadable = |error: serde_json::Error| other(error.to_string());
    let mut plan: StagePlan = serde_json::from_value(stage.state.clone()).map_err(unreadable)?;
    let mut progress: StageProgress =
        serde_json::from_value(stage.progress.clone()).map_err(unreadable)?;
    if plan.version == first_version() {
        let first: FirstVersion =
            serde_json::from_value(stage.state.clone()).map_err(unreadable)?;
        progress.phase = first.phase();
        plan.version = VERSION;
    }
    Ok((plan, progress))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::stage::tests::plan;
    use super::*;
    use traffic_log::{GenerationId, StageId};

    fn stored(state: Value, progress: Value) -> Stage {
        Stage {
            id: StageId(7),
            epoch: 1,
            reference: GenerationId::base(),
            state,
            progress,
            outcome: None,
            rows: 0,
            opened_at: 0,
            closed_at: None,
        }
    }

    #[test]
    fn a_saved_state_is_the_state() {
        let plan = plan(5, 2, 0);
        let progress = StageProgress {
            phase: Phase::Training,
            recorded: 2,
            ..StageProgress::default()
        };
        let saved = serde_json::to_value(&plan).unwrap();
        let stage = stored(saved.clone(), serde_json::to_value(&progress).unwrap());
        assert_eq!(read_state(&stage).unwrap(), (plan.clone(), progress));
        // A stage that was opened and has saved nothing since.
        let stage = stored(saved.clone(), saved);
        let (_, progress) = read_state(&stage).unwrap();
        assert_eq!((progress.phase, progress.recorded), (Phase::Pooling, 0));
    }

    #[test]
    fn a_stage_of_version_one_continues_in_the_phase_that_its_fields_tell() {
        let plan = plan(5, 2, 0);
        let mut first = serde_json::to_value(&plan).unwrap();
        // The first versions had neither pools, nor feedback, nor the model's digests.
        for field in [
            "version",
            "carried",
            "left",
            "feedback",
            "corroborate",
            "base",
            "tokenizer",
        ] {
            first.as_object_mut().unwrap().remove(field);
        }
        for (field, value) in [
            ("recorded", json!(1)),
            ("pairs", json!(9)),
            ("step_zero", Value::Null),
            ("stopped", json!("the KL budget is used up")),
        ] {
            first[field] = value;
        }
        for (ordered, candidate, phase) in [
            (false, None, Phase::Pooling),
            (true, None, Phase::Training),
            (true, Some("abc"), Phase::Gating),
        ] {
            first["ordered"] = json!(ordered);
            first["candidate"] = json!(candidate);
            let (read, progress) = read_state(&stored(first.clone(), first.clone())).unwrap();
            assert_eq!(read, plan);
            assert_eq!(progress.phase, phase);
            assert_eq!((progress.recorded, progress.pairs), (1, 9));
            assert_eq!(progress.candidate.as_deref(), candidate);
            assert!(progress.stopped.is_some());
        }
    }

    #[test]
    fn a_stage_of_another_version_is_not_continued() {
        let plan = serde_json::to_value(plan(5, 2, 0)).unwrap();
        let with = |field: &str, value: Value| {
            let mut state = plan.clone();
            state[field] = value;
            state
        };
        for (state, named) in [
            (with("version", json!(VERSION + 1)), "version 3"),
            (with("config", json!({"unknown": 1})), "unknown"),
            (json!({"made": "by another version"}), "config"),
        ] {
            let error = read_state(&stored(state.clone(), state)).unwrap_err();
            assert!(
                matches!(error, LearnError::OtherVersion { stage: 7, .. }),
                "{error}"
            );
            let message = error.to_string();
            assert!(
                message.contains(named) && message.contains("/train/abandon"),
                "{message}"
            );
        }
    }
}
