//! `GET /health`, `/ready` and `/metrics`: the state of the server for operators.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, ErrorBody};
use crate::judging::SelfTest;
use engine::Readiness;
use model::WeightsName;

/// The server is alive.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusBody {
    /// Always `ok`.
    status: &'static str,
}

/// Returns whether the server is alive.
///
/// The engine's thread responds, or made a step within the last minute. A server whose engine died ends by itself; one whose engine is
/// stuck should be restarted.
#[utoipa::path(
    get,
    path = "/health",
    tag = "operating",
    security(()),
    responses((status = 200, body = StatusBody), (status = 503, body = ErrorBody))
)]
pub async fn health(State(state): State<AppState>) -> Result<Json<StatusBody>, ApiError> {
    match state.service.engine().is_alive().await {
        true => Ok(Json(StatusBody { status: "ok" })),
        false => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "engine_down",
            "the engine does not answer",
        )),
    }
}

/// The server answers requests.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadyBody {
    /// Always `ready`.
    status: &'static str,
    /// The judge's newest self-test; null without one.
    judge: Option<SelfTestBody>,
}

/// A self-test of the judge: pairs with a known better answer, each read in both orders.
#[derive(Debug, Serialize, ToSchema)]
pub struct SelfTestBody {
    /// Whether the model judges reliably: `orders_agree` and `accuracy` are at least 0.75, and `label_mass` is at least 0.5.
    reliable: bool,
    /// Number of judged pairs.
    pairs: usize,
    /// Share of the pairs in which both orders name the same answer.
    orders_agree: f64,
    /// Share of the pairs in which the better answer wins.
    accuracy: f64,
    /// Mean probability of the label tokens.
    label_mass: f64,
    /// The origin of the pairs: `general` (part of the program) or `model` (the model directory's judge_self_test.jsonl).
    set: &'static str,
    /// The weights that judged.
    #[schema(value_type = String)]
    version: WeightsName,
}

impl From<SelfTest> for SelfTestBody {
    fn from(test: SelfTest) -> Self {
        Self {
            reliable: test.reliable(),
            pairs: test.pairs,
            orders_agree: test.agreement(),
            accuracy: test.accuracy(),
            label_mass: test.label_mass,
            set: test.source.name(),
            version: test.weights,
        }
    }
}

/// Returns whether requests can be answered.
///
/// 503 before the model has made its first steps, and after the engine has stopped.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "operating",
    security(()),
    responses((status = 200, body = ReadyBody), (status = 503, body = ErrorBody))
)]
pub async fn ready(State(state): State<AppState>) -> Result<Json<ReadyBody>, ApiError> {
    let status = status_of(state.service.engine().readiness())?;
    Ok(Json(ReadyBody {
        status,
        judge: state.service.judge().self_test().map(SelfTestBody::from),
    }))
}

fn status_of(readiness: Readiness) -> Result<&'static str, ApiError> {
    let unavailable = |code, message| {
        Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            message,
        ))
    };
    match readiness {
        Readiness::Ready => Ok("ready"),
        Readiness::WarmingUp => {
            unavailable("warming_up", "the model's first steps have not finished")
        }
        Readiness::Down => unavailable("engine_down", "the engine has stopped"),
    }
}

/// Lists all metrics in Prometheus' format.
///
/// If callers have keys, it needs an operator's key on the common listener; the operators' and the metrics' listener need no caller's
/// key.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operating",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ErrorBody))
)]
pub async fn metrics(State(state): State<AppState>) -> Response {
    if let Some(log) = &state.traffic().log {
        let stats = log.stats();
        let shown = &state.metrics.log;
        shown.queue_depth.set(stats.queue_depth as i64);
        shown.records.set(stats.records as i64);
        shown.healthy.set(i64::from(stats.healthy));
        shown.commit_lag.set(stats.commit_lag_seconds);
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics.render()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_warm_engine_is_ready() {
        let status = |readiness| status_of(readiness).into_response().status();
        assert_eq!(status(Readiness::Ready), StatusCode::OK);
        for readiness in [Readiness::WarmingUp, Readiness::Down] {
            assert_eq!(status(readiness), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
