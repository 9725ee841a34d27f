//! A sequential test: as few duels between candidate and live policy as the answer needs.
//!
//! Wald's sequential probability ratio test of a Bernoulli rate, `H1: rate = p1` against `H0: rate = p0`. Each duel moves the log
//! likelihood ratio; it ends where the ratio leaves `(ln(beta / (1 - alpha)), ln((1 - beta) / alpha))`. A soft outcome (the judge's
//! probability) moves it in proportion, which is the expectation over a coin with that bias.

use serde::{Deserialize, Serialize};

/// What is tested, and how sure it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequentialTest {
    /// A win rate that is not good enough.
    pub p0: f64,
    /// One that is.
    pub p1: f64,
    /// Chance of passing a candidate whose rate is `p0`.
    pub alpha: f64,
    /// Chance of failing one whose rate is `p1`.
    pub beta: f64,
}

impl Default for SequentialTest {
    fn default() -> Self {
        Self {
            p0: 0.48,
            p1: 0.55,
            alpha: 0.05,
            beta: 0.1,
        }
    }
}

/// What the duels so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The rate is at least `p1`.
    Better,
    /// The rate is at most `p0`.
    Worse,
    Undecided,
}

impl SequentialTest {
    /// Whether the numbers make a test.
    pub fn is_valid(&self) -> bool {
        let share = |x: f64| x > 0.0 && x < 1.0;
        share(self.p0)
            && share(self.p1)
            && self.p0 < self.p1
            && share(self.alpha)
            && share(self.beta)
            && self.alpha + self.beta < 1.0
    }

    /// The verdict on scores in `[0, 1]`, taken in order: it is that of the first moment at which the test ends, and how many
    /// scores that took.
    pub fn decide(&self, scores: impl IntoIterator<Item = f64>) -> (Decision, usize) {
        let (accept, reject) = (
            ((1.0 - self.beta) / self.alpha).ln(),
            (self.beta / (1.0 - self.alpha)).ln(),
        );
        let win = (self.p1 / self.p0).ln();
        let loss = ((1.0 - self.p1) / (1.0 - self.p0)).ln();
        let (mut ratio, mut taken) = (0.0, 0);
        for score in scores {
            ratio += score * win + (1.0 - score) * loss;
            taken += 1;
            if ratio >= accept {
                return (Decision::Better, taken);
            }
            if ratio <= reject {
                return (Decision::Worse, taken);
            }
        }
        (Decision::Undecided, taken)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// How often the test says so at a true rate, and the mean number of duels.
    fn passes(rate: f64) -> (f64, f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut better, mut total) = (0, 0);
        for _ in 0..400 {
            let scores = (0..20_000).map(|_| f64::from(u8::from(rng.random::<f64>() < rate)));
            let (decision, taken) = SequentialTest::default().decide(scores);
            assert_ne!(decision, Decision::Undecided);
            better += usize::from(decision == Decision::Better);
            total += taken;
        }
        (better as f64 / 400.0, total as f64 / 400.0)
    }

    #[test]
    fn errors_are_as_rare_as_asked_for() {
        let (wrong, _) = passes(0.48);
        let (right, duels) = passes(0.55);
        assert!(wrong <= 0.08, "{wrong}");
        assert!(right >= 0.86, "{right}");
        // A clear case is cheap.
        assert!(passes(0.8).1 < duels / 2.0);
    }

    #[test]
    fn a_few_duels_decide_nothing() {
        let test = SequentialTest::default();
        assert_eq!(test.decide([1.0, 1.0, 0.0]), (Decision::Undecided, 3));
        assert_eq!(test.decide([0.0; 200]).0, Decision::Worse);
        assert_eq!(test.decide([1.0; 200]).0, Decision::Better);
        assert!(test.is_valid());
        assert!(!SequentialTest { p0: 0.6, ..test }.is_valid());
    }
}
