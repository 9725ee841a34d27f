//! `selfjudge serve`: wires weights to engine, engine to service, service to HTTP, and takes them down in that order.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use candle_core::Device;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::{Engine, EngineConfig, QueueLimits};
use crate::http::{ApiKeys, AppState, Cors, HttpConfig, RateLimit, router};
use crate::model::{LanguageModel, LoadOptions, WeightStore, hub};
use crate::service::Service;
use crate::telemetry::Metrics;

/// The default model, in the program itself: file names and contents.
const POCKET: [(&str, &[u8]); 7] = [
    (
        "config.json",
        include_bytes!("../../models/pocket/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../models/pocket/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../models/pocket/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../models/pocket/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../models/pocket/tokenizer_config.json"),
    ),
    (
        "judge_template.toml",
        include_bytes!("../../models/pocket/judge_template.toml"),
    ),
    (
        "principles.toml",
        include_bytes!("../../models/pocket/principles.toml"),
    ),
];

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model directory or hub id; by default the pocket model that is part of the program.
    #[arg(long, env = "SELFJUDGE_MODEL")]
    model: Option<String>,
    /// A PEFT adapter directory to lay over the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the model is called in answers and metrics; by default as it was given.
    #[arg(long)]
    model_name: Option<String>,
    #[arg(long, default_value = "127.0.0.1:8080", env = "SELFJUDGE_LISTEN")]
    listen: SocketAddr,
    /// Memory reserved for keys and values: bytes, or with KiB, MiB or GiB.
    #[arg(long, default_value = "256MiB", value_parser = bytes, env = "SELFJUDGE_KV_CACHE_MEMORY")]
    kv_cache_memory: usize,
    /// Tokens of a block of the KV cache.
    #[arg(long, default_value_t = EngineConfig::default().block_size)]
    block_size: usize,
    /// Tokens computed in a step.
    #[arg(long, default_value_t = EngineConfig::default().max_batch_tokens)]
    max_batch_tokens: usize,
    /// Sequences that run at once.
    #[arg(long, default_value_t = EngineConfig::default().max_concurrent)]
    max_concurrent: usize,
    /// Compute every prompt anew.
    #[arg(long)]
    no_prefix_caching: bool,
    /// Requests that may wait for the engine; more are answered with 429.
    #[arg(long, default_value_t = EngineConfig::default().queue.max_requests)]
    max_queued_requests: usize,
    /// Prompt tokens that may wait for the engine; more are answered with 429.
    #[arg(long, default_value_t = EngineConfig::default().queue.max_tokens)]
    max_queued_tokens: usize,
    /// Calls that are answered at once; more are answered with 429.
    #[arg(long, default_value_t = HttpConfig::default().max_requests)]
    max_requests: usize,
    /// Bytes of a request's body.
    #[arg(long, default_value = "8MiB", value_parser = bytes)]
    max_body: usize,
    /// A file of API keys, `key` or `name:key` a line; with keys, only who has one may call. Behind a key, `no-train` or
    /// `no-retain` says what its traffic may not be used for.
    #[arg(long, conflicts_with = "api_keys")]
    api_key_file: Option<PathBuf>,
    /// The keys themselves, a line each.
    #[arg(env = "SELFJUDGE_API_KEYS", hide_env_values = true, long, hide = true)]
    api_keys: Option<String>,
    /// Calls a second of each key; more are answered with 429.
    #[arg(long)]
    rate_limit: Option<NonZeroU32>,
    /// Calls of a key that may come at once; by default a second's.
    #[arg(long, requires = "rate_limit")]
    rate_burst: Option<NonZeroU32>,
    /// Whose pages may call from a browser: an origin such as https://example.org, or `*`. May be given several times.
    #[arg(long)]
    cors_origin: Vec<String>,
    /// A certificate chain (PEM): the server then speaks HTTPS.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Seconds that running requests get to finish after SIGTERM.
    #[arg(long, default_value_t = 30)]
    drain_timeout: u64,
}

/// `512`, `64KiB`, `256MiB`, `2GiB`.
fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        unit => return Err(format!("`{unit}` is no unit: KiB, MiB or GiB")),
    };
    let number: usize = digits
        .parse()
        .map_err(|_| format!("`{digits}` is no number"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is more than can be addressed"))
}

impl ServeArgs {
    fn engine(&self) -> EngineConfig {
        EngineConfig {
            kv_cache_memory: self.kv_cache_memory,
            block_size: self.block_size,
            max_batch_tokens: self.max_batch_tokens,
            max_concurrent: self.max_concurrent,
            prefix_caching: !self.no_prefix_caching,
            queue: QueueLimits {
                max_requests: self.max_queued_requests,
                max_tokens: self.max_queued_tokens,
            },
            ..EngineConfig::default()
        }
    }

    fn http(&self) -> anyhow::Result<HttpConfig> {
        let keys = match (&self.api_key_file, &self.api_keys) {
            (Some(path), _) => {
                let list = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                ApiKeys::parse(&list).with_context(|| path.display().to_string())?
            }
            (None, Some(list)) => ApiKeys::parse(list).context("SELFJUDGE_API_KEYS")?,
            (None, None) => ApiKeys::default(),
        };
        anyhow::ensure!(
            self.rate_limit.is_none() || !keys.is_empty(),
            "--rate-limit counts the calls of each API key, and there are no keys: see --api-key-file"
        );
        let cors = match self.cors_origin.as_slice() {
            [] => Cors::None,
            [any] if any == "*" => Cors::Any,
            origins => Cors::Origins(
                origins
                    .iter()
                    .map(|origin| origin.parse())
                    .collect::<Result<_, _>>()
                    .context("--cors-origin")?,
            ),
        };
        Ok(HttpConfig {
            max_requests: self.max_requests,
            max_body: self.max_body,
            keys,
            admin_keys: ApiKeys::default(),
            rate_limit: self.rate_limit.map(|per_second| RateLimit {
                per_second,
                burst: self.rate_burst.unwrap_or(per_second),
            }),
            cors,
        })
    }
}

/// Serves until SIGTERM or SIGINT, and then until what runs has finished.
pub fn run(args: &ServeArgs, device: Device) -> anyhow::Result<String> {
    match &args.model {
        Some(model) => serve(args, model, &hub::resolve(model)?, device),
        None => {
            let dir = tempfile::tempdir().context("cannot unpack the pocket model")?;
            for (name, contents) in POCKET {
                std::fs::write(dir.path().join(name), contents)
                    .context("cannot unpack the pocket model")?;
            }
            serve(args, "pocket", dir.path(), device)
        }
    }
}

fn serve(args: &ServeArgs, name: &str, dir: &Path, device: Device) -> anyhow::Result<String> {
    let name = args.model_name.as_deref().unwrap_or(name);
    let http = args.http()?;
    let options = LoadOptions {
        device,
        adapter: args.adapter.clone(),
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(dir, &options)?;
    let metrics = Metrics::new(name);
    let weights = WeightStore::new(model.decoder().clone());
    let (engine, engine_thread) = Engine::start(weights, &args.engine(), metrics.engine.clone())?;
    let capacity = engine.capacity();
    let service = Service::new(engine, &model, dir, metrics.judge.clone())?;
    drop(model);
    let state = AppState::new(service, name, metrics, &http);
    let app = router(state, &http);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        let address = listener.local_addr()?;
        let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
        eprintln!(
            "{name} on {scheme}://{address}: {} tokens of KV cache ({} MiB), contexts of up to {}, {} sequences at once",
            capacity.kv_tokens,
            capacity.kv_bytes >> 20,
            capacity.max_context,
            capacity.max_concurrent,
        );
        let handle = Handle::new();
        let service = app.into_make_service();
        let mut serving = match (&args.tls_cert, &args.tls_key) {
            (Some(cert), Some(key)) => {
                let tls = RustlsConfig::from_pem_file(cert, key).await.with_context(|| {
                    format!("cannot use {} and {}", cert.display(), key.display())
                })?;
                let server = axum_server::from_tcp_rustls(listener, tls)?.handle(handle.clone());
                tokio::spawn(server.serve(service))
            }
            _ => {
                let server = axum_server::from_tcp(listener)?.handle(handle.clone());
                tokio::spawn(server.serve(service))
            }
        };
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = &mut serving => return Ok(ended??),
        }
        tracing::info!("draining: no new connections, running requests finish");
        let patience = Duration::from_secs(args.drain_timeout);
        handle.graceful_shutdown(Some(patience));
        serving.await??;
        if handle.connection_count() > 0 {
            tracing::warn!("requests were still running after {patience:?} and are aborted");
        }
        anyhow::Ok(())
    })?;
    // Connections hold engine handles; with the runtime they go.
    runtime.shutdown_timeout(Duration::from_secs(5));
    engine_thread.join();
    Ok("stopped".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("3MiB"), Ok(3 << 20));
        assert!(bytes("3MB").is_err() && bytes("x").is_err() && bytes("-1").is_err());
        assert!(bytes("99999999999GiB").is_err());
    }
}
