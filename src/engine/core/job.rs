//! Submissions and their samples: the state of a request that the scheduler does not need.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::GenerateRequest;
use crate::admission::QueuePlace;
use crate::output::{RequestFailure, StreamEvent};
use crate::request::RequestId;
use crate::sampler::{PromptLogprobs, Sampler};
use crate::sampling_params::SamplingParams;
use crate::stats::RequestTimes;
use model::WeightsLease;
use telemetry::CallTimes;
use text::Grammar;

/// An accepted request on its way to the engine thread.
#[derive(Debug)]
pub struct Submission {
    /// The id of the first sample; the other samples have the ids that follow.
    pub first: RequestId,
    pub request: GenerateRequest,
    /// The weights that compute the request, until its end.
    pub weights: WeightsLease,
    pub events: mpsc::UnboundedSender<StreamEvent>,
    /// The request's place in the queue, held until the request first runs.
    pub place: QueuePlace,
    /// The timing record of the call that the request is part of, if that call is timed.
    pub call: Option<CallTimes>,
}

/// The state that all samples of a submission share.
pub struct Job {
    pub first: RequestId,
    pub params: SamplingParams,
    pub seed: u64,
    /// The tokens that a repetition penalty counts; empty where there is none.
    pub penalised: Vec<u32>,
    pub grammar: Option<Grammar>,
    pub deadline: Option<Instant>,
    pub weights: WeightsLease,
    pub events: mpsc::UnboundedSender<StreamEvent>,
    /// Log-probabilities of the prompt's tokens found so far, from the second token on.
    pub scored: Mutex<Vec<PromptLogprobs>>,
}

/// A submission that has open samples.
pub struct OpenJob {
    pub job: Arc<Job>,
    pub samples: usize,
    pub open: usize,
}

impl Job {
    /// Returns how the job ends if its caller is gone or its deadline has passed.
    pub fn given_up(&self, now: Instant) -> Option<Ending> {
        if self.events.is_closed() {
            Some(Ending::Aborted)
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Some(Ending::Failed(RequestFailure::DeadlineExceeded))
        } else {
            None
        }
    }
}

/// The reason for which a sample ends before its last token.
#[derive(Debug, Clone)]
pub enum Ending {
    /// The caller has disconnected.
    Aborted,
    /// The caller needs no more tokens: its text reached a stop string, for example.
    Closed,
    Failed(RequestFailure),
}

/// One sample: the state that the scheduler does not need.
pub struct Sample {
    pub index: usize,
    pub job: Arc<Job>,
    /// Created when the first token is drawn: a waiting sample takes no memory beyond its place in the queue.
    pub sampler: Option<Box<Sampler>>,
    pub place: Option<QueuePlace>,
    pub times: RequestTimes,
}
