//! `selfjudge serve`: wires weights to engine, engine to service, service to HTTP, and takes them down in that order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::engine::{Engine, EngineConfig, QueueLimits};
use crate::http::{AppState, HttpLimits, router};
use crate::model::{LanguageModel, LoadOptions, Weights, WeightsVersion, hub};
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
    #[arg(long, default_value_t = HttpLimits::default().max_requests)]
    max_requests: usize,
    /// Bytes of a request's body.
    #[arg(long, default_value = "8MiB", value_parser = bytes)]
    max_body: usize,
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
        }
    }

    fn http(&self) -> HttpLimits {
        HttpLimits {
            max_requests: self.max_requests,
            max_body: self.max_body,
        }
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
    let options = LoadOptions {
        device,
        adapter: args.adapter.clone(),
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(dir, &options)?;
    let metrics = Metrics::new(name);
    let weights = Weights {
        version: WeightsVersion(1),
        decoder: model.decoder().clone(),
    };
    let (engine, engine_thread) = Engine::start(weights, &args.engine(), metrics.engine.clone())?;
    let capacity = engine.capacity();
    let service = Service::new(engine, &model, dir, metrics.judge.clone())?;
    drop(model);
    let state = AppState::new(service, name, metrics, args.http());
    let app = router(state, args.http());

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        let address = listener.local_addr()?;
        eprintln!(
            "{name} on http://{address}: {} tokens of KV cache ({} MiB), contexts of up to {}, {} sequences at once",
            capacity.kv_tokens,
            capacity.kv_bytes >> 20,
            capacity.max_context,
            capacity.max_concurrent,
        );
        let (stop, stopping) = watch::channel(false);
        let mut serving = tokio::spawn(
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped(stopping))
                .into_future(),
        );
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = &mut serving => ended??,
        }
        tracing::info!("draining: no new connections, running requests finish");
        stop.send_replace(true);
        let patience = Duration::from_secs(args.drain_timeout);
        if tokio::time::timeout(patience, &mut serving).await.is_err() {
            tracing::warn!("requests were still running after {patience:?} and are aborted");
            serving.abort();
        }
        anyhow::Ok(())
    })?;
    // Connections hold engine handles; with the runtime they go.
    runtime.shutdown_timeout(Duration::from_secs(5));
    engine_thread.join();
    Ok("stopped".to_owned())
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopping.wait_for(|&stop| stop).await;
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
