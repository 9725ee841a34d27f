//! The engine's metrics: the one place where they are recorded.

use std::time::Instant;

use super::core::Ending;
use super::output::RequestFailure;
use super::request::{FinishReason, Request};
use super::scheduler::{Scheduler, SchedulerOutput};
use model::WeightsName;
use telemetry::{CallTimes, EngineMetrics};

/// The times of a sequence's events.
#[derive(Debug, Clone)]
pub struct RequestTimes {
    pub arrival: Instant,
    /// The time at which it was first scheduled. Forked siblings have none of their own.
    pub scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    tokens: u64,
    call: Option<CallTimes>,
}

impl RequestTimes {
    pub fn new(arrival: Instant, call: Option<CallTimes>) -> Self {
        Self {
            arrival,
            call,
            scheduled: None,
            first_token: None,
            last_token: None,
            tokens: 0,
        }
    }
}

/// The engine's metrics, and the events that change them.
pub struct EngineStats(EngineMetrics);

impl EngineStats {
    pub fn new(metrics: EngineMetrics) -> Self {
        Self(metrics)
    }

    pub fn step(&self, output: &SchedulerOutput, scheduler: &Scheduler) {
        self.0.step_tokens.observe(output.num_tokens() as f64);
        let drafts: usize = output.scheduled.iter().map(|s| s.drafts).sum();
        self.0.drafts.inc_by(drafts as u64);
        self.0.preemptions.inc_by(output.preempted.len() as u64);
        self.update_gauges(scheduler);
    }

    /// Updates the gauges. Called whenever their values have changed.
    pub fn update_gauges(&self, scheduler: &Scheduler) {
        let kv = scheduler.kv();
        self.0.requests_running.set(scheduler.num_running() as i64);
        self.0.requests_waiting.set(scheduler.num_waiting() as i64);
        let used = kv.num_blocks() - kv.num_free_blocks();
        self.0
            .kv_cache_usage
            .set(used as f64 / kv.num_blocks() as f64);
    }

    /// Records samples that are to be computed with these weights.
    pub fn samples_added(&self, weights: &WeightsName, samples: usize) {
        let gauge = self
            .0
            .requests_by_weights
            .with_label_values(&[weights.as_str()]);
        gauge.add(samples as i64);
    }

    /// Records that one of these samples has ended. A version without samples is removed from the metrics: there will be many versions.
    pub fn sample_ended(&self, weights: &WeightsName) {
        let label = [weights.as_str()];
        let gauge = self.0.requests_by_weights.with_label_values(&label);
        gauge.dec();
        if gauge.get() == 0 {
            // The label existed in the line above.
            let _ = self.0.requests_by_weights.remove_label_values(&label);
        }
    }

    pub fn started(&self, request: &Request, times: &RequestTimes) {
        let (prompt, cached) = (request.num_prompt_tokens, request.num_cached_tokens);
        self.0.prompt_tokens.inc_by(prompt as u64);
        self.0.prefix_cache_queries.inc_by(prompt as u64);
        self.0.prefix_cache_hits.inc_by(cached.unwrap_or(0) as u64);
        self.0.request_prompt_tokens.observe(prompt as f64);
        if let Some(scheduled) = times.scheduled {
            self.0
                .queue_time
                .observe((scheduled - times.arrival).as_secs_f64());
            if let Some(call) = &times.call {
                call.scheduled(times.arrival, scheduled, prompt, cached.unwrap_or(0));
            }
        }
    }

    pub fn draft_accepted(&self) {
        self.0.accepted_drafts.inc();
    }

    pub fn token(&self, times: &mut RequestTimes, now: Instant) {
        self.0.generation_tokens.inc();
        times.tokens += 1;
        if let Some(call) = &times.call {
            call.token(now);
        }
        match times.last_token.replace(now) {
            Some(last) => self
                .0
                .inter_token_latency
                .observe((now - last).as_secs_f64()),
            None => {
                times.first_token = Some(now);
                self.0
                    .time_to_first_token
                    .observe((now - times.arrival).as_secs_f64());
                if let Some(scheduled) = times.scheduled {
                    self.0.prefill_time.observe((now - scheduled).as_secs_f64());
                }
            }
        }
    }

    pub fn finished(&self, reason: FinishReason, times: &RequestTimes, now: Instant) {
        let reason = match reason {
            FinishReason::Stop | FinishReason::Complete => "stop",
            FinishReason::Length => "length",
        };
        self.ended(reason, times, now);
    }

    pub fn ended_early(&self, ending: &Ending, times: &RequestTimes) {
        let reason = match ending {
            Ending::Closed => return self.ended("stop", times, Instant::now()),
            Ending::Aborted => "aborted",
            Ending::Failed(RequestFailure::DeadlineExceeded) => "deadline",
            Ending::Failed(_) => "error",
        };
        self.0.requests_failed.with_label_values(&[reason]).inc();
    }

    fn ended(&self, reason: &str, times: &RequestTimes, now: Instant) {
        self.0.requests_finished.with_label_values(&[reason]).inc();
        self.0
            .e2e_latency
            .observe((now - times.arrival).as_secs_f64());
        self.0
            .request_generation_tokens
            .observe(times.tokens as f64);
        if let Some(first) = times.first_token {
            self.0.decode_time.observe((now - first).as_secs_f64());
        }
    }
}
