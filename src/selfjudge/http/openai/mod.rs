//! The OpenAI routes: thin adapters over the same service, so that existing clients and benchmarks work unchanged.

mod call;
pub mod chat;
pub mod completions;
pub mod decisions;
pub mod models;
mod prompt_logprobs;
pub mod responses;
mod tools;
mod usage;

use axum::http::StatusCode;

use super::AppState;
use super::error::ApiError;

impl AppState {
    /// Refuses a call for a model that is not served.
    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if *asked != *self.model_name => Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "model_not_found",
                format!(
                    "the model {asked:?} is not served; use {:?}",
                    self.model_name
                ),
            )
            .about("model")),
            _ => Ok(()),
        }
    }
}
