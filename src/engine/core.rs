//! The engine's loop body: expire, schedule, compute, sample, tell.

use std::collections::HashMap;
use std::slice::ChunksExact;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::GenerateRequest;
use super::admission::QueuePlace;
use super::kv_cache::{BlockHash, CacheDomain, HashedTokens};
use super::model_runner::{Computed, ModelRunner, WeightsRun};
use super::output::{RequestFailure, StreamEvent};
use super::request::{FinishReason, Request, RequestId};
use super::sampler::{PromptLogprobs, SampledToken, Sampler};
use super::sampling_params::SamplingParams;
use super::scheduler::{NextToken, Scheduler, SchedulerOutput};
use super::stats::RequestTimes;
use crate::device::{DeviceArbiter, team};
use crate::kernels::logits::all_finite;
use crate::model::{ModelError, WeightsLease};
use crate::telemetry::{CallTimes, EngineMetrics};
use crate::text::Grammar;

/// Logits that a thread draws from at least.
const LOGITS_A_TASK: usize = 1 << 14;

/// What handles tell the engine thread.
#[derive(Debug)]
pub enum Command {
    Submit(Box<Submission>),
    /// One sample of a submission is no longer wanted.
    Close(RequestId),
    /// A probe asks whether the thread lives.
    Ping(oneshot::Sender<()>),
}

/// An accepted request on its way to the engine thread.
#[derive(Debug)]
pub struct Submission {
    /// Names the first sample; the others follow.
    pub first: RequestId,
    pub request: GenerateRequest,
    /// What it is computed with, to its end.
    pub weights: WeightsLease,
    pub events: mpsc::UnboundedSender<StreamEvent>,
    /// Held until the request first runs.
    pub place: QueuePlace,
    /// The call it is part of, where that is timed.
    pub call: Option<CallTimes>,
}

/// What all samples of a submission share.
struct Job {
    first: RequestId,
    params: SamplingParams,
    seed: u64,
    /// The tokens that a repetition penalty looks at; empty where there is none.
    penalised: Vec<u32>,
    grammar: Option<Grammar>,
    deadline: Option<Instant>,
    weights: WeightsLease,
    events: mpsc::UnboundedSender<StreamEvent>,
    /// What is known of the prompt's tokens so far, from the second on.
    scored: Mutex<Vec<PromptLogprobs>>,
}

/// A submission, for as long as samples of it are open.
struct OpenJob {
    job: Arc<Job>,
    samples: usize,
    open: usize,
}

impl Job {
    /// Whether nobody will wait for it any longer, and what they are told.
    fn given_up(&self, now: Instant) -> Option<Ending> {
        if self.events.is_closed() {
            Some(Ending::Aborted)
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Some(Ending::Failed(RequestFailure::DeadlineExceeded))
        } else {
            None
        }
    }
}

/// How a sample ends before its last token.
#[derive(Debug, Clone)]
pub enum Ending {
    /// The caller is gone.
    Aborted,
    /// The caller has what it wanted: a stop string, for one.
    Closed,
    Failed(RequestFailure),
}

/// One sample: what the scheduler need not know.
struct Sample {
    index: usize,
    job: Arc<Job>,
    /// Made when the first token is drawn: a sample that waits takes no more memory than its place in the queue.
    sampler: Option<Box<Sampler>>,
    place: Option<QueuePlace>,
    times: RequestTimes,
}

impl Sample {
    /// The next token, from the logits of the last.
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

/// A sequence's next token, or why there is none.
type Drawn = (RequestId, Result<SampledToken, RequestFailure>);

/// See the module's documentation.
pub struct EngineCore {
    scheduler: Scheduler,
    runner: ModelRunner,
    jobs: HashMap<RequestId, OpenJob>,
    samples: HashMap<RequestId, Sample>,
    metrics: EngineMetrics,
    arbiter: DeviceArbiter,
    /// Whether tenants find each other's prefixes in the cache.
    shared_prefix_cache: bool,
}

impl EngineCore {
    pub fn new(
        scheduler: Scheduler,
        runner: ModelRunner,
        metrics: EngineMetrics,
        arbiter: DeviceArbiter,
    ) -> Self {
        Self {
            scheduler,
            runner,
            jobs: HashMap::new(),
            samples: HashMap::new(),
            metrics,
            arbiter,
            shared_prefix_cache: false,
        }
    }

    /// Lets tenants find each other's prefixes in the cache.
    pub fn with_shared_prefix_cache(self, shared_prefix_cache: bool) -> Self {
        Self {
            shared_prefix_cache,
            ..self
        }
    }

    pub fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.add(*submission),
            Command::Close(id) => self.end(id, Ending::Closed),
            Command::Ping(reply) => {
                // It may have stopped waiting.
                let _ = reply.send(());
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// The runner of an engine that has nothing more to do.
    pub fn into_runner(self) -> ModelRunner {
        self.runner
    }

    #[cfg(test)]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Samples that have a sampler, and with it a state of their grammar.
    #[cfg(test)]
    pub fn samplers(&self) -> usize {
        let samples = self.samples.values();
        samples.filter(|sample| sample.sampler.is_some()).count()
    }

    /// Tells the trainer whether it is in the way of this step. One that takes a thread leaves it the others.
    fn claim_device(&self, output: &SchedulerOutput) {
        let pressing = self.scheduler.has_foreground() && self.runner.spreads(output.num_tokens());
        self.arbiter.foreground(pressing);
    }

    /// Puts a submission in line.
    fn add(&mut self, submission: Submission) {
        let GenerateRequest {
            prompt,
            params,
            samples,
            reusable_tokens,
            grammar,
            priority,
            class,
            weights: _,
            arrival,
            deadline,
            tenant,
            cache_salt,
        } = submission.request;
        let first = submission.first;
        let job = Arc::new(Job {
            first,
            seed: params.seed.unwrap_or_else(rand::random),
            penalised: match params.repetition_penalty == 1.0 {
                true => Vec::new(),
                false => prompt.clone(),
            },
            grammar,
            deadline,
            weights: submission.weights,
            events: submission.events,
            scored: Mutex::default(),
            params,
        });
        let mut place = Some(submission.place);
        for index in 0..samples {
            let sample = Sample {
                index,
                job: Arc::clone(&job),
                sampler: None,
                place: place.take(),
                times: RequestTimes::new(arrival, submission.call.clone()),
            };
            self.samples.insert(first.sample(index), sample);
        }
        let version = job.weights.version().0;
        let domain = (!self.shared_prefix_cache).then_some(tenant);
        let mut root = BlockHash::root(version, &CacheDomain::new(domain, cache_salt.as_ref()));
        if self.runner.spec().rope.depends_on_length(prompt.len()) {
            root = root.of_length(prompt.len());
        }
        let tokens = HashedTokens::new(prompt, self.scheduler.kv().block_size(), root);
        let mut request = Request::new(first, tokens, job.params.stop.clone());
        request.siblings = (1..samples).map(|index| first.sample(index)).collect();
        request.priority = priority;
        request.class = class;
        request.tenant = tenant;
        request.scores_prompt =
            job.params.prompt_logprobs.is_some() && request.num_prompt_tokens > 1;
        self.metrics.taken(job.weights.name(), samples);
        if let Some(reusable) = reusable_tokens {
            request.num_reusable_tokens = reusable;
        }
        self.scheduler.add(request);
        let open = OpenJob {
            job,
            samples,
            open: samples,
        };
        self.jobs.insert(first, open);
    }

    /// One step. After a step without work nothing can be done until something is submitted or given up.
    pub fn step(&mut self) {
        self.drop_expired();
        let mut output = self.scheduler.schedule();
        // Whoever sees a request counted as scheduled sees it among those that run, too.
        self.metrics.books(&self.scheduler);
        if output.scheduled.is_empty() {
            return;
        }
        let begun = Instant::now();
        self.claim_device(&output);
        let runs = self.group_by_weights(&mut output);
        self.announce(&output);
        let drawn = self
            .runner
            .execute(&self.scheduler, &output, &runs)
            .and_then(|computed| {
                self.score(&output, &computed)?;
                computed.logits.with_rows(|rows| self.sample(&output, rows))
            });
        // They hold weights, and a client that has its answer holds none.
        drop(runs);
        match drawn {
            Ok(drawn) => {
                let (mut sampled, mut failed) = (Vec::new(), Vec::new());
                for (id, drawn) in drawn {
                    match drawn {
                        Ok(token) => sampled.push((id, token)),
                        Err(failure) => failed.push((id, failure)),
                    }
                }
                let next = |(id, sampled): &(RequestId, SampledToken)| NextToken {
                    id: *id,
                    token: sampled.id,
                    complete: sampled.complete,
                };
                let next: Vec<NextToken> = sampled.iter().map(next).collect();
                let finished = self.scheduler.update(&output, &next);
                let news = self.count(sampled, &finished);
                self.metrics.step(&output, &self.scheduler);
                for (events, event) in news {
                    // A closed channel is noticed at the next step.
                    let _ = events.send(event);
                }
                for (id, failure) in failed {
                    self.end(id, Ending::Failed(failure));
                }
            }
            Err(error) => {
                self.metrics.step(&output, &self.scheduler);
                self.fail(&output, &RequestFailure::Model(error.to_string()));
            }
        }
        self.scheduler.observe(output.work, begun.elapsed());
    }

    /// Puts requests of the same weights side by side, and says how many follow each other.
    fn group_by_weights(&self, output: &mut SchedulerOutput) -> Vec<WeightsRun> {
        let weights = |id: &RequestId| {
            let sample = self.samples.get(id);
            &sample
                .expect("a scheduled request has a sample; this is a bug")
                .job
                .weights
        };
        output
            .scheduled
            .sort_by_cached_key(|scheduled| weights(&scheduled.id).version());
        let mut runs: Vec<WeightsRun> = Vec::new();
        for scheduled in &output.scheduled {
            let weights = weights(&scheduled.id);
            match runs.last_mut() {
                Some(run) if run.weights == *weights => run.requests += 1,
                _ => runs.push(WeightsRun {
                    weights: weights.clone(),
                    requests: 1,
                }),
            }
        }
        runs
    }

    /// Requests whose callers are gone, or whose time is up.
    fn drop_expired(&mut self) {
        let now = Instant::now();
        let given_up =
            |open: &OpenJob| Some((open.job.first, open.samples, open.job.given_up(now)?));
        let given_up: Vec<(RequestId, usize, Ending)> =
            self.jobs.values().filter_map(given_up).collect();
        for (first, samples, ending) in given_up {
            for index in 0..samples {
                self.end(first.sample(index), ending.clone());
            }
        }
    }

    /// Forgets a sample that has ended, and its submission with the last of them.
    fn forget(&mut self, id: RequestId) -> Option<Sample> {
        let sample = self.samples.remove(&id)?;
        if let Some(open) = self.jobs.get_mut(&sample.job.first) {
            open.open -= 1;
            if open.open == 0 {
                self.jobs.remove(&sample.job.first);
            }
        }
        Some(sample)
    }

    /// Ends a sample early. Its caller is told last: whatever it held is free by then, and counted.
    fn end(&mut self, id: RequestId, ending: Ending) {
        // It may have ended meanwhile.
        let Some(mut sample) = self.forget(id) else {
            return;
        };
        self.metrics.given_back(sample.job.weights.name());
        let heir = self.scheduler.remove(id);
        if let Some(heir) = heir.and_then(|heir| self.samples.get_mut(&heir)) {
            heir.place = sample.place.take();
        }
        self.metrics.ended_early(&ending, &sample.times);
        self.metrics.books(&self.scheduler);
        let events = sample.job.events.clone();
        drop(sample);
        if let Ending::Failed(failure) = ending {
            // The receiver may have been dropped.
            let _ = events.send(StreamEvent::Failed(failure));
        }
    }

    /// Tells those who run for the first time, and gives their places in the queue to others.
    fn announce(&mut self, output: &SchedulerOutput) {
        let now = Instant::now();
        for scheduled in &output.scheduled {
            let (Some(sample), Some(request)) = (
                self.samples.get_mut(&scheduled.id),
                self.scheduler.request(scheduled.id),
            ) else {
                continue;
            };
            if sample.place.take().is_some() {
                sample.times.scheduled = Some(now);
                self.metrics.started(request, &sample.times);
                let _ = sample.job.events.send(StreamEvent::Started {
                    weights: sample.job.weights.name().clone(),
                    num_cached_tokens: request.num_cached_tokens.unwrap_or(0),
                });
            }
        }
    }

    /// Finds how probable the tokens of prompts are, where that was asked for, and tells it where a prompt is done.
    fn score(&self, output: &SchedulerOutput, computed: &Computed) -> Result<(), ModelError> {
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
            // A prompt that had to give its blocks up is computed again: its first tokens are known.
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

    /// Draws a token for every sequence that is due, siblings from the row of their prompt.
    fn sample(&mut self, output: &SchedulerOutput, rows: ChunksExact<'_, f32>) -> Vec<Drawn> {
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
        // A few short rows are drawn from sooner than another thread has woken up.
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

    /// Counts the tokens of a step and removes the samples that end with them. Returns the events to send afterwards: a caller
    /// that has its answer finds it in the metrics, and finds nothing held for it any more.
    fn count(
        &mut self,
        sampled: Vec<(RequestId, SampledToken)>,
        finished: &[(RequestId, FinishReason)],
    ) -> Vec<(mpsc::UnboundedSender<StreamEvent>, StreamEvent)> {
        let now = Instant::now();
        let finished: HashMap<RequestId, FinishReason> = finished.iter().copied().collect();
        let mut news = Vec::with_capacity(sampled.len());
        for (id, token) in sampled {
            let reason = finished.get(&id).copied();
            let Some(sample) = self.samples.get_mut(&id) else {
                continue;
            };
            self.metrics.token(&mut sample.times, now);
            let event = StreamEvent::Token {
                index: sample.index,
                id: token.id,
                logprobs: token.logprobs,
                finished: reason,
            };
            news.push((sample.job.events.clone(), event));
            if let Some(reason) = reason {
                self.metrics.finished(reason, &sample.times, now);
                self.metrics.given_back(sample.job.weights.name());
                self.forget(id);
            }
        }
        news
    }

    fn fail(&mut self, output: &SchedulerOutput, failure: &RequestFailure) {
        tracing::error!(%failure, requests = output.scheduled.len(), "a step failed");
        for scheduled in &output.scheduled {
            let siblings = self
                .scheduler
                .request(scheduled.id)
                .map_or_else(Vec::new, |request| request.siblings.clone());
            for id in siblings.into_iter().chain([scheduled.id]) {
                self.end(id, Ending::Failed(failure.clone()));
            }
        }
    }
}
