//! Best of N: candidates from the policy, a tournament by the same model as judge (SELF-JUDGE, tournament self-rejection).

use super::{
    Generation, JudgeTask, Judged, Output, Service, ServiceError, TokenText, Tournament,
    TournamentTask, Usage,
};
use crate::model::WeightsName;

/// Candidates and the tournament between them.
#[derive(Debug, Clone, PartialEq)]
pub struct BestOf {
    /// All candidates, by their indices in the tournament.
    pub candidates: Vec<Output>,
    pub tournament: Tournament,
    pub usage: Usage,
    /// Which weights wrote the candidates.
    pub weights: Option<WeightsName>,
    /// Which weights judged them; none where nothing had to be asked.
    pub judge_weights: Option<WeightsName>,
}

impl BestOf {
    /// The best `n` candidates, the first first; empty ones are left in their places.
    pub fn take_best(&mut self, n: usize) -> Vec<Output> {
        let best = self.tournament.ranking.iter().take(n);
        best.map(|&at| std::mem::replace(&mut self.candidates[at], Output::empty(at)))
            .collect()
    }
}

impl Service {
    /// Draws all samples of `generation` as candidates, as long as `go_on` says of each token that there is room for it, and finds the
    /// best; `None` where there was none.
    ///
    /// # Errors
    /// As [`Generation::outputs`] and [`Self::judge_pair`].
    pub async fn best_of(
        &self,
        generation: &mut Generation,
        judge: &JudgeTask,
        how: TournamentTask,
        go_on: impl FnMut(&TokenText) -> bool,
    ) -> Result<Option<BestOf>, ServiceError> {
        // Whoever judges when the call comes: a swap in the middle is for later calls.
        let judging_weights = self.judging_weights(judge.weights.as_ref());
        let Some(candidates) = generation.outputs_while(go_on).await? else {
            return Ok(None);
        };
        let mut usage = generation.usage();
        let weights = generation.weights();
        let texts: Vec<String> = candidates.iter().map(|c| c.text.clone()).collect();
        let Judged {
            result: tournament,
            usage: judging,
            weights: judge_weights,
        } = self
            .hold_accepted_tournament(judge, how, &texts, judging_weights)
            .await?;
        usage.add(judging);
        Ok(Some(BestOf {
            candidates,
            tournament,
            usage,
            weights,
            judge_weights,
        }))
    }
}
