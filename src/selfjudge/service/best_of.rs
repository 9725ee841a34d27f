//! Best of N: candidates from the policy, ranked in a tournament with the same model as judge (SELF-JUDGE, tournament self-rejection).

use super::{Generation, Output, Service, TokenText};
use crate::call::CallError;
use crate::judging::{JudgeTask, Judged, Tournament, TournamentTask};

impl Tournament {
    /// Takes the best `n` candidates out, best first. Empty outputs remain in their places.
    pub fn take_best(&self, candidates: &mut [Output], n: usize) -> Vec<Output> {
        let best = self.ranking.iter().take(n);
        best.map(|&at| std::mem::replace(&mut candidates[at], Output::empty(at)))
            .collect()
    }
}

impl Service {
    /// Draws all samples of `generation` as candidates, in the order of their indices in the tournament, and ranks them. Returns `None`
    /// if `go_on` returned false for a token, which means that there was no room for it.
    ///
    /// # Errors
    /// Errors as [`Generation::outputs`] and [`ModelJudge::judge_pair`](crate::judging::ModelJudge::judge_pair) do.
    pub async fn best_of(
        &self,
        generation: &mut Generation,
        judge: &JudgeTask,
        how: TournamentTask,
        go_on: impl FnMut(&TokenText) -> bool,
    ) -> Result<Option<(Vec<Output>, Judged<Tournament>)>, CallError> {
        // The judge's weights at the start of the call: a swap during the call applies to later calls.
        let judging_weights = self.judge.judging_weights(judge.weights.as_ref());
        let Some(candidates) = generation.outputs_while(go_on).await? else {
            return Ok(None);
        };
        let texts: Vec<String> = candidates.iter().map(|c| c.text.clone()).collect();
        let judged = self
            .judge
            .hold_accepted_tournament(judge, how, &texts, judging_weights)
            .await?;
        Ok(Some((candidates, judged)))
    }
}
