//! Who computes what in the next step. Pure policy: ids and counts in, ids and counts out.
//!
//! [`Scheduler::schedule`] and [`Scheduler::update`] are a pair: the first says how many tokens of which requests the model
//! computes, the second takes what was sampled.
//!
//! # Fairness
//! Requests stand in one order: by arrival, a level of priority being worth [`HEAD_START`] arrivals. Whoever is first in it is never
//! kept waiting by others: it takes blocks from those behind it (they are *preempted*, and computed again later), and a pool that
//! holds one maximal request holds it. Levels are bounded ([`PRIORITIES`]), so everybody becomes first after a bounded number of
//! others: a request of the last level goes before all that come 51,200 arrivals after it, whatever their level. Nobody starves.
//!
//! # Background
//! Requests of [`Class::Background`] stand behind all others and get what these leave: tokens of a step, places, blocks. They give
//! places and blocks up as soon as a foreground request lacks them, they are not admitted while one waits, and beside foreground
//! work they only fill a step up ([`BackgroundLimits::fill_beside`]), and compute nothing in one that computes a foreground
//! prompt: those are the long ones already. But for shared prefixes, the foreground's steps are the same with and without
//! them. They may starve.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::{Bound, RangeInclusive};

use super::kv_cache::{BlockCopy, BlockHash, CachedPrefix, KvCacheManager};
use super::request::{Class, FinishReason, Request, RequestId};

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

/// A request's place in line: the background stands behind everybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    class: Class,
    rank: i64,
    id: RequestId,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvCacheManager,
    requests: HashMap<RequestId, (Place, Request)>,
    /// Of siblings that are no requests yet, the request that computes their prompt.
    unforked: HashMap<RequestId, RequestId>,
    waiting: BTreeSet<Place>,
    running: BTreeSet<Place>,
    /// Requests that have come, by class.
    arrivals: [i64; 2],
}

impl Scheduler {
    pub fn new(config: SchedulerConfig, kv: KvCacheManager) -> Self {
        Self {
            config,
            kv,
            requests: HashMap::new(),
            unforked: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            arrivals: [0; 2],
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
        self.sequences_up_to(Class::Background)
    }

    /// Sequences that run and need not yield to `class`.
    fn sequences_up_to(&self, class: Class) -> usize {
        let sequences = |place: &Place| self.requests[&place.id].1.num_sequences();
        let ahead = self.running.iter().take_while(|place| place.class <= class);
        ahead.map(sequences).sum()
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
        self.waiting.extend(waited.then_some(place));
        self.running.extend(ran.then_some(place));
        self.requests.insert(heir, (place, request));
        Some(heir)
    }

    /// Chooses a step's work, the background's from what the foreground leaves.
    pub fn schedule(&mut self) -> SchedulerOutput {
        let mut step = Step {
            output: SchedulerOutput::default(),
            budget: self.config.max_batch_tokens,
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
        let (decoding, computing): (Vec<Place>, Vec<Place>) = running
            .filter(|place| place.class == class)
            .partition(lacks_one);
        for place in decoding.into_iter().chain(computing) {
            if self.running.contains(&place) {
                self.continue_running(place, step);
            }
        }
        let short_of_blocks = step.output.preempted.iter().any(|id| {
            let (place, _) = &self.requests[id];
            place.class <= class
        });
        let in_line = self.waiting.first().map(|place| place.class);
        if !short_of_blocks && in_line == Some(class) {
            self.admit(class, step);
        }
    }

    fn continue_running(&mut self, place: Place, step: &mut Step) {
        let request = &self.requests[&place.id].1;
        let from = request.num_computed_tokens;
        let num_tokens = request.num_missing_tokens().min(step.budget);
        if num_tokens == 0 {
            return;
        }
        loop {
            if let Ok(copy) = self.kv.allocate(place.id, from, from + num_tokens) {
                step.output.copies.extend(copy);
                break;
            }
            // The blocks of the last in line, if that is somebody else; nobody takes from those before them.
            match self.running.last().copied() {
                Some(last) if last > place => self.preempt(last, step),
                _ => return,
            }
        }
        self.push(place.id, num_tokens, step);
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
        self.kv.free(place.id);
        let (_, request) = self
            .requests
            .get_mut(&place.id)
            .expect("a running request is known; this is a bug");
        request.num_computed_tokens = 0;
        step.output.preempted.push(place.id);
        let scheduled = &mut step.output.scheduled;
        if let Some(at) = scheduled.iter().position(|s| s.id == place.id) {
            step.budget += scheduled.remove(at).num_tokens;
        }
    }

    fn admit(&mut self, class: Class, step: &mut Step) {
        let mut promised = self.promised_blocks(class);
        let mut next_in_line = self.waiting.first().copied();
        while let Some(place) = next_in_line.filter(|place| place.class == class) {
            let behind = (Bound::Excluded(place), Bound::Unbounded);
            next_in_line = self.waiting.range(behind).next().copied();
            let request = &self.requests[&place.id].1;
            let (sequences, num_tokens) = (request.num_sequences(), request.tokens.len());
            let needed = self.sequences_up_to(class) + sequences;
            if step.budget == 0 || needed > self.config.max_sequences {
                break;
            }
            let mut prefix = self.kv.cached_prefix(&request.tokens);
            let next = self.kv.next_hash(&request.tokens, &prefix);
            if next.is_some_and(|hash| promised.contains(&hash)) {
                // Somebody before it is computing that very block: it will be there to share soon.
                continue;
            }
            loop {
                let has_places = self.num_running() + sequences <= self.config.max_sequences;
                if has_places && self.kv.has_room(num_tokens, &prefix) {
                    break;
                }
                match self.running.last().copied() {
                    Some(last) if last.class > class => self.preempt(last, step),
                    // Copying a block that is shared in part takes one more than computing it: where the request needs the
                    // whole pool, that one will never be there.
                    _ if has_places && self.kv.forgo_partial(&mut prefix) => {}
                    _ => return,
                }
            }
            let tokens = &self.requests[&place.id].1.tokens;
            promised.extend(tokens.full_blocks_from(prefix.num_tokens));
            self.begin(place, prefix, step);
        }
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
        let num_tokens = request.num_missing_tokens().min(step.budget);
        self.kv.begin(id, prefix, request.num_reusable_tokens);
        let copy = self
            .kv
            .allocate(id, from, from + num_tokens)
            .expect("room for all its tokens was made sure of; this is a bug");
        step.output.copies.extend(copy);
        self.waiting.remove(&place);
        self.running.insert(place);
        self.push(id, num_tokens, step);
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
    }
}

/// A step in the making.
struct Step {
    output: SchedulerOutput,
    budget: usize,
}
