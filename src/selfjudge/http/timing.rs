//! The span of a call, with the times of its phases, recorded after the last byte of the answer was sent.

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use tracing::Span;
use tracing::field::Empty;

use super::layers::REQUEST_ID;
use telemetry::{CallTimes, continue_trace};

/// Creates the span of a request, as part of the caller's trace if there is one.
pub fn span<B>(request: &axum::http::Request<B>) -> Span {
    let header = |name: &str| request.headers().get(name)?.to_str().ok();
    let route = request.extensions().get::<MatchedPath>();
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        id = header(REQUEST_ID.as_str()).unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
        route = route.map(MatchedPath::as_str),
        caller = Empty,
        status = Empty,
        queue_seconds = Empty,
        prefill_seconds = Empty,
        decode_seconds = Empty,
        prompt_tokens = Empty,
        cached_tokens = Empty,
        generated_tokens = Empty,
    );
    continue_trace(&span, header);
    span
}

/// Records the times in a call's span when it is dropped: after the whole answer was sent or its reader disconnected.
struct Ending {
    span: Span,
    times: CallTimes,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let span = &self.span;
        let Some(report) = self.times.report() else {
            tracing::debug!(parent: span, "answered");
            return;
        };
        for (name, seconds) in [
            ("queue_seconds", report.queue),
            ("prefill_seconds", report.prefill),
            ("decode_seconds", report.decode),
        ] {
            if let Some(seconds) = seconds {
                span.record(name, seconds);
            }
        }
        span.record("prompt_tokens", report.prompt_tokens)
            .record("cached_tokens", report.cached_tokens)
            .record("generated_tokens", report.generated_tokens);
        tracing::info!(parent: span, "answered");
    }
}

/// Records times (middleware); runs inside the layer that makes the [`span`].
pub async fn timed(request: Request, next: Next) -> Response {
    let times = CallTimes::default();
    let response = times.clone().scope(next.run(request)).await;
    let span = Span::current();
    // OpenTelemetry's integers are signed.
    span.record("status", i64::from(response.status().as_u16()));
    let ending = Ending { span, times };
    if response.body().size_hint().exact().is_some() {
        // The answer is complete, so all computation is done.
        return response;
    }
    response.map(|body| {
        let pieces = body.into_data_stream().inspect(move |_| {
            // Moved into the stream, so that it is dropped with it.
            let _ = &ending;
        });
        Body::from_stream(pieces)
    })
}
