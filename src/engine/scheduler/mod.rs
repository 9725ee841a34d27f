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

mod admit;
mod fair_share;
mod lines;
mod step;
mod step_cost;

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::kv_cache::{BlockCopy, CachedPrefix, KvCacheManager};
use super::request::{Class, FinishReason, Request, RequestId};
use super::tenant::Tenant;
use fair_share::FairShare;
use lines::{Lines, Place};
use step::Step;
use step_cost::Work;

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

/// The work of one request in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    pub id: RequestId,
    /// The number of tokens to compute, after those already computed.
    pub num_tokens: usize,
    /// Whether these are its last tokens, so that the next token can be sampled.
    pub samples: bool,
    /// The number of its siblings that become separate sequences with this step, and sample too.
    pub forks: usize,
}

/// A sequence's next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextToken {
    pub id: RequestId,
    pub token: u32,
    /// Whether the grammar allows no continuation.
    pub complete: bool,
}

/// A step's work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    pub scheduled: Vec<Scheduled>,
    /// Block copies, to be made in this order before anything is computed.
    pub copies: Vec<BlockCopy>,
    pub preempted: Vec<RequestId>,
    /// The tokens and positions of the step, which determine its cost.
    pub work: Work,
}

impl SchedulerOutput {
    pub fn num_tokens(&self) -> usize {
        self.scheduled.iter().map(|s| s.num_tokens).sum()
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
        let mut step = Step {
            output: SchedulerOutput::default(),
            budget: self.config.max_batch_tokens,
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

    /// Schedules requests that lack one token first, so that no stream stalls behind a prompt; then running prompts; then new requests,
    /// while budget, places and blocks last.
    fn schedule_class(&mut self, class: Class, step: &mut Step) {
        let lacks_one = |place: &Place| self.requests[&place.id].1.num_missing_tokens() == 1;
        let running = self.running.iter().copied();
        let (mut decoding, computing): (Vec<Place>, Vec<Place>) = running
            .filter(|place| place.class == class)
            .partition(lacks_one);
        step.shares = self.shares(class, step.budget);
        let mut for_prompts = HashMap::new();
        if let Some(shares) = &mut step.shares {
            decoding.sort_by_key(|place| (self.requests[&place.id].1.last_step, *place));
            let waits = self.waiting.tenants(class);
            let with_prompts: HashSet<Tenant> = waits
                .chain(computing.iter().map(|place| place.tenant))
                .collect();
            for (&tenant, share) in shares {
                if with_prompts.contains(&tenant) {
                    for_prompts.insert(tenant, *share / 2);
                    *share -= *share / 2;
                }
            }
        }
        let mut postponed = Vec::new();
        for place in decoding {
            match step.left(place.tenant) {
                0 => postponed.push(place),
                _ => self.go_on(place, step),
            }
        }
        for (tenant, tokens) in for_prompts {
            step.give(tenant, tokens);
        }
        for place in computing {
            self.go_on(place, step);
        }
        self.admit(class, step);
        for place in postponed {
            self.go_on(place, step);
        }
    }

    /// Returns each tenant's share of the step's tokens, if the tokens have to be shared.
    fn shares(&mut self, class: Class, budget: usize) -> Option<HashMap<Tenant, usize>> {
        if class == Class::Background {
            // The server's own work is one tenant.
            return None;
        }
        let mut demands: HashMap<Tenant, Work> = HashMap::new();
        for place in self.running.iter().filter(|place| place.class == class) {
            let request = &self.requests[&place.id].1;
            let missing = request.num_missing_tokens();
            let demand = demands.entry(place.tenant).or_default();
            *demand = *demand + Work::after(request.num_computed_tokens, missing);
        }
        let running = self.running.iter().filter(|place| place.class == class);
        let full = running.count() >= self.config.max_sequences;
        for tenant in self.waiting.tenants(class) {
            let first = self.waiting.of(tenant, class).next();
            // A request that cannot be admitted has no demand.
            let Some(first) = first.filter(|first| !full || self.richest(**first).is_some()) else {
                continue;
            };
            let tokens = &self.requests[&first.id].1.tokens;
            let demand = demands.entry(tenant).or_default();
            if demand.tokens < budget {
                let computed = self.prefix(first.id).num_tokens;
                *demand = *demand + Work::after(computed, tokens.len() - computed);
            }
        }
        let demands: Vec<(Tenant, Work)> = demands.into_iter().collect();
        self.fair.shares(&demands, budget)
    }

    /// Returns the cached prefix of a request; it is empty where the whole prompt has to be computed.
    fn prefix(&self, id: RequestId) -> CachedPrefix {
        let (_, request) = &self.requests[&id];
        match request.scores_prompt {
            true => CachedPrefix::default(),
            false => self.kv.cached_prefix(&request.tokens),
        }
    }

    /// Schedules more tokens of a request, if it still runs and there are tokens and blocks for it.
    fn go_on(&mut self, place: Place, step: &mut Step) {
        if !self.running.contains(&place) {
            return;
        }
        let request = &self.requests[&place.id].1;
        let from = request.num_computed_tokens;
        let num_tokens = request.num_missing_tokens().min(step.left(place.tenant));
        if num_tokens == 0 {
            return;
        }
        loop {
            if let Ok(copy) = self.kv.allocate(place.id, from, from + num_tokens) {
                step.output.copies.extend(copy);
                break;
            }
            match self.behind(place) {
                Some(last) => self.preempt(last, step),
                None => return,
            }
        }
        self.push(place, num_tokens, step);
    }

    /// Returns the running request that is preempted first for `place`, if there is one: the last of the background, or the last of the
    /// tenant with the most running requests. Requests are compared by the number of their tenant's requests that run before them, then by
    /// age: the first of all is never preempted, so there is always progress.
    fn behind(&self, place: Place) -> Option<Place> {
        let last = *self.running.last()?;
        if last.class > place.class {
            return Some(last);
        }
        let before = self.running.of(place.tenant, place.class);
        let own = before.take_while(|other| **other < place).count();
        let tenants = self.running.tenants(place.class);
        let lasts = tenants.filter_map(|tenant| {
            let mut line = self.running.of(tenant, place.class);
            let last = *line.next_back()?;
            Some((line.count(), last.id, last))
        });
        let (before, id, last) = lasts.max()?;
        ((before, id) > (own, place.id)).then_some(last)
    }

    fn push(&mut self, place: Place, num_tokens: usize, step: &mut Step) {
        let request = &mut self
            .requests
            .get_mut(&place.id)
            .expect("a running request is known; this is a bug")
            .1;
        request.last_step = self.steps;
        step.output.work = step.output.work + Work::after(request.num_computed_tokens, num_tokens);
        let samples = num_tokens == request.num_missing_tokens();
        let siblings = if samples { request.siblings.len() } else { 0 };
        let forks = match siblings {
            0 => 0,
            _ => self.places_for_siblings(place.class, siblings, step),
        };
        step.take(place.tenant, num_tokens);
        step.forks += forks;
        step.output.scheduled.push(Scheduled {
            id: place.id,
            num_tokens,
            samples,
            forks,
        });
    }

    /// Returns the number of places for `wanted` siblings, taking places from the background if necessary.
    fn places_for_siblings(&mut self, class: Class, wanted: usize, step: &mut Step) -> usize {
        let max = self.config.max_sequences;
        while self.running.len() + step.forks + wanted > max
            && let Some(last) = self
                .running
                .last()
                .copied()
                .filter(|last| last.class > class)
        {
            self.preempt(last, step);
        }
        wanted.min(max.saturating_sub(self.running.len() + step.forks))
    }

    /// Returns a running request to its position in the queue; its computed tokens stay cached until their blocks are needed.
    fn preempt(&mut self, place: Place, step: &mut Step) {
        self.running.remove(&place);
        self.waiting.insert(place);
        self.kv.free(place.id);
        let (_, request) = self
            .requests
            .get_mut(&place.id)
            .expect("a running request is known; this is a bug");
        request.num_computed_tokens = 0;
        step.output.preempted.push(place.id);
        let scheduled = &mut step.output.scheduled;
        if let Some(at) = scheduled.iter().position(|s| s.id == place.id) {
            let undone = scheduled.remove(at);
            step.forks -= undone.forks;
            step.budget += undone.num_tokens;
            step.give(place.tenant, undone.num_tokens);
        }
    }

    /// Takes the sampled tokens after a step: one for every sequence of every request that was scheduled to its end, siblings included.
    /// Returns the sequences that have ended; they are removed and their blocks free.
    pub fn update(
        &mut self,
        output: &SchedulerOutput,
        sampled: &[NextToken],
    ) -> Vec<(RequestId, FinishReason)> {
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
        for &NextToken {
            id,
            token,
            complete,
        } in sampled
        {
            let Some((_, request)) = self.requests.get_mut(&id) else {
                continue;
            };
            if let Some(reason) = request.push(token, complete) {
                finished.push((id, reason));
                self.remove(id);
            }
        }
        finished
    }

    /// Turns the first `count` siblings of a request whose prompt is computed into separate running requests. The others wait
    /// together, as one request that finds the prompt in the cache.
    fn fork(&mut self, id: RequestId, count: usize) {
        let (place, request) = self
            .requests
            .get_mut(&id)
            .expect("a scheduled request is known; this is a bug");
        let place = *place;
        let mut siblings = std::mem::take(&mut request.siblings);
        let request = request.clone();
        let mut rest = siblings.split_off(count.min(siblings.len()));
        for sibling in siblings {
            self.unforked.remove(&sibling);
            self.kv.fork(id, sibling);
            let child = Request {
                id: sibling,
                num_cached_tokens: Some(request.num_prompt_tokens),
                ..request.clone()
            };
            let place = Place {
                id: sibling,
                ..place
            };
            self.running.insert(place);
            self.requests.insert(sibling, (place, child));
        }
        if rest.is_empty() {
            return;
        }
        let next = rest.remove(0);
        self.unforked.remove(&next);
        self.unforked
            .extend(rest.iter().map(|&sibling| (sibling, next)));
        let waits = Request {
            id: next,
            num_computed_tokens: 0,
            num_cached_tokens: Some(request.num_prompt_tokens),
            siblings: rest,
            ..request
        };
        let place = Place { id: next, ..place };
        self.waiting.insert(place);
        self.requests.insert(next, (place, waits));
    }
}
