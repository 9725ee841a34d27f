//! How much may wait: a bounded queue of requests and of prompt tokens, counted before anything is sent to the engine.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::{InQueue, Pace};

/// What may wait at once. Requests that run do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    pub max_requests: usize,
    pub max_tokens: usize,
}

/// What waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueLoad {
    pub requests: usize,
    pub tokens: usize,
    /// Seconds in which what waits will have left, at the pace of the last seconds; from 1 to 60.
    pub retry_after: u64,
}

/// The queue's books.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: QueueLimits,
    requests: Arc<Semaphore>,
    tokens: Arc<Semaphore>,
    pace: Pace,
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub struct QueuePlace {
    _request: OwnedSemaphorePermit,
    _tokens: OwnedSemaphorePermit,
    _inside: InQueue,
}

impl Admission {
    pub fn new(limits: QueueLimits) -> Self {
        let limits = QueueLimits {
            max_requests: limits.max_requests.min(Semaphore::MAX_PERMITS),
            max_tokens: limits.max_tokens.min(u32::MAX as usize),
        };
        Self {
            requests: Arc::new(Semaphore::new(limits.max_requests)),
            tokens: Arc::new(Semaphore::new(limits.max_tokens)),
            limits,
            pace: Pace::default(),
        }
    }

    pub fn load(&self) -> QueueLoad {
        QueueLoad {
            requests: self.limits.max_requests - self.requests.available_permits(),
            tokens: self.limits.max_tokens - self.tokens.available_permits(),
            retry_after: self.pace.retry_after(),
        }
    }

    /// What a prompt takes of the token limit: no more than all of it, so that an empty queue takes any prompt.
    fn share(&self, tokens: usize) -> u32 {
        tokens.min(self.limits.max_tokens) as u32
    }

    /// A place for a prompt of `tokens`, unless the queue is full.
    pub fn try_enter(&self, tokens: usize) -> Option<QueuePlace> {
        let share = self.share(tokens);
        Some(QueuePlace {
            _request: Arc::clone(&self.requests).try_acquire_owned().ok()?,
            _tokens: Arc::clone(&self.tokens)
                .try_acquire_many_owned(share)
                .ok()?,
            _inside: self.pace.enter(),
        })
    }

    /// Waits for a place, in turn.
    pub async fn enter(&self, tokens: usize) -> QueuePlace {
        let share = self.share(tokens);
        const OPEN: &str = "the queue's semaphores are never closed; this is a bug";
        QueuePlace {
            _request: Arc::clone(&self.requests)
                .acquire_owned()
                .await
                .expect(OPEN),
            _tokens: Arc::clone(&self.tokens)
                .acquire_many_owned(share)
                .await
                .expect(OPEN),
            _inside: self.pace.enter(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = Admission::new(QueueLimits {
            max_requests: 2,
            max_tokens: 10,
        });
        let long = admission.try_enter(50).unwrap();
        assert!(admission.try_enter(1).is_none(), "too many tokens wait");
        drop(long);
        let one = admission.try_enter(5).unwrap();
        let _two = admission.try_enter(5).unwrap();
        assert!(admission.try_enter(0).is_none(), "too many requests wait");
        drop(one);
        let load = admission.load();
        assert_eq!((load.requests, load.tokens), (1, 5));
        assert!((1..=60).contains(&load.retry_after));
    }
}
