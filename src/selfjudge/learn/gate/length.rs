//! The win rate corrected for length.
//!
//! Judges prefer long answers, so a plain win rate rewards padding. The probability of a win is fitted as
//! `sigmoid(b0 + b1 * d)`, where `d` is the difference of the two answers' lengths over its standard deviation; at `d = 0` it is
//! the win rate against an answer of the same length (the idea of length-controlled AlpacaEval, arXiv 2404.04475).

/// A duel's outcome for the candidate in `[0, 1]`, and how many tokens longer the candidate's answer was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Duel {
    pub score: f64,
    pub longer: f64,
}

/// Weak regularization, so that the fit is finite even if length separates the outcomes perfectly.
const RIDGE: f64 = 1e-2;

/// Returns the win rate at equal length; 0.5 for no duels.
pub fn length_controlled(duels: &[Duel]) -> f64 {
    if duels.is_empty() {
        return 0.5;
    }
    let n = duels.len() as f64;
    // The scale is about zero and not about the mean, because the rate is evaluated at zero.
    let scale = (duels.iter().map(|duel| duel.longer.powi(2)).sum::<f64>() / n).sqrt();
    let scale = if scale > 0.0 { scale } else { 1.0 };
    let (mut b0, mut b1) = (0.0_f64, 0.0_f64);
    // Newton's method on two parameters; the loss is convex.
    for _ in 0..50 {
        let (mut g0, mut g1) = (RIDGE * b0, RIDGE * b1);
        let (mut h00, mut h01, mut h11) = (RIDGE, 0.0, RIDGE);
        for duel in duels {
            let d = duel.longer / scale;
            let p = 1.0 / (1.0 + (-(b0 + b1 * d)).exp());
            let (error, curvature) = (p - duel.score, (p * (1.0 - p)).max(1e-9));
            g0 += error;
            g1 += error * d;
            h00 += curvature;
            h01 += curvature * d;
            h11 += curvature * d * d;
        }
        let det = h00 * h11 - h01 * h01;
        let (s0, s1) = ((h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det);
        // Six standard deviations are practical certainty already; longer steps only overshoot.
        b0 = (b0 - s0.clamp(-2.0, 2.0)).clamp(-12.0, 12.0);
        b1 = (b1 - s1.clamp(-2.0, 2.0)).clamp(-12.0, 12.0);
        if s0.abs().max(s1.abs()) < 1e-9 {
            break;
        }
    }
    1.0 / (1.0 + (-b0).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duels(outcomes: &[(f64, f64)]) -> Vec<Duel> {
        let duel = |&(score, longer)| Duel { score, longer };
        outcomes.iter().map(duel).collect()
    }

    #[test]
    fn without_a_difference_in_length_it_is_the_win_rate() {
        let mut outcomes = vec![(1.0, 0.0); 70];
        outcomes.extend([(0.0, 0.0); 30]);
        let rate = length_controlled(&duels(&outcomes));
        assert!((rate - 0.7).abs() < 0.01, "{rate}");
        assert_eq!(length_controlled(&[]), 0.5);
    }

    #[test]
    fn wins_by_length_alone_do_not_count() {
        // Four of five answers are longer, and the longer one always wins.
        let outcomes: Vec<(f64, f64)> = (0..100)
            .map(|i| {
                if i % 5 == 0 {
                    (0.0, -10.0)
                } else {
                    (1.0, 10.0)
                }
            })
            .collect();
        let controlled = length_controlled(&duels(&outcomes));
        assert!((controlled - 0.5).abs() < 0.15, "{controlled}");
    }

    #[test]
    fn merit_remains_when_length_says_nothing() {
        let outcomes: Vec<(f64, f64)> = (0..200)
            .map(|i| {
                (
                    f64::from(u8::from(i % 4 != 0)),
                    if i % 2 == 0 { 5.0 } else { -5.0 },
                )
            })
            .collect();
        let controlled = length_controlled(&duels(&outcomes));
        assert!(controlled > 0.65, "{controlled}");
    }
}
