//! Verdicts: label-token log-probabilities of both orders.
//!
//! Pairs of a round are submitted together, so the engine batches them and shares what their prompts have in common. Under
//! several principles each is asked by itself, one forward a (pair, order, principle), and their probabilities are
//! averaged by weight.

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::aside::aside_until;
use super::reading::{Account, Judged, LabelPrompt, Turn};
use super::{Service, ServiceError};
use crate::judge::{
    Bracket, Comparison, EncodedComparison, Judge, LabelLogprobs, Method, Order, Outcome, Rule,
    Winner, decide, sigmoid,
};
use crate::model::WeightsLease;
use crate::preference::{Message, Polarity, Principle, PrincipleTable};

/// Prompts of a call that are encoded at once: each is as long as the context at most. Many, so that what they share is computed once.
const SLICE: usize = 4096;

/// Two answers, to be compared.
type Pair = (Arc<str>, Arc<str>);

/// Which orders a pair is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orders {
    /// Both, averaged.
    #[default]
    Both,
    /// As given: half the cost, and the judge's preference for a position is in the verdict.
    Given,
}

impl Orders {
    /// What is read of a pair under one principle.
    pub fn reads(self) -> &'static [Order] {
        match self {
            Self::Both => &Order::BOTH,
            Self::Given => &[Order::Given],
        }
    }
}

/// A principle, and how much its verdict counts among the others'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedPrinciple {
    /// What the verdict under it is called.
    pub name: String,
    /// What the judge is asked.
    pub text: String,
    /// Whether the text is true of the better answer or of the worse one.
    pub polarity: Polarity,
    /// Above 0.
    pub weight: f32,
}

impl WeightedPrinciple {
    /// The principles of a table that have a weight: what has none is not asked.
    pub fn of_table(table: &PrincipleTable) -> Vec<Self> {
        let asked = table.iter().filter(|principle| principle.weight > 0.0);
        asked.map(Self::from).collect()
    }
}

impl From<&Principle> for WeightedPrinciple {
    fn from(principle: &Principle) -> Self {
        Self {
            name: principle.id.clone(),
            text: principle.text.clone(),
            polarity: principle.polarity,
            weight: principle.weight as f32,
        }
    }
}

/// What answers are judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeTask {
    pub context: Vec<Message>,
    /// None is the template's default.
    pub principles: Vec<WeightedPrinciple>,
    pub orders: Orders,
    /// Who judges; by default whoever serves as judge. One version makes all reads of a call.
    pub weights: Option<WeightsLease>,
    pub turn: Turn,
}

impl JudgeTask {
    /// Forwards that one comparison takes.
    pub fn reads(&self) -> usize {
        self.orders.reads().len() * self.principles.len().max(1)
    }
}

/// One read: candidate `shown[0]` (0 or 1 of the pair) came first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShownRead {
    pub shown: [usize; 2],
    /// Probability that the one shown first is better, of the two labels.
    pub p_first: f32,
}

/// A pair under one principle.
#[derive(Debug, Clone, PartialEq)]
pub struct PrincipleVerdict {
    pub principle: String,
    pub p: f32,
    pub label_mass: f32,
    /// Whether both orders name the same winner; unknown where only one was shown.
    pub consistent: Option<bool>,
    pub orders: Vec<ShownRead>,
}

/// A judged pair.
#[derive(Debug, Clone, PartialEq)]
pub struct PairVerdict {
    /// Probability that candidate 0 is better.
    pub p: f32,
    /// 0 or 1; none on an exact tie.
    pub winner: Option<usize>,
    pub consistent: Option<bool>,
    pub label_mass: f32,
    pub orders: Vec<ShownRead>,
    /// By principle, where principles were named.
    pub principles: Vec<PrincipleVerdict>,
    /// Whether a prompt had to be cut to fit the context.
    pub truncated: bool,
}

impl PairVerdict {
    /// Two copies of one answer: nothing to ask.
    fn identical() -> Self {
        Self {
            p: 0.5,
            winner: None,
            consistent: None,
            label_mass: 1.0,
            orders: Vec::new(),
            principles: Vec::new(),
            truncated: false,
        }
    }

    /// Of a pair that nobody was asked about.
    pub fn unread() -> Self {
        Self {
            label_mass: 0.0,
            ..Self::identical()
        }
    }

    /// The same verdict with the candidates in each other's place.
    pub fn turned(mut self) -> Self {
        let turn = |orders: &mut Vec<ShownRead>| {
            for read in orders.iter_mut() {
                read.shown = read.shown.map(|candidate| 1 - candidate);
            }
            // Candidate 0 first comes first.
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

    fn outcome(&self) -> Outcome {
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

/// How a tournament is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TournamentTask {
    pub method: Method,
    pub seed: u64,
}

/// One match of a tournament, by the candidates' indices.
#[derive(Debug, Clone, PartialEq)]
pub struct PlayedMatch {
    pub a: usize,
    pub b: usize,
    pub verdict: PairVerdict,
}

/// A finished tournament.
#[derive(Debug, Clone, PartialEq)]
pub struct Tournament {
    pub winner: usize,
    /// Candidates, the best first.
    pub ranking: Vec<usize>,
    pub rounds: Vec<Vec<PlayedMatch>>,
    /// Who had no match in a round of a knockout, round by round.
    pub byes: Vec<Option<usize>>,
    /// Pairs that met, equal answers among them.
    pub comparisons: usize,
    /// Whether a prompt of any match had to be cut to fit the context.
    pub truncated: bool,
}

impl Service {
    /// Judges one pair.
    ///
    /// # Errors
    /// What makes the prompts unservable, or a full queue.
    pub async fn judge_pair(
        &self,
        task: &JudgeTask,
        a: &str,
        b: &str,
    ) -> Result<Judged<PairVerdict>, ServiceError> {
        let mut account = Account::new(self.judging_weights(task.weights.as_ref()));
        let pair = (Arc::from(a), Arc::from(b));
        let mut verdicts = self.judge_pairs(task, &[pair], &mut account).await?;
        let verdict = verdicts
            .pop()
            .expect("one pair has one verdict; this is a bug");
        Ok(account.close(verdict))
    }

    /// Holds a tournament.
    ///
    /// # Errors
    /// As [`Self::judge_pair`].
    pub async fn hold_tournament(
        &self,
        task: &JudgeTask,
        how: TournamentTask,
        candidates: &[String],
    ) -> Result<Judged<Tournament>, ServiceError> {
        let weights = self.judging_weights(task.weights.as_ref());
        let account = Account::new(weights);
        self.tournament(task, how, candidates, account).await
    }

    /// A tournament by `weights` within a call that has been accepted already.
    pub(super) async fn hold_accepted_tournament(
        &self,
        task: &JudgeTask,
        how: TournamentTask,
        candidates: &[String],
        weights: WeightsLease,
    ) -> Result<Judged<Tournament>, ServiceError> {
        let account = Account::accepted(weights);
        self.tournament(task, how, candidates, account).await
    }

    async fn tournament(
        &self,
        task: &JudgeTask,
        how: TournamentTask,
        candidates: &[String],
        mut account: Account,
    ) -> Result<Judged<Tournament>, ServiceError> {
        let begun = Instant::now();
        // In a round robin each of them is in very many pairs.
        let candidates: Vec<Arc<str>> =
            candidates.iter().map(|text| text.as_str().into()).collect();
        let mut bracket = Bracket::new(candidates.len(), how.method, how.seed)?;
        let (mut rounds, mut byes) = (Vec::new(), Vec::new());
        let (mut comparisons, mut truncated) = (0, false);
        while !bracket.round().is_empty() {
            let matches = bracket.round().to_vec();
            byes.push(bracket.bye());
            let text = |at: usize| Arc::clone(&candidates[at]);
            let pairs: Vec<Pair> = matches
                .iter()
                .map(|m| (text(m.first), text(m.second)))
                .collect();
            let verdicts = self.judge_pairs(task, &pairs, &mut account).await?;
            let outcomes: Vec<Outcome> = verdicts.iter().map(PairVerdict::outcome).collect();
            bracket.record(&outcomes)?;
            comparisons += matches.len();
            truncated |= verdicts.iter().any(|verdict| verdict.truncated);
            let played = matches
                .iter()
                .zip(verdicts)
                .map(|(m, verdict)| PlayedMatch {
                    a: m.first,
                    b: m.second,
                    verdict,
                });
            rounds.push(played.collect());
        }
        let ranking = bracket.ranking();
        self.metrics
            .tournament_candidates
            .observe(candidates.len() as f64);
        self.metrics
            .tournament_comparisons
            .observe(comparisons as f64);
        self.metrics
            .tournament_seconds
            .observe(begun.elapsed().as_secs_f64());
        Ok(account.close(Tournament {
            winner: ranking[0],
            ranking,
            rounds,
            byes,
            comparisons,
            truncated,
        }))
    }

    /// Verdicts on pairs, in their order. No more than [`SLICE`] prompts are there at once, however many are asked for.
    async fn judge_pairs(
        &self,
        task: &JudgeTask,
        pairs: &[Pair],
        account: &mut Account,
    ) -> Result<Vec<PairVerdict>, ServiceError> {
        let mut verdicts = Vec::with_capacity(pairs.len());
        for slice in pairs.chunks((SLICE / task.reads()).max(1)) {
            verdicts.extend(self.judge_slice(task, slice, account).await?);
        }
        Ok(verdicts)
    }

    async fn judge_slice(
        &self,
        task: &JudgeTask,
        pairs: &[Pair],
        account: &mut Account,
    ) -> Result<Vec<PairVerdict>, ServiceError> {
        let prompts = self.encode_pairs(task, pairs).await?;
        let labels = self.judge.labels().ids;
        let mut cuts = Vec::with_capacity(prompts.len());
        let mut flat = Vec::with_capacity(prompts.len() * task.reads());
        for pair in prompts {
            cuts.push(pair.as_ref().map(|pair| pair.cut));
            let pair = pair.into_iter();
            let shown = pair.flat_map(|pair| pair.prompts.into_iter().zip(pair.shared));
            flat.extend(shown.map(|(prompt, shared)| LabelPrompt {
                prompt,
                labels: labels.to_vec(),
                reusable: Some(shared),
            }));
        }
        let reads = self.read_labels(task.turn, flat, account).await?;
        let reads: Vec<LabelLogprobs> = reads.iter().map(|read| [read[0], read[1]]).collect();
        let mut of_pairs = reads.chunks_exact(task.reads());
        let verdicts = cuts.into_iter().map(|cut| {
            let verdict = match cut {
                None => PairVerdict::identical(),
                Some(cut) => {
                    let reads = of_pairs
                        .next()
                        .expect("every pair that was encoded has been read; this is a bug");
                    verdict(task, reads, cut)
                }
            };
            self.count(&verdict);
            verdict
        });
        Ok(verdicts.collect())
    }

    /// A verdict, in the metrics. Of what nobody was asked about there is no label mass.
    fn count(&self, verdict: &PairVerdict) {
        let metrics = &self.metrics;
        metrics.comparisons.inc();
        metrics
            .flips
            .inc_by(u64::from(verdict.consistent == Some(false)));
        metrics.ties.inc_by(u64::from(verdict.winner.is_none()));
        if !verdict.orders.is_empty() {
            metrics.label_mass.observe(f64::from(verdict.label_mass));
        }
    }

    /// The prompts of each pair, principle by principle in the orders that are asked for; none of two equal answers.
    async fn encode_pairs(
        &self,
        task: &JudgeTask,
        pairs: &[Pair],
    ) -> Result<Vec<Option<EncodedComparison>>, ServiceError> {
        let judge = Arc::clone(&self.judge);
        let asked: Vec<Vec<String>> = match task.principles.is_empty() {
            true => vec![Vec::new()],
            false => task
                .principles
                .iter()
                .map(|p| vec![p.text.clone()])
                .collect(),
        };
        let (orders, context) = (task.orders.reads(), task.context.clone());
        let pairs = pairs.to_vec();
        aside_until(task.turn.deadline, move |watch| {
            let encode = |(a, b): Pair| {
                if a == b {
                    return Ok(None);
                }
                let pair = Comparison {
                    context: context.clone(),
                    a: a.to_string(),
                    b: b.to_string(),
                    principles: Vec::new(),
                };
                let look = || watch.check();
                encode_under(&judge, pair, &asked, orders, look).map(Some)
            };
            pairs.into_par_iter().map(encode).collect()
        })
        .await
    }
}

/// The prompts of one pair under each of `asked`; `look` is called before each and may end it.
fn encode_under(
    judge: &Judge,
    mut pair: Comparison,
    asked: &[Vec<String>],
    orders: &[Order],
    look: impl Fn() -> Result<(), ServiceError>,
) -> Result<EncodedComparison, ServiceError> {
    let mut all = EncodedComparison {
        prompts: Vec::with_capacity(asked.len() * orders.len()),
        shared: Vec::with_capacity(asked.len() * orders.len()),
        cut: false,
    };
    for principles in asked {
        look()?;
        pair.principles.clone_from(principles);
        let encoded = judge.encode_in(&pair, orders)?;
        all.prompts.extend(encoded.prompts);
        all.shared.extend(encoded.shared);
        all.cut |= encoded.cut;
    }
    Ok(all)
}

/// One pair from its reads: principles in order, one or two reads each.
fn verdict(task: &JudgeTask, reads: &[LabelLogprobs], truncated: bool) -> PairVerdict {
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
            winner: winner(only.p),
            consistent: only.consistent,
            label_mass: only.label_mass,
            orders: only.orders,
            principles: Vec::new(),
            truncated,
        };
    }
    let weights: Vec<f32> = task.principles.iter().map(|p| p.weight).collect();
    let total: f32 = weights.iter().sum();
    let mean = |value: &dyn Fn(&PrincipleVerdict) -> f32| -> f32 {
        let weighted = parts.iter().zip(&weights);
        weighted
            .map(|(part, weight)| value(part) * weight)
            .sum::<f32>()
            / total
    };
    let p = mean(&|part| part.p);
    let orders = (0..per_principle)
        .map(|order| ShownRead {
            shown: parts[0].orders[order].shown,
            p_first: mean(&|part| part.orders[order].p_first),
        })
        .collect();
    PairVerdict {
        p,
        winner: winner(p),
        consistent: parts
            .iter()
            .map(|part| part.consistent)
            .reduce(|all, one| Some(all? && one?))
            .flatten(),
        label_mass: mean(&|part| part.label_mass),
        orders,
        principles: parts,
        truncated,
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
    /// The verdict as `principle` has it: turned around, if what was asked is true of the worse answer.
    fn under(mut self, principle: &WeightedPrinciple) -> Self {
        self.principle.clone_from(&principle.name);
        if principle.polarity == Polarity::Forbid {
            self.p = 1.0 - self.p;
            for read in &mut self.orders {
                read.p_first = 1.0 - read.p_first;
            }
        }
        self
    }
}

/// What one or two reads of a pair say, under a principle yet to be named.
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
            let p = sigmoid(first - second);
            let read = ShownRead {
                shown: [0, 1],
                p_first: p,
            };
            (p, first.exp() + second.exp(), None, vec![read])
        }
    };
    PrincipleVerdict {
        principle: String::new(),
        p,
        label_mass,
        consistent,
        orders,
    }
}
