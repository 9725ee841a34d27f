//! Tournaments: a bracket whose matches the model judges, all matches of a round at once.

use std::time::Instant;

use super::encode::{Pair, Shown};
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
