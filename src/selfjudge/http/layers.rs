//! The layers around every request: an id, a span, counters, and an answer even if a handler panics.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::classify::ServerErrorsFailureClass;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use tracing::Span;

use super::AppState;
use super::cors::Cors;
use super::error::{ApiError, ErrorCode};
use super::keys::CallerName;
use super::refusal_pace::is_refusal;
use super::timing::{span, timed};

/// The header with the id of a request, chosen by the caller or the server; it is in the answer and the log lines.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps `routes` in all layers, the outermost last.
pub fn around(routes: Router<AppState>, state: &AppState, cors: &Cors) -> Router<AppState> {
    let routes = routes
        .layer(CatchPanicLayer::custom(|_| internal().into_response()))
        .layer(middleware::from_fn_with_state(state.clone(), count));
    let routes = match cors.layer() {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes
        .layer(middleware::from_fn(harden))
        .layer(middleware::from_fn(timed))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_failure(log_failure),
        )
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(middleware::from_fn(without_odd_request_id))
}

/// Maximum length of a request id given by the caller.
const MAX_REQUEST_ID: usize = 128;

/// Removes a request id that is too long or not visible ASCII; the server then generates one.
async fn without_odd_request_id(mut request: Request, next: Next) -> Response {
    let usable = |name: &HeaderValue| {
        let name = name.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic)
    };
    if !request.headers().get(&REQUEST_ID).is_none_or(usable) {
        request.headers_mut().remove(&REQUEST_ID);
    }
    next.run(request).await
}

/// Logs the failure of an answer as an error, if the server failed.
fn log_failure(class: ServerErrorsFailureClass, latency: Duration, _: &Span) {
    if is_servers(&class) {
        let ms = latency.as_millis() as u64;
        tracing::error!(classification = %class, ms, "the answer failed");
    }
}

/// Returns whether a failure is a defect of the server: not the end of a call's own timeout (504), nor a refusal for lack of room (503),
/// which has its own line in the log.
fn is_servers(class: &ServerErrorsFailureClass) -> bool {
    match class {
        ServerErrorsFailureClass::StatusCode(status) => {
            !is_refusal(*status) && *status != StatusCode::GATEWAY_TIMEOUT
        }
        ServerErrorsFailureClass::Error(_) => true,
    }
}

/// Returns the error for a defect of the server.
pub fn internal() -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "something went wrong inside the server",
    )
}

/// Sets security headers on every answer: browsers must not sniff its type or treat it as a page. The documentation is a page, and may
/// use only its own files.
async fn harden(request: Request, next: Next) -> Response {
    let policy = match request.uri().path().starts_with("/docs") {
        true => {
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        }
        false => "default-src 'none'; frame-ancestors 'none'",
    };
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(policy),
    );
    response
}

/// Returns the beginning of a path, long enough for any route.
fn short(path: &str) -> &str {
    const MOST: usize = 120;
    &path[..path.floor_char_boundary(MOST)]
}

/// Counts every answer by route and status, and refusals by reason; a failure of the server (500) or a timeout (504) is not a refusal.
/// Each refusal is logged in one short line with its caller's key but without its address and query, at most twenty per reason and
/// second, with the number of omitted lines.
async fn count(
    State(state): State<AppState>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let (method, place) = (request.method().clone(), request.uri().clone());
    let request_id = request.headers().get(&REQUEST_ID).cloned();
    let response = next.run(request).await;
    let status = response.status();
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    let http = &state.metrics.http;
    http.requests
        .with_label_values(&[route, status.as_str()])
        .inc();
    let code = response.extensions().get::<ErrorCode>();
    if let Some(ErrorCode(code)) = code.filter(|_| is_refusal(status)) {
        http.rejected.with_label_values(&[code]).inc();
        if let Some(unsaid) = state.refusals.next_line(code) {
            let caller = response.extensions().get::<CallerName>();
            let id = request_id.as_ref().and_then(|id| id.to_str().ok());
            // Logged outside the request's span, whose fields would all be on the line.
            tracing::info!(
                parent: None,
                method = %method,
                path = short(place.path()),
                status = status.as_u16(),
                ms = begun.elapsed().as_millis() as u64,
                caller = caller.map_or("-", |CallerName(name)| name),
                code,
                unsaid,
                id,
                "refused"
            );
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_failures_are_errors() {
        for (status, own) in [(500, true), (502, true), (503, false), (504, false)] {
            let status = StatusCode::from_u16(status).unwrap();
            let class = ServerErrorsFailureClass::StatusCode(status);
            assert_eq!(is_servers(&class), own, "{status}");
        }
        let class = ServerErrorsFailureClass::Error("the body broke".to_owned());
        assert!(is_servers(&class));
    }
}
