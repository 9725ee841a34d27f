//! The HTTP API. Only this module uses axum; there is one file per endpoint.

mod answering;
mod api_doc;
mod api_examples;
mod beside;
mod calls;
mod client_address;
mod connection;
mod conversation;
mod cors;
#[cfg_attr(not(feature = "swagger"), path = "no_docs_page.rs")]
mod docs_page;
mod error;
mod events;
mod extract;
mod feedback;
mod format;
mod generate;
mod generations;
mod held;
mod idempotency;
mod identity;
mod json;
mod judge;
mod kept;
mod keys;
mod layers;
mod limits;
mod listeners;
mod memory;
mod neutral;
mod one_or_many;
mod openai;
mod pages;
mod permit;
mod principles;
#[cfg(test)]
mod prompt_tests;
mod quiet;
mod reading;
mod received;
mod records;
mod refusal_pace;
mod sampling;
#[cfg(test)]
mod sampling_default_tests;
mod signpost;
mod sse;
mod status;
mod timing;
mod tokens;
#[cfg(test)]
mod tool_tests;
mod train;
mod typed;
mod unpack;

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{delete, get, post, put};
use axum::{Extension, Router};

pub use api_doc::api_doc;
pub use client_address::TrustedProxies;
pub use connection::{ConnectionLimits, ConnectionTimeouts, serve};
pub use cors::Cors;
pub use error::ApiError;
pub use keys::{ApiKeys, KeysError, RateLimit};
pub use pages::AdminHosts;
pub use received::BodyTimeouts;

use crate::learn::{LearnControl, Publisher};
use crate::principles::Principles;
use crate::service::{RecordedService, Service, TrafficConfig};
use ::judge::OnDisagreement;
use engine::TenantShare;
use keys::Gate;
use limits::CallLimits;
use listeners::{Listener, fallbacks};
use openai::{chat, completions, decisions, models, responses};
use permit::Permits;
use quiet::QuietByReason;
use refusal_pace::RefusalPace;
use telemetry::Metrics;
use traffic_log::TrafficLog;

/// The settings of the HTTP API.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Maximum concurrent calls, counted until their answers are sent; the operators' own calls are not counted.
    pub max_requests: usize,
    /// The share of them that one tenant may have.
    pub tenant_share: TenantShare,
    /// Time limits for receiving a body.
    pub body_timeouts: BodyTimeouts,
    /// Addresses of proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: TrustedProxies,
    /// Maximum bytes of a body.
    pub max_body: usize,
    /// Maximum bytes of the bodies and answers of all calls together; the operators' own calls are not counted.
    pub call_memory: usize,
    /// Maximum tokens of one call: prompts × samples × tokens per answer. By default 1,048,576, or what the engine can
    /// compute at once if that is more.
    pub max_call_tokens: Option<NonZeroUsize>,
    /// The callers' keys; if empty, no key is needed.
    pub keys: ApiKeys,
    /// The operators' keys. Without any, the operators' routes are only on a separate listener, see [`admin_router`].
    pub admin_keys: ApiKeys,
    /// The rate limit of each key.
    pub rate_limit: Option<RateLimit>,
    /// Origins whose pages may call from a browser. No page may call the operators' listener.
    pub cors: Cors,
    /// The host names of the operators' listener.
    pub admin_hosts: AdminHosts,
    /// How the judge's verdicts are used.
    pub judging: JudgingPolicy,
}

/// How verdicts are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JudgingPolicy {
    /// Whether a judge that failed its self-test may choose answers (`best_of`).
    pub allow_untrained: bool,
    /// The winner of a pair whose orders disagree, if the call does not set it.
    pub on_disagreement: OnDisagreement,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            tenant_share: TenantShare::default(),
            body_timeouts: BodyTimeouts::default(),
            trusted_proxies: TrustedProxies::default(),
            max_body: 8 << 20,
            call_memory: 512 << 20,
            max_call_tokens: None,
            keys: ApiKeys::default(),
            admin_keys: ApiKeys::default(),
            rate_limit: None,
            cors: Cors::default(),
            admin_hosts: AdminHosts::default(),
            judging: JudgingPolicy::default(),
        }
    }
}

/// The parts of learning that operators see and control.
#[derive(Clone)]
pub struct Learning {
    /// The learner's controls; none if this program only follows the pointers.
    pub control: Option<LearnControl>,
    pub publisher: Publisher,
    pub log: TrafficLog,
}

/// Maximum number of logged refusals of one reason per duration.
const REFUSALS_LOGGED: (Duration, u64) = (Duration::from_secs(1), 20);

/// The state shared by handlers. It is an `Arc`, because every layer of every request clones it.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

/// The contents of an [`AppState`].
pub struct Shared {
    service: Service,
    model_name: Arc<str>,
    metrics: Metrics,
    /// The service whose calls are recorded.
    recorded: RecordedService,
    principles: Principles,
    learning: Option<Learning>,
    permits: Permits,
    limits: CallLimits,
    body_timeouts: BodyTimeouts,
    refusals: QuietByReason,
    refusal_pace: RefusalPace,
    /// Whether callers have keys.
    keyed: bool,
    /// Origins whose pages may call.
    cors: Cors,
    judging: JudgingPolicy,
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    /// Creates a state without a log and with the model's own table of principles.
    pub fn new(service: Service, model_name: &str, metrics: Metrics, config: &HttpConfig) -> Self {
        Self {
            learning: None,
            principles: Principles::in_memory(service.judge().table().clone()),
            limits: CallLimits::new(config.max_call_tokens, service.engine().capacity()),
            recorded: RecordedService::new(
                service.clone(),
                TrafficConfig::default(),
                metrics.log.clone(),
            ),
            service,
            model_name: model_name.into(),
            metrics,
            permits: Permits::new(config.max_requests, config.call_memory, config.tenant_share),
            body_timeouts: config.body_timeouts,
            refusals: QuietByReason::new(REFUSALS_LOGGED.0, REFUSALS_LOGGED.1),
            refusal_pace: RefusalPace::default(),
            keyed: !config.keys.is_empty(),
            cors: config.cors.clone(),
            judging: config.judging,
        }
    }

    /// Sets the logging of traffic.
    pub fn with_traffic(self, traffic: TrafficConfig) -> Self {
        let metrics = self.metrics.log.clone();
        Self {
            recorded: RecordedService::new(self.service.clone(), traffic, metrics),
            ..self
        }
    }

    /// Returns the settings of recording.
    fn traffic(&self) -> &TrafficConfig {
        self.recorded.traffic()
    }

    /// Sets a table of principles that other parts of the program share.
    pub fn with_principles(self, principles: Principles) -> Self {
        Self { principles, ..self }
    }

    /// Sets the serving of generations, and optionally a learner.
    pub fn with_learning(self, learning: Learning) -> Self {
        Self {
            learning: Some(learning),
            ..self
        }
    }

    /// Returns the state for the routers.
    pub fn into_state(self) -> AppState {
        AppState(Arc::new(self))
    }

    /// Checks that the judge may choose answers: it passed its self-test, or the operator allowed it anyway.
    fn check_judge(&self) -> Result<(), ApiError> {
        let failed = self
            .service
            .judge()
            .self_test()
            .filter(|test| !test.reliable());
        match failed {
            Some(test) if !self.judging.allow_untrained => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "untrained_judge",
                format!(
                    "`best_of` is refused because the served model failed its self-test as a judge: {}. Ask for samples with `n`.",
                    test.summary()
                ),
            )
            .about("best_of")),
            _ => Ok(()),
        }
    }

    /// Returns a random id for a call; a counter would reveal the number of calls.
    fn next_id(&self, kind: &str) -> String {
        format!("{kind}-{:032x}", rand::random::<u128>())
    }
}

/// Returns all routes for callers and, if there are operators' keys, for operators.
pub fn router(state: AppState, config: &HttpConfig) -> Router {
    let gate = Gate::of(config);
    let counted = Router::new()
        .route("/generate", post(generate::generate))
        .route("/judge", post(judge::judge))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/decisions", post(decisions::decisions))
        .route("/records/{id}", get(records::get).delete(records::delete))
        .route("/records", delete(records::delete_all))
        .route("/feedback", post(feedback::feedback))
        .route_layer(middleware::from_fn_with_state(state.clone(), permit::hold));
    let guarded = counted
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*id}", get(models::model))
        .route("/principles", get(principles::principles))
        .route_layer(middleware::from_fn_with_state(gate.clone(), keys::guard));
    let metrics = Router::new()
        .route("/metrics", get(status::metrics))
        .route_layer(middleware::from_fn_with_state(
            gate.clone(),
            keys::guard_metrics,
        ));
    let listener = Listener::Common {
        operators: !config.admin_keys.is_empty(),
    };
    let mut routes = open_routes()
        .merge(listener.docs())
        .merge(metrics)
        .merge(guarded);
    if !config.admin_keys.is_empty() {
        routes = routes.merge(admin_routes(gate));
    }
    finish(fallbacks(routes, listener), state, config, &config.cors)
}

/// Returns the routes of a listener for metrics, which needs no key.
pub fn metrics_router(state: AppState, config: &HttpConfig) -> Router {
    let routes = open_routes().route("/metrics", get(status::metrics));
    finish(
        fallbacks(routes, Listener::Metrics),
        state,
        config,
        &Cors::None,
    )
}

/// Returns the routes of the operators' own listener. It needs an operator's key if there are any. Pages of other origins are refused.
pub fn admin_router(state: AppState, config: &HttpConfig) -> Router {
    let gate = Gate::of(config);
    let guarded = Router::new()
        .route("/records", delete(records::delete_all))
        .route("/records/{id}", delete(records::delete))
        .route("/principles", get(principles::principles))
        .route("/metrics", get(status::metrics))
        .route_layer(middleware::from_fn_with_state(
            gate.clone(),
            keys::guard_admin,
        ));
    let hosts = Arc::new(config.admin_hosts.clone());
    let routes = open_routes()
        .merge(Listener::Operators.docs())
        .merge(guarded)
        .merge(admin_routes(gate));
    let routes = fallbacks(routes, Listener::Operators)
        .layer(middleware::from_fn_with_state(hosts, pages::keep_out));
    finish(routes, state, config, &Cors::None)
}

/// Returns the operators' routes, which are the same on every listener.
fn admin_routes(gate: Gate) -> Router<AppState> {
    Router::new()
        .route("/events", get(events::events))
        .route("/generations", get(generations::generations))
        .route("/generations/{id}/promote", post(generations::promote))
        .route("/generations/{id}/rollback", post(generations::rollback))
        .route("/train", get(train::train))
        .route("/train/pause", post(train::pause))
        .route("/train/resume", post(train::resume))
        .route("/train/abandon", post(train::abandon))
        .route("/principles", put(principles::replace))
        .route_layer(middleware::from_fn_with_state(gate, keys::guard_admin))
}

/// Returns the routes that need no key.
fn open_routes() -> Router<AppState> {
    Router::new()
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
}

/// Wraps the routes in all layers.
fn finish(routes: Router<AppState>, state: AppState, config: &HttpConfig, cors: &Cors) -> Router {
    let routes = routes.layer(Extension(unpack::MaxBody(config.max_body)));
    let pace = (state.clone(), config.trusted_proxies.clone());
    layers::around(routes, &state, cors)
        .layer(middleware::from_fn_with_state(pace, refusal_pace::pace))
        .with_state(state)
}
