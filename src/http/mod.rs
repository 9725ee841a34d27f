//! The HTTP API. axum lives on this floor and nowhere else; one file an endpoint.

mod answering;
mod api_doc;
mod conversation;
mod error;
mod extract;
mod format;
mod generate;
mod json;
mod judge;
mod judging;
mod keys;
mod layers;
mod openai;
mod permit;
mod sampling;
mod sse;
mod status;
mod timing;
mod tokens;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware;
use axum::routing::{get, post};
use utoipa_swagger_ui::SwaggerUi;

pub use api_doc::api_doc;
pub use error::ApiError;
pub use keys::{ApiKeys, KeysError, RateLimit};

use crate::service::Service;
use crate::telemetry::Metrics;
use keys::Gate;
use openai::{chat, completions, decisions, models};
use permit::{Permit, Permits};

/// Whom and what the HTTP floor lets in.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Calls that generate or judge at once.
    pub max_requests: usize,
    /// Bytes of a body.
    pub max_body: usize,
    /// Without any, everyone may call.
    pub keys: ApiKeys,
    /// Of each key.
    pub rate_limit: Option<RateLimit>,
    /// Whose pages may call from a browser.
    pub cors: Cors,
}

/// Origins of pages that may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cors {
    #[default]
    None,
    Any,
    Origins(Vec<HeaderValue>),
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            max_body: 8 << 20,
            keys: ApiKeys::default(),
            rate_limit: None,
            cors: Cors::default(),
        }
    }
}

/// What handlers share.
#[derive(Clone)]
pub struct AppState {
    service: Service,
    model_name: Arc<str>,
    metrics: Metrics,
    permits: Permits,
    ids: Arc<AtomicU64>,
    /// Tells the ids of two processes apart.
    process: u32,
}

impl AppState {
    pub fn new(service: Service, model_name: &str, metrics: Metrics, config: &HttpConfig) -> Self {
        Self {
            service,
            model_name: model_name.into(),
            metrics,
            permits: Permits::new(config.max_requests),
            ids: Arc::default(),
            process: rand::random(),
        }
    }

    fn next_id(&self, kind: &str) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:08x}{number:08x}", self.process)
    }

    /// A place for a call, or 429.
    fn permit(&self) -> Result<Permit, ApiError> {
        self.permits.take()
    }
}

/// All routes.
pub fn router(state: AppState, config: &HttpConfig) -> Router {
    let gate = Gate::new(config.keys.clone(), config.rate_limit);
    let guarded = Router::new()
        .route("/generate", post(generate::generate))
        .route("/judge", post(judge::judge))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/decisions", post(decisions::decisions))
        .route("/v1/models", get(models::models))
        .route("/metrics", get(status::metrics))
        .route_layer(middleware::from_fn_with_state(gate, keys::guard));
    let routes = Router::new()
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .merge(SwaggerUi::new("/docs").url("/openapi.json", api_doc()))
        .merge(guarded)
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such route")
        })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            ApiError::new(status, "method_not_allowed", "the route has no such method")
        })
        .layer(DefaultBodyLimit::max(config.max_body));
    layers::around(routes, &state, config).with_state(state)
}
