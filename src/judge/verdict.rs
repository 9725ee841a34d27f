//! The verdict on a pair of answers, joined from its reads over orders and principles.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::principles::{Polarity, WeightedPrinciple};
use super::{Order, Outcome, Winner};

/// Natural log-probabilities of the two label tokens (full vocabulary) at the label position of one prompt. The first
/// label names the candidate shown first.
pub type LabelLogprobs = [f32; 2];

/// The minimum probability of the two labels in a verdict that is a comparison.
pub const MIN_LABEL_MASS: f32 = 0.5;

/// The orders in which the judge reads a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = OrdersBody)]
pub enum Orders {
    /// Both, averaged.
    #[default]
    Both,
    /// As given: half the cost, and the verdict includes the judge's position bias.
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

/// The winner of a pair whose orders disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = OnDisagreementBody)]
pub enum OnDisagreement {
    /// The answer with the higher mean probability.
    #[default]
    Average,
    /// None: `winner` is null, and in a tournament the pair is a tie.
    Undecided,
}

/// The judge's result for a pair in one order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = OrderBody)]
pub struct ShownRead {
    /// The candidates in the order in which the judge read them.
    pub shown: [usize; 2],
    /// Probability that the first of them is better.
    // Normalised over the two labels.
    pub p_first: f32,
}

/// The origin of a principle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SourceBody)]
pub enum PrincipleSource {
    /// The server's table.
    Table,
    /// The call.
    Text,
}

/// The verdict on a pair under one principle.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = PrincipleVerdictBody)]
pub struct PrincipleVerdict {
    /// The name or the text of the principle.
    pub principle: String,
    /// The origin of the principle: a name that is not in the table is used as a text.
    pub source: PrincipleSource,
    /// The probability that candidate 0 is better under the principle.
    pub p: f32,
    /// Whether both orders name the same winner; null if only one order was judged.
    pub consistent: Option<bool>,
    /// Probability of the judge's labels among all tokens.
    pub label_mass: f32,
    /// The result of each order.
    pub orders: Vec<ShownRead>,
}

/// The verdict on a pair.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = VerdictBody)]
pub struct PairVerdict {
    /// 0 or 1; null on an exact tie, and with `"on_disagreement": "undecided"` if the orders disagree.
    pub winner: Option<usize>,
    /// Probability that candidate 0 is better.
    pub p: f32,
    /// Whether both orders name the same winner, with several principles by their weighted means; null if only one order was judged.
    pub consistent: Option<bool>,
    /// Whether the verdict is reliable: the judge passed its self-test, both orders name the same winner, and `label_mass` is at
    /// least 0.5. Null if unknown: without a self-test, with one order, or between equal candidates.
    pub reliable: Option<bool>,
    /// Probability of the judge's labels among all tokens: low if the model does not answer as a judge. Below 0.5 the verdict is
    /// meaningless, whatever `winner` is, and makes no preference pair.
    pub label_mass: f32,
    /// The result of each order; empty between equal candidates.
    pub orders: Vec<ShownRead>,
    /// The verdict by principle, if principles were named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principles: Vec<PrincipleVerdict>,
    /// Whether texts were cut to fit the context.
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
        self.source = match principle.listed {
            true => PrincipleSource::Table,
            false => PrincipleSource::Text,
        };
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
        source: PrincipleSource::Text,
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
