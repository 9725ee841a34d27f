//! Canary health: compares the canary's answers with the live version's over the same period, within tolerance bands.
//!
//! | number | computed per version | breached if |
//! |---|---|---|
//! | `errors` | share of started answers that failed | more than `max_errors` above the live version's |
//! | `truncated` | share of finished answers that were cut off by the length limit | more than `max_truncated` above the live version's |
//! | `length` | mean tokens of a finished answer | more than `max_length_ratio` times the live version's, or less than one over it |
//!
//! Answers that ended because of their caller are not counted, and one principal's answers are at most `principal_share` of either
//! side: a single caller can neither withdraw a canary nor hide an unhealthy one.
//!
//! A band counts as breached only if the difference exceeds it by more than [`SIGMAS`] standard errors. The canary and the live version
//! answer different callers, so a band does not test equality; it stops clearly unhealthy versions. Callers get only one of the two
//! answers, so the canary does not measure answer quality: the gates did, with the pinned judge on both answers to each prompt.

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::LearnError;
use crate::service::Tally;

/// Standard errors allowed for chance. The check runs every few seconds, so a bad day of a few callers must not withdraw a healthy canary.
const SIGMAS: f64 = 3.0;

/// The tolerance bands for canaries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryBands {
    /// Minimum number of answers of each version before the two are compared.
    pub min_answers: u64,
    /// The largest share of either side's answers that one principal may have; the excess is weighted down proportionally.
    /// Nothing is compared if there are fewer principals than `1 / principal_share`.
    pub principal_share: f64,
    /// Maximum share of the canary's answers that fail, minus the policy's.
    pub max_errors: f64,
    /// Maximum share of the canary's answers that are cut off, minus the policy's.
    pub max_truncated: f64,
    /// Maximum ratio of the mean lengths of both versions' answers, whichever is longer.
    pub max_length_ratio: f64,
}

impl Default for CanaryBands {
    fn default() -> Self {
        Self {
            min_answers: 100,
            principal_share: 0.5,
            max_errors: 0.01,
            max_truncated: 0.05,
            max_length_ratio: 1.5,
        }
    }
}

impl CanaryBands {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the band that is out of range.
    pub fn validate(&self) -> Result<(), LearnError> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let checks = [
            (
                self.min_answers >= 2,
                "publish.canary.min_answers must be at least 2",
            ),
            (
                self.principal_share > 0.0 && share(self.principal_share),
                "publish.canary.principal_share must be above 0 and at most 1",
            ),
            (
                share(self.max_errors),
                "publish.canary.max_errors must be from 0 to 1",
            ),
            (
                share(self.max_truncated),
                "publish.canary.max_truncated must be from 0 to 1",
            ),
            (
                self.max_length_ratio >= 1.0 && self.max_length_ratio.is_finite(),
                "publish.canary.max_length_ratio must be at least 1",
            ),
        ];
        match checks.iter().find(|(ok, _)| !ok) {
            Some((_, problem)) => Err(LearnError::Config((*problem).to_owned())),
            None => Ok(()),
        }
    }
}

/// One version's numbers since the canary started, as counted by this server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = VitalsBody)]
pub struct Vitals {
    /// Weighted number of answers: those that ended because of their caller are left out, and answers of a principal above its share count
    /// for less than one each.
    pub answers: f64,
    /// Share of answers that failed.
    pub errors: f64,
    /// Share of answers that were cut off by the length limit.
    pub truncated: f64,
    /// Mean number of tokens per answer.
    pub length: f64,
}

/// The health of the current canary.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = CanaryBody)]
pub struct CanaryHealth {
    /// The numbers of the canary.
    pub canary: Vitals,
    /// The numbers of the version that serves the other callers.
    pub live: Vitals,
    /// `too_early`, `keep` or `withdraw`.
    #[schema(value_type = String)]
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At least one of the two versions has too few answers.
    TooEarly,
    Keep,
    /// Withdraw the canary because of the named number.
    Withdraw(&'static str),
}

impl Serialize for Verdict {
    /// Writes the verdict without the reason of a withdrawal.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooEarly => "too_early",
            Self::Keep => "keep",
            Self::Withdraw(_) => "withdraw",
        }
    }
}

/// The names of all numbers.
pub const NUMBERS: [&str; 3] = ["errors", "truncated", "length"];

impl CanaryHealth {
    /// Compares the answers of both versions so far.
    pub fn of(bands: &CanaryBands, canary: &Tally, live: &Tally) -> Self {
        let (canary, live) = (Measured::of(canary), Measured::of(live));
        let beyond = |difference: f64, band: f64, variance: f64| {
            difference - band > SIGMAS * variance.max(0.0).sqrt()
        };
        let above = |number: fn(&Measured) -> Mean, band: f64| {
            let (canary, live) = (number(&canary), number(&live));
            let variance = canary.variance + live.variance;
            beyond(canary.value - live.value, band, variance)
        };
        let longer = |one: Mean, other: Mean| {
            let ratio = bands.max_length_ratio;
            let variance = one.variance + ratio * ratio * other.variance;
            beyond(one.value - ratio * other.value, 0.0, variance)
        };
        let early = canary.answers.min(live.answers) < bands.min_answers as f64;
        let verdict = if early {
            Verdict::TooEarly
        } else if above(|of| of.errors, bands.max_errors) {
            Verdict::Withdraw("errors")
        } else if above(|of| of.truncated, bands.max_truncated) {
            Verdict::Withdraw("truncated")
        } else if longer(canary.length, live.length) || longer(live.length, canary.length) {
            Verdict::Withdraw("length")
        } else {
            Verdict::Keep
        };
        Self {
            canary: canary.vitals(),
            live: live.vitals(),
            verdict,
        }
    }
}

impl Vitals {
    /// Returns a number by its name.
    pub fn number(&self, name: &str) -> f64 {
        match name {
            "errors" => self.errors,
            "truncated" => self.truncated,
            _ => self.length,
        }
    }
}

/// A sample mean and the variance of that estimate.
#[derive(Debug, Clone, Copy)]
struct Mean {
    value: f64,
    variance: f64,
}

impl Mean {
    /// Estimates a share. The variance uses one additional hit and one additional miss, so it is not zero for no hits in a hundred.
    fn share(hits: f64, of: f64) -> Self {
        let smoothed = (hits + 1.0) / (of + 2.0);
        Self {
            value: hits / of.max(1.0),
            variance: smoothed * (1.0 - smoothed) / of.max(1.0),
        }
    }
}

struct Measured {
    answers: f64,
    errors: Mean,
    truncated: Mean,
    length: Mean,
}

impl Measured {
    fn of(tally: &Tally) -> Self {
        let begun = tally.begun();
        let ended = tally.answers.max(1.0);
        let length = tally.tokens / ended;
        Self {
            answers: begun,
            errors: Mean::share(tally.errors, begun),
            truncated: Mean::share(tally.truncated, tally.answers),
            length: Mean {
                value: length,
                variance: (tally.tokens_squared / ended - length * length) / ended,
            },
        }
    }

    fn vitals(&self) -> Vitals {
        Vitals {
            answers: self.answers,
            errors: self.errors.value,
            truncated: self.truncated.value,
            length: self.length.value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tally of a version whose answers are `length` tokens long, plus or minus one.
    fn tally(answers: u32, errors: u32, truncated: u32, length: f64) -> Tally {
        let n = f64::from(answers);
        Tally {
            answers: n,
            truncated: truncated.into(),
            errors: errors.into(),
            tokens: n * length,
            tokens_squared: n * (length * length + 1.0),
        }
    }

    fn verdict(canary: Tally, live: Tally) -> Verdict {
        CanaryHealth::of(&CanaryBands::default(), &canary, &live).verdict
    }

    #[test]
    fn nothing_is_said_before_both_have_answered_enough() {
        let (ill, well) = (tally(0, 99, 0, 0.0), tally(1000, 0, 0, 20.0));
        assert_eq!(verdict(ill, well), Verdict::TooEarly);
        assert_eq!(verdict(well, tally(99, 0, 0, 20.0)), Verdict::TooEarly);
        // A hundred failures count as a hundred observations.
        let ill = tally(0, 100, 0, 0.0);
        assert_eq!(verdict(ill, well), Verdict::Withdraw("errors"));
    }

    #[test]
    fn each_number_can_withdraw_a_canary_and_an_equal_one_stays() {
        let live = tally(1000, 1, 100, 20.0);
        for (canary, expected) in [
            (tally(200, 0, 20, 20.0), Verdict::Keep),
            (tally(190, 20, 19, 20.0), Verdict::Withdraw("errors")),
            (tally(200, 0, 80, 20.0), Verdict::Withdraw("truncated")),
            (tally(200, 0, 20, 40.0), Verdict::Withdraw("length")),
            (tally(200, 0, 20, 10.0), Verdict::Withdraw("length")),
            // Better than the live version wherever better is defined.
            (tally(200, 0, 0, 25.0), Verdict::Keep),
        ] {
            assert_eq!(verdict(canary, live), expected, "{canary:?}");
        }
    }

    #[test]
    fn what_chance_explains_withdraws_nothing() {
        let live = tally(1000, 0, 200, 20.0);
        // Nine points above the live version: within chance for a hundred answers, beyond it for ten thousand.
        assert_eq!(verdict(tally(100, 0, 29, 20.0), live), Verdict::Keep);
        let many = tally(10_000, 0, 2900, 20.0);
        assert_eq!(
            verdict(many, live),
            Verdict::Keep,
            "the live version's own noise counts too"
        );
        let live = tally(10_000, 0, 2000, 20.0);
        assert_eq!(verdict(many, live), Verdict::Withdraw("truncated"));
        // A wide spread of lengths makes the mean uncertain.
        let wild = Tally {
            tokens_squared: 100.0 * 40_000.0,
            ..tally(100, 0, 0, 40.0)
        };
        assert_eq!(verdict(wild, tally(1000, 0, 0, 20.0)), Verdict::Keep);
    }

    #[test]
    fn bands_that_make_no_sense_are_named() {
        assert!(CanaryBands::default().validate().is_ok());
        for (band, text) in [
            ("min_answers", "min_answers = 0"),
            ("principal_share", "principal_share = 0.0"),
            ("max_errors", "max_errors = -0.1"),
            ("max_truncated", "max_truncated = 2.0"),
            ("max_length_ratio", "max_length_ratio = 0.5"),
        ] {
            let bands: CanaryBands = toml::from_str(text).unwrap();
            let error = bands.validate().unwrap_err().to_string();
            assert!(error.contains(band), "{error}");
        }
    }
}
