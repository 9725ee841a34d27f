//! Best of N: candidates from the policy, ranked in a tournament with the same model as judge (SELF-JUDGE, tournament self-rejection).

use super::{
    Generation, JudgeTask, Judged, Output, Service, ServiceError, TokenText, Tournament,
    TournamentTask, Usage,
};
use model::WeightsName;

/// The candidates and the tournament between them.
#[derive(Debug, Clone, PartialEq)]
pub struct BestOf {
    /// All candidates, in the order of their indices in the tournament.
    pub candidates: Vec<Output>,
    pub tournament: Tournament,
    pub usage: Usage,
    /// The weights that generated the candidates.
    pub weights: Option<WeightsName>,
    /// The weights that judged them; none if no comparison needed the model.
    pub judge_weights: Option<WeightsName>,
}

impl BestOf {
    /// Takes the best `n` candidates out, best first. Empty outputs remain in their places.
    pub fn take_best(&mut self, n: usize) -> Vec<Output> {
        let best = self.tournament.ranking.iter().take(n);
        best.map(|&at| std::mem::replace(&mut self.candidates[at], Output::empty(at)))
            .collect()
    }
}

impl Service {
    /// Draws all samples of `generation` as candidates and finds the best. Returns `None` if `go_on` returned false for a token, which
    /// means that there was no room for it.
    ///
    /// # Errors
    /// Errors as [`Generation::outputs`] and [`Self::judge_pair`] do.
    pub async fn best_of(
        &self,
        generation: &mut Generation,
        judge: &JudgeTask,
        how: TournamentTask,
        go_on: impl FnMut(&TokenText) -> bool,
    ) -> Result<Option<BestOf>, ServiceError> {
        // The judge's weights at the start of the call: a swap during the call applies to later calls.
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
