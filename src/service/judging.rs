//! Verdicts: label-token log-probabilities of both orders.
//!
//! Pairs of a round are submitted together, so the engine batches them and shares what their prompts have in common. Under
//! several principles each is asked by itself, one forward a (pair, order, principle), and their probabilities are
//! averaged by weight.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::aside::{Watch, aside, aside_until};
use super::reading::{Account, Judged, LabelPrompt, Turn};
use super::verdict::verdict;
use super::{Service, ServiceError};
use crate::judge::{
    Bracket, EncodedComparison, Judge, LabelLogprobs, Method, Order, Outcome, Winner,
};
use crate::model::WeightsLease;
use crate::preference::log::MIN_LABEL_MASS;
use crate::preference::{Message, Polarity, Principle, PrincipleTable};

/// Prompts of a call that are encoded at once: each is as long as the context at most. Many, so that what they share is computed once.
const SLICE: usize = 4096;

/// Prompts that are encoded in one piece.
const PIECE: usize = 64;

/// Tokens of prompts of a call that are there at once, where contexts are long.
const SLICE_TOKENS: usize = 4 << 20;

/// An answer, and what prompts show of it.
#[derive(Debug, Clone)]
struct Candidate {
    whole: Arc<str>,
    shown: Arc<str>,
}

/// Two answers, to be compared.
type Pair = (Candidate, Candidate);

/// What a call compares, cut once to what prompts show of it.
struct Shown {
    context: Arc<str>,
    candidates: Vec<Candidate>,
}

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

/// What a pair has for a winner whose orders name different answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDisagreement {
    /// The answer that both orders prefer on average.
    #[default]
    Average,
    /// None: the pair counts as a tie.
    Undecided,
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
    /// Whether it is one of the server's table, and not a text of the call.
    #[serde(default)]
    pub listed: bool,
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
            listed: true,
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
    pub on_disagreement: OnDisagreement,
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
    /// Whether the principle is one of the server's table.
    pub listed: bool,
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
    /// 0 or 1; none on an exact tie, or where the orders disagree and [`OnDisagreement::Undecided`] was asked for.
    pub winner: Option<usize>,
    pub consistent: Option<bool>,
    /// Whether the verdict can be relied on: the judge passed its self-test, both orders name the same winner, and the labels have at
    /// least half of the probability. Unknown where the judge had no self-test, only one order was shown, or nothing was asked.
    pub reliable: Option<bool>,
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
            reliable: None,
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

    /// Returns the verdict of a judge that passed its self-test or not, where that is known.
    fn by_judge(mut self, passed: Option<bool>) -> Self {
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
    /// Whether the judge passed its self-test, where it had one.
    pub reliable: Option<bool>,
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
        let Shown {
            context,
            candidates,
        } = self.show(task, [a, b].map(Arc::from).to_vec()).await?;
        let pair = [(candidates[0].clone(), candidates[1].clone())];
        let verdicts = self.judge_pairs(task, &context, &pair, &mut account);
        let mut verdicts = verdicts.await?;
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
        let candidates = candidates.iter().map(|text| text.as_str().into());
        let Shown {
            context,
            candidates,
        } = self.show(task, candidates.collect()).await?;
        let count = candidates.len();
        let mut bracket = arrange(count, move || {
            Ok(Bracket::new(count, how.method, how.seed)?)
        })
        .await?;
        let (mut rounds, mut byes) = (Vec::new(), Vec::new());
        let (mut comparisons, mut truncated) = (0, false);
        let reliable = self.judges_reliably(account.weights());
        while !bracket.round().is_empty() {
            let matches = bracket.round().to_vec();
            byes.push(bracket.bye());
            let candidate = |at: usize| candidates[at].clone();
            let pairs: Vec<Pair> = matches
                .iter()
                .map(|m| (candidate(m.first), candidate(m.second)))
                .collect();
            let verdicts = self.judge_pairs(task, &context, &pairs, &mut account);
            let verdicts = verdicts.await?;
            let outcomes: Vec<Outcome> = verdicts.iter().map(PairVerdict::outcome).collect();
            bracket = arrange(count, move || {
                bracket.record(&outcomes)?;
                Ok(bracket)
            })
            .await?;
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
        let ranking = arrange(count, move || Ok(bracket.ranking())).await?;
        self.metrics.tournament_candidates.observe(count as f64);
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
            reliable,
        }))
    }

    /// Cuts what a call compares to what prompts can show of it.
    async fn show(
        &self,
        task: &JudgeTask,
        candidates: Vec<Arc<str>>,
    ) -> Result<Shown, ServiceError> {
        /// Bytes that are read sooner than another thread has woken up.
        const FEW: usize = 4096;
        let judge = Arc::clone(&self.judge);
        let context = task.context.clone();
        let bytes = context.iter().map(|message| message.content.len());
        let bytes = bytes.chain(candidates.iter().map(|text| text.len()));
        let few = bytes.sum::<usize>() <= FEW;
        let show =
            move |look: &dyn Fn() -> Result<(), ServiceError>| -> Result<Shown, ServiceError> {
                let context = judge.shown_context(&context)?.into();
                let show = |whole: Arc<str>| {
                    look()?;
                    let shown = match judge.shown_answer(&whole)? {
                        Cow::Borrowed(shown) if shown.len() == whole.len() => Arc::clone(&whole),
                        cut => cut.into(),
                    };
                    Ok(Candidate { whole, shown })
                };
                let candidates = candidates.into_iter().map(show);
                Ok(Shown {
                    context,
                    candidates: candidates.collect::<Result<_, ServiceError>>()?,
                })
            };
        match few {
            true => show(&|| Ok(())),
            false => aside_until(task.turn.deadline, move |watch| show(&|| watch.check())).await,
        }
    }

    /// Verdicts on pairs, in their order. No more than [`SLICE`] prompts are there at once, however many are asked for.
    async fn judge_pairs(
        &self,
        task: &JudgeTask,
        context: &Arc<str>,
        pairs: &[Pair],
        account: &mut Account,
    ) -> Result<Vec<PairVerdict>, ServiceError> {
        let mut verdicts = Vec::with_capacity(pairs.len());
        let prompts = SLICE.min(SLICE_TOKENS / self.engine.capacity().max_context);
        for slice in pairs.chunks((prompts / task.reads()).max(1)) {
            verdicts.extend(self.judge_slice(task, context, slice, account).await?);
        }
        verdicts.iter().for_each(|verdict| self.count(verdict));
        Ok(verdicts)
    }

    /// The verdict on one pair, of which the metrics are told nothing.
    pub(super) async fn uncounted_verdict(
        &self,
        task: &JudgeTask,
        a: &str,
        b: &str,
        account: &mut Account,
    ) -> Result<PairVerdict, ServiceError> {
        let Shown {
            context,
            candidates,
        } = self.show(task, [a, b].map(Arc::from).to_vec()).await?;
        let pair = [(candidates[0].clone(), candidates[1].clone())];
        let mut verdicts = self.judge_slice(task, &context, &pair, account).await?;
        Ok(verdicts
            .pop()
            .expect("one pair has one verdict; this is a bug"))
    }

    async fn judge_slice(
        &self,
        task: &JudgeTask,
        context: &Arc<str>,
        pairs: &[Pair],
        account: &mut Account,
    ) -> Result<Vec<PairVerdict>, ServiceError> {
        let prompts = self.encode_pairs(task, context, pairs).await?;
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
        let passed = self.judges_reliably(account.weights());
        let verdicts = cuts.into_iter().map(|cut| match cut {
            None => PairVerdict::identical(),
            Some(cut) => {
                let reads = of_pairs
                    .next()
                    .expect("every pair that was encoded has been read; this is a bug");
                verdict(task, reads, cut).by_judge(passed)
            }
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
        context: &Arc<str>,
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
        let (orders, asked) = (task.orders.reads(), Arc::<[Vec<String>]>::from(asked));
        let encode = |pairs: &[Pair]| {
            let (judge, asked) = (Arc::clone(&judge), Arc::clone(&asked));
            let (context, pairs) = (Arc::clone(context), pairs.to_vec());
            aside_until(task.turn.deadline, move |watch| {
                let encode = |pair| encode_pair(&judge, &context, pair, &asked, orders, watch);
                pairs.iter().map(encode).collect::<Result<Vec<_>, _>>()
            })
        };
        // In pieces, so that others' work goes between them; as many at once as there are cores.
        let pieces = pairs.chunks((PIECE / task.reads()).max(1)).map(encode);
        let pieces: Vec<_> = pieces.collect();
        let encoded: Vec<Vec<Option<EncodedComparison>>> = stream::iter(pieces)
            .buffered(rayon::current_num_threads())
            .try_collect()
            .await?;
        Ok(encoded.into_iter().flatten().collect())
    }
}

/// The prompts of a pair; none of two equal answers.
fn encode_pair(
    judge: &Judge,
    context: &str,
    (a, b): &Pair,
    asked: &[Vec<String>],
    orders: &[Order],
    watch: &Watch,
) -> Result<Option<EncodedComparison>, ServiceError> {
    if a.whole == b.whole {
        return Ok(None);
    }
    let mut all = EncodedComparison {
        prompts: Vec::with_capacity(asked.len() * orders.len()),
        shared: Vec::with_capacity(asked.len() * orders.len()),
        cut: false,
    };
    for principles in asked {
        watch.check()?;
        let encoded = judge.encode_shown(context, [&*a.shown, &*b.shown], principles, orders)?;
        all.prompts.extend(encoded.prompts);
        all.shared.extend(encoded.shared);
        all.cut |= encoded.cut;
    }
    Ok(Some(all))
}

/// Runs a step of a bracket: beside the threads that serve connections, where there are many candidates.
async fn arrange<T: Send + 'static>(
    candidates: usize,
    step: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    /// Strengths of so few are fitted in less than a millisecond.
    const FEW: usize = 32;
    match candidates <= FEW {
        true => step(),
        false => aside(step).await,
    }
}
