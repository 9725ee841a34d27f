//! The loss of a preference pair: a pure function of four log-probabilities and two lengths.
//!
//! Let `h(y) = log pi(y|x) - log ref(y|x)` be the log-ratio of a completion, `D = h(chosen) - h(rejected)`, and `s` the logistic
//! function. Every loss here is directed, `l(winner, loser)`, and a label `p`, the probability that the chosen completion is the better
//! one, mixes the two directions:
//!
//! `loss = p l(chosen, rejected) + (1 - p) l(rejected, chosen)`
//!
//! For the sigmoid that is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"); a judge's soft verdict is used as
//! `p` directly. Label smoothing is applied to `p` beforehand ([`PreferenceLoss::target`]).

use serde::{Deserialize, Serialize};

/// The directed loss. Lengths `|y|` are in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum PreferenceLoss {
    /// `-log s(beta D)`: DPO (Rafailov et al. 2023, equation 7).
    #[default]
    Sigmoid,
    /// The sigmoid with an unbiased correction for labels that are wrong with probability `label_smoothing`: robust DPO (Chowdhury et al.
    /// 2024); `robust` in TRL.
    Robust,
    /// `-log s(beta (h(winner) / |winner| - h(loser) / |loser|))`: length-normalised DPO (Lambert et al. 2024, Tulu 3);
    /// `sigmoid_norm` in TRL.
    SigmoidNorm,
    /// `(h(winner) / |winner| - h(loser) / |loser| - 1 / (2 beta))^2`: IPO (Azar et al. 2023, equation 17), averaged over tokens as its
    /// authors and TRL do.
    Ipo,
    /// `max(0, 1 - beta D)`: hinge (Zhao et al. 2023, SLiC; one of SELF-JUDGE's three).
    Hinge,
    /// `-log s(beta (D - lambda max(0, -h(winner))))`: DPO-Positive (Pal et al. 2024, Smaug). The penalty keeps the winner from becoming
    /// less probable than under the reference.
    Dpop {
        #[serde(default = "smaug_lambda")]
        lambda: f64,
    },
}

fn smaug_lambda() -> f64 {
    50.0
}

/// The scores of one completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Completion {
    /// Summed log-probability of its tokens under the policy, in nats.
    pub policy: f64,
    /// Summed log-probability of its tokens under the reference, in nats.
    pub reference: f64,
    /// Its length in tokens, at least 1.
    pub tokens: usize,
}

impl Completion {
    /// Returns the log-ratio `h(y)`.
    pub fn log_ratio(&self) -> f64 {
        self.policy - self.reference
    }
}

/// A pair's loss and its derivatives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    pub loss: f64,
    /// d loss / d log pi(chosen).
    pub d_chosen: f64,
    /// d loss / d log pi(rejected).
    pub d_rejected: f64,
}

impl PreferenceLoss {
    /// Returns the weight `q` of the direction in which the chosen completion wins, for a label `p` and a probability `e` (`smoothing`)
    /// that the label is wrong: `p (1 - e) + (1 - p) e`, as conservative DPO smooths labels (TRL's `sigmoid` with `label_smoothing`), or
    /// for robust DPO `(p - e) / (1 - 2 e)`, which undoes that in expectation and may lie outside 0 to 1.
    pub fn target(&self, label: f64, smoothing: f64) -> f64 {
        match self {
            _ if smoothing == 0.0 => label,
            Self::Robust => (label - smoothing) / (1.0 - 2.0 * smoothing),
            _ => label * (1.0 - smoothing) + (1.0 - label) * smoothing,
        }
    }

    /// Returns the loss of a pair whose first completion is the better one with probability `label`.
    pub fn evaluate(
        &self,
        beta: f64,
        label: f64,
        chosen: &Completion,
        rejected: &Completion,
    ) -> PairLoss {
        let (forward, d_chosen, d_rejected) = self.directed(beta, chosen, rejected);
        let (backward, d_rejected_wins, d_chosen_loses) = self.directed(beta, rejected, chosen);
        // With a hard label, the other direction's value, which may have overflowed, must not enter.
        let mix = |won: f64, lost: f64| match label {
            1.0 => won,
            0.0 => lost,
            p => p * won + (1.0 - p) * lost,
        };
        PairLoss {
            loss: mix(forward, backward),
            d_chosen: mix(d_chosen, d_chosen_loses),
            d_rejected: mix(d_rejected, d_rejected_wins),
        }
    }

    /// Returns `l(winner, loser)` and its derivatives with respect to the policy's two log-probabilities.
    fn directed(&self, beta: f64, winner: &Completion, loser: &Completion) -> (f64, f64, f64) {
        let (w, l) = (winner.log_ratio(), loser.log_ratio());
        let (per_winner, per_loser) = (1.0 / winner.tokens as f64, 1.0 / loser.tokens as f64);
        match *self {
            Self::Sigmoid | Self::Robust => {
                let (loss, d) = negative_log_sigmoid(beta * (w - l));
                (loss, beta * d, -beta * d)
            }
            Self::SigmoidNorm => {
                let (loss, d) = negative_log_sigmoid(beta * (w * per_winner - l * per_loser));
                (loss, beta * d * per_winner, -beta * d * per_loser)
            }
            Self::Ipo => {
                let residual = w * per_winner - l * per_loser - 1.0 / (2.0 * beta);
                let d = 2.0 * residual;
                (residual * residual, d * per_winner, -d * per_loser)
            }
            Self::Hinge => {
                let slack = 1.0 - beta * (w - l);
                let d = if slack > 0.0 { -beta } else { 0.0 };
                (slack.max(0.0), d, -d)
            }
            Self::Dpop { lambda } => {
                let fallen = (-w).max(0.0);
                let (loss, d) = negative_log_sigmoid(beta * (w - l - lambda * fallen));
                let steeper = if fallen > 0.0 { 1.0 + lambda } else { 1.0 };
                (loss, beta * d * steeper, -beta * d)
            }
        }
    }

    /// Checks the loss's parameters.
    ///
    /// # Errors
    /// If one is invalid; the message describes the problem.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Dpop { lambda } if !(lambda.is_finite() && *lambda >= 0.0) => Err(format!(
                "lambda must be finite and not negative, not {lambda}"
            )),
            _ => Ok(()),
        }
    }
}

/// Returns `-log s(z) = log(1 + e^-z)` and its derivative `-s(-z)`, without overflow.
fn negative_log_sigmoid(z: f64) -> (f64, f64) {
    let small = (-z.abs()).exp();
    let loss = (-z).max(0.0) + small.ln_1p();
    let derivative = match z >= 0.0 {
        true => -small / (1.0 + small),
        false => -1.0 / (1.0 + small),
    };
    (loss, derivative)
}

/// Returns the weight of each token of a completion in its summed log-probability: 1, or `alpha` for tokens beyond the length of the
/// pair's shorter completion, so that length itself is rewarded less (Liu et al. 2024, LD-DPO). Policy and reference are weighted alike,
/// as in TRL (`ld_alpha`).
pub fn token_weights(
    alpha: Option<f64>,
    tokens: usize,
    others: usize,
) -> impl Iterator<Item = f64> {
    let shared = tokens.min(others);
    let beyond = alpha.unwrap_or(1.0);
    (0..tokens).map(move |i| if i < shared { 1.0 } else { beyond })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [PreferenceLoss; 6] = [
        PreferenceLoss::Sigmoid,
        PreferenceLoss::Robust,
        PreferenceLoss::SigmoidNorm,
        PreferenceLoss::Ipo,
        PreferenceLoss::Hinge,
        PreferenceLoss::Dpop { lambda: 5.0 },
    ];

    fn completion(policy: f64, reference: f64, tokens: usize) -> Completion {
        Completion {
            policy,
            reference,
            tokens,
        }
    }

    #[test]
    fn derivatives_are_the_slopes() {
        let pairs = [
            (completion(-12.0, -13.5, 7), completion(-20.0, -18.0, 11)),
            (completion(-31.0, -29.5, 9), completion(-8.0, -9.0, 4)),
        ];
        for loss in ALL {
            for (chosen, rejected) in pairs {
                for label in [1.0, 0.7, 0.0] {
                    let at = |dc: f64, dr: f64| {
                        let (mut c, mut r) = (chosen, rejected);
                        c.policy += dc;
                        r.policy += dr;
                        loss.evaluate(0.3, label, &c, &r)
                    };
                    let h = 1e-5;
                    let here = at(0.0, 0.0);
                    let slope = (at(h, 0.0).loss - at(-h, 0.0).loss) / (2.0 * h);
                    assert!((slope - here.d_chosen).abs() < 1e-6, "{loss:?}");
                    let slope = (at(0.0, h).loss - at(0.0, -h).loss) / (2.0 * h);
                    assert!((slope - here.d_rejected).abs() < 1e-6, "{loss:?}");
                }
            }
        }
    }

    #[test]
    fn at_the_reference_the_sigmoid_is_log_two() {
        let (c, r) = (completion(-40.0, -40.0, 3), completion(-7.0, -7.0, 20));
        for loss in [
            PreferenceLoss::Sigmoid,
            PreferenceLoss::SigmoidNorm,
            PreferenceLoss::Dpop { lambda: 50.0 },
        ] {
            for label in [1.0, 0.6, 0.0] {
                let pair = loss.evaluate(0.1, label, &c, &r);
                assert!((pair.loss - std::f64::consts::LN_2).abs() < 1e-15);
            }
        }
    }

    /// TRL's formulas, written out: `l` is the scaled difference of log-ratios, `e` the label smoothing.
    #[test]
    fn smoothed_labels_are_trls() {
        let log_sigmoid = |z: f64| -(1.0 + (-z).exp()).ln();
        let conservative = |l: f64, e: f64| -log_sigmoid(l) * (1.0 - e) - log_sigmoid(-l) * e;
        let robust =
            |l: f64, e: f64| (-log_sigmoid(l) * (1.0 - e) + log_sigmoid(-l) * e) / (1.0 - 2.0 * e);
        let pairs = [
            (completion(-12.0, -13.5, 7), completion(-20.0, -18.0, 11)),
            (completion(-31.0, -29.5, 9), completion(-8.0, -9.0, 4)),
        ];
        for (chosen, rejected) in pairs {
            let l = 0.3 * (chosen.log_ratio() - rejected.log_ratio());
            for e in [0.0, 0.1, 0.3] {
                for (loss, want) in [
                    (PreferenceLoss::Sigmoid, conservative(l, e)),
                    (PreferenceLoss::Robust, robust(l, e)),
                ] {
                    let got = loss.evaluate(0.3, loss.target(1.0, e), &chosen, &rejected);
                    assert!((got.loss - want).abs() < 1e-12, "{loss:?} {e}");
                    // A flipped label equals a flipped pair.
                    let turned = loss.evaluate(0.3, loss.target(0.0, e), &rejected, &chosen);
                    assert!((turned.loss - want).abs() < 1e-12, "{loss:?} {e}");
                }
            }
        }
    }

    #[test]
    fn extremes_stay_finite() {
        let (best, worst) = (completion(0.0, -1e6, 1), completion(-1e6, 0.0, 1));
        for loss in ALL {
            for (chosen, rejected) in [(best, worst), (worst, best)] {
                let pair = loss.evaluate(1.0, 1.0, &chosen, &rejected);
                assert!(pair.loss.is_finite() && pair.d_chosen.is_finite());
                assert!(pair.d_chosen <= 0.0 || loss == PreferenceLoss::Ipo);
            }
        }
    }

    #[test]
    fn only_the_longer_completion_has_tokens_beyond() {
        let weights =
            |tokens, others| -> Vec<f64> { token_weights(Some(0.25), tokens, others).collect() };
        assert_eq!(weights(4, 2), [1.0, 1.0, 0.25, 0.25]);
        assert_eq!(weights(2, 4), [1.0, 1.0]);
        assert!(token_weights(None, 3, 1).eq([1.0, 1.0, 1.0]));
    }
}
