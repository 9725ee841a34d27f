//! The division of a step's tokens among requests, and the blocks for them.

use std::collections::{HashMap, HashSet};

use super::lines::Place;
use super::step::Step;
use super::step_cost::Work;
use super::{Scheduled, Scheduler};
use crate::kv_cache::CachedPrefix;
use crate::request::{Class, RequestId};
use crate::tenant::Tenant;

impl Scheduler {
    /// Schedules requests that lack one token first, so that no stream stalls behind a prompt; then running prompts; then new requests,
    /// while budget, places and blocks last.
    pub(super) fn schedule_class(&mut self, class: Class, step: &mut Step) {
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
            let mut waits = self.waiting.of(tenant, class);
            let first = waits.next();
            // A request that cannot be admitted has no demand.
            let Some(first) = first.filter(|first| !full || self.richest(**first).is_some()) else {
                continue;
            };
            let demand = demands.entry(tenant).or_default();
            if demand.tokens < budget {
                let tokens = self.requests[&first.id].1.tokens.len();
                let computed = self.prefix(first.id).num_tokens;
                // The others that could be admitted are taken to be like the first: only that one is looked up in the cache. Where most of
                // their prompts is cached they are cheap by themselves, and many together.
                let alike = 1 + waits.take(self.config.max_sequences).count();
                let one = Work::after(computed, tokens - computed);
                *demand = *demand + one.times(alike);
            }
        }
        let demands: Vec<(Tenant, Work)> = demands.into_iter().collect();
        self.fair.shares(&demands, budget)
    }

    /// Returns the cached prefix of a request; it is empty where the whole prompt has to be computed.
    pub(super) fn prefix(&self, id: RequestId) -> CachedPrefix {
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
        let drafts = step.left(place.tenant) - num_tokens;
        self.keep_drafts(place.id, drafts);
        loop {
            let drafts = self.requests[&place.id].1.drafts.tokens.len();
            let to = from + num_tokens + drafts;
            if let Ok(copy) = self.kv.allocate(place.id, from, to) {
                step.output.copies.extend(copy);
                break;
            }
            if drafts > 0 {
                // No request loses its blocks to tokens that may be refused.
                self.keep_drafts(place.id, 0);
                continue;
            }
            match self.behind(place) {
                Some(last) => self.preempt(last, step),
                None => return,
            }
        }
        self.push(place, num_tokens, step);
    }

    /// Drops the drafts of a request beyond the first `most`.
    fn keep_drafts(&mut self, id: RequestId, most: usize) {
        if let Some((_, request)) = self.requests.get_mut(&id) {
            request.drafts.tokens.truncate(most);
        }
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

    pub(super) fn push(&mut self, place: Place, num_tokens: usize, step: &mut Step) {
        let request = &mut self
            .requests
            .get_mut(&place.id)
            .expect("a running request is known; this is a bug")
            .1;
        request.last_step = self.steps;
        let drafts = request.drafts.tokens.len();
        let all = num_tokens + drafts;
        step.output.work = step.output.work + Work::after(request.num_computed_tokens, all);
        let samples = num_tokens == request.num_missing_tokens();
        let siblings = if samples { request.siblings.len() } else { 0 };
        let forks = match siblings {
            0 => 0,
            _ => self.places_for_siblings(place.class, siblings, step),
        };
        step.take(place.tenant, all);
        step.forks += forks;
        step.output.scheduled.push(Scheduled {
            id: place.id,
            num_tokens,
            samples,
            drafts,
            forks,
        });
    }

    /// Returns a running request to its position in the queue; its computed tokens stay cached until their blocks are needed.
    pub(super) fn preempt(&mut self, place: Place, step: &mut Step) {
        self.running.remove(&place);
        self.waiting.insert(place);
        self.kv.free(place.id);
        let (_, request) = self
            .requests
            .get_mut(&place.id)
            .expect("a running request is known; this is a bug");
        request.num_computed_tokens = 0;
        request.drafts.tokens.clear();
        step.output.preempted.push(place.id);
        let scheduled = &mut step.output.scheduled;
        if let Some(at) = scheduled.iter().position(|s| s.id == place.id) {
            let undone = scheduled.remove(at);
            step.forks -= undone.forks;
            let tokens = undone.num_tokens + undone.drafts;
            step.budget += tokens;
            step.give(place.tenant, tokens);
        }
    }
}
