//! Logs, spans and metrics.
//!
//! The library only emits `tracing` events and spans; the binary sets up the subscribers once, with [`init`].

mod call_times;
mod metrics;
#[cfg_attr(not(feature = "otlp"), path = "no_otlp.rs")]
mod otlp;
mod pace;

pub use call_times::{CallReport, CallTimes};
pub use metrics::{EngineMetrics, HttpMetrics, JudgeMetrics, LearnMetrics, LogMetrics, Metrics};
pub use otlp::{Exporting, continue_trace};
pub use pace::{InQueue, Pace, retry_after};

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// The environment variable that sets the level, in `tracing`'s syntax: `info`, `selfjudge::train=debug,warn`, ...
pub const FILTER_VARIABLE: &str = "SELFJUDGE_LOG";

/// Errors of setting up the logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{FILTER_VARIABLE}: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("unknown log format `{0}`; use text or json")]
    Format(String),
    #[error("the OTLP endpoint `{endpoint}` cannot be used: {why}")]
    Endpoint { endpoint: String, why: String },
    #[error("logging is already set up: {0}")]
    Twice(String),
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format(text.to_owned())),
        }
    }
}

/// Whether this process' log lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Returns whether [`init`] set up JSON log lines.
pub fn logs_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Sends events to standard error, filtered by `SELFJUDGE_LOG` or else by `default_filter`. With an `otlp_endpoint` it
/// also sends spans to the collector there, whatever the filter, for as long as the result is kept.
///
/// # Errors
/// Errors if a filter does not parse, if an endpoint is invalid, or on a second call (or another subscriber) in this process.
pub fn init(
    format: LogFormat,
    default_filter: &str,
    otlp_endpoint: Option<&str>,
) -> Result<Option<Exporting>, TelemetryError> {
    let value = std::env::var(FILTER_VARIABLE).ok();
    let filter = filter(value.as_deref(), default_filter)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let logs = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        // Only the request's span is written, because it has no parent span.
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    let exporting = otlp_endpoint.map(Exporting::to).transpose()?;
    // The exporter's own HTTP client has spans too, which must not be exported in turn.
    let ours = filter_fn(|metadata| {
        metadata.is_span() && *metadata.level() <= Level::INFO && is_ours(metadata.target())
    });
    let spans = exporting
        .as_ref()
        .map(|exporting| exporting.layer().with_filter(ours));
    tracing_subscriber::registry()
        .with(logs.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|e| TelemetryError::Twice(e.to_string()))?;
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    Ok(exporting)
}

/// Returns whether `target` is a module of one of this workspace's crates.
fn is_ours(target: &str) -> bool {
    let name = target.split("::").next();
    let mut crates = env!("WORKSPACE_CRATES").split(',');
    name.is_some_and(|name| crates.any(|known| known == name))
}

fn filter(value: Option<&str>, default: &str) -> Result<EnvFilter, TelemetryError> {
    let value = value.filter(|s| !s.trim().is_empty());
    Ok(EnvFilter::try_new(value.unwrap_or(default))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_the_workspace_are_known() {
        for ours in ["engine::core", "selfjudge", "telemetry", "train::dpo"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["", "hyper", "textual::engine", "WORKSPACE"] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn the_environment_goes_first_and_nonsense_is_refused() {
        assert_eq!(filter(Some("debug"), "info").unwrap().to_string(), "debug");
        assert_eq!(filter(Some(" "), "info").unwrap().to_string(), "info");
        assert_eq!(filter(None, "info").unwrap().to_string(), "info");
        assert!(filter(Some("selfjudge=loud"), "info").is_err());
    }
}
