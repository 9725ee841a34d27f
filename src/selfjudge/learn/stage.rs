//! A stage: prompts that no other stage uses, cut into updates. Its state has everything that a restarted trainer needs to continue.
//!
//! sDPO (arXiv 2403.19270): the data come in parts, the easy ones first (`pool`); each part starts from the last promoted policy and
//! uses it as the reference.
//!
//! The state has a version. A stage of a later version, or one that cannot be read, is neither continued nor closed: the learner waits
//! until the program that opened it has ended it or an operator abandons it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::base::Bases;
use super::config::LearnConfig;
use super::phase::Phase;
use super::record::UpdateNumbers;
use judge::WeightedPrinciple;
use traffic_log::{Pointers, RecordId, Stage};

/// The version of the state that this program saves. In version 1, which has no version field, one object has the plan and the progress,
/// and the phase follows from them.
pub const VERSION: u32 = 2;

/// The part of a stage's state that is settled before its first update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    #[serde(default = "first_version")]
    pub version: u32,
    /// The settings when the stage was opened; changes to the file take effect with the next stage.
    pub config: LearnConfig,
    /// Digest of the base weights; none if an early version of the program opened it.
    #[serde(default)]
    pub base: Option<String>,
    /// Digest of the tokenizer of its prompts; none if an early version of the program opened it.
    #[serde(default)]
    pub tokenizer: Option<String>,
    /// The policy pointer when the stage was opened. Its candidate may replace only this policy.
    pub policy: String,
    /// The version from which its updates start.
    pub train: String,
    /// The reference policy of its loss.
    pub reference: String,
    pub judge: String,
    /// The principles by which its pairs are judged; empty means the template's default.
    pub principles: Vec<WeightedPrinciple>,
    /// Its prompts in the order of use; in the phase [`Phase::Pooling`], the pool from which they are taken.
    pub rows: Vec<RecordId>,
    /// How many rows at the start of the pool were left over by an earlier stage.
    #[serde(default)]
    pub carried: usize,
    /// Rows left over from its pool for the next stages, in order.
    #[serde(default)]
    pub left: Vec<RecordId>,
    /// Callers' feedback to be mixed with the fresh pairs.
    #[serde(default)]
    pub feedback: Vec<FeedbackRow>,
    /// Whether the judge must agree with the feedback.
    #[serde(default)]
    pub corroborate: bool,
    /// Held-out prompts on which the candidate is compared with the live policy.
    pub gate_rows: Vec<RecordId>,
}

/// The part of a stage's state that its updates change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StageProgress {
    pub phase: Phase,
    /// Updates whose samples, verdicts and pairs are in the log.
    pub recorded: u64,
    /// Pairs of these updates.
    pub pairs: u64,
    /// Prompts that made no pair in these updates, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The numbers of the last of these updates.
    pub last_update: Option<UpdateNumbers>,
    /// See [`super::gate::Measurements::step_zero`].
    pub step_zero: Option<f64>,
    /// The reason why it ended before its last planned update.
    pub stopped: Option<String>,
    /// The id of the generation that it produced.
    pub candidate: Option<String>,
}

/// A caller's preference, as indices into the record's samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackRow {
    pub record: RecordId,
    pub chosen: usize,
    pub rejected: usize,
    /// Whether anything in the record was redacted when the stage began; texts without tokens are then not trained on. Redaction of what
    /// the stage itself adds to the record must not change the behaviour of a restarted stage.
    pub redacted: bool,
}

fn first_version() -> u32 {
    1
}

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

impl StagePlan {
    /// Creates the plan of a new stage. `pool` holds its candidate prompts, and how many of them an earlier stage left over.
    pub fn new(
        config: LearnConfig,
        pointers: &Pointers,
        principles: Vec<WeightedPrinciple>,
        (pool, carried): (Vec<RecordId>, usize),
        gate_rows: Vec<RecordId>,
    ) -> Self {
        Self {
            version: VERSION,
            base: None,
            tokenizer: None,
            policy: pointers.policy.to_string(),
            train: pointers.train.to_string(),
            reference: pointers.reference.to_string(),
            judge: pointers.judge.to_string(),
            principles,
            rows: pool,
            carried,
            left: Vec::new(),
            feedback: Vec::new(),
            corroborate: false,
            gate_rows,
            config,
        }
    }

    /// Returns whether the stage was opened on this model; `owns_unnamed` is the answer for stages that name no model.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn is_of(&self, bases: &Bases, owns_unnamed: bool) -> Result<bool, LearnError> {
        Ok(match (&self.base, &self.tokenizer) {
            (Some(base), Some(tokenizer)) => {
                base == bases.base()? && tokenizer == bases.tokenizer()
            }
            _ => owns_unnamed,
        })
    }

    /// Returns the number of prompts drawn for one update; active selection draws more than it uses.
    fn drawn(&self) -> usize {
        self.config.stage.batch * self.config.active.oversample.max(1)
    }

    /// Returns the planned number of updates.
    pub fn planned(&self) -> u64 {
        self.rows.len().div_ceil(self.drawn()) as u64
    }

    /// Returns the prompts of one update, each with its position in the stage.
    pub fn batch(&self, update: u64) -> impl Iterator<Item = (u64, &RecordId)> {
        let start = usize::try_from(update)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.drawn());
        let rows = self.rows.iter().enumerate().skip(start).take(self.drawn());
        rows.map(|(place, id)| (place as u64, id))
    }

    /// Returns the feedback of one update: the stage's feedback is spread evenly over the planned updates.
    pub fn feedback(&self, update: u64) -> &[FeedbackRow] {
        let planned = self.planned().max(1);
        let place =
            |update: u64| self.feedback.len() * update.min(planned) as usize / planned as usize;
        &self.feedback[place(update)..place(update + 1)]
    }
}

impl StageProgress {
    /// Returns whether `update` is past the end of the stage. A stop is saved with the update that caused it, and a checkpoint may be
    /// older: recorded updates are made again.
    pub fn is_over(&self, plan: &StagePlan, update: u64) -> bool {
        update >= plan.planned() || (self.stopped.is_some() && update >= self.recorded)
    }
}

/// Returns how many pairs must join `fresh` ones to be `share` of the total.
pub fn joining(fresh: usize, share: f64) -> usize {
    (fresh as f64 * share / (1.0 - share)).round() as usize
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use traffic_log::{GenerationId, StageId};

    fn plan(prompts: usize, batch: usize, oversample: usize) -> StagePlan {
        let mut config = LearnConfig::default();
        config.stage.batch = batch;
        config.active.oversample = oversample;
        let base = GenerationId::base;
        let pointers = Pointers {
            policy: base(),
            train: base(),
            reference: base(),
            judge: base(),
            canary: base(),
        };
        let id = |n: usize| RecordId::parse(&format!("{n:026}")).unwrap();
        StagePlan::new(
            config,
            &pointers,
            Vec::new(),
            ((0..prompts).map(id).collect(), 0),
            Vec::new(),
        )
    }

    #[test]
    fn updates_cover_the_stage_once() {
        for (prompts, batch, oversample, planned) in
            [(10, 4, 0, 3), (8, 4, 1, 2), (9, 2, 2, 3), (1, 4, 0, 1)]
        {
            let plan = plan(prompts, batch, oversample);
            assert_eq!(plan.planned(), planned);
            let all: Vec<u64> = (0..planned)
                .flat_map(|update| {
                    plan.batch(update)
                        .map(|(place, _)| place)
                        .collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(all, (0..prompts as u64).collect::<Vec<_>>());
            assert_eq!(plan.batch(planned).count(), 0);
        }
    }

    #[test]
    fn a_stopped_stage_makes_again_what_it_recorded() {
        let plan = plan(10, 2, 0);
        let mut progress = StageProgress {
            recorded: 3,
            ..StageProgress::default()
        };
        assert!(!progress.is_over(&plan, 3) && progress.is_over(&plan, 5));
        progress.stopped = Some("the KL budget is used up".to_owned());
        // From a checkpoint before the update that caused the stop.
        assert!(!progress.is_over(&plan, 2));
        assert!(progress.is_over(&plan, 3));
    }

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
            let said = error.to_string();
            assert!(
                said.contains(named) && said.contains("/train/abandon"),
                "{said}"
            );
        }
    }

    #[test]
    fn an_update_saves_less_than_a_tenth_of_the_state() {
        let prompts = LearnConfig::default().stage.prompts;
        let mut plan = plan(prompts, 32, 0);
        plan.left = plan.rows.clone();
        plan.gate_rows = plan.rows.clone();
        let dropped =
            crate::learn::judging::Dropped::ALL.map(|why| (why.name().to_owned(), 1 << 20));
        let progress = StageProgress {
            phase: Phase::Training,
            recorded: 1000,
            pairs: 1_000_000,
            dropped: dropped.into(),
            last_update: Some(UpdateNumbers {
                report: Some(train::dpo::StepReport::default()),
                kl: Some(1.0 / 3.0),
                staleness: Default::default(),
                accepted: 32,
                dropped: 32,
            }),
            step_zero: Some(1.0 / 3.0),
            stopped: Some("the KL budget is used up: 40.00 nats".to_owned()),
            candidate: Some("0".repeat(64)),
        };
        let bytes = |value: &Value| serde_json::to_vec(value).unwrap().len();
        let whole = bytes(&serde_json::to_value(&plan).unwrap());
        let changed = bytes(&serde_json::to_value(&progress).unwrap());
        assert!(
            whole > 20_000 && 10 * changed < whole + changed,
            "{changed} of {whole}"
        );
    }

    #[test]
    fn a_stage_goes_on_only_on_its_own_model() {
        let model = Bases::known("weights", "tokenizer");
        let mut stage = plan(5, 2, 0);
        assert!(stage.is_of(&model, true).unwrap() && !stage.is_of(&model, false).unwrap());
        stage.base = Some("weights".to_owned());
        stage.tokenizer = Some("tokenizer".to_owned());
        assert!(stage.is_of(&model, false).unwrap());
        for other in [
            Bases::known("others", "tokenizer"),
            Bases::known("weights", "another"),
        ] {
            assert!(!stage.is_of(&other, true).unwrap());
        }
    }

    #[test]
    fn feedback_is_spread_over_the_updates_and_used_once() {
        for (rows, updates) in [(0, 3), (1, 3), (7, 3), (3, 3), (2, 5)] {
            let mut plan = plan(4 * updates, 4, 0);
            let row = |n: usize| FeedbackRow {
                record: RecordId::parse(&format!("{n:026}")).unwrap(),
                chosen: 1,
                rejected: 0,
                redacted: false,
            };
            plan.feedback = (0..rows).map(row).collect();
            let parts: Vec<_> = (0..updates as u64).map(|u| plan.feedback(u)).collect();
            assert_eq!(parts.concat(), plan.feedback);
            let most = rows.div_ceil(updates);
            assert!(
                parts.iter().all(|part| part.len() <= most),
                "{rows} over {updates}"
            );
            assert!(plan.feedback(updates as u64).is_empty());
        }
        assert_eq!(
            (joining(9, 0.1), joining(8, 0.1), joining(8, 0.0)),
            (1, 1, 0)
        );
    }
}
