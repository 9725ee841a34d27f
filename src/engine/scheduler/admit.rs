//! Which waiting requests begin in a step, and at whose expense.

use std::collections::{HashMap, HashSet};

use super::Scheduler;
use super::lines::Place;
use super::step::Step;
use crate::engine::kv_cache::{BlockHash, CachedPrefix};
use crate::engine::request::Class;
use crate::engine::tenant::Tenant;

/// Waiting requests of a tenant that a step leaves out because what they begin with is being computed. Each is looked up in the
/// cache, so a step looks at no more of them.
const MAX_LEFT_OUT: usize = 64;

impl Scheduler {
    /// Begins waiting requests, of the tenants with the fewest running first, while budget, places and blocks last.
    pub(super) fn admit(&mut self, class: Class, step: &mut Step) {
        // A tenant that has just given something up gets nothing new.
        let mut lines: HashMap<Tenant, Place> = HashMap::new();
        for tenant in self.waiting.tenants(class) {
            let gave_up = step.output.preempted.iter().any(|id| {
                let (place, _) = &self.requests[id];
                place.class < class || place.class == class && place.tenant == tenant
            });
            let first = self.waiting.of(tenant, class).next();
            lines.extend(first.filter(|_| !gave_up).map(|first| (tenant, *first)));
        }
        // While the foreground waits, the background is not admitted.
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
                // It computes that block whether or not it will be there.
                true => None,
                false => self.kv.next_hash(&request.tokens, &prefix),
            };
            let mut after = self.waiting.after(&place);
            if next.is_some_and(|hash| promised.contains(&hash)) {
                // A request before it is computing that very block: it will be there to share soon.
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

    /// Whether the sequences of a tenant that run before a waiting request, and their siblings to come, need all places there are.
    fn is_full_for(&self, place: Place) -> bool {
        let running = self.running.of(place.tenant, place.class);
        let before = running.filter(|other| **other < place);
        let siblings: usize = before
            .map(|other| self.requests[&other.id].1.siblings.len())
            .sum();
        let own = self.running.of(place.tenant, place.class).count();
        own + siblings >= self.config.max_sequences
    }

    /// Makes sure of a place and of blocks for a waiting request, also at the expense of the background and of tenants that have more
    /// than it; whether that could be done.
    fn make_room(&mut self, place: Place, prefix: &mut CachedPrefix, step: &mut Step) -> bool {
        loop {
            let has_place = self.running.len() + step.forks < self.config.max_sequences;
            let num_tokens = self.requests[&place.id].1.tokens.len();
            if has_place && self.kv.has_room(num_tokens, prefix) {
                return true;
            }
            match self.running.last().copied() {
                Some(last) if last.class > place.class => self.preempt(last, step),
                // Copying a block that is shared in part takes one more than computing it: where the request needs the
                // whole pool, that one will never be there.
                _ if has_place && self.kv.forgo_partial(prefix) => {}
                _ => match self.richest(place) {
                    Some(last) => self.preempt(last, step),
                    None => return false,
                },
            }
        }
    }

    /// The last running request of the tenant that has the most, if that one still has as many as the tenant of `place` after giving
    /// one to it.
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

    /// Full blocks that running requests have still to compute, but for those that others go before: `class` does not wait for
    /// them.
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
