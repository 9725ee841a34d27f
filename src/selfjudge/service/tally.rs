//! Counts of how the answers to callers ended, by weights and by principal.
//!
//! Only ends that the weights caused are counted. An answer that its caller cut short, constrained or cancelled is no evidence about
//! them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::output::Finish;
use engine::RequestFailure;
use model::{PrincipalHash, WeightsName};

/// The maximum number of principals that are counted separately per version; later ones are not counted.
const MAX_PRINCIPALS: usize = 4096;

/// Counts of one version's answers. Weighted counts are not whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// Answers that ended.
    pub answers: f64,
    /// Ended answers that were cut off by their length.
    pub truncated: f64,
    /// Answers that began and failed.
    pub errors: f64,
    /// Tokens of the ended answers; `tokens_squared` is the sum of their squares.
    pub tokens: f64,
    pub tokens_squared: f64,
}

impl Tally {
    fn ended(&mut self, tokens: usize, truncated: bool) {
        let tokens = tokens as f64;
        self.answers += 1.0;
        self.truncated += f64::from(u8::from(truncated));
        self.tokens += tokens;
        self.tokens_squared += tokens * tokens;
    }

    /// Returns the number of answers that began and then ended or failed.
    pub fn begun(&self) -> f64 {
        self.answers + self.errors
    }

    /// Adds another tally, with each of its counts multiplied by `weight`.
    fn add(&mut self, other: &Self, weight: f64) {
        self.answers += weight * other.answers;
        self.truncated += weight * other.truncated;
        self.errors += weight * other.errors;
        self.tokens += weight * other.tokens;
        self.tokens_squared += weight * other.tokens_squared;
    }
}

/// A call's settings that determine how its answers end, regardless of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallerEnds {
    /// Whether the call set the token limit itself.
    pub limit: bool,
    /// Whether answers are shaped by a grammar, a bias, a penalty, a minimum length, an ignored end token or a temperature above 1.
    pub shape: bool,
}

/// The room for an answer in tokens (or half the context, if that is less) from which a cut-off answer counts as too long.
const ENOUGH_ROOM: usize = 256;

impl CallerEnds {
    /// Returns the settings for answers with `room` tokens of the context. If there was little room, because of a long prompt or an API's
    /// default, then a cut is attributed to the call.
    pub(super) fn within(self, room: usize, max_context: usize) -> Self {
        let limit = self.limit || room < ENOUGH_ROOM.min(max_context / 2);
        Self { limit, ..self }
    }

    /// Returns whether such an end is evidence about the weights; `stop_ids` are the model's own end tokens.
    fn counts(self, finish: Finish, stop_ids: &[u32]) -> bool {
        let by_model = match finish {
            Finish::EndToken(id) => stop_ids.contains(&id),
            Finish::StopString(_) | Finish::Complete => false,
            Finish::Length => !self.limit,
        };
        by_model && !self.shape
    }
}

/// The counts of a version by principal; all anonymous callers are one entry.
type OfVersion = HashMap<Option<PrincipalHash>, Tally>;

/// The tallies of a service. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<HashMap<WeightsName, OfVersion>>>);

impl Tallies {
    /// Returns the counts since the last [`Self::clear`]. If one principal has more than `share` of all answers, each of its answers
    /// counts proportionally less. All counts are 0 if there are too few principals for each to stay within `share`.
    pub fn of(&self, weights: &WeightsName, share: f64) -> Tally {
        let tallies = self.lock();
        let Some(of) = tallies.get(weights) else {
            return Tally::default();
        };
        let begun: Vec<f64> = of.values().map(Tally::begun).collect();
        let cap = largest_cap(&begun, share);
        let mut whole = Tally::default();
        for tally in of.values().filter(|tally| tally.begun() > 0.0) {
            whole.add(tally, (cap / tally.begun()).min(1.0));
        }
        whole
    }

    /// Returns the number of principals with answers by these weights since the last [`Self::clear`].
    pub fn principals(&self, weights: &WeightsName) -> usize {
        self.lock().get(weights).map_or(0, HashMap::len)
    }

    /// Resets all counts.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Returns a counter for the answers of a call.
    pub(super) fn counter(
        &self,
        principal: Option<PrincipalHash>,
        ends: CallerEnds,
        stop_ids: Arc<[u32]>,
    ) -> Counter {
        Counter {
            tallies: self.clone(),
            principal,
            ends,
            stop_ids,
        }
    }

    fn count(
        &self,
        weights: &WeightsName,
        principal: Option<PrincipalHash>,
        count: impl FnOnce(&mut Tally),
    ) {
        let mut tallies = self.lock();
        let of = tallies.entry(weights.clone()).or_default();
        if of.len() < MAX_PRINCIPALS || of.contains_key(&principal) {
            count(of.entry(principal).or_default());
        }
    }

    /// Each change leaves the counts consistent, so a panic elsewhere does not invalidate them.
    fn lock(&self) -> MutexGuard<'_, HashMap<WeightsName, OfVersion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counter for the answers of one call.
#[derive(Debug, Clone)]
pub(super) struct Counter {
    tallies: Tallies,
    principal: Option<PrincipalHash>,
    ends: CallerEnds,
    stop_ids: Arc<[u32]>,
}

impl Counter {
    /// Counts an answer of `tokens` tokens, unless the caller caused its end.
    pub fn ended(&self, weights: &WeightsName, tokens: usize, finish: Finish) {
        if self.ends.counts(finish, &self.stop_ids) {
            let truncated = finish == Finish::Length;
            self.tallies.count(weights, self.principal, |tally| {
                tally.ended(tokens, truncated)
            });
        }
    }

    /// Counts answers that began and will not end, if the weights caused it and not a deadline, a grammar or a server that is shutting
    /// down.
    pub fn failed(&self, weights: &WeightsName, answers: usize, failure: &RequestFailure) {
        if matches!(failure, RequestFailure::Model(_)) {
            self.tallies.count(weights, self.principal, |tally| {
                tally.errors += answers as f64;
            });
        }
    }
}

/// Returns the maximum count per principal with which none has more than `share` of the capped total: the largest c with c <= share * sum
/// of min(count, c). 0 if there are too few principals for each to stay within `share`.
fn largest_cap(counts: &[f64], share: f64) -> f64 {
    let mut counts: Vec<f64> = counts
        .iter()
        .copied()
        .filter(|&count| count > 0.0)
        .collect();
    counts.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut rest: f64 = counts.iter().sum();
    // The `above` largest are capped: c = share * (above * c + rest of the others).
    for (above, &largest) in counts.iter().enumerate() {
        let free = 1.0 - share * above as f64;
        let cap = if free > 0.0 { share * rest / free } else { 0.0 };
        if cap >= largest {
            // No other principal needs a cap; the larger ones are capped at the value just found.
            return if above == 0 { largest } else { cap };
        }
        rest -= largest;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPS: [u32; 2] = [7, 9];

    fn counter(tallies: &Tallies, principal: &str, ends: CallerEnds) -> Counter {
        tallies.counter(Some(PrincipalHash::of(principal)), ends, STOPS.into())
    }

    #[test]
    fn ends_that_the_caller_caused_do_not_count() {
        let (weights, none) = (WeightsName::new("canary"), CallerEnds::default());
        let limit = CallerEnds {
            limit: true,
            ..none
        };
        let shape = CallerEnds {
            shape: true,
            ..none
        };
        let cases = [
            (none, Finish::EndToken(7), Some(0.0)),
            (none, Finish::EndToken(9), Some(0.0)),
            (none, Finish::Length, Some(1.0)),
            (limit, Finish::EndToken(7), Some(0.0)),
            // The call's own limit, stop token, stop string, grammar.
            (limit, Finish::Length, None),
            (none, Finish::EndToken(8), None),
            (none, Finish::StopString(0), None),
            (none, Finish::Complete, None),
            (shape, Finish::EndToken(7), None),
            (shape, Finish::Length, None),
        ];
        for (ends, finish, truncated) in cases {
            let tallies = Tallies::default();
            counter(&tallies, "a", ends).ended(&weights, 5, finish);
            let tally = tallies.of(&weights, 1.0);
            let counted = truncated.map_or(0.0, |_| 1.0);
            assert_eq!(tally.answers, counted, "{ends:?} {finish:?}");
            assert_eq!(tally.truncated, truncated.unwrap_or(0.0), "{finish:?}");
        }
        let grammar = text::GrammarError::Invalid("no".to_owned());
        for (failure, errors) in [
            (RequestFailure::Model("not finite".to_owned()), 3.0),
            (RequestFailure::DeadlineExceeded, 0.0),
            (RequestFailure::ShuttingDown, 0.0),
            (RequestFailure::Grammar(grammar), 0.0),
        ] {
            let tallies = Tallies::default();
            counter(&tallies, "a", none).failed(&weights, 3, &failure);
            assert_eq!(tallies.of(&weights, 1.0).errors, errors, "{failure}");
        }
    }

    #[test]
    fn an_answer_with_little_room_is_cut_off_by_its_call() {
        let limit = |own: bool, room, max_context| {
            let ends = CallerEnds {
                limit: own,
                ..CallerEnds::default()
            };
            ends.within(room, max_context).limit
        };
        assert!(!limit(false, 256, 8192) && !limit(false, 8000, 8192));
        assert!(limit(false, 255, 8192) && limit(false, 16, 8192) && limit(false, 0, 8192));
        assert!(
            !limit(false, 64, 128) && limit(false, 63, 128),
            "half of a short context"
        );
        assert!(limit(true, 8000, 8192), "the call named it");
    }

    #[test]
    fn no_principal_has_more_than_its_share() {
        let weights = WeightsName::new("canary");
        let tallies = Tallies::default();
        let answer = |principal: &str, times: usize, finish| {
            for _ in 0..times {
                counter(&tallies, principal, CallerEnds::default()).ended(&weights, 10, finish);
            }
        };
        answer("flood", 1000, Finish::Length);
        assert_eq!(
            tallies.of(&weights, 0.5).answers,
            0.0,
            "one alone says nothing"
        );
        assert_eq!(tallies.of(&weights, 1.0).answers, 1000.0);
        answer("a", 30, Finish::EndToken(7));
        let two = tallies.of(&weights, 0.5);
        assert_eq!((two.answers, two.truncated), (60.0, 30.0));
        answer("b", 20, Finish::EndToken(7));
        let three = tallies.of(&weights, 0.5);
        assert_eq!((three.answers, three.truncated), (100.0, 50.0));
        assert_eq!((three.tokens, three.tokens_squared), (1000.0, 10_000.0));
        assert_eq!(tallies.principals(&weights), 3);
        tallies.clear();
        assert_eq!(tallies.of(&weights, 0.5), Tally::default());
    }

    #[test]
    fn a_cap_is_the_largest_that_keeps_every_share() {
        for (counts, share, cap) in [
            (&[10.0, 10.0, 10.0][..], 0.5, 10.0),
            (&[100.0, 10.0], 0.5, 10.0),
            (&[100.0, 90.0, 10.0], 0.5, 90.0 + 10.0),
            (&[100.0, 100.0, 10.0], 0.4, 20.0),
            (&[5.0], 0.99, 0.0),
            (&[], 0.5, 0.0),
            (&[5.0], 1.0, 5.0),
        ] {
            let found = largest_cap(counts, share);
            assert!((found - cap).abs() < 1e-9, "{counts:?} {share}: {found}");
        }
    }

    #[test]
    fn no_more_principals_are_remembered_than_fit() {
        let (weights, tallies) = (WeightsName::new("canary"), Tallies::default());
        for number in 0..MAX_PRINCIPALS + 50 {
            let counter = counter(&tallies, &number.to_string(), CallerEnds::default());
            counter.ended(&weights, 1, Finish::EndToken(7));
        }
        assert_eq!(tallies.principals(&weights), MAX_PRINCIPALS);
    }
}
