//! The HTTP API. axum lives on this floor and nowhere else; one file an endpoint.

mod answering;
mod api_doc;
mod api_examples;
mod calls;
mod client_address;
mod connection;
mod conversation;
mod cors;
mod error;
mod events;
mod extract;
mod feedback;
mod format;
mod generate;
mod generations;
mod held;
mod idempotency;
mod json;
mod judge;
mod judging;
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
mod recording;
mod records;
mod refusal_pace;
mod sampling;
mod sse;
mod status;
mod timing;
mod tokens;
#[cfg(test)]
mod tool_tests;
mod traffic;
mod train;
mod typed;
mod unpack;
mod usage;

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{delete, get, post, put};
use axum::{Extension, Router};
use tokio::sync::Semaphore;

pub use api_doc::api_doc;
pub use client_address::TrustedProxies;
pub use connection::{ConnectionLimits, ConnectionTimeouts, serve};
pub use cors::Cors;
pub use error::ApiError;
pub use extract::BodyTimeouts;
pub use keys::{ApiKeys, KeysError, RateLimit};
pub use pages::AdminHosts;
pub use traffic::{OnLogFailure, Permitted, TrafficConfig};

use crate::engine::TenantShare;
use crate::learn::{LearnControl, Publisher};
use crate::preference::Principles;
use crate::preference::log::TrafficLog;
use crate::service::{OnDisagreement, Service};
use crate::telemetry::Metrics;
use keys::Gate;
use limits::CallLimits;
use listeners::{Listener, fallbacks};
use openai::{chat, completions, decisions, models, responses};
use permit::Permits;
use quiet::QuietByReason;
use refusal_pace::RefusalPace;

/// Whom and what the HTTP floor lets in.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Calls that are answered at once, until their answers are sent; the operators' own are left out.
    pub max_requests: usize,
    /// What one tenant may have of them.
    pub tenant_share: TenantShare,
    /// What a body may take to come.
    pub body_timeouts: BodyTimeouts,
    /// Addresses of proxies that say truly for whom they call, by `X-Forwarded-For`.
    pub trusted_proxies: TrustedProxies,
    /// Bytes of a body.
    pub max_body: usize,
    /// Bytes that bodies and answers of all calls may take together; the operators' own are left out.
    pub call_memory: usize,
    /// Tokens that one call may ask for: prompts × samples × tokens of an answer. By default 1,048,576, or what the engine can
    /// compute at once if that is more.
    pub max_call_tokens: Option<NonZeroUsize>,
    /// Without any, everyone may call.
    pub keys: ApiKeys,
    /// The operators'. Without any, what is the operators' to do is only on a listener of its own, see [`admin_router`].
    pub admin_keys: ApiKeys,
    /// Of each key.
    pub rate_limit: Option<RateLimit>,
    /// Whose pages may call from a browser. None may call the operators' listener.
    pub cors: Cors,
    /// The names of the operators' listener.
    pub admin_hosts: AdminHosts,
    /// What is done with the verdicts of the judge.
    pub judging: JudgingPolicy,
}

/// How verdicts are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JudgingPolicy {
    /// Whether a judge that failed its self-test may choose answers (`best_of`).
    pub allow_untrained: bool,
    /// Who wins a pair whose orders disagree, where the call does not say so.
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

/// What operators see and move of generations.
#[derive(Clone)]
pub struct Learning {
    /// Where this program learns, and does not only follow the pointers.
    pub control: Option<LearnControl>,
    pub publisher: Publisher,
    pub log: TrafficLog,
}

/// In this time no more than so many refusals of one reason are logged.
const REFUSALS_LOGGED: (Duration, u64) = (Duration::from_secs(1), 20);

/// What handlers share. Every layer of every request clones it, so a clone is one count.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

/// What an [`AppState`] is.
pub struct Shared {
    service: Service,
    model_name: Arc<str>,
    metrics: Metrics,
    traffic: TrafficConfig,
    principles: Principles,
    learning: Option<Learning>,
    permits: Permits,
    limits: CallLimits,
    body_timeouts: BodyTimeouts,
    refusals: QuietByReason,
    refusal_pace: RefusalPace,
    /// Whether callers have keys.
    keyed: bool,
    /// Whose pages may call.
    cors: Cors,
    log_probe: Arc<Semaphore>,
    judging: JudgingPolicy,
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Shared {
    /// Without a log, and with the model's own table of principles.
    pub fn new(service: Service, model_name: &str, metrics: Metrics, config: &HttpConfig) -> Self {
        Self {
            traffic: TrafficConfig::default(),
            learning: None,
            principles: Principles::in_memory(service.judge().table().clone()),
            log_probe: Arc::new(Semaphore::new(1)),
            limits: CallLimits::new(config.max_call_tokens, service.engine().capacity()),
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

    /// Keeps traffic.
    pub fn with_traffic(self, traffic: TrafficConfig) -> Self {
        Self { traffic, ..self }
    }

    /// Judges by a table that others read too.
    pub fn with_principles(self, principles: Principles) -> Self {
        Self { principles, ..self }
    }

    /// Serves generations, and maybe makes them.
    pub fn with_learning(self, learning: Learning) -> Self {
        Self {
            learning: Some(learning),
            ..self
        }
    }

    /// For the routers.
    pub fn into_state(self) -> AppState {
        AppState(Arc::new(self))
    }

    /// Refuses to let a judge choose answers that failed its self-test, unless the operator allowed it.
    fn check_judge(&self) -> Result<(), ApiError> {
        let failed = self.service.self_test().filter(|test| !test.reliable());
        match failed {
            Some(test) if !self.judging.allow_untrained => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "untrained_judge",
                format!(
                    "`best_of` is refused because the served model failed its self-test as a judge: {}. Ask for samples with `n`, or \
                     start the server with --allow-untrained-judge.",
                    test.summary()
                ),
            )
            .about("best_of")),
            _ => Ok(()),
        }
    }

    /// An id of a call. It is random: counted, it would tell everyone how many calls there were.
    fn next_id(&self, kind: &str) -> String {
        format!("{kind}-{:032x}", rand::random::<u128>())
    }
}

/// All routes that callers need, and where there are operators' keys, theirs.
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

/// The routes of a listener for what reads metrics, without a key.
pub fn metrics_router(state: AppState, config: &HttpConfig) -> Router {
    let routes = open_routes().route("/metrics", get(status::metrics));
    finish(
        fallbacks(routes, Listener::Metrics),
        state,
        config,
        &Cors::None,
    )
}

/// The routes of a listener of the operators' own. Where there are operators' keys, it takes one too. Pages of other origins are kept out.
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

/// What is the operators' to do, wherever they do it.
fn admin_routes(gate: Gate) -> Router<AppState> {
    Router::new()
        .route("/events", get(events::events))
        .route("/generations", get(generations::generations))
        .route("/generations/{id}/promote", post(generations::promote))
        .route("/generations/{id}/rollback", post(generations::rollback))
        .route("/train", get(train::train))
        .route("/train/pause", post(train::pause))
        .route("/train/resume", post(train::resume))
        .route("/principles", put(principles::replace))
        .route_layer(middleware::from_fn_with_state(gate, keys::guard_admin))
}

/// What nobody needs a key for.
fn open_routes() -> Router<AppState> {
    Router::new()
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
}

/// The routes in all their layers.
fn finish(routes: Router<AppState>, state: AppState, config: &HttpConfig, cors: &Cors) -> Router {
    let routes = routes.layer(Extension(unpack::MaxBody(config.max_body)));
    let pace = (state.clone(), config.trusted_proxies.clone());
    layers::around(routes, &state, cors)
        .layer(middleware::from_fn_with_state(pace, refusal_pace::pace))
        .with_state(state)
}
