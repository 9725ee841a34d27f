//! Who computes what in the next step. Pure policy: ids and counts in, ids and counts out.
//!
//! [`Scheduler::schedule`] and [`Scheduler::update`] are a pair: the first says how many tokens of which requests the model
//! computes, the second takes what was sampled.
//!
//! # One tenant
//! Its requests stand in one order: by arrival, a level of priority being worth [`HEAD_START`] arrivals. A running request takes
//! blocks from those that run behind it (they are *preempted*, and computed again later) and never from those before it, and a
//! pool that holds one maximal request holds the first. A waiting request takes nothing from the running ones of its tenant,
//! but none of these is admitted before it. Levels are bounded ([`PRIORITIES`]), so every request becomes first after a bounded
//! number of others: one of the last level goes before all that come 51,200 arrivals after it, whatever their level.
//!
//! # Several tenants
//! *Places.* The next request is taken from the tenant that has the fewest running. Where all places or blocks are taken, it takes
//! them from the last request of the tenant that has the most, if that one has at least two more: so tenants that ask for
//! enough end up with equal numbers of places, and no two take the same place from each other in turn. Of a request with
//! many samples each is a sequence of its own as soon as its prompt is computed; those without a place wait.
//! *Tokens.* The tokens of a step are shared evenly, and it is not made longer than fair: see [`FairShare`]. Where a tenant gets
//! fewer tokens than it has sequences, these take turns, and its prompts get half of them.
//! *Priorities* order the requests of one tenant and say nothing to the others. A tenant alone gets everything.
//!
//! # Background
//! Requests of [`Class::Background`] stand behind all others and get what these leave: tokens of a step, places, blocks. They give
//! places and blocks up as soon as a foreground request lacks them, they are not admitted while one waits, and beside foreground
//! work they only fill a step up ([`BackgroundLimits::fill_beside`]), and compute nothing in one that computes a foreground
//! prompt: those are the long ones already. But for shared prefixes, the foreground's steps are the same with and without
//! them. They may starve.

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

/// How many later arrivals of the next lower priority a request goes before.
pub const HEAD_START: i64 = 256;

/// Levels of priority that a request may have; lower goes first.
pub const PRIORITIES: RangeInclusive<i32> = -100..=100;

/// Bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens computed in a step. More than `max_sequences`, so that prompts get on while everyone decodes.
    pub max_batch_tokens: usize,
    /// Sequences that run at once.
    pub max_sequences: usize,
    pub background: BackgroundLimits,
}

/// How far background requests may lengthen a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackgroundLimits {
    /// While foreground requests are there and decode, background tokens fill their step up to a multiple of this; 0 for none at all.
    /// Every token delays all of these a little, but kernels compute whole tiles of rows: what fills a tile is nearly free.
    pub fill_beside: usize,
    /// Their tokens in a step otherwise: a foreground request that comes waits for that step.
    pub tokens_alone: usize,
}

impl BackgroundLimits {
    /// Background tokens beside so many of the foreground's, one of each that decodes.
    pub const fn beside(self, decoding: usize) -> usize {
        match decoding.checked_rem(self.fill_beside) {
            Some(rest) => self.fill_beside - rest,
            None => 0,
        }
    }
}

/// What a request computes in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    pub id: RequestId,
    /// The next tokens after those already computed.
    pub num_tokens: usize,
    /// Whether they are its last, so that the next token can be sampled.
    pub samples: bool,
    /// Of its siblings, how many become sequences of their own with this step, and sample too.
    pub forks: usize,
}

/// A sequence's next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextToken {
    pub id: RequestId,
    pub token: u32,
    /// Whether nothing may follow it.
    pub complete: bool,
}

/// A step's work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    pub scheduled: Vec<Scheduled>,
    /// To be made in this order before anything is computed.
    pub copies: Vec<BlockCopy>,
    pub preempted: Vec<RequestId>,
    /// What computing it costs.
    pub work: Work,
}

impl SchedulerOutput {
    pub fn num_tokens(&self) -> usize {
        self.scheduled.iter().map(|s| s.num_tokens).sum()
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvCacheManager,
    requests: HashMap<RequestId, (Place, Request)>,
    /// Of siblings that are no requests yet, the request that computes their prompt.
    unforked: HashMap<RequestId, RequestId>,
    waiting: Lines,
    running: Lines,
    /// Requests that have come, by class.
    arrivals: [i64; 2],
    fair: FairShare,
    /// Steps so far.
    steps: u64,
    /// The step that last admitted a request of the tenant: of tenants that have equally many running, the one that has waited longest
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

    /// Sequences that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Notes how long a step of such work took; see [`FairShare`].
    pub fn observe(&mut self, work: Work, took: Duration) {
        self.fair.observe(work, took);
    }

    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether somebody waits for what is to be computed.
    pub fn has_foreground(&self) -> bool {
        let first = [self.waiting.first(), self.running.first()];
        let mut first = first.into_iter().flatten();
        first.any(|place| place.class == Class::Foreground)
    }

    /// Puts a request in line. Its priority is worth a head start within its class and no more: lower numbers first.
    pub fn add(&mut self, request: Request) {
        let arrived = &mut self.arrivals[request.class as usize];
        let place = Place {
            class: request.class,
            rank: *arrived + HEAD_START * i64::from(request.priority),
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

    /// Forgets a sequence and frees its blocks. Where siblings still wait for its prompt, one of them goes on with that, in its
    /// place: that one is given.
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
        let heir = request.siblings.remove(0);
        self.unforked.remove(&heir);
        for &sibling in &request.siblings {
            self.unforked.insert(sibling, heir);
        }
        self.kv.rename(id, heir);
        request.id = heir;
        let place = Place { id: heir, ..place };
        if waited {
            self.waiting.insert(place);
        }
        if ran {
            self.running.insert(place);
        }
        self.requests.insert(heir, (place, request));
        Some(heir)
    }

    /// Chooses a step's work, the background's from what the foreground leaves.
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

    /// First those that only lack one token, so that nobody's stream stalls behind a prompt; then prompts under way; then new
    /// ones, while budget, places and blocks last.
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

    /// What each tenant gets of a step's tokens, if they have to be shared.
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
            // What cannot begin asks for nothing.
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

    /// What the cache holds of a request, nothing where all of it is to be computed.
    fn prefix(&self, id: RequestId) -> CachedPrefix {
        let (_, request) = &self.requests[&id];
        match request.scores_prompt {
            true => CachedPrefix::default(),
            false => self.kv.cached_prefix(&request.tokens),
        }
    }

    /// Computes more of a request, if it still runs and there are tokens and blocks for it.
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

    /// The running request that gives its blocks to `place` first, if one has to: the last of the background, or the last of the tenant
    /// that has the most running. Requests are compared by how many of their tenant run before them, and then by age: the first of
    /// all gives nothing to anyone, so something always gets on.
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

    /// Places for as many of `wanted` siblings as there are, taken from the background where it has them.
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

    /// Puts a running request back in line, where it was; what it has computed is kept as long as nobody needs the blocks.
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

    /// Takes the tokens that were sampled after a step: one for every sequence of every request that was scheduled to its end,
    /// siblings included. Gives those that have ended; they are forgotten and their blocks free.
    pub fn update(
        &mut self,
        output: &SchedulerOutput,
        sampled: &[NextToken],
    ) -> Vec<(RequestId, FinishReason)> {
        for scheduled in &output.scheduled {
            // It may have been removed while the step was computed.
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

    /// Turns the first `count` siblings of a request whose prompt is computed into running requests of their own. The others wait
    /// together, as one request that takes up the prompt from the cache.
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
