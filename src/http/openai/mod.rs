//! The OpenAI routes: thin adapters over the same service, so that existing clients and benchmarks run unchanged.

mod completions;
mod models;
mod usage;

pub use completions::completions;
pub use models::models;

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;

use super::AppState;
use super::error::ApiError;

/// Seconds since the epoch, as OpenAI's `created`.
fn created() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl AppState {
    /// Refuses a model that is not the one that is served.
    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if *asked != *self.model_name => Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "model_not_found",
                format!(
                    "the model {asked:?} is not served here; {:?} is",
                    self.model_name
                ),
            )),
            _ => Ok(()),
        }
    }
}
