//! A sequential test of candidate against live policy: it stops as soon as the duels decide.
//!
//! Wald's sequential probability ratio test of a Bernoulli rate, `H1: rate = p1` against `H0: rate = p0`. Each duel moves the log
//! likelihood ratio; the test ends when the ratio leaves `(ln(beta / (1 - alpha)), ln((1 - beta) / alpha))`. A soft outcome (the
//! judge's probability) moves it proportionally, which is the expectation over a coin with that bias.

use serde::{Deserialize, Serialize};

/// The hypotheses and error rates of the test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequentialTest {
    /// A win rate that should fail.
    pub p0: f64,
    /// A win rate that should pass.
    pub p1: f64,
    /// Probability of passing a candidate whose rate is `p0`.
    pub alpha: f64,
    /// Probability of failing a candidate whose rate is `p1`.
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

/// The probabilities of the test's decisions at one true win rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Characteristic {
    pub better: f64,
    pub worse: f64,
    pub undecided: f64,
    /// The part of `undecided` in which at least half of the duels were won.
    pub undecided_ahead: f64,
    /// Mean number of duels until the test ends.
    pub mean_duels: f64,
}

/// The decision of the test on the duels so far.
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
    /// Returns whether the settings define a test.
    pub fn is_valid(&self) -> bool {
        let share = |x: f64| x > 0.0 && x < 1.0;
        share(self.p0)
            && share(self.p1)
            && self.p0 < self.p1
            && share(self.alpha)
            && share(self.beta)
            && self.alpha + self.beta < 1.0
    }

    /// Returns the bounds of the log likelihood ratio: a candidate is better at or above the first, worse at or below the second.
    fn bounds(&self) -> (f64, f64) {
        let accept = ((1.0 - self.beta) / self.alpha).ln();
        let reject = (self.beta / (1.0 - self.alpha)).ln();
        (accept, reject)
    }

    /// Returns the change of the log likelihood ratio by a won and by a lost duel.
    fn steps(&self) -> (f64, f64) {
        let win = (self.p1 / self.p0).ln();
        let loss = ((1.0 - self.p1) / (1.0 - self.p0)).ln();
        (win, loss)
    }

    /// Returns the operating characteristic of the test, cut off after `duels`: the exact probabilities of its decisions if each
    /// duel is won with probability `rate`, independently of the others.
    ///
    /// The judge's scores are probabilities between 0 and 1, which vary less than wins and losses do: for the same mean, real candidates
    /// are decided with smaller error rates.
    pub fn characteristic(&self, rate: f64, duels: usize) -> Characteristic {
        let ((accept, reject), (win, loss)) = (self.bounds(), self.steps());
        // Probability of each number of wins among the tests that are still running, from `first` wins on.
        let (mut first, mut going) = (0, vec![1.0]);
        let (mut better, mut worse, mut mean_duels) = (0.0, 0.0, 0.0);
        for taken in 1..=duels {
            mean_duels += going.iter().sum::<f64>();
            let mut next = vec![0.0; going.len() + 1];
            for (at, chance) in going.iter().enumerate() {
                next[at] += chance * (1.0 - rate);
                next[at + 1] += chance * rate;
            }
            let ratio = |wins: usize| wins as f64 * win + (taken - wins) as f64 * loss;
            let lost = (0..next.len()).take_while(|at| ratio(first + at) <= reject);
            let lost = lost.count();
            worse += next.drain(..lost).sum::<f64>();
            first += lost;
            let open = (0..next.len()).take_while(|at| ratio(first + at) < accept);
            let open = open.count();
            better += next.drain(open..).sum::<f64>();
            going = next;
        }
        let ahead = going.iter().enumerate();
        let ahead = ahead.filter(|(at, _)| 2 * (first + at) >= duels.max(1));
        Characteristic {
            better,
            worse,
            undecided: going.iter().sum(),
            undecided_ahead: ahead.map(|(_, chance)| chance).sum(),
            mean_duels,
        }
    }

    /// Returns the decision on scores in `[0, 1]`, taken in order, and how many scores it took. The decision is that of the first
    /// crossing of a bound.
    pub fn decide(&self, scores: impl IntoIterator<Item = f64>) -> (Decision, usize) {
        let ((accept, reject), (win, loss)) = (self.bounds(), self.steps());
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

    /// Returns how often the test passes at a true rate, and the mean number of duels.
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
        // A clear case takes few duels.
        assert!(passes(0.8).1 < duels / 2.0);
    }

    #[test]
    fn the_characteristic_is_what_a_simulation_of_the_test_shows() {
        let tests = [
            SequentialTest::default(),
            SequentialTest {
                p0: 0.45,
                p1: 0.6,
                alpha: 0.1,
                beta: 0.05,
            },
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let runs = 2000;
        for test in tests {
            for (rate, duels) in [(0.44, 128), (0.5, 128), (0.5, 400), (0.58, 400), (0.7, 60)] {
                let (mut better, mut worse, mut ahead, mut total) = (0, 0, 0, 0);
                for _ in 0..runs {
                    let scores: Vec<f64> = (0..duels)
                        .map(|_| f64::from(u8::from(rng.random::<f64>() < rate)))
                        .collect();
                    let (decision, taken) = test.decide(scores.iter().copied());
                    total += taken;
                    match decision {
                        Decision::Better => better += 1,
                        Decision::Worse => worse += 1,
                        Decision::Undecided if scores.iter().sum::<f64>() * 2.0 >= duels as f64 => {
                            ahead += 1;
                        }
                        Decision::Undecided => {}
                    }
                }
                let exact = test.characteristic(rate, duels);
                let near = |counted: usize, chance: f64| {
                    let share = counted as f64 / f64::from(runs);
                    // Five standard errors.
                    let noise = 5.0 * (chance * (1.0 - chance) / f64::from(runs)).sqrt() + 1e-3;
                    assert!(
                        (share - chance).abs() < noise,
                        "{rate} {duels}: {share} {exact:?}"
                    );
                };
                near(better, exact.better);
                near(worse, exact.worse);
                near(ahead, exact.undecided_ahead);
                let all = exact.better + exact.worse + exact.undecided;
                assert!((all - 1.0).abs() < 1e-9, "{exact:?}");
                let mean = total as f64 / f64::from(runs);
                assert!(
                    (mean / exact.mean_duels - 1.0).abs() < 0.06,
                    "{mean} {exact:?}"
                );
            }
        }
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
