//! Admission of waiting requests to a step, and the preemptions that make room for them.

use std::collections::{HashMap, HashSet};

use super::Scheduler;
use super::lines::Place;
use super::step::Step;
use crate::kv_cache::{BlockHash, CachedPrefix};
use crate::request::Class;
use crate::tenant::Tenant;

/// The maximum number of a tenant's waiting requests that a step skips because a block they start with is being computed. Each is looked
/// up in the cache, so the number bounds the cost of a step.
const MAX_LEFT_OUT: usize = 64;

impl Scheduler {
    /// Admits waiting requests, those of the tenants with the fewest running requests first, while budget, places and blocks last.
    pub(super) fn admit(&mut self, class: Class, step: &mut Step) {
        // A tenant that was preempted in this step gets no new request admitted.
        let mut lines: HashMap<Tenant, Place> = HashMap::new();
        for tenant in self.waiting.tenants(class) {
            let gave_up = step.output.preempted.iter().any(|id| {
                let (place, _) = &self.requests[id];
                place.class < class || place.class == class && place.tenant == tenant
            });
            let first = self.waiting.of(tenant, class).next();
            lines.extend(first.filter(|_| !gave_up).map(|first| (tenant, *first)));
        }
        // While the foreground waits, no background request is admitted.
        let foreground_waits = self
            .waiting
            .first()
            .is_some_and(|first| first.class < class);
        if lines.is_empty() || foreground_waits {
            return;
        }
        let mut promised = self.promised_blocks(class);
        let mut left_out: HashMap<Tenant, usize> = HashMap::new();
        loop {
            let fewest = lines.values().min_by_key(|place| {
                let running = self.running.of(place.tenant, class).count();
                let admitted = self.admitted.get(&place.tenant).copied();
                (running, admitted.unwrap_or(0), place.id)
            });
            let Some(&place) = fewest else {
                return;
            };
            if step.budget == 0 {
                return;
            }
            if step.left(place.tenant) == 0 || self.is_full_for(place) {
                lines.remove(&place.tenant);
                continue;
            }
            let request = &self.requests[&place.id].1;
            let mut prefix = self.prefix(place.id);
            let next = match request.scores_prompt {
                // The request computes that block whether or not it will be cached.
                true => None,
                false => self.kv.next_hash(&request.tokens, &prefix),
            };
            let mut after = self.waiting.after(&place);
            if next.is_some_and(|hash| promised.contains(&hash)) {
                // A request before it is computing that block, which can be shared soon.
                let left_out = left_out.entry(place.tenant).or_default();
                *left_out += 1;
                after = after.filter(|_| *left_out < MAX_LEFT_OUT);
            } else {
                if !self.make_room(place, &mut prefix, step) {
                    return;
                }
                let tokens = &self.requests[&place.id].1.tokens;
                promised.extend(tokens.full_blocks_from(prefix.num_tokens));
                self.begin(place, prefix, step);
            }
            match after {
                Some(after) => lines.insert(place.tenant, after),
                None => lines.remove(&place.tenant),
            };
        }
    }

    /// Returns whether the tenant's sequences that run before a waiting request, and their future siblings, need all places.
    fn is_full_for(&self, place: Place) -> bool {
        let running = self.running.of(place.tenant, place.class);
        let before = running.filter(|other| **other < place);
        let siblings: usize = before
            .map(|other| self.requests[&other.id].1.siblings.len())
            .sum();
        let own = self.running.of(place.tenant, place.class).count();
        own + siblings >= self.config.max_sequences
    }

    /// Ensures that there are a place and blocks for a waiting request, if necessary by preempting the background and tenants that run more
    /// than its own; returns whether there are.
    fn make_room(&mut self, place: Place, prefix: &mut CachedPrefix, step: &mut Step) -> bool {
        loop {
            let has_place = self.running.len() + step.forks < self.config.max_sequences;
            let num_tokens = self.requests[&place.id].1.tokens.len();
            if has_place && self.kv.has_room(num_tokens, prefix) {
                return true;
            }
            match self.running.last().copied() {
                Some(last) if last.class > place.class => self.preempt(last, step),
                // Copying a partly shared block takes one more block than computing it: if the request needs the whole
                // pool, that block is never free.
                _ if has_place && self.kv.forgo_partial(prefix) => {}
                _ => match self.richest(place) {
                    Some(last) => self.preempt(last, step),
                    None => return false,
                },
            }
        }
    }

    /// Returns the last running request of the tenant with the most running requests, if that tenant has at least as many as the tenant of
    /// `place` after giving one to it.
    pub(super) fn richest(&self, place: Place) -> Option<Place> {
        let count = |tenant| self.running.of(tenant, place.class).count();
        let others = self.running.tenants(place.class);
        let others = others.filter(|&tenant| tenant != place.tenant);
        let (has, tenant) = others.map(|tenant| (count(tenant), tenant)).max()?;
        let last = self.running.of(tenant, place.class).next_back().copied();
        last.filter(|_| has >= count(place.tenant) + 2)
    }

    fn begin(&mut self, place: Place, prefix: CachedPrefix, step: &mut Step) {
        let id = place.id;
        let (_, request) = self
            .requests
            .get_mut(&id)
            .expect("a waiting request is known; this is a bug");
        let from = prefix.num_tokens;
        request.num_computed_tokens = from;
        request.num_cached_tokens.get_or_insert(from);
        let num_tokens = request.num_missing_tokens().min(step.left(place.tenant));
        self.kv.begin(id, prefix, request.num_reusable_tokens);
        let copy = self
            .kv
            .allocate(id, from, from + num_tokens)
            .expect("room for all its tokens was made sure of; this is a bug");
        step.output.copies.extend(copy);
        self.waiting.remove(&place);
        self.running.insert(place);
        self.note_admission(place.tenant);
        self.push(place, num_tokens, step);
    }

    fn note_admission(&mut self, tenant: Tenant) {
        if self.admitted.len() > 2 * self.requests.len() + MAX_LEFT_OUT {
            let here: HashSet<Tenant> = self.requests.values().map(|(p, _)| p.tenant).collect();
            self.admitted.retain(|tenant, _| here.contains(tenant));
        }
        self.admitted.insert(tenant, self.steps);
    }

    /// Returns the hashes of full blocks that running requests will compute, except requests that others are served before: `class` does
    /// not wait for those.
    fn promised_blocks(&self, class: Class) -> HashSet<BlockHash> {
        self.running
            .iter()
            .take_while(|place| place.class <= class)
            .flat_map(|place| {
                let request = &self.requests[&place.id].1;
                request.tokens.full_blocks_from(request.num_computed_tokens)
            })
            .collect()
    }
}
