//! Tests of the HTTP API over the pocket model, called without a socket.

mod admin;
mod api_doc;
mod api_examples;
mod api_words;
mod bounds;
mod connections;
mod decisions;
mod docs;
mod exchange;
mod feedback;
mod generating;
mod grammar_bounds;
mod guarding;
mod headers;
mod idempotency;
mod judging;
mod limits;
mod memory;
mod naming;
mod neutral;
mod openai;
mod operators;
mod principles;
mod record_sizes;
mod records;
mod refusing;
mod response_fields;
mod response_formats;
mod response_streams;
mod responses;
mod sampling;
mod scoring;
mod sharing;
mod tokens;
mod tools;
mod tools_refused;
mod traffic;
mod unchanged;

use std::path::Path;
use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use engine::{Engine, EngineConfig};
use model::{LanguageModel, LoadOptions, WeightStore};
use selfjudge::{
    http::{ApiKeys, HttpConfig, Learning, Shared, admin_router, router},
    learn::generation::Generations,
    learn::{CanaryWatch, LearnControl, Publisher},
    principles::Principles,
    service::{Service, TrafficConfig},
};
use serde_json::{Value, json};
use telemetry::Metrics;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use traffic_log::{FeedbackTrust, LogConfig, TrafficLog};

use crate::patience::PATIENCE;

pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// Returns the default settings with a cache that is quickly reserved.
pub fn engine() -> EngineConfig {
    EngineConfig {
        kv_cache_memory: 64 << 20,
        ..EngineConfig::default()
    }
}

fn service(engine: &EngineConfig, metrics: &Metrics) -> Service {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let weights = WeightStore::new(model.decoder().clone());
    let (engine, _) = Engine::start(weights, engine, metrics.engine.clone()).unwrap();
    Service::new(engine, &model, &dir, metrics.judge.clone()).unwrap()
}

pub fn start(engine: &EngineConfig, config: &HttpConfig) -> Router {
    let metrics = Metrics::new("pocket");
    let service = service(engine, &metrics);
    let state = Shared::new(service, "pocket", metrics, config).into_state();
    router(state, config)
}

/// The shared server of the tests that need no server of their own.
static SERVER: LazyLock<Router> = LazyLock::new(|| start(&engine(), &HttpConfig::default()));

/// The shared model of the servers whose traffic is examined.
static SERVICE: LazyLock<Service> = LazyLock::new(|| service(&engine(), &Metrics::new("pocket")));

/// A server with a log.
struct Logged {
    server: Router,
    /// The routes of the operators' listener.
    admin: Router,
    log: TrafficLog,
    principles: Principles,
    dir: TempDir,
}

/// Returns settings with keys of two callers, of two whose traffic is restricted, and of an operator.
fn keyed() -> HttpConfig {
    HttpConfig {
        keys: ApiKeys::parse("alice:a\nbob:b\ncarol:c no-train\ndave:d no-retain").unwrap(),
        admin_keys: ApiKeys::parse("root:r").unwrap(),
        ..HttpConfig::default()
    }
}

fn logged(config: &HttpConfig, traffic: TrafficConfig) -> Logged {
    logged_with(config, traffic, |log| log)
}

/// Starts a [`logged`] server, whose log is set up by `change`.
fn logged_with(
    config: &HttpConfig,
    traffic: TrafficConfig,
    change: impl FnOnce(LogConfig) -> LogConfig,
) -> Logged {
    let dir = tempfile::tempdir().unwrap();
    let log_config = change(LogConfig {
        trust: FeedbackTrust::Always,
        patience: PATIENCE,
        ..LogConfig::sqlite(&dir.path().join("traffic.sqlite"))
    });
    let log = RUNTIME.block_on(TrafficLog::open(&log_config)).unwrap();
    let traffic = TrafficConfig {
        log: Some(log.clone()),
        ..traffic
    };
    let table = SERVICE.judge().table().clone();
    let principles = Principles::open(dir.path(), table).unwrap();
    let metrics = Metrics::new("pocket");
    let learning = Learning {
        control: Some(LearnControl::new(metrics.learn.clone())),
        publisher: Publisher::new(
            SERVICE.weights().clone(),
            Generations::open(dir.path().join("generations")).unwrap(),
            log.clone(),
            CanaryWatch {
                share: 0.5,
                ..CanaryWatch::default()
            },
            metrics.learn.clone(),
        ),
        log: log.clone(),
    };
    let state = Shared::new(SERVICE.clone(), "pocket", metrics, config)
        .with_traffic(traffic)
        .with_principles(principles.clone())
        .with_learning(learning)
        .into_state();
    Logged {
        server: router(state.clone(), config),
        admin: admin_router(state, config),
        log,
        principles,
        dir,
    }
}

/// One call: method, path, key, idempotency key and body.
#[derive(Clone, Copy, Default)]
struct Call<'a> {
    method: &'a str,
    path: &'a str,
    key: Option<&'a str>,
    idempotency: Option<&'a str>,
    body: Option<&'a Value>,
}

impl Call<'_> {
    async fn response(self, server: &Router) -> axum::response::Response {
        let mut request = Request::builder().method(self.method).uri(self.path);
        if let Some(key) = self.key {
            request = request.header("x-api-key", key);
        }
        if let Some(key) = self.idempotency {
            request = request.header("idempotency-key", key);
        }
        let body = match self.body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                body.to_string().into()
            }
            None => Body::empty(),
        };
        let request = request.body(body).unwrap();
        server.clone().oneshot(request).await.unwrap()
    }

    fn of(self, server: &Router) -> (StatusCode, Value) {
        RUNTIME.block_on(async {
            let response = self.response(server).await;
            let status = response.status();
            let body = text(response).await;
            let body = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
            (status, body)
        })
    }

    fn ok(self, server: &Router) -> Value {
        let (status, answer) = self.of(server);
        assert_eq!(
            status,
            StatusCode::OK,
            "{} {}: {answer}",
            self.method,
            self.path
        );
        answer
    }
}

fn posted<'a>(path: &'a str, key: &'a str, body: &'a Value) -> Call<'a> {
    Call {
        method: "POST",
        path,
        key: Some(key),
        body: Some(body),
        ..Call::default()
    }
}

/// Returns the record of an answer, as its caller may read it.
fn record_of(server: &Router, key: &str, answer: &Value) -> Value {
    let id = answer["record_id"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"));
    let call = Call {
        method: "GET",
        path: &format!("/records/{id}"),
        key: Some(key),
        ..Call::default()
    };
    call.ok(server)
}

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

/// Returns the value of a metric of one series.
pub async fn metric(server: &Router, name: &str) -> f64 {
    match series(server, name).await.as_slice() {
        [(_, value)] => *value,
        other => panic!("{name} has the series {other:?}"),
    }
}

/// Returns the number of accepted samples that were not finished for this reason.
pub async fn failures(server: &Router, reason: &str) -> f64 {
    let all = series(server, "request_failure_total").await;
    let label = format!("reason=\"{reason}\"");
    let counted = all.iter().find(|(labels, _)| labels.contains(&label));
    counted.map_or(0.0, |(_, value)| *value)
}

/// Returns all series of a metric: labels and value.
async fn series(server: &Router, name: &str) -> Vec<(String, f64)> {
    // Where callers have keys, only operators may read metrics.
    let request = Request::get("/metrics").header("x-api-key", "r");
    let request = request.body(Body::empty()).unwrap();
    let page = text(server.clone().oneshot(request).await.unwrap()).await;
    let named = format!("selfjudge:{name}{{");
    let lines = page.lines().filter_map(|line| line.strip_prefix(&named));
    let parsed = lines.map(|line| {
        let (labels, value) = line.rsplit_once("} ").unwrap();
        (labels.to_owned(), value.parse().unwrap())
    });
    parsed.collect()
}

/// Returns the events of a streamed answer without `[DONE]`.
fn events(path: &str, body: &Value) -> Vec<Value> {
    events_of(&RUNTIME.block_on(async { text(call(&SERVER, path, body.to_string()).await).await }))
}

fn events_of(stream: &str) -> Vec<Value> {
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
