//! From the logits of a step to tokens and log-probabilities.

use std::slice::ChunksExact;
use std::sync::PoisonError;

use super::EngineCore;
use super::job::Sample;
use crate::model_runner::Computed;
use crate::output::{RequestFailure, StreamEvent};
use crate::request::RequestId;
use crate::sampler::{PromptLogprobs, SampledToken, Sampler};
use crate::scheduler::SchedulerOutput;
use kernels::{device::team, logits::all_finite};
use model::ModelError;

/// The minimum number of logits that one sampling thread works on.
const LOGITS_A_TASK: usize = 1 << 14;

/// A sequence's next token, or the error that prevented it.
pub type Drawn = (RequestId, Result<SampledToken, RequestFailure>);

impl Sample {
    /// Draws the next token from the logits of the last one.
    fn draw(&mut self, logits: &[f32]) -> Result<SampledToken, RequestFailure> {
        if !all_finite(logits) {
            return Err(RequestFailure::Model("its logits are not finite".into()));
        }
        let job = &*self.job;
        let sampler = self.sampler.get_or_insert_with(|| {
            let sampler = Sampler::new(&job.params, &job.penalised, job.seed, self.index);
            Box::new(sampler.following(job.grammar.as_ref()))
        });
        let token = sampler.sample(&job.params, logits);
        token.map_err(RequestFailure::from)
    }
}

impl EngineCore {
    /// Computes log-probabilities of prompt tokens where requested, and sends them where a prompt is complete.
    pub(super) fn score(
        &self,
        output: &SchedulerOutput,
        computed: &Computed,
    ) -> Result<(), ModelError> {
        let mut row = 0;
        for scheduled in &output.scheduled {
            let request = self.scheduler.request(scheduled.id);
            let Some(request) = request.filter(|request| request.scores_prompt) else {
                continue;
            };
            let places = request.scored(scheduled.num_tokens);
            let rows = row..row + places.len();
            row = rows.end;
            let Some(sample) = self.samples.get(&scheduled.id) else {
                continue;
            };
            let top = sample.job.params.prompt_logprobs.unwrap_or(0);
            let scored = &sample.job.scored;
            let mut scored = scored.lock().unwrap_or_else(PoisonError::into_inner);
            // A preempted prompt is computed again: the log-probabilities of its first tokens are already there.
            let known = scored.len().saturating_sub(places.start);
            let known = known.min(places.len());
            let next = &request.tokens.tokens()[places.start + 1 + known..];
            let new =
                self.runner
                    .scores(computed, rows.start + known..rows.end, |at, logits| {
                        PromptLogprobs::new(logits, next[at], top)
                    })?;
            scored.extend(new);
            if scored.len() + 1 == request.num_prompt_tokens && !places.is_empty() {
                let event = StreamEvent::Prompt(std::mem::take(&mut *scored));
                let _ = sample.job.events.send(event);
            }
        }
        Ok(())
    }

    /// Draws a token for every sequence whose logits are ready; siblings draw from the last row of their prompt.
    pub(super) fn sample(
        &mut self,
        output: &SchedulerOutput,
        rows: ChunksExact<'_, f32>,
    ) -> Vec<Drawn> {
        let due = output.scheduled.iter().filter(|s| s.samples);
        let mut draws: Vec<(RequestId, Sample, &[f32])> = Vec::new();
        for (scheduled, row) in due.zip(rows) {
            let Some(request) = self.scheduler.request(scheduled.id) else {
                continue;
            };
            let siblings = request.siblings.iter().take(scheduled.forks);
            for &id in std::iter::once(&scheduled.id).chain(siblings) {
                let sample = self.samples.remove(&id);
                draws.extend(sample.map(|sample| (id, sample, row)));
            }
        }
        // Drawing from a few short rows takes less time than waking another thread.
        let rows = LOGITS_A_TASK.div_ceil(draws.first().map_or(1, |(_, _, row)| row.len()));
        let mut drawn: Vec<Option<Drawn>> = draws.iter().map(|_| None).collect();
        let parts = draws.chunks_mut(rows).zip(drawn.chunks_mut(rows));
        team::each(parts, |(draws, drawn)| {
            for ((id, sample, row), drawn) in draws.iter_mut().zip(drawn) {
                *drawn = Some((*id, sample.draw(row)));
            }
        });
        self.samples
            .extend(draws.into_iter().map(|(id, sample, _)| (id, sample)));
        drawn.into_iter().flatten().collect()
    }
}
