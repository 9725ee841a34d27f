//! Tournaments: a bracket whose matches the model judges, all matches of a round at once.

use std::time::Instant;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::encode::Pair;
use super::reading::{Account, Judged};
use super::{JudgeTask, ModelJudge};
use crate::call::{CallError, spawn_blocking};
use judge::{Bracket, Method, Outcome, PairVerdict};
use model::WeightsLease;

/// The method and random seed of a tournament.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TournamentTask {
    pub method: Method,
    pub seed: u64,
}

/// One match of a tournament, by the indices of its candidates. Its serialized form is [`MatchSummary`].
#[derive(Debug, Clone, PartialEq)]
pub struct PlayedMatch {
    pub a: usize,
    pub b: usize,
    pub verdict: PairVerdict,
}

/// A match of two candidates.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MatchBody)]
pub struct MatchSummary {
    /// The number of the first candidate.
    a: usize,
    /// The number of the second candidate.
    b: usize,
    /// The probability that `a` is better.
    p_a: f32,
    /// The number of the winner; null on a tie.
    winner: Option<usize>,
    /// Whether both orders name the same winner; null if only one order was judged, or no judging was necessary.
    consistent: Option<bool>,
    /// Whether the verdict is reliable, as in a pair's answer; null if unknown.
    reliable: Option<bool>,
}

impl Serialize for PlayedMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { a, b, verdict } = self;
        let summary = MatchSummary {
            a: *a,
            b: *b,
            p_a: verdict.p,
            winner: verdict.winner.map(|side| [*a, *b][side]),
            consistent: verdict.consistent,
            reliable: verdict.reliable,
        };
        summary.serialize(serializer)
    }
}

/// A tournament.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = TournamentBody)]
pub struct Tournament {
    /// The number of the best candidate, from 0.
    pub winner: usize,
    /// The numbers of all candidates, the best first.
    pub ranking: Vec<usize>,
    /// The matches of each round.
    #[schema(value_type = Vec<Vec<MatchSummary>>)]
    pub rounds: Vec<Vec<PlayedMatch>>,
    /// The candidate without a match in each round.
    // Only knockouts have such rounds.
    pub byes: Vec<Option<usize>>,
    /// Number of compared pairs, including equal candidates.
    pub comparisons: usize,
    /// Whether texts were cut to fit the context, in any match.
    pub truncated: bool,
    /// Whether the judge passed its self-test; null without a self-test.
    pub reliable: Option<bool>,
}

impl ModelJudge {
    /// Holds a tournament.
    ///
    /// # Errors
    /// Errors as [`Self::judge_pair`] does.
    pub async fn hold_tournament(
        &self,
        task: &JudgeTask,
        how: TournamentTask,
        candidates: &[String],
    ) -> Result<Judged<Tournament>, CallError> {
        let weights = self.judging_weights(task.weights.as_ref());
        let account = Account::new(weights);
        self.tournament(task, how, candidates, account).await
    }

    /// Holds a tournament judged by `weights`, as part of a call that has been accepted already.
    pub(crate) async fn hold_accepted_tournament(
        &self,
        task: &JudgeTask,
        how: TournamentTask,
        candidates: &[String],
        weights: WeightsLease,
    ) -> Result<Judged<Tournament>, CallError> {
        let account = Account::accepted(weights);
        self.tournament(task, how, candidates, account).await
    }

    async fn tournament(
        &self,
        task: &JudgeTask,
        how: TournamentTask,
        candidates: &[String],
        mut account: Account,
    ) -> Result<Judged<Tournament>, CallError> {
        let begun = Instant::now();
        // Shared, because in a round robin each candidate is in very many pairs.
        let candidates = candidates.iter().map(|text| text.as_str().into());
        let shown = self.show(task, candidates.collect()).await?;
        let count = shown.candidates.len();
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
            let candidate = |at: usize| shown.candidates[at].clone();
            let pairs: Vec<Pair> = matches
                .iter()
                .map(|m| (candidate(m.first), candidate(m.second)))
                .collect();
            let verdicts = self.judge_pairs(task, &shown, &pairs, &mut account);
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
}

/// Runs a step of a bracket: outside the threads that serve connections if there are many candidates.
async fn arrange<T: Send + 'static>(
    candidates: usize,
    step: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    /// The Bradley-Terry strengths of so few candidates are fitted in less than a millisecond.
    const FEW: usize = 32;
    match candidates <= FEW {
        true => step(),
        false => spawn_blocking(step).await,
    }
}
