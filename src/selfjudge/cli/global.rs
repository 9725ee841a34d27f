//! The options of every command.

use clap::Args;

use kernels::device::{self, DeviceChoice};
use telemetry::{Exporting, LogFormat};

/// The heading of the options of every command.
const GLOBAL: &str = "Options of every command";

/// The log filter unless `SELFJUDGE_LOG` gives another. The hub's client logs each attempt, and the last one again in its error.
const LOGGED: &str = "info,hf_hub=off";

#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Compute device: auto, cpu, cuda or cuda:N.
    #[arg(
        long,
        global = true,
        default_value = "auto",
        env = "SELFJUDGE_DEVICE",
        help_heading = GLOBAL,
        display_order = 1000
    )]
    pub device: DeviceChoice,
    /// Number of compute threads; by default, and with 0, as many as the process may use.
    #[arg(long, global = true, env = "SELFJUDGE_THREADS", help_heading = GLOBAL, display_order = 1001)]
    pub threads: Option<usize>,
    /// Format of the logs on standard error: text or json.
    #[arg(
        long,
        global = true,
        default_value = "text",
        env = "SELFJUDGE_LOG_FORMAT",
        help_heading = GLOBAL,
        display_order = 1002
    )]
    pub log_format: LogFormat,
    /// Address of an OTLP collector, such as http://localhost:4318; spans are sent there over HTTP.
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        help_heading = GLOBAL,
        display_order = 1003
    )]
    pub otlp_endpoint: Option<String>,
}

/// The process-wide state that a command runs with.
pub struct Started {
    /// Threads that compute.
    pub threads: usize,
    /// Exports spans for as long as it lives.
    _exporting: Option<Exporting>,
}

impl GlobalArgs {
    /// Starts the threads that compute, the log and the export of spans.
    ///
    /// # Errors
    /// Threads that the system refuses; a log filter or an endpoint that cannot be parsed.
    pub fn start(&self) -> anyhow::Result<Started> {
        super::listener::survive_full_files();
        let threads = device::init_threads(self.threads)?;
        let otlp = self.otlp_endpoint.as_deref().filter(|url| !url.is_empty());
        Ok(Started {
            threads,
            _exporting: telemetry::init(self.log_format, LOGGED, otlp)?,
        })
    }
}
