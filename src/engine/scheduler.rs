//! Who computes what in the next step. Pure policy: ids and counts in, ids and counts out.
//!
//! [`Scheduler::schedule`] and [`Scheduler::update`] are a pair: the first says how many tokens of which requests the model
//! computes, the second takes what was sampled.
//!
//! # Fairness
//! Requests stand in one order: by arrival, a level of priority being worth [`HEAD_START`] arrivals. Whoever is first in it is never
//! kept waiting by others: it takes blocks from those behind it (they are *preempted*, and computed again later), and a pool that
//! holds one maximal request holds it. Everybody becomes first after a bounded number of others, so nobody starves.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use super::kv_cache::{BlockCopy, BlockHash, CachedPrefix, KvCacheManager};
use super::request::{FinishReason, Request, RequestId};

/// How many later arrivals of the next lower priority a request goes before.
pub const HEAD_START: i64 = 256;

/// Bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens computed in a step. More than `max_sequences`, so that prompts get on while everyone decodes.
    pub max_batch_tokens: usize,
    /// Sequences that run at once.
    pub max_sequences: usize,
}

/// What a request computes in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    pub id: RequestId,
    /// The next tokens after those already computed.
    pub num_tokens: usize,
    /// Whether they are its last, so that the next token can be sampled.
    pub samples: bool,
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
}

impl SchedulerOutput {
    pub fn num_tokens(&self) -> usize {
        self.scheduled.iter().map(|s| s.num_tokens).sum()
    }
}

/// A request's place in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(i64, RequestId);

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvCacheManager,
    requests: HashMap<RequestId, (Place, Request)>,
    waiting: BTreeSet<Place>,
    running: BTreeSet<Place>,
    num_arrived: i64,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig, kv: KvCacheManager) -> Self {
        Self {
            config,
            kv,
            requests: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            num_arrived: 0,
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

    /// Sequences that run, siblings to come included.
    pub fn num_running(&self) -> usize {
        let sequences = |place: &Place| self.requests[&place.1].1.num_sequences();
        self.running.iter().map(sequences).sum()
    }

    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Puts a request in line. Its priority is worth a head start and no more: lower numbers first.
    pub fn add(&mut self, request: Request) {
        let place = Place(
            self.num_arrived + HEAD_START * i64::from(request.priority),
            request.id,
        );
        self.num_arrived += 1;
        self.waiting.insert(place);
        self.requests.insert(request.id, (place, request));
    }

    /// Forgets a request and frees its blocks; siblings that it still has go with it.
    pub fn remove(&mut self, id: RequestId) -> Option<Request> {
        let (place, request) = self.requests.remove(&id)?;
        self.waiting.remove(&place);
        self.running.remove(&place);
        self.kv.free(id);
        Some(request)
    }

    /// Forgets a sibling that has not become a request yet.
    pub fn remove_sibling(&mut self, id: RequestId) {
        for (_, request) in self.requests.values_mut() {
            request.siblings.retain(|&sibling| sibling != id);
        }
    }

    /// Chooses a step's work: first those that only lack one token, so that nobody's stream stalls behind a prompt; then
    /// prompts under way; then new ones, while budget, places and blocks last.
    pub fn schedule(&mut self) -> SchedulerOutput {
        let mut step = Step {
            output: SchedulerOutput::default(),
            budget: self.config.max_batch_tokens,
        };
        let lacks_one = |place: &Place| self.requests[&place.1].1.num_missing_tokens() == 1;
        let (decoding, computing): (Vec<Place>, Vec<Place>) =
            self.running.iter().copied().partition(lacks_one);
        for place in decoding.into_iter().chain(computing) {
            if self.running.contains(&place) {
                self.continue_running(place, &mut step);
            }
        }
        if step.output.preempted.is_empty() {
            self.admit(&mut step);
        }
        step.output
    }

    fn continue_running(&mut self, place: Place, step: &mut Step) {
        let request = &self.requests[&place.1].1;
        let from = request.num_computed_tokens;
        let num_tokens = request.num_missing_tokens().min(step.budget);
        if num_tokens == 0 {
            return;
        }
        loop {
            if let Ok(copy) = self.kv.allocate(place.1, from, from + num_tokens) {
                step.output.copies.extend(copy);
                break;
            }
            // The blocks of the last in line, if that is somebody else; nobody takes from those before them.
            match self.running.last().copied() {
                Some(last) if last > place => self.preempt(last, step),
                _ => return,
            }
        }
        self.push(place.1, num_tokens, step);
    }

    fn push(&self, id: RequestId, num_tokens: usize, step: &mut Step) {
        step.budget -= num_tokens;
        step.output.scheduled.push(Scheduled {
            id,
            num_tokens,
            samples: num_tokens == self.requests[&id].1.num_missing_tokens(),
        });
    }

    /// Puts a running request back in line, where it was; what it has computed is kept as long as nobody needs the blocks.
    fn preempt(&mut self, place: Place, step: &mut Step) {
        self.running.remove(&place);
        self.waiting.insert(place);
        self.kv.free(place.1);
        let (_, request) = self
            .requests
            .get_mut(&place.1)
            .expect("a running request is known; this is a bug");
        request.num_computed_tokens = 0;
        step.output.preempted.push(place.1);
        let scheduled = &mut step.output.scheduled;
        if let Some(at) = scheduled.iter().position(|s| s.id == place.1) {
            step.budget += scheduled.remove(at).num_tokens;
        }
    }

    fn admit(&mut self, step: &mut Step) {
        let mut sequences = self.num_running();
        let mut promised = self.promised_blocks();
        let mut next_in_line = self.waiting.first().copied();
        while let Some(place) = next_in_line {
            let behind = (Bound::Excluded(place), Bound::Unbounded);
            next_in_line = self.waiting.range(behind).next().copied();
            let request = &self.requests[&place.1].1;
            sequences += request.num_sequences();
            if step.budget == 0 || sequences > self.config.max_sequences {
                break;
            }
            let prefix = self.kv.cached_prefix(&request.tokens);
            let next = self.kv.next_hash(&request.tokens, &prefix);
            if next.is_some_and(|hash| promised.contains(&hash)) {
                // Somebody before it is computing that very block: it will be there to share soon.
                sequences -= request.num_sequences();
                continue;
            }
            if !self.kv.has_room(request.tokens.len(), &prefix) {
                break;
            }
            promised.extend(request.tokens.full_blocks_from(prefix.num_tokens));
            self.begin(place, prefix, step);
        }
    }

    fn begin(&mut self, place: Place, prefix: CachedPrefix, step: &mut Step) {
        let id = place.1;
        let (_, request) = self
            .requests
            .get_mut(&id)
            .expect("a waiting request is known; this is a bug");
        let from = prefix.num_tokens;
        request.num_computed_tokens = from;
        request.num_cached_tokens.get_or_insert(from);
        let num_tokens = request.num_missing_tokens().min(step.budget);
        self.kv.begin(id, prefix);
        let copy = self
            .kv
            .allocate(id, from, from + num_tokens)
            .expect("room for all its tokens was made sure of; this is a bug");
        step.output.copies.extend(copy);
        self.waiting.remove(&place);
        self.running.insert(place);
        self.push(id, num_tokens, step);
    }

    /// Full blocks that running requests have still to compute.
    fn promised_blocks(&self) -> HashSet<BlockHash> {
        self.running
            .iter()
            .flat_map(|place| {
                let request = &self.requests[&place.1].1;
                request.tokens.full_blocks_from(request.num_computed_tokens)
            })
            .collect()
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
            let computed = request.num_computed_tokens;
            self.kv.computed(scheduled.id, &request.tokens, computed);
            if scheduled.samples {
                self.fork(scheduled.id);
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

    /// Turns the siblings of a request whose prompt is computed into requests of their own.
    fn fork(&mut self, id: RequestId) {
        let (place, request) = self
            .requests
            .get_mut(&id)
            .expect("a scheduled request is known; this is a bug");
        let place = *place;
        let siblings = std::mem::take(&mut request.siblings);
        let request = request.clone();
        for sibling in siblings {
            self.kv.fork(id, sibling);
            let child = Request {
                id: sibling,
                num_cached_tokens: Some(request.num_prompt_tokens),
                ..request.clone()
            };
            let place = Place(place.0, sibling);
            self.running.insert(place);
            self.requests.insert(sibling, (place, child));
        }
    }
}

/// A step in the making.
struct Step {
    output: SchedulerOutput,
    budget: usize,
}
