//! Logs and metrics.
//!
//! The library only emits `tracing` events; who listens is decided once, by the binary, with [`init`].

mod metrics;

pub use metrics::{EngineMetrics, HttpMetrics, JudgeMetrics, LearnMetrics, LogMetrics, Metrics};

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Which variable sets the level, in `tracing`'s syntax: `info`, `selfjudge::train=debug,warn`, ...
pub const FILTER_VARIABLE: &str = "SELFJUDGE_LOG";

/// What setting up the logs can fail with.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{FILTER_VARIABLE}: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("`{0}` is no log format: text or json")]
    Format(String),
    #[error("logs are set up already: {0}")]
    Twice(String),
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For reading.
    #[default]
    Text,
    /// One JSON object a line.
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

/// Sends events to standard error, filtered by `SELFJUDGE_LOG`, else by `default_filter`.
///
/// # Errors
/// A filter that does not parse; a second call (or another subscriber) in this process.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    let said = std::env::var(FILTER_VARIABLE).ok();
    let filter = filter(said.as_deref(), default_filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| TelemetryError::Twice(e.to_string()))
}

fn filter(said: Option<&str>, default: &str) -> Result<EnvFilter, TelemetryError> {
    let said = said.filter(|s| !s.trim().is_empty());
    Ok(EnvFilter::try_new(said.unwrap_or(default))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_goes_first_and_nonsense_is_refused() {
        assert_eq!(filter(Some("debug"), "info").unwrap().to_string(), "debug");
        assert_eq!(filter(Some(" "), "info").unwrap().to_string(), "info");
        assert_eq!(filter(None, "info").unwrap().to_string(), "info");
        assert!(filter(Some("selfjudge=loud"), "info").is_err());
    }
}
