//! Verdicts from the log-probabilities of the label tokens, in both orders of a pair.
//!
//! The pairs of a round are submitted together, so that the engine batches them and shares their prompts' common prefixes. With several
//! principles each has its own prompt, one forward pass per (pair, order, principle), and their probabilities are averaged by weight.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::aside::{Watch, aside, aside_until};
use super::reading::{Account, Judged, LabelPrompt, Turn};
use super::verdict::verdict;
use super::{Service, ServiceError};
use judge::{Bracket, EncodedComparison, Judge, LabelLogprobs, Method, Order, Outcome, Winner};
use judge::{Polarity, Principle, PrincipleTable};
use model::WeightsLease;
use text::Message;
use traffic_log::MIN_LABEL_MASS;

/// The maximum number of a call's prompts that are encoded at once, each at most as long as the context. It is large so that common
/// prefixes are computed once.
const SLICE: usize = 4096;

/// The number of prompts that are encoded in one piece of work.
const PIECE: usize = 64;

/// The maximum number of a call's prompt tokens in memory at once; it limits a slice if contexts are long.
const SLICE_TOKENS: usize = 4 << 20;

/// An answer, whole and as prompts show it.
#[derive(Debug, Clone)]
struct Candidate {
    whole: Arc<str>,
    shown: Arc<str>,
}

/// Two answers to compare.
type Pair = (Candidate, Candidate);

/// The context and answers that a call compares, each cut once to what prompts show of it.
struct Shown {
    context: Arc<str>,
    candidates: Vec<Candidate>,
}

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

/// A principle and the weight of its verdict among the others'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedPrinciple {
    /// The name of the principle in verdicts.
    pub name: String,
    /// The text in the judge's prompt.
    pub text: String,
    /// Whether the text is true of the better answer or of the worse one.
    pub polarity: Polarity,
    /// Greater than 0.
    pub weight: f32,
    /// Whether the principle is from the server's table and not a text of the call.
    #[serde(default)]
    pub listed: bool,
}

impl WeightedPrinciple {
    /// Returns the principles of a table whose weight is greater than 0; the others are not judged.
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

/// The context, principles and settings of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeTask {
    pub context: Vec<Message>,
    /// If empty, the judge template's default principle.
    pub principles: Vec<WeightedPrinciple>,
    pub orders: Orders,
    pub on_disagreement: OnDisagreement,
    /// The weights that judge; by default those that serve as judge. All reads of a call use one version.
    pub weights: Option<WeightsLease>,
    pub turn: Turn,
}

impl JudgeTask {
    /// Returns the number of forward passes of one comparison.
    pub fn reads(&self) -> usize {
        self.orders.reads().len() * self.principles.len().max(1)
    }
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
    /// Returns the verdict on two identical answers, which needs no read.
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

    /// Returns the verdict on a pair that was not read.
    pub fn unread() -> Self {
        Self {
            label_mass: 0.0,
            ..Self::identical()
        }
    }

    /// Returns the verdict with its reliability; `passed` is the judge's self-test result, if known.
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

    /// Returns the same verdict with the two candidates exchanged.
    pub fn turned(mut self) -> Self {
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

/// The method and random seed of a tournament.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TournamentTask {
    pub method: Method,
    pub seed: u64,
}

/// One match of a tournament, by the indices of its candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct PlayedMatch {
    pub a: usize,
    pub b: usize,
    pub verdict: PairVerdict,
}

/// The result of a tournament.
#[derive(Debug, Clone, PartialEq)]
pub struct Tournament {
    pub winner: usize,
    /// Indices of the candidates, best first.
    pub ranking: Vec<usize>,
    pub rounds: Vec<Vec<PlayedMatch>>,
    /// For each round, the candidate without a match; only knockouts have such rounds.
    pub byes: Vec<Option<usize>>,
    /// Number of pairs that met, including pairs of identical answers.
    pub comparisons: usize,
    /// Whether a prompt of any match was cut to fit the context.
    pub truncated: bool,
    /// Whether the judge passed its self-test; none if it had none.
    pub reliable: Option<bool>,
}

impl Service {
    /// Judges one pair.
    ///
    /// # Errors
    /// Errors if a prompt cannot be served or the queue is full.
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
    /// Errors as [`Self::judge_pair`] does.
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

    /// Holds a tournament judged by `weights`, as part of a call that has been accepted already.
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
        // Shared, because in a round robin each candidate is in very many pairs.
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

    /// Cuts the context and the answers of a call to what prompts can show.
    async fn show(
        &self,
        task: &JudgeTask,
        candidates: Vec<Arc<str>>,
    ) -> Result<Shown, ServiceError> {
        /// Number of bytes that are read faster than another thread wakes up.
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

    /// Returns the verdicts on pairs, in their order. At most [`SLICE`] prompts are in memory at once, for any number of pairs.
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

    /// Returns the verdict on one pair without counting it in the metrics.
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

    /// Counts a verdict in the metrics. A verdict without reads has no label mass to observe.
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

    /// Encodes the prompts of each pair, principle by principle in the requested orders; none for identical answers.
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
        // In pieces, so that other work can run between them, and at most as many at once as there are cores.
        let pieces = pairs.chunks((PIECE / task.reads()).max(1)).map(encode);
        let pieces: Vec<_> = pieces.collect();
        let encoded: Vec<Vec<Option<EncodedComparison>>> = stream::iter(pieces)
            .buffered(rayon::current_num_threads())
            .try_collect()
            .await?;
        Ok(encoded.into_iter().flatten().collect())
    }
}

/// Encodes the prompts of a pair; none for identical answers.
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

/// Runs a step of a bracket: outside the threads that serve connections if there are many candidates.
async fn arrange<T: Send + 'static>(
    candidates: usize,
    step: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    /// The Bradley-Terry strengths of so few candidates are fitted in less than a millisecond.
    const FEW: usize = 32;
    match candidates <= FEW {
        true => step(),
        false => aside(step).await,
    }
}
