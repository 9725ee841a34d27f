//! The HTTP API. axum lives on this floor and nowhere else; one file an endpoint.

mod body;
mod error;
mod extract;
mod generate;
mod judge;
mod openai;
mod sse;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use error::ApiError;

use crate::service::Service;
use crate::telemetry::Metrics;

/// What the HTTP floor lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Calls that generate or judge at once.
    pub max_requests: usize,
    /// Bytes of a body.
    pub max_body: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            max_body: 8 << 20,
        }
    }
}

/// What handlers share.
#[derive(Clone)]
pub struct AppState {
    service: Service,
    model_name: Arc<str>,
    metrics: Metrics,
    permits: Arc<Semaphore>,
    ids: Arc<AtomicU64>,
    /// Tells the ids of two processes apart.
    process: u32,
}

impl AppState {
    pub fn new(service: Service, model_name: &str, metrics: Metrics, limits: HttpLimits) -> Self {
        Self {
            service,
            model_name: model_name.into(),
            metrics,
            permits: Arc::new(Semaphore::new(limits.max_requests)),
            ids: Arc::default(),
            process: rand::random(),
        }
    }

    fn next_id(&self, kind: &str) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:08x}{number:08x}", self.process)
    }

    /// A place for a call, or 429.
    fn permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| ApiError::overloaded("too many requests are being answered"))
    }
}

/// All routes.
pub fn router(state: AppState, limits: HttpLimits) -> Router {
    Router::new()
        .route("/generate", post(generate::generate))
        .route("/judge", post(judge::judge))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/models", get(openai::models))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such route")
        })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            ApiError::new(status, "method_not_allowed", "the route has no such method")
        })
        .layer(DefaultBodyLimit::max(limits.max_body))
        .layer(middleware::from_fn_with_state(state.clone(), count))
        .with_state(state)
}

/// Whether requests can be answered: the process lives (`/health`) even where its engine does not.
async fn ready(State(state): State<AppState>) -> Result<Response, ApiError> {
    match state.service.engine().is_alive() {
        true => Ok(Json(json!({"status": "ready"})).into_response()),
        false => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "engine_down",
            "the engine has stopped",
        )),
    }
}

async fn metrics(State(state): State<AppState>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics.render()).into_response()
}

/// Counts every answer by route and status.
async fn count(
    State(state): State<AppState>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    let http = &state.metrics.http;
    http.requests
        .with_label_values(&[route, status.as_str()])
        .inc();
    if status == StatusCode::TOO_MANY_REQUESTS {
        http.rejected.with_label_values(&["overloaded"]).inc();
    }
    response
}
