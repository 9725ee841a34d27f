//! Computation of a pair's verdict from its reads.

use super::judging::{
    JudgeTask, OnDisagreement, PairVerdict, PrincipleVerdict, ShownRead, WeightedPrinciple,
};
use judge::Polarity;
use judge::{LabelLogprobs, Rule, decide, lead, sigmoid};

/// Computes the verdict on one pair from its reads: one or two for each principle, in order.
pub(super) fn verdict(task: &JudgeTask, reads: &[LabelLogprobs], truncated: bool) -> PairVerdict {
    let per_principle = task.orders.reads().len();
    let mut parts: Vec<PrincipleVerdict> = reads
        .chunks_exact(per_principle)
        .enumerate()
        .map(|(at, reads)| {
            let verdict = read_orders(reads);
            match task.principles.get(at) {
                Some(principle) => verdict.under(principle),
                None => verdict,
            }
        })
        .collect();
    if task.principles.is_empty() {
        let only = parts.pop().expect("a pair is read; this is a bug");
        return PairVerdict {
            p: only.p,
            winner: settled(winner(only.p), only.consistent, task.on_disagreement),
            consistent: only.consistent,
            reliable: None,
            label_mass: only.label_mass,
            orders: only.orders,
            principles: Vec::new(),
            truncated,
        };
    }
    let weights: Vec<f64> = task.principles.iter().map(|p| p.weight.into()).collect();
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
    let consistent = agreement(&orders);
    PairVerdict {
        p,
        winner: settled(winner(p), consistent, task.on_disagreement),
        consistent,
        reliable: None,
        label_mass: mean(&|part| part.label_mass),
        orders,
        principles: parts,
        truncated,
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
fn read_orders(reads: &[LabelLogprobs]) -> PrincipleVerdict {
    let (p, label_mass, consistent, orders) = match reads {
        [given, turned] => {
            let verdict = decide(&[[*given, *turned]], Rule::Average, false);
            let [first, second] = verdict.orders;
            let reads = vec![
                ShownRead {
                    shown: [0, 1],
                    p_first: first,
                },
                ShownRead {
                    shown: [1, 0],
                    p_first: 1.0 - second,
                },
            ];
            let consistent = Some(verdict.consistent);
            (verdict.p, verdict.label_mass, consistent, reads)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{OnDisagreement, Orders, Turn};

    const NOTHING: f32 = f32::NEG_INFINITY;

    fn task(weights: &[f32], orders: Orders) -> JudgeTask {
        let principle = |&weight: &f32| WeightedPrinciple {
            name: "p".to_owned(),
            text: "p".to_owned(),
            polarity: Polarity::Encourage,
            weight,
            listed: false,
        };
        JudgeTask {
            context: Vec::new(),
            principles: weights.iter().map(principle).collect(),
            orders,
            on_disagreement: OnDisagreement::default(),
            weights: None,
            turn: Turn::now(),
        }
    }

    /// Returns a read in which the answer shown first is better with probability `p`.
    fn read(p: f32) -> LabelLogprobs {
        [p.ln(), (1.0 - p).ln()]
    }

    #[test]
    fn labels_without_probability_are_a_tie_and_no_nan() {
        let orders = [(Orders::Both, 2), (Orders::Given, 1)];
        for (orders, per_principle) in orders {
            for principles in [&[][..], &[1.0], &[1.0, 2.0]] {
                let reads = vec![[NOTHING; 2]; per_principle * principles.len().max(1)];
                let verdict = verdict(&task(principles, orders), &reads, false);
                assert_eq!(
                    (verdict.p, verdict.winner, verdict.label_mass),
                    (0.5, None, 0.0)
                );
                let parts = verdict.principles.iter().map(|part| part.p);
                let shown = verdict.orders.iter().map(|order| order.p_first);
                assert!(parts.chain(shown).all(|p| p == 0.5), "{verdict:?}");
            }
        }
        let one = verdict(&task(&[], Orders::Given), &[[-1.0, NOTHING]], false);
        assert_eq!((one.p, one.winner), (1.0, Some(0)));
    }

    #[test]
    fn opposite_principles_of_one_weight_are_an_exact_tie() {
        for step in 1..1000 {
            let p = step as f32 / 1000.0;
            for weight in [0.1, 0.3, 1.0, 7.0] {
                let task = task(&[weight, weight, weight, weight], Orders::Given);
                let reads = [read(p), read(0.5), read(1.0 - p), read(0.5)];
                let verdict = verdict(&task, &reads, false);
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
                let task = JudgeTask {
                    on_disagreement,
                    ..task(weights, Orders::Both)
                };
                let reads = [given, second].repeat(weights.len().max(1));
                let verdict = verdict(&task, &reads, false);
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
            // One principle contradicts itself, the other is certain: both means name candidate 0.
            (&[[0.55, 0.52], [0.9, 0.1]], true, Some(0)),
            // Each principle is consistent, but they name different candidates; the means name the more certain one's in both orders.
            (&[[0.9, 0.1], [0.45, 0.55]], true, Some(0)),
            // Each principle is consistent, but their means contradict each other.
            (&[[0.9, 0.48], [0.2, 0.7]], false, Some(1)),
            // A mean that is an exact tie in one order agrees with nothing.
            (&[[0.7, 0.2], [0.3, 0.1]], false, Some(0)),
        ] {
            let flat: Vec<LabelLogprobs> = reads.iter().flatten().map(|&p| read(p)).collect();
            let weights = vec![1.0; reads.len()];
            let task = task(&weights, Orders::Both);
            let average = verdict(&task, &flat, false);
            assert_eq!(average.consistent, Some(consistent), "{reads:?}");
            assert_eq!(average.winner, winner_is, "{reads:?}");
            let task = JudgeTask {
                on_disagreement: OnDisagreement::Undecided,
                ..task
            };
            let undecided = verdict(&task, &flat, false).winner;
            assert_eq!(undecided, winner_is.filter(|_| consistent), "{reads:?}");
        }
    }

    #[test]
    fn a_small_lead_is_no_tie() {
        let verdict = verdict(
            &task(&[1.0, 1.0], Orders::Given),
            &[read(0.50001), read(0.5)],
            false,
        );
        assert_eq!(verdict.winner, Some(0));
    }
}
