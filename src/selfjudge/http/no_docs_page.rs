//! The API's description in a program that was built without its page.

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use utoipa::openapi::OpenApi;

use super::AppState;

/// The path of the page, if the program has one.
pub const PATH: Option<&str> = None;

/// Returns the route of the description.
pub fn routes(description: OpenApi) -> Router<AppState> {
    let description = Arc::new(description);
    Router::new().route(
        "/openapi.json",
        get(async move || Json(description.clone())),
    )
}
