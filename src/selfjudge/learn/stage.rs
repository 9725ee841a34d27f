//! A stage: prompts that no other stage uses, cut into updates. Its state has everything that a restarted trainer needs to continue.
//!
//! sDPO (arXiv 2403.19270): the data come in parts, the easy ones first (`pool`); each part starts from the last promoted policy and
//! uses it as the reference.
//! [`super::stage_state`] reads the state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::base::Bases;
use super::config::LearnConfig;
use super::phase::Phase;
use super::record::UpdateNumbers;
use judge::WeightedPrinciple;
use traffic_log::{Pointers, RecordId};

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

pub(super) fn first_version() -> u32 {
    1
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
pub fn pairs_to_add(fresh: usize, share: f64) -> usize {
    (fresh as f64 * share / (1.0 - share)).round() as usize
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;
    use traffic_log::GenerationId;

    pub fn plan(prompts: usize, batch: usize, oversample: usize) -> StagePlan {
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

    #[test]
    fn an_update_saves_less_than_a_tenth_of_the_state() {
        let prompts = LearnConfig::default().stage.prompts;
        let mut plan = plan(prompts, 32, 0);
        plan.left = plan.rows.clone();
        plan.gate_rows = plan.rows.clone();
        let dropped = crate::learn::pairs::Dropped::ALL.map(|why| (why.name().to_owned(), 1 << 20));
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
            (
                pairs_to_add(9, 0.1),
                pairs_to_add(8, 0.1),
                pairs_to_add(8, 0.0)
            ),
            (1, 1, 0)
        );
    }
}
