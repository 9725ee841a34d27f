//! Export of spans to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Finished spans go into a bounded queue that one thread empties. If the collector is slow or down, the queue fills up and further
//! spans are dropped: no caller waits for the collector.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as Exporter};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;

/// The maximum duration of one delivery.
const PATIENCE: Duration = Duration::from_secs(5);

/// The maximum duration of the last delivery, at shutdown.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// Sends spans until dropped; the remaining spans are sent then, if the collector accepts them.
#[derive(Debug)]
pub struct Exporting(SdkTracerProvider);

impl Exporting {
    /// Sends spans to the collector at `endpoint`, an address without `/v1/traces`.
    ///
    /// # Errors
    /// Errors if the endpoint is not an http or https address.
    pub fn to(endpoint: &str) -> Result<Self, TelemetryError> {
        let refused = |why: String| TelemetryError::Endpoint {
            endpoint: endpoint.to_owned(),
            why,
        };
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(refused("it must begin with http:// or https://".into()));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| refused(error.to_string()))?;
        // `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are read too.
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("selfjudge");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Reporting::new(exporter))
            .with_resource(resource.build());
        Ok(Self(provider.build()))
    }

    /// Returns the layer that receives spans from `tracing`.
    pub fn layer<S>(&self) -> OpenTelemetryLayer<S, opentelemetry_sdk::trace::SdkTracer>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer = self.0.tracer("selfjudge");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_PATIENCE) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Sends the exporter's requests from the thread that empties the queue; it waits for each.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE));
        Self(config.build().into())
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.run(request.map(Vec::from))?;
        let (parts, mut body) = response.into_parts();
        let body = body.read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

/// Logs once that the collector does not accept spans, and once that it does again.
#[derive(Debug)]
struct Reporting<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E> Reporting<E> {
    fn new(exporter: E) -> Self {
        Self {
            exporter,
            failing: AtomicBool::new(false),
        }
    }
}

impl<E: Exporter> Exporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let failed = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !failed => tracing::warn!(%error, "spans cannot be sent and are dropped"),
            Ok(()) if failed => tracing::info!("spans are sent again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Makes `span` part of the caller's trace, if the call has the W3C headers `traceparent` and `tracestate`.
pub fn continue_trace<'a>(span: &Span, header: impl Fn(&str) -> Option<&'a str>) {
    let propagator = TraceContextPropagator::new();
    let carried: HashMap<String, String> = propagator
        .fields()
        .filter_map(|name| Some((name.to_owned(), header(name)?.to_owned())))
        .collect();
    if !carried.is_empty() {
        // Without an exporter the trace id is not used.
        let _ = span.set_parent(propagator.extract(&carried));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address() {
        for endpoint in ["localhost:4318", "", "grpc://x", "http://"] {
            let refused = Exporting::to(endpoint).unwrap_err().to_string();
            assert!(refused.contains("OTLP"), "{endpoint}: {refused}");
        }
    }
}
