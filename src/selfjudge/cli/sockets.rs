//! The listeners of a program, and the banner that reports them at the start.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::task::JoinHandle;

use super::listener::{listen, operators_connections};
use crate::app::App;
use crate::http::{ConnectionLimits, serve};
use telemetry::LogFormat;

/// A bound address.
type Bound = (TcpListener, SocketAddr);

/// The task that serves a listener until it is closed.
type Serving = JoinHandle<std::io::Result<()>>;

/// Listeners that are bound and not yet served.
pub(super) struct Sockets {
    common: Option<Bound>,
    operators: Option<Bound>,
    metrics: Option<Bound>,
    tls: Option<RustlsConfig>,
}

impl Sockets {
    /// Binds all addresses, and reads the certificate.
    ///
    /// # Errors
    /// Fails if an address is in use or not of this machine, or if the certificate is invalid.
    pub async fn open(
        common: Option<SocketAddr>,
        operators: Option<SocketAddr>,
        metrics: Option<SocketAddr>,
        tls: Option<(&PathBuf, &PathBuf)>,
    ) -> anyhow::Result<Self> {
        let tls = match tls {
            Some((cert, key)) => {
                let read = |file: &Path| {
                    let read = files::read(file, files::SMALL);
                    read.with_context(|| format!("cannot read {}", file.display()))
                };
                // Another library may have chosen the same provider already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let tls = RustlsConfig::from_pem(read(cert)?, read(key)?).await;
                Some(tls.with_context(|| {
                    format!("cannot use {} and {}", cert.display(), key.display())
                })?)
            }
            None => None,
        };
        Ok(Self {
            common: common.map(listen).transpose()?,
            operators: operators.map(listen).transpose()?,
            metrics: metrics.map(listen).transpose()?,
            tls,
        })
    }

    /// Serves every listener. Returns the task of the common one, if there is one.
    pub fn serve(
        self,
        app: &App,
        handle: &Handle<SocketAddr>,
        limits: &ConnectionLimits,
    ) -> anyhow::Result<Option<Serving>> {
        let own = operators_connections(limits.clone());
        let serve = |bound: Option<Bound>, router: &axum::Router, limits: &ConnectionLimits| {
            let serve = |(listener, _)| {
                serve(
                    listener,
                    router.clone(),
                    self.tls.clone(),
                    handle.clone(),
                    limits,
                )
            };
            bound.map(serve).transpose()
        };
        serve(self.operators, &app.admin_router, &own)?;
        serve(self.metrics, &app.metrics_router, &own)?;
        Ok(serve(self.common, &app.router, limits)?)
    }
}

/// The lines that report, once everything is served, the addresses and the capacity.
pub(super) struct Banner {
    lines: Vec<String>,
    format: LogFormat,
}

impl Banner {
    pub fn of(app: &App, sockets: &Sockets, format: LogFormat) -> Self {
        let scheme = match sockets.tls {
            Some(_) => "https",
            None => "http",
        };
        let mut lines = Vec::new();
        if let Some((_, address)) = &sockets.common {
            let capacity = app.capacity;
            lines.push(format!(
                "{} on {scheme}://{address}: weights in {}, {} tokens of KV cache ({} MiB of {}), enough for {} full contexts of up to {}, {} sequences at \
                 once",
                app.model_name,
                app.weights,
                capacity.kv_tokens,
                capacity.kv_bytes >> 20,
                capacity.kv_dtype.as_str(),
                capacity.kv_tokens / capacity.max_context.max(1),
                capacity.max_context,
                capacity.max_concurrent,
            ));
            if let Some(test) = app.service.judge().self_test() {
                let verdict = match test.reliable() {
                    true => "the model judges reliably",
                    false => "the model is not a trained judge, see docs/judging.md",
                };
                lines.push(format!("judge self-test: {verdict}: {}", test.summary()));
            }
        }
        for (whom, bound) in [
            ("operators", &sockets.operators),
            ("metrics", &sockets.metrics),
        ] {
            if let Some((_, address)) = bound {
                lines.push(format!("for {whom}: {scheme}://{address}"));
            }
        }
        Self { lines, format }
    }

    /// Writes the lines to standard error, as text or as lines of a JSON log.
    pub fn say(&self) {
        for line in &self.lines {
            match self.format {
                LogFormat::Text => eprintln!("{line}"),
                LogFormat::Json => tracing::info!("{line}"),
            }
        }
    }
}
