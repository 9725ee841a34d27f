//! The scheduler: which requests compute how many tokens in the next step. Pure policy: ids and counts in, ids and counts out.
//!
//! [`Scheduler::schedule`] and [`Scheduler::update`] are a pair: the first returns how many tokens of which requests the model
//! computes, the second takes the sampled tokens.
//!
//! # One tenant
//! Its requests have one order: by arrival, a level of priority being worth [`PRIORITY_STEP`] arrivals. A running request takes
//! blocks from requests that run behind it (they are *preempted*, and computed again later) and never from those before it, so the first
//! request always finishes in a pool that holds one request of maximal length. A waiting request preempts no running request of its
//! tenant, but no request behind it is admitted before it. Levels are bounded ([`PRIORITIES`]), so every request becomes first after a
//! bounded number of others: one of the last level goes before all that arrive 51,200 arrivals after it, whatever their level.
//!
//! # Several tenants
//! *Places.* The next request is taken from the tenant with the fewest running requests. Where all places or blocks are taken, it preempts
//! the last request of the tenant with the most, if that tenant has at least two more. So tenants with enough requests end up with equal
//! numbers of places, and no two tenants take the same place from each other in turn. Each sample of a request with many samples is a
//! sequence of its own as soon as its prompt is computed; samples without a place wait.
//! *Tokens.* The tokens of a step are divided evenly, and the step is no longer than is fair: see [`FairShare`]. Where a tenant gets
//! fewer tokens than it has sequences, these take turns, and its prompts get half of the tokens.
//! *Priorities* order the requests of one tenant and do not affect other tenants. A tenant alone gets the whole engine.
//!
//! # Background
//! Requests of [`Class::Background`] are behind all others and get the remaining capacity: tokens of a step, places, blocks. They are
//! preempted as soon as a foreground request lacks a place or blocks, and are not admitted while one waits. In a step with foreground
//! work they only fill the step up ([`BackgroundLimits::fill_beside`]), and they compute nothing in a step that computes a foreground
//! prompt, because those steps are already long. Except for shared prefixes, the foreground's steps are the same with and without
//! them. Background requests can starve.
//!
//! | file | content |
//! |---|---|
//! | `tokens` | the division of a step's tokens among requests |
//! | `admit` | admission of waiting requests, and preemptions that make room for them |
//! | `siblings` | the samples of one request |
//! | `speculate` | tokens proposed ahead of a sequence that runs alone |
//! | `pace` | the longest step beside decoding sequences |
//! | `fair_share`, `step_cost` | each tenant's tokens in a step; the cost of a step |
//! | `step`, `output`, `lines` | a step under construction; its work; ordered queues |

mod admit;
mod fair_share;
mod lines;
mod output;
mod pace;
mod siblings;
mod speculate;
mod step;
mod step_cost;
mod tokens;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::kv_cache::KvCacheManager;
use super::request::{Class, Request, RequestId};
use super::tenant::Tenant;
use fair_share::FairShare;
use lines::{Lines, Place};
use step::Step;

pub use output::{Finished, NextToken, Scheduled, SchedulerOutput};
pub use pace::TARGET_ITL;
pub use speculate::Drafts;
pub use step_cost::Work;

/// The number of later arrivals of the next lower priority that a request goes before.
pub const PRIORITY_STEP: i64 = 256;

/// The levels of priority of a request; lower goes first.
pub const PRIORITIES: RangeInclusive<i32> = -100..=100;

/// Limits of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// The maximum number of tokens computed in a step. More than `max_sequences`, so that prompts advance while all sequences decode.
    pub max_batch_tokens: usize,
    /// The maximum number of sequences that run at once.
    pub max_sequences: usize,
    /// The time between two tokens of a sequence that prompts beside it should not exceed; none if only `max_batch_tokens` limits a step.
    pub target_itl: Option<Duration>,
    /// The maximum number of tokens proposed ahead of a sequence that runs alone; 0 proposes none.
    pub max_drafts: usize,
    pub background: BackgroundLimits,
}

/// Limits on how far background requests lengthen a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundLimits {
    /// While foreground requests decode, background tokens fill their step up to a multiple of this; 0 allows none. Every background token
    /// delays the foreground a little, but kernels compute whole tiles of rows: tokens that fill up a tile are nearly free.
    pub fill_beside: usize,
    /// The maximum number of background tokens in other steps: a foreground request that arrives waits for that step.
    pub tokens_alone: usize,
}

impl BackgroundLimits {
    /// Returns the background tokens allowed in a step with `decoding` foreground sequences, each computing one token.
    pub const fn beside(self, decoding: usize) -> usize {
        match decoding.checked_rem(self.fill_beside) {
            Some(rest) => self.fill_beside - rest,
            None => 0,
        }
    }
}

/// The scheduler of the engine's steps.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvCacheManager,
    requests: HashMap<RequestId, (Place, Request)>,
    /// For siblings that are not requests yet, the request that computes their prompt.
    unforked: HashMap<RequestId, RequestId>,
    waiting: Lines,
    running: Lines,
    /// The number of arrived requests, by class.
    arrivals: [i64; 2],
    fair: FairShare,
    /// The number of steps so far.
    steps: u64,
    /// The step that last admitted a request of each tenant: of tenants with equally many running requests, the one that has waited longest
    /// goes first.
    admitted: HashMap<Tenant, u64>,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig, kv: KvCacheManager) -> Self {
        Self {
            config,
            kv,
            requests: HashMap::new(),
            unforked: HashMap::new(),
            waiting: Lines::default(),
            running: Lines::default(),
            arrivals: [0; 2],
            fair: FairShare::default(),
            steps: 0,
            admitted: HashMap::new(),
        }
    }

    pub fn kv(&self) -> &KvCacheManager {
        &self.kv
    }

    pub fn request(&self, id: RequestId) -> Option<&Request> {
        self.requests.get(&id).map(|(_, request)| request)
    }

    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of running sequences.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Records the duration of a step; see [`FairShare`].
    pub fn observe(&mut self, work: Work, took: Duration) {
        self.fair.observe(work, took);
    }

    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Returns whether there is foreground work.
    pub fn has_foreground(&self) -> bool {
        let first = [self.waiting.first(), self.running.first()];
        let mut first = first.into_iter().flatten();
        first.any(|place| place.class == Class::Foreground)
    }

    /// Adds a request to the queue. Its priority is worth a bounded head start within its class: lower numbers first.
    pub fn add(&mut self, request: Request) {
        let arrived = &mut self.arrivals[request.class as usize];
        let place = Place {
            class: request.class,
            rank: *arrived + PRIORITY_STEP * i64::from(request.priority),
            id: request.id,
            tenant: request.tenant,
        };
        *arrived += 1;
        let siblings = request.siblings.iter();
        self.unforked
            .extend(siblings.map(|&sibling| (sibling, request.id)));
        self.waiting.insert(place);
        self.requests.insert(request.id, (place, request));
    }

    /// Removes a sequence and frees its blocks. If siblings still wait for its prompt, one of them continues in its place; the id of that
    /// sibling is returned.
    pub fn remove(&mut self, id: RequestId) -> Option<RequestId> {
        if let Some(head) = self.unforked.remove(&id) {
            let (_, request) = self.requests.get_mut(&head)?;
            request.siblings.retain(|&sibling| sibling != id);
            return None;
        }
        let (place, mut request) = self.requests.remove(&id)?;
        let waited = self.waiting.remove(&place);
        let ran = self.running.remove(&place);
        if request.siblings.is_empty() {
            self.kv.free(id);
            return None;
        }
        let successor = request.siblings.remove(0);
        self.unforked.remove(&successor);
        for &sibling in &request.siblings {
            self.unforked.insert(sibling, successor);
        }
        self.kv.rename(id, successor);
        request.id = successor;
        let place = Place {
            id: successor,
            ..place
        };
        if waited {
            self.waiting.insert(place);
        }
        if ran {
            self.running.insert(place);
        }
        self.requests.insert(successor, (place, request));
        Some(successor)
    }

    /// Chooses a step's work: first the foreground's, then the background's from the remaining capacity.
    pub fn schedule(&mut self) -> SchedulerOutput {
        self.steps += 1;
        self.propose_drafts();
        let mut step = Step {
            output: SchedulerOutput::default(),
            budget: self.token_limit(),
            forks: 0,
            shares: None,
        };
        self.schedule_class(Class::Foreground, &mut step);
        let limits = self.config.background;
        let computes_prompt = step.output.scheduled.iter().any(|s| s.num_tokens > 1);
        step.budget = step.budget.min(match self.has_foreground() {
            true if computes_prompt => 0,
            true => limits.beside(step.output.num_tokens()),
            false => limits.tokens_alone,
        });
        self.schedule_class(Class::Background, &mut step);
        step.output
    }

    /// Takes the sampled tokens after a step: one for every sequence of every request that was scheduled to its end, siblings included, and
    /// one more for every accepted draft, in their order. Tokens after the last one of a sequence are ignored.
    /// Returns the sequences that have ended; they are removed and their blocks free.
    pub fn update(&mut self, output: &SchedulerOutput, sampled: &[NextToken]) -> Vec<Finished> {
        for scheduled in &output.scheduled {
            // The request may have been removed while the step was computed.
            let Some((_, request)) = self.requests.get_mut(&scheduled.id) else {
                continue;
            };
            request.num_computed_tokens += scheduled.num_tokens;
            request.scores_prompt &= request.num_computed_tokens + 1 < request.num_prompt_tokens;
            let computed = request.num_computed_tokens;
            self.kv.computed(scheduled.id, &request.tokens, computed);
            if scheduled.samples {
                self.fork(scheduled.id, scheduled.forks);
            }
        }
        let mut finished = Vec::new();
        let mut accepted = 0;
        for (at, &next) in sampled.iter().enumerate() {
            let NextToken { id, token, .. } = next;
            let Some((_, request)) = self.requests.get_mut(&id) else {
                continue;
            };
            let follows = at
                .checked_sub(1)
                .is_some_and(|before| sampled[before].id == id);
            if follows {
                // The token before it is a draft that the step has computed.
                accepted += 1;
                request.num_computed_tokens += 1;
                let computed = request.num_computed_tokens;
                self.kv.computed(id, &request.tokens, computed);
            } else {
                accepted = 0;
            }
            let ended = request.push(token, next.complete);
            let more = sampled.get(at + 1).is_some_and(|next| next.id == id);
            if let Some(reason) = ended {
                finished.push(Finished { id, at, reason });
                self.remove(id);
            } else if !more {
                request.drafts.settle(accepted);
            }
        }
        finished
    }
}
