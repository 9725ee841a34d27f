//! The judge's self-test: pairs with a known better answer, each shown in both orders.
//!
//! The probability of the label tokens does not show whether a model can judge: a chat model that was never trained to judge puts nearly
//! all probability on the labels and still names whichever answer is shown first. Two numbers do: the share of pairs in which both orders
//! name the same answer, and the share in which that is the better one.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::reading::Account;
use super::{JudgeTask, ModelJudge};
use crate::call::{CallError, Turn};
use judge::{
    Format, JudgeError, JudgeItem, Label, MIN_LABEL_MASS, OnDisagreement, Orders, PreferencePair,
    read_records,
};
use model::WeightsName;

/// The file of a model directory's own set: preference records or judge items, one JSON object per line.
pub const SELF_TEST_FILE: &str = "judge_self_test.jsonl";

/// Questions of general knowledge, in English.
const GENERAL: &str = include_str!("self_test.jsonl");

/// The minimum number of pairs in a set; fewer are not significant.
const LEAST_PAIRS: usize = 8;

/// The maximum number of pairs in a set; more would delay the start.
const MOST_PAIRS: usize = 64;

/// The minimum share of pairs in which both orders agree, and of pairs in which the better answer wins. With 24 pairs, a judge that
/// answers at random reaches it once in a hundred tests.
const PASS: f64 = 0.75;

/// The number of pairs that are judged between two checks of the time.
const CHUNK: usize = 4;

/// The time after which no further pairs are judged, provided that [`LEAST_PAIRS`] have been.
const TIME: Duration = Duration::from_secs(10);

/// The origin of a self-test's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelfTestSource {
    /// The program's built-in questions of general knowledge.
    General,
    /// The file [`SELF_TEST_FILE`] of the model directory.
    Model,
}

impl SelfTestSource {
    /// Returns the name of the source in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::Model => "model",
        }
    }
}

/// The pairs of a self-test, without ties.
#[derive(Debug, Clone)]
pub struct SelfTestSet {
    pairs: Arc<[JudgeItem]>,
    source: SelfTestSource,
}

impl SelfTestSet {
    /// Returns the program's built-in pairs.
    pub fn general() -> Self {
        let pairs = GENERAL.lines().map(|line| {
            let pair: PreferencePair =
                serde_json::from_str(line).expect("the built-in set is valid; this is a bug");
            JudgeItem {
                id: None,
                messages: pair.messages,
                a: pair.chosen,
                b: pair.rejected,
                label: Label::A,
                principles: Vec::new(),
                rationale: None,
            }
        });
        Self {
            pairs: pairs.collect(),
            source: SelfTestSource::General,
        }
    }

    /// Returns the pairs of a model directory, or the built-in ones if it has none.
    ///
    /// # Errors
    /// Errors with [`JudgeError::SelfTest`] if the file cannot be read, or has ties, too few pairs or too many.
    pub fn of_model_dir(dir: &Path) -> Result<Self, JudgeError> {
        let path = dir.join(SELF_TEST_FILE);
        if let Ok(false) = path.try_exists() {
            return Ok(Self::general());
        }
        let invalid =
            |message: String| JudgeError::SelfTest(format!("{}: {message}", path.display()));
        let records = read_records(&path, Format::Auto)
            .map_err(|error| JudgeError::SelfTest(error.to_string()))?;
        let count = records.len();
        if !(LEAST_PAIRS..=MOST_PAIRS).contains(&count) {
            return Err(invalid(format!(
                "a self-test must have {LEAST_PAIRS} to {MOST_PAIRS} pairs, not {count}"
            )));
        }
        let pairs: Vec<JudgeItem> = records
            .into_iter()
            .filter_map(|record| record.into_item())
            .collect();
        if pairs.len() < count
            || pairs
                .iter()
                .any(|pair| pair.label == Label::Tie || pair.a == pair.b)
        {
            return Err(invalid(
                "every pair of a self-test needs two different answers, one of them labelled as better"
                    .to_owned(),
            ));
        }
        Ok(Self {
            pairs: pairs.into(),
            source: SelfTestSource::Model,
        })
    }

    /// Returns the number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Returns whether there are no pairs, which is always false.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// The result of a self-test.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTest {
    /// The weights that judged.
    pub weights: WeightsName,
    pub source: SelfTestSource,
    /// Number of pairs that were judged.
    pub pairs: usize,
    /// Number of pairs in which both orders named the same answer.
    pub agreeing: usize,
    /// Number of pairs in which the mean of both orders named the better answer.
    pub right: usize,
    /// Mean probability of the label tokens.
    pub label_mass: f64,
}

impl SelfTest {
    /// Returns the share of the pairs in which both orders named the same answer.
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.pairs.max(1) as f64
    }

    /// Returns the share of the pairs in which the better answer won.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.pairs.max(1) as f64
    }

    /// Returns whether the model can judge: both shares are at least 0.75, and the labels have at least half of the probability.
    pub fn reliable(&self) -> bool {
        self.agreement() >= PASS
            && self.accuracy() >= PASS
            && self.label_mass >= f64::from(MIN_LABEL_MASS)
    }

    /// Returns the result as one sentence, without a full stop.
    pub fn summary(&self) -> String {
        let Self {
            pairs,
            agreeing,
            right,
            ..
        } = self;
        let set = match self.source {
            SelfTestSource::General => "general pairs",
            SelfTestSource::Model => "pairs of the model's own set",
        };
        format!(
            "both orders agree in {agreeing} of {pairs} {set}, and the better answer wins in {right}"
        )
    }
}

/// The newest result, shared by all clones of a service.
#[derive(Debug, Clone, Default)]
pub(super) struct LastSelfTest(Arc<RwLock<Option<SelfTest>>>);

impl ModelJudge {
    /// Judges the pairs of `set` with the weights that serve as judge, and stores the result for these weights. The verdicts are not
    /// counted in the metrics of callers' verdicts.
    ///
    /// # Errors
    /// Errors if a pair cannot be served.
    pub async fn run_self_test(&self, set: &SelfTestSet) -> Result<SelfTest, CallError> {
        let begun = Instant::now();
        let weights = self.judging_weights(None);
        let mut result = SelfTest {
            weights: weights.name().clone(),
            source: set.source,
            pairs: 0,
            agreeing: 0,
            right: 0,
            label_mass: 0.0,
        };
        let mut label_mass = 0.0;
        for chunk in set.pairs.chunks(CHUNK) {
            if result.pairs >= LEAST_PAIRS && begun.elapsed() > TIME {
                break;
            }
            for pair in chunk {
                let task = JudgeTask {
                    context: pair.messages.clone(),
                    principles: Vec::new(),
                    orders: Orders::Both,
                    on_disagreement: OnDisagreement::Average,
                    weights: Some(weights.clone()),
                    turn: Turn::background(),
                };
                let mut account = Account::accepted(weights.clone());
                let verdict = self
                    .uncounted_verdict(&task, &pair.a, &pair.b, &mut account)
                    .await?;
                let better = match pair.label {
                    Label::A => Some(0),
                    Label::B => Some(1),
                    Label::Tie => None,
                };
                result.pairs += 1;
                result.agreeing += usize::from(verdict.consistent == Some(true));
                result.right += usize::from(verdict.winner.is_some() && verdict.winner == better);
                label_mass += f64::from(verdict.label_mass);
            }
        }
        result.label_mass = label_mass / result.pairs.max(1) as f64;
        let numbers = [
            ("pairs", result.pairs as f64),
            ("orders_agree", result.agreement()),
            ("accuracy", result.accuracy()),
            ("label_mass", result.label_mass),
        ];
        for (number, value) in numbers {
            self.metrics
                .self_test
                .with_label_values(&[number])
                .set(value);
        }
        let reliable = i64::from(result.reliable());
        self.metrics
            .reliable
            .with_label_values::<&str>(&[])
            .set(reliable);
        let mut last = self
            .self_test
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(result.clone());
        Ok(result)
    }

    /// Returns the newest self-test's result, if there is one.
    pub fn self_test(&self) -> Option<SelfTest> {
        let last = self
            .self_test
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Returns whether the judge passed its newest self-test; none if there was no test of these weights.
    pub fn judges_reliably(&self, weights: &WeightsName) -> Option<bool> {
        let last = self
            .self_test
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let test = last.as_ref().filter(|test| test.weights == *weights)?;
        Some(test.reliable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(pairs: usize, agreeing: usize, right: usize, label_mass: f64) -> SelfTest {
        SelfTest {
            weights: WeightsName::new("base"),
            source: SelfTestSource::General,
            pairs,
            agreeing,
            right,
            label_mass,
        }
    }

    #[test]
    fn a_judge_is_reliable_only_by_all_three_numbers() {
        for (agreeing, right, label_mass, reliable) in [
            (24, 24, 1.0, true),
            (18, 18, 0.5, true),
            // The label mass of an untrained judge is high.
            (4, 13, 0.98, false),
            (24, 12, 1.0, false),
            (17, 24, 1.0, false),
            (24, 24, 0.4, false),
            (24, 24, f64::NAN, false),
        ] {
            let test = result(24, agreeing, right, label_mass);
            assert_eq!(test.reliable(), reliable, "{test:?}");
        }
    }

    #[test]
    fn the_general_set_has_no_position_and_no_length_to_win_by() {
        let set = SelfTestSet::general();
        assert_eq!(set.len(), 24);
        let longer = set.pairs.iter().filter(|pair| pair.a.len() > pair.b.len());
        let longer = longer.count();
        assert!((9..=15).contains(&longer), "{longer} of 24");
        assert!(set.pairs.iter().all(|pair| pair.a != pair.b));
    }

    #[test]
    fn a_models_own_set_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SELF_TEST_FILE);
        let pair = |a: &str, b: &str| {
            format!(
                "{}\n",
                serde_json::json!({"prompt": "q", "chosen": a, "rejected": b})
            )
        };
        assert_eq!(
            SelfTestSet::of_model_dir(dir.path()).unwrap().source,
            SelfTestSource::General
        );
        std::fs::write(&path, pair("x", "y").repeat(8)).unwrap();
        let set = SelfTestSet::of_model_dir(dir.path()).unwrap();
        assert_eq!((set.len(), set.source), (8, SelfTestSource::Model));
        for broken in [
            pair("x", "y").repeat(7),
            pair("x", "y").repeat(65),
            pair("x", "y").repeat(7) + &pair("x", "x"),
            "{}\n".repeat(8),
            String::new(),
        ] {
            std::fs::write(&path, &broken).unwrap();
            let error = SelfTestSet::of_model_dir(dir.path())
                .unwrap_err()
                .to_string();
            assert!(error.contains(SELF_TEST_FILE), "{error}");
        }
    }
}
