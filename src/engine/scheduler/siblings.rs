//! The samples of one request: they become sequences of their own when their prompt is computed.

use super::Scheduler;
use super::lines::Place;
use super::step::Step;
use crate::request::{Class, Request, RequestId};

impl Scheduler {
    /// Returns the number of places for `wanted` siblings, taking places from the background if necessary.
    pub(super) fn places_for_siblings(
        &mut self,
        class: Class,
        wanted: usize,
        step: &mut Step,
    ) -> usize {
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

    /// Turns the first `count` siblings of a request whose prompt is computed into separate running requests. The others wait
    /// together, as one request that finds the prompt in the cache.
    pub(super) fn fork(&mut self, id: RequestId, count: usize) {
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
