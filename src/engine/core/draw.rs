//! Before and after the forward pass of a step: the descriptions of its draws, and the drawn tokens.

use std::sync::PoisonError;

use super::EngineCore;
use super::job::{Job, Sample};
use crate::model_runner::{Computed, RowDraw};
use crate::output::{RequestFailure, StreamEvent};
use crate::request::RequestId;
use crate::sampler::{Draw, DrawError, SampledToken, Sampler};
use crate::scheduler::SchedulerOutput;
use kernels::device::team;
use model::ModelError;
use text::GrammarError;

/// A sequence's next token, or the error that prevented it.
pub type Drawn = (RequestId, Result<SampledToken, RequestFailure>);

/// A sequence whose next token is drawn in a step, and the tokens after it as far as its drafts are accepted.
#[derive(Debug)]
pub(super) struct Due {
    id: RequestId,
    /// The index of its first row of logits; those of its drafts follow.
    row: usize,
    drafts: Vec<u32>,
    /// The sampler's states after each draft, if it is accepted, advanced to the next draw.
    ahead: Vec<Sampler>,
}

/// A sample on its way to its next token.
struct Taking {
    id: RequestId,
    sample: Sample,
    drafts: Vec<u32>,
    /// One draw, and one for each draft.
    drawn: Vec<Result<Draw, DrawError>>,
    tokens: Vec<Result<SampledToken, RequestFailure>>,
}

impl Taking {
    /// Takes the draws up to the first that differs from its draft.
    fn take(&mut self) {
        for (at, drawn) in std::mem::take(&mut self.drawn).into_iter().enumerate() {
            if at > 0 {
                self.sample.advance();
            }
            let token = self.sample.accept(drawn);
            let draft = self.drafts.get(at).copied();
            let accepted = matches!(&token, Ok(token) if Some(token.id) == draft);
            self.tokens.push(token);
            if !accepted {
                return;
            }
        }
    }
}

impl Sample {
    /// Creates the sampler before the first draw.
    fn start_sampling(&mut self) {
        let job = &*self.job;
        let sampler = Sampler::new(&job.params, &job.penalised, job.seed, self.index);
        let sampler = sampler.following(job.grammar.as_ref());
        self.sampler = Some(Box::new(sampler));
    }

    /// Returns the job and the sampler, which exists from the first draw on.
    fn sampling(&mut self) -> (&Job, &mut Sampler) {
        let sampler = self.sampler.as_deref_mut();
        let sampler = sampler.expect("a sampler is created before the first draw; this is a bug");
        (&self.job, sampler)
    }

    /// Advances the sampler to its next draw.
    fn advance(&mut self) {
        let (job, sampler) = self.sampling();
        sampler.advance(&job.params);
    }

    /// Takes the drawn token.
    fn accept(&mut self, drawn: Result<Draw, DrawError>) -> Result<SampledToken, RequestFailure> {
        let drawn = drawn.map_err(|error| match error {
            DrawError::NotFinite => RequestFailure::Model(error.to_string()),
            DrawError::DeadEnd => GrammarError::DeadEnd.into(),
        })?;
        let (job, sampler) = self.sampling();
        let token = sampler.accept(&job.params, drawn);
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
                    .prompt_logprobs(computed, rows.start + known..rows.end, next, top)?;
            scored.extend(new);
            if scored.len() + 1 == request.num_prompt_tokens && !places.is_empty() {
                let event = StreamEvent::Prompt(std::mem::take(&mut *scored));
                let _ = sample.job.events.send(event);
            }
        }
        Ok(())
    }

    /// Returns the sequences that draw in this step, with their samplers advanced. Siblings draw from the last row of their prompt.
    pub(super) fn prepare_draws(&mut self, output: &SchedulerOutput) -> Vec<Due> {
        let mut due = Vec::new();
        let mut row = 0;
        for scheduled in output.scheduled.iter().filter(|s| s.samples) {
            let first = row;
            row += 1 + scheduled.drafts;
            let Some(request) = self.scheduler.request(scheduled.id) else {
                continue;
            };
            let siblings = request.siblings.iter().take(scheduled.forks);
            let ids = std::iter::once(&scheduled.id).chain(siblings);
            let known = ids.filter(|id| self.samples.contains_key(id));
            due.extend(known.map(|&id| Due {
                id,
                row: first,
                drafts: request.drafts.tokens[..scheduled.drafts].to_vec(),
                ahead: Vec::new(),
            }));
        }
        let is_new = |due: &&Due| self.samples[&due.id].sampler.is_none();
        let new: Vec<RequestId> = due.iter().filter(is_new).map(|due| due.id).collect();
        let mut new = self.take_samples(new);
        // The first mask of a grammar may take milliseconds.
        let with_grammar = |(_, sample): &(RequestId, Sample)| sample.job.grammar.is_some();
        match new.iter().any(with_grammar) {
            true => team::each(new.iter_mut(), |(_, sample)| sample.start_sampling()),
            false => new.iter_mut().for_each(|(_, s)| s.start_sampling()),
        }
        self.samples.extend(new);
        for due in &mut due {
            if let Some(sample) = self.samples.get_mut(&due.id) {
                sample.advance();
                let (job, sampler) = sample.sampling();
                due.ahead = sampler.ahead(&job.params, &due.drafts);
            }
        }
        due
    }

    /// Returns the descriptions of the draws that [`Self::prepare_draws`] prepared.
    pub(super) fn describe_draws<'a>(&'a self, due: &'a [Due]) -> Vec<RowDraw<'a>> {
        let describe = |due: &'a Due| {
            let sample = self.samples.get(&due.id)?;
            let samplers = sample.sampler.as_deref().into_iter().chain(&due.ahead);
            Some((due.row..).zip(samplers).map(|(row, sampler)| RowDraw {
                row,
                spec: sampler.spec(&sample.job.params),
            }))
        };
        due.iter().filter_map(describe).flatten().collect()
    }

    /// Takes the drawn tokens, in the order of `due`.
    pub(super) fn accept_draws(
        &mut self,
        due: Vec<Due>,
        drawn: Vec<Result<Draw, DrawError>>,
    ) -> Vec<Drawn> {
        let mut drawn = drawn.into_iter();
        let mut take = |due: Due| {
            Some(Taking {
                id: due.id,
                sample: self.samples.remove(&due.id)?,
                drawn: drawn.by_ref().take(1 + due.drafts.len()).collect(),
                drafts: due.drafts,
                tokens: Vec::new(),
            })
        };
        let mut draws: Vec<Taking> = due.into_iter().filter_map(&mut take).collect();
        // A grammar computes its next mask here.
        let with_grammar = |taking: &Taking| taking.sample.job.grammar.is_some();
        match draws.iter().any(with_grammar) {
            true => team::each(draws.iter_mut(), Taking::take),
            false => draws.iter_mut().for_each(Taking::take),
        }
        let mut accepted = Vec::with_capacity(draws.len());
        for Taking {
            id, sample, tokens, ..
        } in draws
        {
            self.samples.insert(id, sample);
            accepted.extend(tokens.into_iter().map(|token| (id, token)));
        }
        accepted
    }

    /// Takes samples out of the engine's table, for work on several threads.
    fn take_samples(
        &mut self,
        ids: impl IntoIterator<Item = RequestId>,
    ) -> Vec<(RequestId, Sample)> {
        let take = |id| Some((id, self.samples.remove(&id)?));
        ids.into_iter().filter_map(take).collect()
    }
}
