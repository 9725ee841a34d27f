//! The time spent by one call: waiting for the engine, computing prompts, generating.
//!
//! A call may become one request to the engine or thousands of them. Times are those of the call: it waited until the first of its
//! requests was scheduled, its prompts were computed until its first token, and it generated until its last token.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

tokio::task_local! {
    static CURRENT: CallTimes;
}

/// The times of a call, filled in by the engine. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct CallTimes(Arc<Mutex<Marks>>);

#[derive(Debug, Default)]
struct Marks {
    arrival: Option<Instant>,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    prompt_tokens: i64,
    cached_tokens: i64,
    generated_tokens: i64,
}

/// Times in seconds; `None` where the call did not get that far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CallReport {
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
    /// Counts are signed, as in OpenTelemetry.
    pub prompt_tokens: i64,
    pub cached_tokens: i64,
    pub generated_tokens: i64,
}

impl CallTimes {
    /// Runs `work`, and records its engine requests here.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// Returns the times of the call in progress, if that call is timed.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    fn with<T>(&self, what: impl FnOnce(&mut Marks) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the call's arrival; arrival times of its requests are then ignored.
    pub fn arrived(&self, arrival: Instant) {
        self.with(|marks| {
            marks.arrival.get_or_insert(arrival);
        });
    }

    /// Records that a request of the call, which arrived at `arrival`, is computed from `now` on.
    pub fn scheduled(&self, arrival: Instant, now: Instant, prompt: usize, cached: usize) {
        self.with(|marks| {
            marks.arrival.get_or_insert(arrival);
            marks.scheduled.get_or_insert(now);
            marks.prompt_tokens += prompt as i64;
            marks.cached_tokens += cached as i64;
        });
    }

    /// Records a token of the call.
    pub fn token(&self, now: Instant) {
        self.with(|marks| {
            marks.first_token.get_or_insert(now);
            marks.last_token = Some(now);
            marks.generated_tokens += 1;
        });
    }

    /// Returns the report so far; `None` if the call made no engine request, or none has started.
    pub fn report(&self) -> Option<CallReport> {
        self.with(|marks| {
            marks.scheduled?;
            let between = |from: Option<Instant>, to: Option<Instant>| {
                Some(to?.saturating_duration_since(from?).as_secs_f64())
            };
            Some(CallReport {
                queue: between(marks.arrival, marks.scheduled),
                prefill: between(marks.scheduled, marks.first_token),
                decode: between(marks.first_token, marks.last_token),
                prompt_tokens: marks.prompt_tokens,
                cached_tokens: marks.cached_tokens,
                generated_tokens: marks.generated_tokens,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn all_requests_of_a_call_make_one_timeline() {
        assert!(CallTimes::current().is_none(), "nothing is timed outside");
        let times = CallTimes::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let asked = async || {
            let times = CallTimes::current().unwrap();
            assert_eq!(times.report(), None);
            times.arrived(at(0));
            // Each request has arrived at the engine when it was made.
            times.scheduled(at(10), at(20), 7, 0);
            times.scheduled(at(25), at(30), 7, 5);
            assert_eq!(times.report().unwrap().prefill, None);
            times.token(at(50));
            times.token(at(60));
            times.token(at(150));
        };
        times.clone().scope(asked()).await;
        let report = times.report().unwrap();
        let ms = |seconds: Option<f64>| (seconds.unwrap() * 1e3).round();
        assert_eq!(
            [ms(report.queue), ms(report.prefill), ms(report.decode)],
            [20.0, 30.0, 100.0]
        );
        let tokens = [
            report.prompt_tokens,
            report.cached_tokens,
            report.generated_tokens,
        ];
        assert_eq!(tokens, [14, 5, 3]);
    }
}
