//! A stage: prompts that no other stage uses, cut into updates. Its state has everything that a restarted trainer needs to continue.
//!
//! sDPO (arXiv 2403.19270): the data come in parts, the easy ones first (`pool`); each part starts from the last promoted policy and
//! uses it as the reference.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::base::Bases;
use super::config::LearnConfig;
use super::record::UpdateNumbers;
use judge::WeightedPrinciple;
use traffic_log::{Pointers, RecordId};

/// The state of a stage as saved in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageState {
    /// The settings when the stage was opened; changes to the file take effect with the next stage.
    pub config: LearnConfig,
    /// Digest of the base weights; none if an earlier version of the program opened it.
    #[serde(default)]
    pub base: Option<String>,
    /// Digest of the tokenizer of its prompts; none if an earlier version of the program opened it.
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
    /// Its prompts in the order of use; until they are `ordered`, the pool from which they are taken.
    pub rows: Vec<RecordId>,
    /// How many rows at the start of the pool were left over by an earlier stage.
    #[serde(default)]
    pub carried: usize,
    pub ordered: bool,
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
    /// Updates whose samples, verdicts and pairs are in the log.
    pub recorded: u64,
    /// Pairs of these updates.
    pub pairs: u64,
    /// Prompts that made no pair in these updates, by reason.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
    /// The numbers of the last of these updates.
    #[serde(default)]
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

impl StageState {
    /// Creates the state of a new stage. `pool` holds its candidate prompts, and how many of them an earlier stage left over.
    pub fn new(
        config: LearnConfig,
        pointers: &Pointers,
        principles: Vec<WeightedPrinciple>,
        (pool, carried): (Vec<RecordId>, usize),
        gate_rows: Vec<RecordId>,
    ) -> Self {
        Self {
            base: None,
            tokenizer: None,
            ordered: false,
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
            recorded: 0,
            pairs: 0,
            dropped: BTreeMap::new(),
            last_update: None,
            step_zero: None,
            stopped: None,
            candidate: None,
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

    /// Returns whether `update` is past the end of the stage. A stop is saved with the update that caused it, and a checkpoint may be
    /// older: recorded updates are made again.
    pub fn is_over(&self, update: u64) -> bool {
        update >= self.planned() || (self.stopped.is_some() && update >= self.recorded)
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

/// Returns how many pairs must join `fresh` ones to be `share` of the total.
pub fn joining(fresh: usize, share: f64) -> usize {
    (fresh as f64 * share / (1.0 - share)).round() as usize
}

/// The purpose of a random draw. Each purpose has its own stream, so that a stage does not reuse the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    Order,
    Update,
    Contrast,
    Gate,
    Replay,
    /// The offset of a stage among the held-out rows.
    Turn,
}

/// Returns a seed that depends only on the settings, the stage and the prompt's position (MurmurHash3's finaliser, applied twice).
pub fn seed(config: u64, stage: i64, draw: Draw, place: u64) -> u64 {
    let stream = mix(config ^ mix(stage as u64 ^ ((draw as u64) << 56)));
    of_stream(stream, place)
}

/// Returns a seed of another stream for the same prompt: answers that are compared must not be sampled with the same numbers.
pub fn another_seed(seed: u64, stream: u64) -> u64 {
    of_stream(mix(seed), stream)
}

fn of_stream(stream: u64, place: u64) -> u64 {
    // JSON numbers are exact up to 2^53, and both clients' and these seeds appear in JSON.
    mix(stream ^ mix(place.wrapping_add(0x9e37_79b9_7f4a_7c15))) >> 11
}

fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use traffic_log::GenerationId;

    fn state(prompts: usize, batch: usize, oversample: usize) -> StageState {
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
        StageState::new(
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
            let state = state(prompts, batch, oversample);
            assert_eq!(state.planned(), planned);
            let all: Vec<u64> = (0..planned)
                .flat_map(|update| {
                    state
                        .batch(update)
                        .map(|(place, _)| place)
                        .collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(all, (0..prompts as u64).collect::<Vec<_>>());
            assert_eq!(state.batch(planned).count(), 0);
        }
    }

    #[test]
    fn a_stopped_stage_makes_again_what_it_recorded() {
        let mut state = state(10, 2, 0);
        state.recorded = 3;
        assert!(!state.is_over(3) && state.is_over(5));
        state.stopped = Some("the KL budget is used up".to_owned());
        // From a checkpoint before the update that caused the stop.
        assert!(!state.is_over(2));
        assert!(state.is_over(3));
    }

    #[test]
    fn a_saved_state_is_the_state() {
        let state = state(5, 2, 0);
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(
            serde_json::from_value::<StageState>(json.clone()).unwrap(),
            state
        );
        // A stage opened by a version without pools and feedback continues.
        let mut older = json;
        for field in [
            "carried",
            "left",
            "feedback",
            "corroborate",
            "base",
            "tokenizer",
        ] {
            older.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(serde_json::from_value::<StageState>(older).unwrap(), state);
    }

    #[test]
    fn a_stage_goes_on_only_on_its_own_model() {
        let model = Bases::known("weights", "tokenizer");
        let mut stage = state(5, 2, 0);
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
            let mut state = state(4 * updates, 4, 0);
            let row = |n: usize| FeedbackRow {
                record: RecordId::parse(&format!("{n:026}")).unwrap(),
                chosen: 1,
                rejected: 0,
                redacted: false,
            };
            state.feedback = (0..rows).map(row).collect();
            let parts: Vec<_> = (0..updates as u64).map(|u| state.feedback(u)).collect();
            assert_eq!(parts.concat(), state.feedback);
            let most = rows.div_ceil(updates);
            assert!(
                parts.iter().all(|part| part.len() <= most),
                "{rows} over {updates}"
            );
            assert!(state.feedback(updates as u64).is_empty());
        }
        assert_eq!(
            (joining(9, 0.1), joining(8, 0.1), joining(8, 0.0)),
            (1, 1, 0)
        );
    }

    #[test]
    fn seeds_differ_by_all_they_depend_on() {
        let mut seen = HashSet::new();
        for stage in 0..4 {
            for draw in [
                Draw::Order,
                Draw::Update,
                Draw::Contrast,
                Draw::Gate,
                Draw::Replay,
                Draw::Turn,
            ] {
                for place in 0..200 {
                    assert!(seen.insert(seed(0, stage, draw, place)));
                }
            }
        }
        assert_eq!(seed(1, 2, Draw::Gate, 3), seed(1, 2, Draw::Gate, 3));
        for stream in 1..3 {
            for of in 0..200 {
                assert!(seen.insert(another_seed(seed(0, 1, Draw::Update, of), stream)));
            }
        }
        assert!(seen.iter().all(|seed| *seed < 1 << 53));
    }
}
