//! The longest step beside decoding sequences: prompts wait rather than the next token of a stream.

use std::time::Duration;

use super::Scheduler;
use super::step_cost::Work;
use crate::request::Class;

/// The number of prompt tokens that a step can always compute beside decoding sequences: the rows of one tile, which are nearly free.
const LEAST_PROMPT: usize = 16;

/// The duration that a step of decoding sequences may be lengthened to, in steps without prompts, where that is more than the target. So
/// prompts get at least half of the engine's time.
const LONGEST: f64 = 2.0;

impl Scheduler {
    /// Returns the maximum number of tokens of the next step.
    ///
    /// If a sequence decodes and a prompt is to be computed, the step's predicted duration, and with it the time between two tokens of that
    /// sequence, is at most [`target_itl`](super::SchedulerConfig::target_itl), or twice that of the decoding sequences alone if that
    /// is more. A curve without measurements limits nothing.
    pub(super) fn token_limit(&self) -> usize {
        let most = self.config.max_batch_tokens;
        let Some(target) = self.config.target_itl else {
            return most;
        };
        let Some(cost) = self.fair.measured() else {
            return most;
        };
        let (decoding, prompts) = self.demands();
        if decoding.tokens == 0 || prompts.tokens == 0 {
            return most;
        }
        let fits = cost.tokens_in(target, LONGEST, decoding, prompts, most);
        fits.max(decoding.tokens + LEAST_PROMPT).min(most)
    }

    /// Returns the work of the foreground's decoding sequences in a step, and that of its prompts: of the running ones, and of the first
    /// that waits.
    fn demands(&self) -> (Work, Work) {
        let (mut decoding, mut prompts) = (Work::default(), Work::default());
        for place in self.running.iter() {
            if place.class != Class::Foreground {
                continue;
            }
            let request = &self.requests[&place.id].1;
            let missing = request.num_missing_tokens();
            let sum = match missing {
                1 => &mut decoding,
                _ => &mut prompts,
            };
            *sum = *sum + Work::after(request.num_computed_tokens, missing);
        }
        let first = self.waiting.first();
        if let Some(first) = first.filter(|first| first.class == Class::Foreground) {
            let tokens = &self.requests[&first.id].1.tokens;
            prompts = prompts + Work::after(0, tokens.len());
        }
        (decoding, prompts)
    }
}

/// The default of [`target_itl`](super::SchedulerConfig::target_itl).
pub const TARGET_ITL: Duration = Duration::from_millis(75);
