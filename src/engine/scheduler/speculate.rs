//! Prompt-lookup speculation: the tokens that followed the last tokens where they occurred before are proposed as the next ones.
//!
//! The model computes the proposed tokens, *drafts*, in the same step as the last token, and each of them is drawn as it would be without
//! drafts: those up to the first that differs are accepted. So the answer is the same to the bit, and takes fewer steps.
//! A step with drafts takes longer. Drafts are proposed only for a sequence that runs alone, and only as many as pay by the measured cost of
//! steps and by the share of drafts accepted so far.
//!
//! Source: Saxena, "Prompt Lookup Decoding" (2023); speculative decoding of Leviathan et al. (2023) with a deterministic draft.

use super::Scheduler;
use super::step_cost::Work;
use crate::request::{Class, Request, RequestId};

/// The lengths of the last tokens that are searched for, the longest first.
const MATCHED: [usize; 3] = [4, 3, 2];

/// The share of drafts that is taken to be accepted before any was proposed, and that a share below it returns to.
const EXPECTED: f64 = 0.5;

/// The weight of a draft in the share of accepted ones.
const WEIGHT: f64 = 0.1;

/// The part of the way to [`EXPECTED`] that the share returns with each token drawn without drafts, so that they are tried again.
const RETURN: f64 = 0.02;

/// Drafts have to save this part of the time, because costs are measured with noise.
const MARGIN: f64 = 0.05;

/// The drafts of one request.
#[derive(Debug, Clone)]
pub struct Drafts {
    /// The proposed tokens that follow the request's tokens.
    pub tokens: Vec<u32>,
    /// A running mean of the accepted share of drafts, each of those that followed accepted ones.
    accepted: f64,
}

impl Default for Drafts {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            accepted: EXPECTED,
        }
    }
}

impl Drafts {
    /// Records that `accepted` of the proposed tokens were drawn, and forgets them.
    pub(super) fn settle(&mut self, accepted: usize) {
        let proposed = std::mem::take(&mut self.tokens).len();
        if proposed == 0 {
            self.accepted += RETURN * (EXPECTED - self.accepted).max(0.0);
            return;
        }
        let refused = usize::from(accepted < proposed);
        let outcomes = std::iter::repeat_n(1.0, accepted).chain(std::iter::repeat_n(0.0, refused));
        for outcome in outcomes {
            self.accepted += WEIGHT * (outcome - self.accepted);
        }
    }
}

impl Scheduler {
    /// Proposes drafts for the foreground's sequence if it is the only one, decodes, and drafts pay.
    pub(super) fn propose_drafts(&mut self) {
        let Some(id) = self.lone_stream() else {
            return;
        };
        let (Some(cost), Some((_, request))) = (self.fair.measured(), self.requests.get_mut(&id))
        else {
            return;
        };
        let most = self.config.max_drafts.min(request.tokens_left() - 1);
        let own = Work::after(request.num_computed_tokens, 1);
        let most = cost.drafts_that_pay(own, request.drafts.accepted, most, MARGIN);
        if most > 0 {
            request.drafts.tokens = continuation(request.tokens.tokens(), most);
        }
    }

    /// Returns the foreground's sequence if there is only one, it decodes, and drafts are allowed.
    fn lone_stream(&self) -> Option<RequestId> {
        let foreground = |place: &&super::lines::Place| place.class == Class::Foreground;
        if self.config.max_drafts == 0 || self.waiting.first().filter(foreground).is_some() {
            return None;
        }
        let mut running = self.running.iter().filter(foreground);
        let (Some(only), None) = (running.next(), running.next()) else {
            return None;
        };
        let request = &self.requests[&only.id].1;
        let decodes = request.num_output_tokens() > 0 && request.num_missing_tokens() == 1;
        (request.speculates && decodes && request.siblings.is_empty()).then_some(only.id)
    }
}

impl Request {
    /// Returns the number of tokens that the request can still produce.
    fn tokens_left(&self) -> usize {
        self.stop.max_tokens - self.num_output_tokens()
    }
}

/// Returns `most` tokens that continue `tokens` as the last occurrence of the longest matched end within them was continued; none without
/// such an occurrence. A continuation that reaches the end of `tokens` goes on with itself: a cycle continues.
fn continuation(tokens: &[u32], most: usize) -> Vec<u32> {
    let matched = MATCHED.into_iter().find_map(|len| {
        let before = tokens.len().checked_sub(len)?;
        let end = &tokens[before..];
        // An occurrence may overlap the end itself.
        let start = (0..before)
            .rev()
            .find(|&start| tokens[start..].starts_with(end))?;
        Some(start + len)
    });
    let Some(from) = matched else {
        return Vec::new();
    };
    let cycle = tokens[from..].iter().cycle();
    cycle.take(most).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_occurrence_of_the_longest_end_is_continued() {
        assert_eq!(continuation(&[1, 2, 3, 9, 1, 2, 4, 1, 2], 3), [4, 1, 2]);
        // Three matching tokens precede two that occurred later.
        let tokens = [5, 1, 2, 7, 8, 1, 2, 9, 5, 1, 2];
        assert_eq!(continuation(&tokens, 2), [7, 8]);
        assert_eq!(continuation(&[6, 6, 6], 4), [6; 4]);
        assert_eq!(continuation(&[1, 2, 3, 1, 2], 5), [3, 1, 2, 3, 1]);
        for without in [&[1, 2, 3, 4][..], &[1], &[]] {
            assert!(continuation(without, 4).is_empty());
        }
    }

    #[test]
    fn refused_drafts_are_tried_again_later() {
        let mut drafts = Drafts::default();
        for _ in 0..40 {
            drafts.tokens = vec![1, 2, 3];
            drafts.settle(0);
        }
        assert!(drafts.accepted < 0.02);
        for _ in 0..100 {
            drafts.settle(0);
        }
        assert!(drafts.accepted > 0.4 && drafts.accepted < EXPECTED);
        for _ in 0..40 {
            drafts.tokens = vec![1, 2, 3];
            drafts.settle(3);
        }
        assert!(drafts.accepted > 0.95);
    }
}
