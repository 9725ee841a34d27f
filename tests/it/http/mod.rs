//! The HTTP API over the pocket model, called without a socket.

mod api_doc;
mod decisions;
mod generating;
mod guarding;
mod judging;
mod limits;
mod openai;
mod refusing;
mod tokens;

use std::path::Path;
use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use selfjudge::engine::{Engine, EngineConfig};
use selfjudge::http::{AppState, HttpConfig, router};
use selfjudge::model::{LanguageModel, LoadOptions, Weights, WeightsVersion};
use selfjudge::service::Service;
use selfjudge::telemetry::Metrics;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt;

pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

pub fn start(engine: &EngineConfig, config: &HttpConfig) -> Router {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let weights = Weights {
        version: WeightsVersion(1),
        decoder: model.decoder().clone(),
    };
    let metrics = Metrics::new("pocket");
    let (engine, _) = Engine::start(weights, engine, metrics.engine.clone()).unwrap();
    let service = Service::new(engine, &model, &dir, metrics.judge.clone()).unwrap();
    router(AppState::new(service, "pocket", metrics, config), config)
}

/// One server for the tests that need nothing of their own.
static SERVER: LazyLock<Router> =
    LazyLock::new(|| start(&EngineConfig::default(), &HttpConfig::default()));

pub async fn call(server: &Router, path: &str, body: impl Into<Body>) -> axum::response::Response {
    let request = Request::post(path).body(body.into()).unwrap();
    server.clone().oneshot(request).await.unwrap()
}

pub async fn text(response: axum::response::Response) -> String {
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn post_to(server: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    let response = call(server, path, body.to_string()).await;
    let status = response.status();
    (status, serde_json::from_str(&text(response).await).unwrap())
}

fn post(path: &str, body: &Value) -> (StatusCode, Value) {
    RUNTIME.block_on(post_to(&SERVER, path, body))
}

fn ok(path: &str, body: &Value) -> Value {
    let (status, answer) = post(path, body);
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

pub async fn metric(server: &Router, name: &str) -> f64 {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let page = text(server.clone().oneshot(request).await.unwrap()).await;
    let line = page
        .lines()
        .find(|line| line.starts_with(&format!("selfjudge:{name}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value
        .unwrap_or_else(|| panic!("no {name} in {page}"))
        .parse()
        .unwrap()
}

/// The events of a streamed answer, `[DONE]` left out.
fn events(path: &str, body: &Value) -> Vec<Value> {
    let stream =
        RUNTIME.block_on(async { text(call(&SERVER, path, body.to_string()).await).await });
    let mut events: Vec<&str> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{stream}");
    let parsed = events
        .into_iter()
        .map(|event| serde_json::from_str(event).unwrap());
    parsed.collect()
}
