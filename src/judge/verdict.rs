//! The verdict on a pair of answers, joined from its reads over orders and principles.

use super::principles::{Polarity, WeightedPrinciple};
use super::{Order, Outcome, Winner};

/// Natural log-probabilities of the two label tokens (full vocabulary) at the label position of one prompt. The first
/// label names the candidate shown first.
pub type LabelLogprobs = [f32; 2];

/// The minimum probability of the two labels in a verdict that is a comparison.
pub const MIN_LABEL_MASS: f32 = 0.5;

/// The orders in which the two answers of a pair are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orders {
    /// Both orders, averaged.
    #[default]
    Both,
    /// The given order only: half the cost, but the verdict contains the judge's position bias.
    Given,
}

impl Orders {
    /// Returns the orders that are read for a pair under one principle.
    pub fn reads(self) -> &'static [Order] {
        match self {
            Self::Both => &Order::BOTH,
            Self::Given => &[Order::Given],
        }
    }
}

/// The winner of a pair whose two orders name different answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDisagreement {
    /// The answer with the higher mean probability over both orders.
    #[default]
    Average,
    /// No winner: the pair counts as a tie.
    Undecided,
}

/// One read, in which candidate `shown[0]` (0 or 1 of the pair) came first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShownRead {
    pub shown: [usize; 2],
    /// Probability that the answer shown first is better, normalised over the two labels.
    pub p_first: f32,
}

/// The verdict on a pair under one principle.
#[derive(Debug, Clone, PartialEq)]
pub struct PrincipleVerdict {
    pub principle: String,
    /// Whether the principle is from the server's table.
    pub listed: bool,
    pub p: f32,
    pub label_mass: f32,
    /// Whether both orders name the same winner; none if only one order was shown.
    pub consistent: Option<bool>,
    pub orders: Vec<ShownRead>,
}

/// The verdict on a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct PairVerdict {
    /// Probability that candidate 0 is better.
    pub p: f32,
    /// 0 or 1; none on an exact tie, or if the orders disagree under [`OnDisagreement::Undecided`].
    pub winner: Option<usize>,
    pub consistent: Option<bool>,
    /// Whether the verdict is reliable: the judge passed its self-test, both orders name the same winner, and the labels have at least
    /// half of the probability. None if the judge had no self-test, only one order was shown, or no read was needed.
    pub reliable: Option<bool>,
    pub label_mass: f32,
    pub orders: Vec<ShownRead>,
    /// The verdict under each principle; empty if the call named none.
    pub principles: Vec<PrincipleVerdict>,
    /// Whether a prompt was cut to fit the context.
    pub truncated: bool,
}

impl PairVerdict {
    /// Joins the reads of a pair: one or two for each principle, in order. Without principles they are those of the default question.
    ///
    /// The verdict is the weighted mean over the principles whose orders name the same winner; the others are left out (SALMON). If the
    /// orders disagree under every principle, all are averaged, and the verdict is inconsistent.
    pub fn join(
        principles: &[WeightedPrinciple],
        orders: Orders,
        on_disagreement: OnDisagreement,
        reads: &[LabelLogprobs],
        truncated: bool,
    ) -> Self {
        let per_principle = orders.reads().len();
        let mut parts: Vec<PrincipleVerdict> = reads
            .chunks_exact(per_principle)
            .enumerate()
            .map(|(at, reads)| {
                let verdict = read_orders(reads);
                match principles.get(at) {
                    Some(principle) => verdict.under(principle),
                    None => verdict,
                }
            })
            .collect();
        if principles.is_empty() {
            let only = parts.pop().expect("a pair is read; this is a bug");
            return PairVerdict {
                p: only.p,
                winner: settled(winner(only.p), only.consistent, on_disagreement),
                consistent: only.consistent,
                reliable: None,
                label_mass: only.label_mass,
                orders: only.orders,
                principles: Vec::new(),
                truncated,
            };
        }
        let counts = |part: &PrincipleVerdict| part.consistent != Some(false);
        let any_counts = parts.iter().any(counts);
        let weight = |(part, principle): (&PrincipleVerdict, &WeightedPrinciple)| match any_counts
            && !counts(part)
        {
            true => 0.0,
            false => f64::from(principle.weight),
        };
        let weights: Vec<f64> = parts.iter().zip(principles).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mean = |value: &dyn Fn(&PrincipleVerdict) -> f32| -> f32 {
            let weighted = parts.iter().zip(&weights);
            let sum: f64 = weighted
                .map(|(part, weight)| f64::from(value(part)) * weight)
                .sum();
            (sum / total) as f32
        };
        let p = settle(mean(&|part| part.p));
        let orders: Vec<ShownRead> = (0..per_principle)
            .map(|order| ShownRead {
                shown: parts[0].orders[order].shown,
                p_first: mean(&|part| part.orders[order].p_first),
            })
            .collect();
        let consistent = match any_counts {
            true => agreement(&orders),
            false => Some(false),
        };
        PairVerdict {
            p,
            winner: settled(winner(p), consistent, on_disagreement),
            consistent,
            reliable: None,
            label_mass: mean(&|part| part.label_mass),
            orders,
            principles: parts,
            truncated,
        }
    }

    /// Returns the verdict on two identical answers, which needs no read.
    pub fn identical() -> Self {
        Self {
            p: 0.5,
            winner: None,
            consistent: None,
            reliable: None,
            label_mass: 1.0,
            orders: Vec::new(),
            principles: Vec::new(),
            truncated: false,
        }
    }

    /// Returns the verdict on a pair that was not read.
    pub fn unread() -> Self {
        Self {
            label_mass: 0.0,
            ..Self::identical()
        }
    }

    /// Returns the verdict with its reliability; `passed` is the judge's self-test result, if known.
    pub fn by_judge(mut self, passed: Option<bool>) -> Self {
        let sound = self.label_mass >= MIN_LABEL_MASS;
        self.reliable = match (passed, self.consistent) {
            _ if self.orders.is_empty() => None,
            (Some(false), _) | (_, Some(false)) => Some(false),
            _ if !sound => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        };
        self
    }

    /// Returns the same verdict with the two candidates exchanged.
    pub fn swapped(mut self) -> Self {
        let turn = |orders: &mut Vec<ShownRead>| {
            for read in orders.iter_mut() {
                read.shown = read.shown.map(|candidate| 1 - candidate);
            }
            // The first read is the one in which candidate 0 comes first.
            orders.reverse();
        };
        self.p = 1.0 - self.p;
        self.winner = self.winner.map(|winner| 1 - winner);
        turn(&mut self.orders);
        for principle in &mut self.principles {
            principle.p = 1.0 - principle.p;
            turn(&mut principle.orders);
        }
        self
    }

    pub fn outcome(&self) -> Outcome {
        Outcome {
            winner: match self.winner {
                Some(0) => Winner::A,
                Some(_) => Winner::B,
                None => Winner::Tie,
            },
            p: self.p,
        }
    }
}

/// Returns whether both orders name the same winner, by their means over the principles; none if only one order was shown.
fn agreement(orders: &[ShownRead]) -> Option<bool> {
    let [given, turned] = orders else {
        return None;
    };
    // The answer shown first is candidate 0 in one order and candidate 1 in the other.
    let named = [
        winner(settle(given.p_first)),
        winner(settle(1.0 - turned.p_first)),
    ];
    Some(named[0].is_some() && named[0] == named[1])
}

/// Returns a mean of probabilities, set to exactly 0.5 if it differs from that only by rounding.
fn settle(p: f32) -> f32 {
    /// The maximum shift of a mean by rounding to `f32`.
    const ROUNDING: f32 = 1e-7;
    match (p - 0.5).abs() <= ROUNDING {
        true => 0.5,
        false => p,
    }
}

/// Returns `winner`, or none if the orders disagree and the task leaves such pairs undecided.
fn settled(
    winner: Option<usize>,
    consistent: Option<bool>,
    on_disagreement: OnDisagreement,
) -> Option<usize> {
    match on_disagreement {
        OnDisagreement::Undecided if consistent == Some(false) => None,
        _ => winner,
    }
}

fn winner(p: f32) -> Option<usize> {
    match p.total_cmp(&0.5) {
        std::cmp::Ordering::Greater => Some(0),
        std::cmp::Ordering::Less => Some(1),
        std::cmp::Ordering::Equal => None,
    }
}

impl PrincipleVerdict {
    /// Attributes the verdict to `principle`, and inverts it if the principle's text is true of the worse answer.
    fn under(mut self, principle: &WeightedPrinciple) -> Self {
        self.principle.clone_from(&principle.name);
        self.listed = principle.listed;
        if principle.polarity == Polarity::Forbid {
            self.p = 1.0 - self.p;
            for read in &mut self.orders {
                read.p_first = 1.0 - read.p_first;
            }
        }
        self
    }
}

/// Computes a verdict from one or two reads of a pair; the caller sets the principle.
///
/// With `p_o(x)` the probability of label `x` in order `o` (papers.md 1.7):
/// ```text
/// sA = (p_0(first) + p_1(second)) / 2        sB = (p_0(second) + p_1(first)) / 2        p = sA / (sA + sB)
/// ```
/// A deviation: an exact tie has no winner, where the released code takes the second answer.
fn read_orders(reads: &[LabelLogprobs]) -> PrincipleVerdict {
    let (p, label_mass, consistent, orders) = match reads {
        [given, swapped] => {
            // Each order's logit difference in favour of candidate 0.
            let leads = [lead(given[0], given[1]), lead(swapped[1], swapped[0])];
            let scores = [
                (given[0].exp() + swapped[1].exp()) / 2.0,
                (given[1].exp() + swapped[0].exp()) / 2.0,
            ];
            let mass = given[0].exp() + given[1].exp() + swapped[0].exp() + swapped[1].exp();
            let sum = scores[0] + scores[1];
            // Without label mass there is no share; 0.5 is neutral.
            let p = if sum > 0.0 { scores[0] / sum } else { 0.5 };
            let reads = vec![
                ShownRead {
                    shown: [0, 1],
                    p_first: sigmoid(leads[0]),
                },
                ShownRead {
                    shown: [1, 0],
                    p_first: 1.0 - sigmoid(leads[1]),
                },
            ];
            (p, mass / 2.0, Some(leads[0] * leads[1] > 0.0), reads)
        }
        _ => {
            let [first, second] = reads[0];
            let p = sigmoid(lead(first, second));
            let read = ShownRead {
                shown: [0, 1],
                p_first: p,
            };
            (p, first.exp() + second.exp(), None, vec![read])
        }
    };
    PrincipleVerdict {
        principle: String::new(),
        listed: false,
        p,
        label_mass,
        consistent,
        orders,
    }
}

/// Returns the difference of two log-probabilities, `one - other`; 0 if both are minus infinity.
fn lead(one: f32, other: f32) -> f32 {
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

    const NOTHING: f32 = f32::NEG_INFINITY;

    fn principles(weights: &[f32]) -> Vec<WeightedPrinciple> {
        let principle = |&weight: &f32| WeightedPrinciple {
            name: "p".to_owned(),
            text: "p".to_owned(),
            polarity: Polarity::Encourage,
            weight,
            listed: false,
        };
        weights.iter().map(principle).collect()
    }

    /// Joins reads of principles with these weights.
    fn join(weights: &[f32], orders: Orders, reads: &[LabelLogprobs]) -> PairVerdict {
        let average = OnDisagreement::Average;
        PairVerdict::join(&principles(weights), orders, average, reads, false)
    }

    /// Returns a read in which the answer shown first is better with probability `p`.
    fn read(p: f32) -> LabelLogprobs {
        read_of(p, 1.0 - p)
    }

    /// Returns a read with these probabilities of the two labels.
    fn read_of(first: f32, second: f32) -> LabelLogprobs {
        [first.ln(), second.ln()]
    }

    fn near(a: f32, b: f32) {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }

    #[test]
    fn the_two_orders_are_averaged_as_the_paper_does() {
        // The given order is confident in candidate 0; the other leans to the one shown first, which is candidate 1.
        let reads = [read_of(0.8, 0.1), read_of(0.5, 0.4)];
        let verdict = join(&[], Orders::Both, &reads);
        // sA = (0.8 + 0.4) / 2 = 0.6, sB = (0.1 + 0.5) / 2 = 0.3
        near(verdict.p, 0.6 / 0.9);
        assert_eq!(verdict.winner, Some(0));
        assert_eq!(verdict.consistent, Some(false));
        near(verdict.label_mass, 0.9);
        near(verdict.orders[0].p_first, 0.8 / 0.9);
        near(verdict.orders[1].p_first, 0.5 / 0.9);
        assert_eq!(verdict.orders[1].shown, [1, 0]);
    }

    #[test]
    fn swapping_the_candidates_swaps_the_verdict() {
        let (x, y) = (read_of(0.7, 0.2), read_of(0.35, 0.6));
        let verdict = join(&[], Orders::Both, &[x, y]);
        let swapped = join(&[], Orders::Both, &[y, x]);
        near(verdict.p, 1.0 - swapped.p);
        assert_eq!((verdict.winner, swapped.winner), (Some(0), Some(1)));
        assert_eq!(
            (verdict.consistent, swapped.consistent),
            (Some(true), Some(true))
        );
        let back = swapped.swapped();
        near(back.p, verdict.p);
        assert_eq!((back.winner, back.outcome().winner), (Some(0), Winner::A));
    }

    #[test]
    fn a_pure_position_bias_cancels_exactly() {
        let verdict = join(&[], Orders::Both, &[read_of(0.75, 0.25); 2]);
        assert_eq!((verdict.winner, verdict.p), (None, 0.5));
        assert_eq!(verdict.consistent, Some(false));
        assert_eq!(verdict.outcome().winner, Winner::Tie);
        let even = join(&[], Orders::Both, &[read(0.5); 2]);
        assert_eq!((even.winner, even.consistent), (None, Some(false)));
    }

    #[test]
    fn a_forbidden_principle_inverts_its_verdict() {
        let mut principles = principles(&[1.0]);
        principles[0].polarity = Polarity::Forbid;
        let average = OnDisagreement::Average;
        let reads = [read(0.9), read(0.2)];
        let verdict = PairVerdict::join(&principles, Orders::Both, average, &reads, false);
        near(verdict.p, 0.15);
        assert_eq!((verdict.winner, verdict.consistent), (Some(1), Some(true)));
        near(verdict.orders[0].p_first, 0.1);
    }

    #[test]
    fn labels_without_probability_are_a_tie_and_no_nan() {
        let orders = [(Orders::Both, 2), (Orders::Given, 1)];
        for (orders, per_principle) in orders {
            for principles in [&[][..], &[1.0], &[1.0, 2.0]] {
                let reads = vec![[NOTHING; 2]; per_principle * principles.len().max(1)];
                let verdict = join(principles, orders, &reads);
                assert_eq!(
                    (verdict.p, verdict.winner, verdict.label_mass),
                    (0.5, None, 0.0)
                );
                let parts = verdict.principles.iter().map(|part| part.p);
                let shown = verdict.orders.iter().map(|order| order.p_first);
                assert!(parts.chain(shown).all(|p| p == 0.5), "{verdict:?}");
            }
        }
        let one = join(&[], Orders::Given, &[[-1.0, NOTHING]]);
        assert_eq!((one.p, one.winner), (1.0, Some(0)));
    }

    #[test]
    fn opposite_principles_of_one_weight_are_an_exact_tie() {
        for step in 1..1000 {
            let p = step as f32 / 1000.0;
            for weight in [0.1, 0.3, 1.0, 7.0] {
                let reads = [read(p), read(0.5), read(1.0 - p), read(0.5)];
                let verdict = join(&[weight; 4], Orders::Given, &reads);
                assert_eq!((verdict.p, verdict.winner), (0.5, None), "{p} at {weight}");
            }
        }
    }

    #[test]
    fn a_pair_whose_orders_disagree_can_be_left_undecided() {
        // Candidate 0 wins when shown first, and loses when shown second.
        let (given, turned, agreeing) = (read(0.9), read(0.7), read(0.2));
        for weights in [&[][..], &[1.0], &[1.0, 2.0]] {
            for (on_disagreement, second, winner) in [
                (OnDisagreement::Average, turned, Some(0)),
                (OnDisagreement::Undecided, turned, None),
                (OnDisagreement::Undecided, agreeing, Some(0)),
            ] {
                let reads = [given, second].repeat(weights.len().max(1));
                let principles = principles(weights);
                let verdict =
                    PairVerdict::join(&principles, Orders::Both, on_disagreement, &reads, false);
                assert_eq!(verdict.winner, winner, "{on_disagreement:?} {weights:?}");
                assert!(verdict.p > 0.5);
            }
        }
    }

    #[test]
    fn several_principles_are_consistent_where_their_joined_orders_are() {
        // Probabilities that the answer shown first is better, for each principle in both orders.
        for (reads, consistent, winner_is) in [
            // Each principle prefers a position, and so do the means.
            (&[[0.6, 0.6], [0.55, 0.52]][..], false, Some(0)),
            // One principle contradicts itself, the other is certain.
            (&[[0.55, 0.52], [0.9, 0.1]], true, Some(0)),
            // Each principle is consistent, but they name different candidates; the means name the more certain one's in both orders.
            (&[[0.9, 0.1], [0.45, 0.55]], true, Some(0)),
            // Each principle is consistent, but their means contradict each other.
            (&[[0.9, 0.48], [0.2, 0.7]], false, Some(1)),
            // A mean that is an exact tie in one order agrees with nothing.
            (&[[0.7, 0.2], [0.3, 0.9]], false, Some(1)),
            // The second principle contradicts itself and is left out.
            (&[[0.7, 0.2], [0.3, 0.1]], true, Some(0)),
            (&[[0.6, 0.4], [0.1, 0.2]], true, Some(0)),
        ] {
            let flat: Vec<LabelLogprobs> = reads.iter().flatten().map(|&p| read(p)).collect();
            let weights = vec![1.0; reads.len()];
            let average = join(&weights, Orders::Both, &flat);
            assert_eq!(average.consistent, Some(consistent), "{reads:?}");
            assert_eq!(average.winner, winner_is, "{reads:?}");
            let undecided = OnDisagreement::Undecided;
            let principles = principles(&weights);
            let undecided = PairVerdict::join(&principles, Orders::Both, undecided, &flat, false);
            assert_eq!(
                undecided.winner,
                winner_is.filter(|_| consistent),
                "{reads:?}"
            );
        }
    }

    #[test]
    fn principles_that_contradict_themselves_are_left_out_of_the_mean() {
        // Ten principles, of which three prefer a position: the pair is kept, by the verdict of the other seven.
        let (position, sound) = ([read(0.9), read(0.7)], [read(0.8), read(0.3)]);
        let reads: Vec<LabelLogprobs> = (0..10)
            .flat_map(|at| if at % 4 == 1 { position } else { sound })
            .collect();
        let verdict = join(&[1.0; 10], Orders::Both, &reads);
        near(verdict.p, 0.75);
        assert_eq!((verdict.winner, verdict.consistent), (Some(0), Some(true)));
        near(verdict.orders[0].p_first, 0.8);
        near(verdict.orders[1].p_first, 0.3);
        let left_out = |part: &&PrincipleVerdict| part.consistent == Some(false);
        assert_eq!(verdict.principles.iter().filter(left_out).count(), 3);
        // Weights are those of the principles that count.
        let reads = [
            read(0.9),
            read(0.7),
            read(0.8),
            read(0.3),
            read(0.2),
            read(0.9),
        ];
        let verdict = join(&[5.0, 3.0, 1.0], Orders::Both, &reads);
        near(verdict.p, (3.0 * 0.75 + 0.15) / 4.0);
        // With one order nothing contradicts itself.
        let one = join(&[1.0, 1.0], Orders::Given, &[read(0.9), read(0.2)]);
        near(one.p, 0.55);
        // Where all do, no verdict is consistent, even if the means of the orders are.
        let reads = [read(0.9), read(0.6), read(0.4), read(0.3)];
        let verdict = join(&[1.0, 1.0], Orders::Both, &reads);
        assert_eq!((verdict.winner, verdict.consistent), (Some(0), Some(false)));
    }

    #[test]
    fn a_small_lead_is_no_tie() {
        let verdict = join(&[1.0, 1.0], Orders::Given, &[read(0.50001), read(0.5)]);
        assert_eq!(verdict.winner, Some(0));
    }
}
