//! How much may wait: a bounded queue of requests and of prompt tokens, counted before anything is sent to the engine.

use std::sync::{Arc, Mutex, PoisonError};

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
}

/// The queue's books.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: QueueLimits,
    load: Arc<Mutex<QueueLoad>>,
}

impl Admission {
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            load: Arc::default(),
        }
    }

    pub fn load(&self) -> QueueLoad {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a prompt of `tokens`, unless the queue is full. An empty queue takes any prompt.
    pub fn enter(&self, tokens: usize) -> Option<QueuePlace> {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        let full = load.requests >= self.limits.max_requests
            || load.requests > 0 && load.tokens + tokens > self.limits.max_tokens;
        if full {
            return None;
        }
        load.requests += 1;
        load.tokens += tokens;
        Some(QueuePlace {
            load: Arc::clone(&self.load),
            tokens,
        })
    }
}

/// A place in the queue, given back when dropped.
#[derive(Debug)]
pub struct QueuePlace {
    load: Arc<Mutex<QueueLoad>>,
    tokens: usize,
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.requests -= 1;
        load.tokens -= self.tokens;
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
        let long = admission.enter(50).unwrap();
        assert!(admission.enter(1).is_none(), "too many tokens wait");
        drop(long);
        let one = admission.enter(5).unwrap();
        let _two = admission.enter(5).unwrap();
        assert!(admission.enter(0).is_none(), "too many requests wait");
        drop(one);
        assert_eq!(
            admission.load(),
            QueueLoad {
                requests: 1,
                tokens: 5
            }
        );
    }
}
