//! The body of the engine's loop: expire, schedule, compute, sample, send events.

mod draw;
mod job;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::GenerateRequest;
use crate::kv_cache::{BlockHash, CacheDomain, HashedTokens};
use crate::model_runner::{ModelRunner, WeightsRun};
use crate::output::{RequestFailure, StreamEvent};
use crate::request::{FinishReason, Request, RequestId};
use crate::sampler::SampledToken;
#[cfg(test)]
use crate::scheduler::Work;
use crate::scheduler::{Finished, NextToken, Scheduler, SchedulerOutput};
use crate::stats::{EngineStats, RequestTimes};
use job::{Job, OpenJob, Sample};
use kernels::device::DeviceArbiter;
use telemetry::EngineMetrics;

pub use job::{Ending, Submission};

/// A message from a handle to the engine thread.
#[derive(Debug)]
pub enum Command {
    Submit(Box<Submission>),
    /// Cancels one sample of a submission.
    Close(RequestId),
    /// A liveness probe; the thread replies.
    Ping(oneshot::Sender<()>),
}

/// The engine's state and the body of its loop.
pub struct EngineCore {
    scheduler: Scheduler,
    runner: ModelRunner,
    jobs: HashMap<RequestId, OpenJob>,
    samples: HashMap<RequestId, Sample>,
    metrics: EngineStats,
    arbiter: DeviceArbiter,
    /// Whether tenants share cached prefixes.
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
            metrics: EngineStats::new(metrics),
            arbiter,
            shared_prefix_cache: false,
        }
    }

    /// Sets whether tenants share cached prefixes.
    pub fn with_shared_prefix_cache(self, shared_prefix_cache: bool) -> Self {
        Self {
            shared_prefix_cache,
            ..self
        }
    }

    pub fn handle_command(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.add(*submission),
            Command::Close(id) => self.end(id, Ending::Closed),
            Command::Ping(reply) => {
                // The probe may have stopped waiting.
                let _ = reply.send(());
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Returns the model runner of an engine that has finished.
    pub fn into_runner(self) -> ModelRunner {
        self.runner
    }

    #[cfg(test)]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Records the duration of a step that was not computed.
    #[cfg(test)]
    pub fn observe(&mut self, work: Work, took: std::time::Duration) {
        self.scheduler.observe(work, took);
    }

    /// Returns the number of samples that have a sampler, and with it the state of their grammar.
    #[cfg(test)]
    pub fn samplers(&self) -> usize {
        let samples = self.samples.values();
        samples.filter(|sample| sample.sampler.is_some()).count()
    }

    /// Requests the device from the arbiter, which pauses the trainer, if the step needs more than one thread for foreground work. A step
    /// on one thread leaves the other threads to the trainer.
    fn claim_device(&self, output: &SchedulerOutput) {
        let pressing = self.scheduler.has_foreground() && self.runner.spreads(output.num_tokens());
        self.arbiter.foreground(pressing);
    }

    /// Adds a submission to the scheduler's queue.
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
        let rope = &self.runner.spec().rope;
        let most = prompt.len() + job.params.stop.max_tokens;
        let len = rope.call_len(prompt.len(), most);
        if rope.depends_on_length(len) {
            root = root.of_length(len);
        }
        let tokens = HashedTokens::new(prompt, self.scheduler.kv().block_size(), root);
        let mut request = Request::new(first, tokens, job.params.stop.clone());
        request.siblings = (1..samples).map(|index| first.sample(index)).collect();
        request.priority = priority;
        request.class = class;
        request.tenant = tenant;
        request.scores_prompt =
            job.params.prompt_logprobs.is_some() && request.num_prompt_tokens > 1;
        self.metrics.samples_added(job.weights.name(), samples);
        // A grammar's state cannot be followed ahead of the drawn tokens.
        request.speculates = job.grammar.is_none();
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

    /// Runs one step. After a step without work there is nothing to do until a request is submitted or cancelled.
    pub fn step(&mut self) {
        self.drop_expired();
        let mut output = self.scheduler.schedule();
        // A reader of the metrics that sees a request counted as scheduled also sees it among the running ones.
        self.metrics.update_gauges(&self.scheduler);
        if output.scheduled.is_empty() {
            return;
        }
        let begun = Instant::now();
        self.claim_device(&output);
        let runs = self.group_by_weights(&mut output);
        self.send_started(&output);
        let due = self.prepare_draws(&output);
        let draws = self.describe_draws(&due);
        let drawn = self
            .runner
            .execute(&self.scheduler, &output, &runs, &draws)
            .and_then(|computed| {
                self.score(&output, &computed)?;
                Ok(computed.draws)
            });
        let drawn = drawn.map(|drawn| self.accept_draws(due, drawn));
        // The runs hold weights leases, which must be released before a client has its whole answer.
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
                let events = self.count(sampled, &finished);
                self.metrics.step(&output, &self.scheduler);
                for (sender, event) in events {
                    // A closed channel is handled at the next step.
                    let _ = sender.send(event);
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

    /// Reorders the step so that requests of the same weights are adjacent, and returns the length of each run.
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

    /// Ends requests whose callers have disconnected or whose deadlines have passed.
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

    /// Removes a sample that has ended, and its submission after the last sample.
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

    /// Ends a sample early. The caller is notified last: by then the sample's resources are free and the metrics updated.
    fn end(&mut self, id: RequestId, ending: Ending) {
        // The sample may have ended in the meantime.
        let Some(mut sample) = self.forget(id) else {
            return;
        };
        self.metrics.sample_ended(sample.job.weights.name());
        let successor = self.scheduler.remove(id);
        if let Some(successor) = successor.and_then(|successor| self.samples.get_mut(&successor)) {
            successor.place = sample.place.take();
        }
        self.metrics.ended_early(&ending, &sample.times);
        self.metrics.update_gauges(&self.scheduler);
        let events = sample.job.events.clone();
        drop(sample);
        if let Ending::Failed(failure) = ending {
            // The receiver may have been dropped.
            let _ = events.send(StreamEvent::Failed(failure));
        }
    }

    /// Sends `Started` for requests that run for the first time, and releases their places in the queue.
    fn send_started(&mut self, output: &SchedulerOutput) {
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

    /// Records the tokens of a step and removes the samples that end with them. Returns the events, to be sent afterwards: when a caller
    /// receives its answer, the metrics already count it and no resource is held for it.
    fn count(
        &mut self,
        sampled: Vec<(RequestId, SampledToken)>,
        finished: &[Finished],
    ) -> Vec<(mpsc::UnboundedSender<StreamEvent>, StreamEvent)> {
        let now = Instant::now();
        let finished: HashMap<usize, FinishReason> = finished
            .iter()
            .map(|ended| (ended.at, ended.reason))
            .collect();
        let mut events = Vec::with_capacity(sampled.len());
        let mut before = None;
        for (at, (id, token)) in sampled.into_iter().enumerate() {
            let reason = finished.get(&at).copied();
            // Tokens drawn from drafts after a sequence's last token belong to no sample.
            let Some(sample) = self.samples.get_mut(&id) else {
                continue;
            };
            self.metrics.token(&mut sample.times, now);
            if before.replace(id) == Some(id) {
                self.metrics.draft_accepted();
            }
            let event = StreamEvent::Token {
                index: sample.index,
                id: token.id,
                logprobs: token.logprobs,
                finished: reason,
            };
            events.push((sample.job.events.clone(), event));
            if let Some(reason) = reason {
                self.metrics.finished(reason, &sample.times, now);
                self.metrics.sample_ended(sample.job.weights.name());
                self.forget(id);
            }
        }
        events
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
