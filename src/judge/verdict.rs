//! Verdicts from label log-probabilities: the average over both orders, the vote over several principles, ties.

use serde::{Deserialize, Serialize};

/// Natural log-probabilities of the two label tokens (full vocabulary) at the label position of one prompt. The first
/// label names the candidate shown first.
pub type LabelLogprobs = [f32; 2];

/// The winner of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Winner {
    A,
    B,
    /// Exactly equal scores or, under [`Rule::Agree`], orders that contradict each other.
    Tie,
}

/// The rule that turns the reads of a comparison into a winner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// SELF-JUDGE: the two orders are averaged and always decide; principles vote.
    #[default]
    Average,
    /// SALMON: a principle whose two orders contradict each other abstains; of the others, the one with the largest mean logit difference
    /// decides.
    Agree,
}

/// The outcome of one comparison of `a` with `b`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Probability that `a` is better: its share of the two averaged scores, mean over principles.
    pub p: f32,
    pub winner: Winner,
    /// Whether, for every principle, both orders name the same winner.
    pub consistent: bool,
    /// Probability the model assigns to the two labels together, mean over all reads.
    pub label_mass: f32,
    /// Probability that `a` is better, renormalised over the labels, with `a` shown first and with `a` shown second.
    pub orders: [f32; 2],
    /// Whether a prompt had to be cut to fit ([`super::fit`]).
    pub cut: bool,
}

/// Judges one comparison from its reads, `reads[principle][order]`; order 0 shows `a` first, order 1 shows `b` first.
///
/// With `p_o(x)` the probability of label `x` in order `o` (papers.md 1.7):
/// ```text
/// sA = (p_0(first) + p_1(second)) / 2        sB = (p_0(second) + p_1(first)) / 2
/// f = fraction of principles with sA > sB;  f > 1/2: A;  f < 1/2: B;  f = 1/2: the larger mean of sA and sB
/// ```
/// Two deviations: a principle with sA = sB votes for neither side, and an exact tie of the means is [`Winner::Tie`], where the released
/// code takes the second answer. With `renormalise` each order's two probabilities are first scaled to sum to one, so that an order with
/// little label mass counts as much as the other.
///
/// Without reads the result is a tie with label mass 0.
pub fn decide(reads: &[[LabelLogprobs; 2]], rule: Rule, renormalise: bool) -> Verdict {
    let count = reads.len().max(1) as f32;
    let mut verdict = Verdict {
        p: 0.0,
        winner: Winner::Tie,
        consistent: !reads.is_empty(),
        label_mass: 0.0,
        orders: [0.0; 2],
        cut: false,
    };
    let (mut votes, mut mean) = ([0usize; 2], [0.0f32; 2]);
    let mut dominant = 0.0f32;
    for [first, second] in reads {
        // Each order's logit difference in favour of `a`.
        let towards_a = [lead(first[0], first[1]), lead(second[1], second[0])];
        let shares = towards_a.map(sigmoid);
        for (order, share) in verdict.orders.iter_mut().zip(shares) {
            *order += share / count;
        }
        let mass = first[0].exp() + first[1].exp() + second[0].exp() + second[1].exp();
        verdict.label_mass += mass / 2.0 / count;
        let scores = if renormalise {
            let a = (shares[0] + shares[1]) / 2.0;
            [a, 1.0 - a]
        } else {
            [
                (first[0].exp() + second[1].exp()) / 2.0,
                (first[1].exp() + second[0].exp()) / 2.0,
            ]
        };
        let sum = scores[0] + scores[1];
        // With zero label mass there is no share; 0.5 is neutral.
        verdict.p += if sum > 0.0 { scores[0] / sum } else { 0.5 } / count;
        votes[0] += usize::from(scores[0] > scores[1]);
        votes[1] += usize::from(scores[1] > scores[0]);
        for (mean, score) in mean.iter_mut().zip(scores) {
            *mean += score / count;
        }
        let agree = towards_a[0] * towards_a[1] > 0.0;
        verdict.consistent &= agree;
        let strength = (towards_a[0] + towards_a[1]) / 2.0;
        if agree && strength.abs() > dominant.abs() {
            dominant = strength;
        } else if agree && strength == -dominant {
            dominant = 0.0;
        }
    }
    if reads.is_empty() {
        (verdict.p, verdict.orders) = (0.5, [0.5; 2]);
    }
    verdict.winner = match rule {
        Rule::Average if votes[0] != votes[1] => side(votes[0] as f32 - votes[1] as f32),
        Rule::Average => side(mean[0] - mean[1]),
        Rule::Agree => side(dominant),
    };
    verdict
}

fn side(towards_a: f32) -> Winner {
    if towards_a > 0.0 {
        Winner::A
    } else if towards_a < 0.0 {
        Winner::B
    } else {
        Winner::Tie
    }
}

/// Returns the difference of two log-probabilities, `one - other`; 0 if both are minus infinity.
pub fn lead(one: f32, other: f32) -> f32 {
    match one == other {
        true => 0.0,
        false => one - other,
    }
}

/// Returns the probability whose log-odds are `x`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(first: f32, second: f32) -> LabelLogprobs {
        [first.ln(), second.ln()]
    }

    fn near(a: f32, b: f32) {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }

    #[test]
    fn the_two_orders_are_averaged_as_the_paper_does() {
        // Order 0 is confident in a; order 1 leans to the one shown first, which is b.
        let verdict = decide(&[[read(0.8, 0.1), read(0.5, 0.4)]], Rule::Average, false);
        // sA = (0.8 + 0.4) / 2 = 0.6, sB = (0.1 + 0.5) / 2 = 0.3
        near(verdict.p, 0.6 / 0.9);
        assert_eq!(verdict.winner, Winner::A);
        assert!(!verdict.consistent);
        near(verdict.label_mass, 0.9);
        near(verdict.orders[0], 0.8 / 0.9);
        near(verdict.orders[1], 0.4 / 0.9);
        let abstained = decide(&[[read(0.8, 0.1), read(0.5, 0.4)]], Rule::Agree, false);
        assert_eq!(abstained.winner, Winner::Tie);
    }

    #[test]
    fn renormalising_gives_an_unwilling_order_its_say() {
        // Order 0 puts little mass on the labels but is confident; order 1 leans the other way with all its mass.
        let reads = [[read(0.09, 0.01), read(0.6, 0.4)]];
        let raw = decide(&reads, Rule::Average, false);
        assert_eq!(raw.winner, Winner::B);
        near(raw.p, (0.09 + 0.4) / 1.1);
        let scaled = decide(&reads, Rule::Average, true);
        assert_eq!(scaled.winner, Winner::A);
        near(scaled.p, (0.9 + 0.4) / 2.0);
    }

    #[test]
    fn swapping_the_candidates_swaps_the_verdict() {
        let (x, y) = (read(0.7, 0.2), read(0.35, 0.6));
        let verdict = decide(&[[x, y]], Rule::Average, false);
        let swapped = decide(&[[y, x]], Rule::Average, false);
        near(verdict.p, 1.0 - swapped.p);
        assert_eq!((verdict.winner, swapped.winner), (Winner::A, Winner::B));
        assert!(verdict.consistent && swapped.consistent);
    }

    #[test]
    fn principles_vote_and_an_even_vote_goes_to_the_larger_mean() {
        let weak_a = [read(0.55, 0.45), read(0.45, 0.55)];
        let strong_b = [read(0.01, 0.99), read(0.99, 0.01)];
        let verdict = decide(&[weak_a, weak_a, strong_b], Rule::Average, false);
        assert_eq!(verdict.winner, Winner::A);
        assert!(verdict.p < 0.5);
        assert_eq!(
            decide(&[weak_a, strong_b], Rule::Average, false).winner,
            Winner::B
        );
        // SALMON's dominant principle overrules the majority.
        assert_eq!(
            decide(&[weak_a, weak_a, strong_b], Rule::Agree, false).winner,
            Winner::B
        );
    }

    #[test]
    fn exact_ties_are_ties() {
        let even = [read(0.5, 0.5), read(0.5, 0.5)];
        assert_eq!(decide(&[even], Rule::Average, false).winner, Winner::Tie);
        // A pure position bias cancels exactly.
        let biased = [read(0.75, 0.25), read(0.75, 0.25)];
        let verdict = decide(&[biased], Rule::Average, false);
        assert_eq!(verdict.winner, Winner::Tie);
        assert!(!verdict.consistent);
        near(verdict.p, 0.5);
        let opposed = [
            [read(0.8, 0.2), read(0.2, 0.8)],
            [read(0.2, 0.8), read(0.8, 0.2)],
        ];
        assert_eq!(decide(&opposed, Rule::Agree, false).winner, Winner::Tie);
        assert_eq!(decide(&opposed, Rule::Average, false).winner, Winner::Tie);
        let nothing = decide(&[], Rule::Average, false);
        assert_eq!(
            (nothing.winner, nothing.p, nothing.consistent),
            (Winner::Tie, 0.5, false)
        );
        let massless = decide(&[[[f32::NEG_INFINITY; 2]; 2]], Rule::Average, false);
        assert_eq!((massless.winner, massless.p), (Winner::Tie, 0.5));
        assert_eq!(massless.orders, [0.5; 2]);
        assert!(!massless.consistent);
    }
}
