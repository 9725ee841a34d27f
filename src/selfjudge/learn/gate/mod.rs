//! The gates: the tests that a candidate must pass before it serves.
//!
//! | gate | number | passes if |
//! |---|---|---|
//! | `finite` | values of the adapter that are not finite | none |
//! | `norm` | largest change of a layer by the adapter, relative to the layer | at most `max_norm`, and the stage changed the adapter |
//! | `step_zero` | [`Measurements::step_zero`] | at most `max_step_zero`: policy and reference were equal |
//! | `parity` | mean difference of served and trained log-probabilities, per token | at most `max_parity` |
//! | `win_rate` | the pinned judge's verdicts on candidate against live policy, without ties, sequentially tested | better |
//! | `length_controlled` | that win rate at equal length | at least `min_length_controlled` |
//! | `kl` | mean KL divergence of an answer from generation 0 | at most `max_kl` |
//! | `truncated` | share of answers cut off, minus the live policy's | at most `max_truncated` |
//! | `anchor` | share of anchor pairs (`sft`) with the chosen answer more probable, minus the live policy's | at least `-tolerance` |
//! | `judge` | accuracy of the candidate as a judge of the anchor set, minus the live policy's | at least `-tolerance` |
//! | `base_win_rate` | mean verdict of the pinned judge on candidate against generation 0 | at least `base.min_win_rate` |
//! | `base_truncated` | share of answers cut off, minus generation 0's | at most `base.max_truncated` |
//! | `base_anchor`, `base_judge` | as `anchor` and `judge`, minus generation 0's | at least `-base.tolerance` |
//!
//! The four gates against generation 0 (the model without an adapter) bound the total loss of all stages: a bound against the live
//! policy alone would let each of many stages lose a little more.
//!
//! All gates are measured, even if an early one fails; the numbers are stored with the generation and shown. A gate without data has a
//! note instead of a number and fails: a stage without pairs, or held-out prompts without answers, are no evidence for a candidate.
//! Only an anchor set may be missing, because not every model has one.
//!
//! Held-out prompts never train and are never used up. If every stage took the oldest ones, candidates would be selected for those few
//! prompts. Each stage therefore starts at another offset, in the order of a hash of the prompts' ids. The offset is a function of the
//! stage's number, and the prompts are in the stage's saved state.

pub mod anchor;
pub mod length;
pub mod measure;
pub mod sequential;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LearnError;
use length::{Duel, length_controlled};
use sequential::{Decision, SequentialTest};

/// The bounds of the gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Held-out prompts on which candidate and live policy are compared.
    pub prompts: usize,
    /// Answers of each policy per prompt, and so duels per prompt. A second answer adds information, but less than another prompt.
    pub answers: usize,
    pub win_rate: SequentialTest,
    /// Whether a candidate passes if the sequential test is undecided after all `prompts * answers` duels and it won at least half of
    /// them; docs/learning.md has the probability of passing by the true win rate. Equal answers are ties and are left out, because a tie
    /// does not show which is better.
    pub pass_undecided: bool,
    /// Minimum win rate against the live policy among answers of equal length, from 0 to 1.
    pub min_length_controlled: f64,
    /// Bound on the mean KL divergence from generation 0, nats per answer.
    pub max_kl: f64,
    /// Bound on the Frobenius norm of a layer's change over that of the layer.
    pub max_norm: f64,
    /// Bound, in nats per answer, on the difference between policy and reference before the stage's first update, where they are equal but
    /// for rounding.
    pub max_step_zero: f64,
    /// Bound, in nats per token, on the difference between the log-probabilities of the trainer and of the engine.
    pub max_parity: f64,
    /// Maximum share of the candidate's answers that are cut off, minus the live policy's.
    pub max_truncated: f64,
    /// A file of uncontroversial preference pairs (any training format; `sft` and `judge` set each pair's use) on which policy and judge
    /// must not lose accuracy. Without it the model directory's `anchors.jsonl` is used; without that the two gates are shown as not
    /// measured. A relative path in a configuration file is relative to that file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor: Option<PathBuf>,
    /// Allowed loss of accuracy on the anchor set: the noise of a set of its size.
    pub tolerance: f64,
    /// Allowed loss against generation 0, all stages together.
    pub base: BaseBudget,
}

/// The loss allowed against generation 0, the model without an adapter, independent of the number of stages in between.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BaseBudget {
    /// Minimum mean verdict of the pinned judge on candidate against generation 0, from 0 to 1.
    pub min_win_rate: f64,
    /// Maximum share of answers cut off, minus generation 0's.
    pub max_truncated: f64,
    /// Allowed loss of generation 0's accuracy on the anchor set, for policy and judge separately.
    pub tolerance: f64,
}

impl Default for BaseBudget {
    fn default() -> Self {
        Self {
            min_win_rate: 0.48,
            max_truncated: 0.1,
            tolerance: 0.04,
        }
    }
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            prompts: 400,
            answers: 1,
            win_rate: SequentialTest::default(),
            pass_undecided: false,
            min_length_controlled: 0.48,
            max_kl: 50.0,
            max_norm: 0.5,
            max_step_zero: 1e-3,
            max_parity: 0.05,
            max_truncated: 0.05,
            anchor: None,
            tolerance: 0.02,
            base: BaseBudget::default(),
        }
    }
}

impl GateConfig {
    /// Returns the number of duels of a candidate with another policy, including ties.
    pub fn duels(&self) -> usize {
        self.prompts.saturating_mul(self.answers)
    }

    /// Returns the probability that the `win_rate` gate passes a candidate that wins each duel with probability `rate`, without ties and
    /// with independent duels.
    pub fn pass_rate(&self, rate: f64) -> f64 {
        let of = self.win_rate.characteristic(rate, self.duels());
        match self.pass_undecided {
            true => of.better + of.undecided_ahead,
            false => of.better,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn validate(&self) -> Result<(), LearnError> {
        let checks = [
            (self.prompts > 0, "gates.prompts must be at least 1"),
            (
                (1..=64).contains(&self.answers),
                "gates.answers must be from 1 to 64",
            ),
            (
                self.win_rate.is_valid(),
                "gates.win_rate needs 0 < p0 < p1 < 1 and error rates whose sum is below 1",
            ),
            (
                (0.0..=1.0).contains(&self.min_length_controlled),
                "gates.min_length_controlled must be from 0 to 1",
            ),
            (self.max_kl > 0.0, "gates.max_kl must be above 0"),
            (self.max_norm > 0.0, "gates.max_norm must be above 0"),
            (
                self.max_step_zero >= 0.0,
                "gates.max_step_zero must not be negative",
            ),
            (self.max_parity > 0.0, "gates.max_parity must be above 0"),
            (
                (0.0..=1.0).contains(&self.max_truncated),
                "gates.max_truncated must be from 0 to 1",
            ),
            (
                (0.0..1.0).contains(&self.tolerance),
                "gates.tolerance must be from 0 to less than 1",
            ),
            (
                (0.0..=1.0).contains(&self.base.min_win_rate),
                "gates.base.min_win_rate must be from 0 to 1",
            ),
            (
                (0.0..=1.0).contains(&self.base.max_truncated),
                "gates.base.max_truncated must be from 0 to 1",
            ),
            (
                (0.0..1.0).contains(&self.base.tolerance),
                "gates.base.tolerance must be from 0 to less than 1",
            ),
        ];
        match checks.iter().find(|(ok, _)| !ok) {
            Some((_, problem)) => Err(LearnError::Config((*problem).to_owned())),
            None => Ok(()),
        }
    }
}

/// The result of one gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateResult {
    pub gate: String,
    /// None if it could not be measured.
    pub value: Option<f64>,
    /// The bound that it was compared with.
    pub bound: f64,
    pub passed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The measurements of a candidate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measurements {
    pub not_finite: usize,
    pub norm: f64,
    /// Whether the stage changed the adapter it started from.
    pub moved: bool,
    /// The largest absolute difference, over the answers of the stage's first pairs, between their summed log-probability under the
    /// policy before the first update and under the reference, both by the trainer; nats. DPO's implicit reward is `beta` times such a
    /// difference. If the two policies are equal it is 0 except for rounding, and the first loss is `ln 2`.
    pub step_zero: Option<f64>,
    pub parity: Option<f64>,
    /// Duels of the candidate with the live policy, in order.
    pub duels: Vec<Duel>,
    pub kl: Option<f64>,
    /// Shares of answers that were cut off: the candidate's and the live policy's.
    pub truncated: [f64; 2],
    /// Accuracies on the anchor set: the candidate's and the live policy's.
    pub anchor: Option<[f64; 2]>,
    pub judge: Option<[f64; 2]>,
    pub base: BaseMeasurements,
}

/// The measurements of a candidate against generation 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BaseMeasurements {
    /// Mean verdict on the candidate's answers against generation 0's; none without duels.
    pub win_rate: Option<f64>,
    /// Share of generation 0's answers that were cut off.
    pub truncated: f64,
    /// Accuracies of generation 0 on the anchor set.
    pub anchor: Option<f64>,
    pub judge: Option<f64>,
}

const NO_ANSWER: &str = "the candidate answered nothing";

/// Returns the results of all gates.
pub fn judge(config: &GateConfig, measured: &Measurements) -> Vec<GateResult> {
    let at_most = |gate: &str, value: f64, bound: f64| GateResult {
        gate: gate.to_owned(),
        value: Some(value),
        bound,
        // NaN never passes.
        passed: value <= bound,
        note: None,
    };
    let at_least = |gate: &str, value: f64, bound: f64| GateResult {
        passed: value >= bound,
        ..at_most(gate, value, bound)
    };
    let measured_at_most = |gate: &str, value: Option<f64>, bound: f64, missing: &str| match value {
        Some(value) => at_most(gate, value, bound),
        None => GateResult {
            value: None,
            passed: false,
            note: Some(format!("not measured: {missing}")),
            ..at_most(gate, f64::NAN, bound)
        },
    };
    let norm = at_most("norm", measured.norm, config.max_norm);
    let norm = match measured.moved {
        true => norm,
        false => GateResult {
            passed: false,
            note: Some("the stage moved nothing".into()),
            ..norm
        },
    };
    let kept = |gate: &str, accuracies: Option<[f64; 2]>, tolerance: f64| match accuracies {
        Some([candidate, before]) => GateResult {
            note: Some(format!("{candidate:.3}, was {before:.3}")),
            ..at_least(gate, candidate - before, -tolerance)
        },
        None => GateResult {
            gate: gate.to_owned(),
            value: None,
            bound: -tolerance,
            passed: true,
            note: Some("not measured: neither gates.anchor nor the model has pairs for it".into()),
        },
    };
    let (base, budget) = (&measured.base, &config.base);
    let beside_base = |of: Option<[f64; 2]>, base: Option<f64>| Some([of?[0], base?]);
    let base_win_rate = match base.win_rate {
        Some(rate) => at_least("base_win_rate", rate, budget.min_win_rate),
        None => measured_at_most("base_win_rate", None, budget.min_win_rate, NO_ANSWER),
    };
    let [truncated, before] = measured.truncated;
    vec![
        at_most("finite", measured.not_finite as f64, 0.0),
        norm,
        measured_at_most(
            "step_zero",
            measured.step_zero,
            config.max_step_zero,
            "the stage made no pair, or its policy and reference were not one",
        ),
        measured_at_most("parity", measured.parity, config.max_parity, NO_ANSWER),
        win_rate(config, &measured.duels),
        at_least(
            "length_controlled",
            length_controlled(&measured.duels),
            config.min_length_controlled,
        ),
        measured_at_most("kl", measured.kl, config.max_kl, NO_ANSWER),
        at_most("truncated", truncated - before, config.max_truncated),
        kept("anchor", measured.anchor, config.tolerance),
        kept("judge", measured.judge, config.tolerance),
        base_win_rate,
        at_most(
            "base_truncated",
            truncated - base.truncated,
            budget.max_truncated,
        ),
        kept(
            "base_anchor",
            beside_base(measured.anchor, base.anchor),
            budget.tolerance,
        ),
        kept(
            "base_judge",
            beside_base(measured.judge, base.judge),
            budget.tolerance,
        ),
    ]
}

fn win_rate(config: &GateConfig, duels: &[Duel]) -> GateResult {
    let decided = || {
        duels
            .iter()
            .map(|duel| duel.score)
            .filter(|&score| score != 0.5)
    };
    let (decision, taken) = config.win_rate.decide(decided());
    let (count, won) = (decided().count(), decided().sum::<f64>());
    let mean = duels.iter().map(|duel| duel.score).sum::<f64>() / duels.len().max(1) as f64;
    let passed = match decision {
        Decision::Better => true,
        Decision::Worse => false,
        // Too few duels for a decision: the candidate must at least not be behind.
        Decision::Undecided => config.pass_undecided && mean >= 0.5 && !duels.is_empty(),
    };
    let outcome = match decision {
        Decision::Better => "better",
        Decision::Worse => "worse",
        Decision::Undecided => "undecided",
    };
    let ties = duels.len() - count;
    GateResult {
        gate: "win_rate".into(),
        value: (!duels.is_empty()).then_some(mean),
        bound: config.win_rate.p1,
        passed,
        note: Some(match count {
            0 => format!("{outcome}: no duel was decided, beside {ties} ties"),
            _ => format!(
                "{outcome} after {taken} of {count} duels, {:.3} of them won, beside {ties} ties",
                won / count as f64
            ),
        }),
    }
}

#[cfg(test)]
mod tests;
