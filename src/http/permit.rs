//! How many calls are answered at once, and what those beyond are told.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AppState;
use super::error::ApiError;
use crate::telemetry::{InQueue, Pace};

/// The places of calls that are being answered. Cloning shares them.
#[derive(Clone)]
pub struct Permits {
    places: Arc<Semaphore>,
    pace: Pace,
}

/// A place, until dropped. A handler takes it before the body, which is an argument behind it: bodies in memory are then no more than
/// places, and whoever has none is told so before anything of the body is read.
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

impl FromRequestParts<AppState> for Permit {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        state.permits.take()
    }
}
