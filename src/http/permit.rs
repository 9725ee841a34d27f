//! How many calls are answered at once, and what those beyond are told.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::telemetry::{InQueue, Pace};

/// The places of calls that are being answered. Cloning shares them.
#[derive(Clone)]
pub struct Permits {
    places: Arc<Semaphore>,
    pace: Pace,
}

/// A place, until dropped.
pub struct Permit {
    _place: OwnedSemaphorePermit,
    _inside: InQueue,
}

impl Permits {
    pub fn new(count: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(count)),
            pace: Pace::default(),
        }
    }

    /// A place, or 429 with the time in which those who have one will be done.
    pub fn take(&self) -> Result<Permit, ApiError> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Ok(Permit {
                _place: place,
                _inside: self.pace.enter(),
            }),
            Err(_) => Err(ApiError::overloaded(
                "too many requests are being answered",
                self.pace.retry_after(),
            )),
        }
    }
}
