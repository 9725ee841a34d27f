//! `selfjudge serve`: converts the arguments to a program with its sockets, runs it, and shuts it down in order.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum_server::Handle;
use candle_core::Device;
use clap::{Args, ValueEnum};

use super::keeping::KeepingArgs;
use super::listener::{admin_hosts, keys_in, max_connections, own_files_alone, warn_of_short};
use super::memory::give_back_when_idle;
use super::prompt_args::PromptArgs;
use super::runtime::runtime;
use super::sockets::{Banner, Sockets};
use super::stop_signals::StopSignals;
use super::values::{Weights, address, bytes, fraction, ip, name, positive, share, some_bytes};
use crate::app::{App, AppConfig, LearnOptions, ModelFiles, OnDeath, model_name};
use crate::http::{
    ApiKeys, ConnectionLimits, Cors, HttpConfig, JudgingPolicy, RateLimit, TrustedProxies,
};
use crate::learn::LearnConfig;
use engine::{EngineConfig, KvCacheDtype, QueueLimits, TenantShare};
use judge::OnDisagreement;
use kernels::device::ArbiterConfig;
use telemetry::LogFormat;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model directory, a GGUF file or a hub id; by default the pocket model that is part of the program.
    #[arg(long, env = "SELFJUDGE_MODEL")]
    model: Option<String>,
    /// Type of the weights in memory: auto, f32, bf16, int8 or int4; a weight takes 4, 2, 1.06 or 0.56 bytes. int8 and int4 quantise any
    /// checkpoint, and with int4 the embedding and the head are int8. auto keeps what the checkpoint has: bf16 for one in bf16, a GGUF
    /// file's own integers, and f32 for all others. A server that learns trains over the same integers, or over f32; not with bf16.
    #[arg(
        long,
        visible_alias = "dtype",
        default_value = "auto",
        env = "SELFJUDGE_WEIGHTS"
    )]
    weights: Weights,
    /// A PEFT adapter directory to apply to the model. With --learn, learning continues from it.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// The model's name in answers and metrics; by default the hub id, or the last part of the path of the directory or file.
    #[arg(long, value_parser = name)]
    model_name: Option<String>,
    /// The address to listen on: HOST:PORT, or a port of 127.0.0.1.
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = address, env = "SELFJUDGE_LISTEN")]
    listen: SocketAddr,
    /// Memory reserved for keys and values: bytes, or with a unit: K, M, G, T (or KiB, MiB, GiB, TiB) are powers of 1024, KB, MB, GB, TB
    /// of 1000. By default the least of: full contexts for max-concurrent sequences (at least 256 MiB), half of the memory that the
    /// weights leave, and 4 GiB.
    #[arg(long, value_parser = bytes, env = "SELFJUDGE_KV_CACHE_MEMORY")]
    kv_cache_memory: Option<usize>,
    /// Start without comparing the needed memory (weights, cache, activations) with the available memory of the machine and the cgroup.
    #[arg(long)]
    no_memory_check: bool,
    /// Type of cached keys and values: auto (the weights' type), f32, or bf16, which takes half the memory of f32.
    #[arg(long, default_value = "auto", env = "SELFJUDGE_KV_CACHE_DTYPE")]
    kv_cache_dtype: KvCacheDtype,
    /// Maximum tokens of prompt and answer together; by default the model's number of positions, or as many as the cache
    /// holds. A server that learns passes over logged prompts that are longer.
    #[arg(long, env = "SELFJUDGE_MAX_MODEL_LEN")]
    max_model_len: Option<usize>,
    /// Tokens per block of the KV cache.
    #[arg(long, default_value_t = EngineConfig::default().block_size, value_parser = positive)]
    block_size: usize,
    /// Maximum tokens per step: larger values take more memory and delay the next tokens of other sequences. A GPU needs thousands.
    #[arg(long, default_value_t = EngineConfig::default().max_batch_tokens, value_parser = positive)]
    max_batch_tokens: usize,
    /// Milliseconds between two tokens of a sequence that prompts beside it should not exceed: steps compute as many prompt tokens
    /// as fit by their measured cost, though prompts get at least half of the time. 0 computes up to max-batch-tokens in every step.
    #[arg(long, default_value_t = 75, value_name = "MS")]
    target_itl: u64,
    /// Maximum tokens proposed ahead of a sequence that runs alone, from what followed its last tokens earlier in the prompt or answer.
    /// Answers stay the same to the bit. Tokens are proposed only where the measured costs of steps show that it is faster; 0 never does.
    #[arg(long, default_value_t = EngineConfig::default().max_drafts, value_name = "TOKENS")]
    max_draft_tokens: usize,
    /// Maximum concurrent sequences.
    #[arg(long, default_value_t = EngineConfig::default().max_concurrent, value_parser = positive)]
    max_concurrent: usize,
    /// Disable prefix caching: every prompt is computed from its beginning.
    #[arg(long)]
    no_prefix_caching: bool,
    /// Share the prefix cache among all callers. By default only calls of one key (without keys: of one
    /// address) share it, because the number of cached tokens reveals the prompts of other callers.
    #[arg(long, conflicts_with = "no_prefix_caching")]
    shared_prefix_cache: bool,
    /// The share of every limit (calls and their memory, waiting requests and tokens, connections) that one tenant may use, above 0
    /// and at most 1. A tenant is a key or, without keys, the address of a client.
    #[arg(long, default_value = "0.5", value_parser = share)]
    tenant_share: TenantShare,
    /// The address of a proxy that names its clients in X-Forwarded-For; the last address there then identifies the tenant.
    /// May be given several times.
    #[arg(long, value_parser = ip)]
    trusted_proxy: Vec<IpAddr>,
    /// Maximum open connections; others are closed at once. Bounded by the system's limit of open files.
    #[arg(long, default_value_t = ConnectionLimits::default().max_connections, value_parser = positive)]
    max_connections: usize,
    /// Maximum requests that wait for the engine; more are answered with 429.
    #[arg(long, default_value_t = EngineConfig::default().queue.max_requests, value_parser = positive)]
    max_queued_requests: usize,
    /// Maximum prompt tokens that wait for the engine; more are answered with 429.
    #[arg(long, default_value_t = EngineConfig::default().queue.max_tokens, value_parser = positive)]
    max_queued_tokens: usize,
    /// Maximum concurrent calls; more are answered with 429.
    #[arg(long, default_value_t = HttpConfig::default().max_requests, value_parser = positive)]
    max_requests: usize,
    /// Maximum bytes of a request's body, with units as in --kv-cache-memory.
    #[arg(long, default_value = "8MiB", value_parser = some_bytes)]
    max_body: usize,
    /// Maximum bytes of the bodies and answers of all calls in memory, with units as in --kv-cache-memory; calls beyond are answered with
    /// 429.
    #[arg(long, default_value = "512MiB", value_parser = bytes)]
    call_memory: usize,
    /// Maximum tokens of one call: prompts x samples x tokens per answer. By default 1048576, or max-concurrent times the
    /// context's length if that is more.
    #[arg(long)]
    max_call_tokens: Option<NonZeroUsize>,
    /// A file of API keys, `key` or `name:key` per line; with keys, every call needs one. After a key, `no-train` or
    /// `no-retain` restricts the use of its traffic. Records belong to the key's name: each name must be unique, and a key
    /// without a name is named by its digest.
    #[arg(long, conflicts_with = "api_keys")]
    api_key_file: Option<PathBuf>,
    /// The API keys themselves, one per line.
    #[arg(env = "SELFJUDGE_API_KEYS", hide_env_values = true, long, hide = true)]
    api_keys: Option<String>,
    /// Calls per second of each key; more are answered with 429.
    #[arg(long)]
    rate_limit: Option<NonZeroU32>,
    /// Calls of a key that may arrive in a burst; by default as many as --rate-limit allows in a second.
    #[arg(long)]
    rate_burst: Option<NonZeroU32>,
    /// An origin whose pages may call from a browser, such as https://example.org, or `*` for all. May be given several times. No page may
    /// call the operators' listener.
    #[arg(long)]
    cors_origin: Vec<String>,
    /// A certificate chain (PEM) for HTTPS.
    #[arg(long)]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long)]
    tls_key: Option<PathBuf>,
    /// Seconds after SIGTERM that running requests have to finish.
    #[arg(long, default_value_t = 30)]
    drain_timeout: u64,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    keeping: KeepingArgs,
    #[command(flatten)]
    learning: LearningArgs,
}

/// The use of verdicts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Judging")]
pub struct JudgingArgs {
    /// Let a judge that failed its self-test choose answers (`best_of`) and teach (--learn).
    #[arg(
        long,
        alias = "untrained-judge",
        env = "SELFJUDGE_ALLOW_UNTRAINED_JUDGE"
    )]
    allow_untrained_judge: bool,
    /// The winner of a pair whose two orders disagree, if the call does not set it: average (the answer with the higher
    /// mean probability) or undecided (none).
    #[arg(long, default_value = "average", env = "SELFJUDGE_ON_DISAGREEMENT")]
    on_disagreement: DisagreementArg,
    /// Do not test the judge at the start (about 24 pairs in both orders, 10 seconds at most).
    #[arg(long)]
    no_self_test: bool,
}

/// The values of `--on-disagreement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DisagreementArg {
    Average,
    Undecided,
}

impl JudgingArgs {
    fn policy(&self) -> JudgingPolicy {
        JudgingPolicy {
            allow_untrained: self.allow_untrained_judge,
            on_disagreement: match self.on_disagreement {
                DisagreementArg::Average => OnDisagreement::Average,
                DisagreementArg::Undecided => OnDisagreement::Undecided,
            },
        }
    }
}

/// The share of the callers that a canary answers, unless a flag gives another.
const CANARY_SHARE: f64 = 0.05;

/// Learning from traffic.
#[derive(Debug, Args)]
#[command(next_help_heading = "Learning")]
pub struct LearningArgs {
    /// Learn from logged traffic with the settings in this TOML file, or with `default` settings.
    #[arg(long, env = "SELFJUDGE_LEARN")]
    learn: Option<PathBuf>,
    /// Threads of the trainer; by default half of all.
    #[arg(long, value_parser = positive)]
    trainer_threads: Option<usize>,
    /// Minimum share of the time, from 0 to 1, that the trainer gets while serving needs every thread (or the GPU).
    #[arg(long, default_value_t = ArbiterConfig::default().min_share, value_parser = fraction)]
    trainer_share: f64,
    /// Share of the callers that a canary answers; the server tells them apart by their keys or, with --trust-user, by `user`
    /// [default: 0.05].
    #[arg(long, value_parser = fraction)]
    canary_share: Option<f64>,
    /// A separate listener for operators: /train, /generations, /events and so on. Without operators' keys it must be on a loopback
    /// address.
    #[arg(long, value_parser = address, env = "SELFJUDGE_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// A file of operators' keys; with keys, the operators' routes are on the common listener too.
    #[arg(long, conflicts_with = "admin_keys")]
    admin_key_file: Option<PathBuf>,
    /// The operators' keys themselves, one per line.
    #[arg(
        env = "SELFJUDGE_ADMIN_KEYS",
        hide_env_values = true,
        long,
        hide = true
    )]
    admin_keys: Option<String>,
    /// A host name of the operators' listener, besides its address and localhost; calls with any other `Host` are refused.
    /// May be given several times.
    #[arg(long)]
    admin_host: Vec<String>,
    /// A listener for /metrics, /health and /ready only, without a key. If callers have keys, /metrics on the common listener requires
    /// an operator's key.
    #[arg(long, value_parser = address, env = "SELFJUDGE_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
}

impl LearningArgs {
    fn options(&self) -> anyhow::Result<Option<LearnOptions>> {
        let Some(file) = &self.learn else {
            return Ok(None);
        };
        let config = match file.to_str() {
            Some("default") => LearnConfig::default(),
            _ => LearnConfig::from_file(file)?,
        };
        let threads = self
            .trainer_threads
            .unwrap_or(rayon::current_num_threads() / 2);
        Ok(Some(LearnOptions {
            config,
            threads: threads.max(1),
            min_share: self.trainer_share,
            canary_share: self.canary_share.unwrap_or(CANARY_SHARE),
            on_death: OnDeath::Restart,
        }))
    }
}

/// Parses the keys in an environment variable.
fn listed(list: &str, variable: &'static str) -> anyhow::Result<ApiKeys> {
    let keys = ApiKeys::parse(list).context(variable)?;
    warn_of_short(&keys, variable);
    Ok(keys)
}

impl ServeArgs {
    fn engine(&self) -> EngineConfig {
        EngineConfig {
            kv_cache_dtype: self.kv_cache_dtype,
            max_model_len: self.max_model_len,
            block_size: self.block_size,
            max_batch_tokens: self.max_batch_tokens,
            max_drafts: self.max_draft_tokens,
            target_itl: (self.target_itl > 0).then(|| Duration::from_millis(self.target_itl)),
            max_concurrent: self.max_concurrent,
            prefix_caching: !self.no_prefix_caching,
            shared_prefix_cache: self.shared_prefix_cache,
            tenant_share: self.tenant_share,
            queue: QueueLimits {
                max_requests: self.max_queued_requests,
                max_tokens: self.max_queued_tokens,
            },
            ..EngineConfig::default()
        }
    }

    fn http(&self) -> anyhow::Result<HttpConfig> {
        let admin_keys = match (&self.learning.admin_key_file, &self.learning.admin_keys) {
            (Some(path), _) => keys_in(path)?,
            (None, Some(list)) => listed(list, "SELFJUDGE_ADMIN_KEYS")?,
            (None, None) => ApiKeys::default(),
        };
        let keys = match (&self.api_key_file, &self.api_keys) {
            (Some(path), _) => keys_in(path)?,
            (None, Some(list)) => listed(list, "SELFJUDGE_API_KEYS")?,
            (None, None) => ApiKeys::default(),
        };
        let share = self.tenant_share.of(self.call_memory);
        anyhow::ensure!(
            self.max_body <= share,
            "--max-body is {} bytes, but a tenant may hold only {share} bytes (--tenant-share of --call-memory), so such a body could \
             never be read",
            self.max_body
        );
        anyhow::ensure!(
            self.rate_limit.is_none() || !keys.is_empty(),
            "--rate-limit limits the calls of each API key, but there are no keys; set --api-key-file"
        );
        let canary = self.learning.canary_share.unwrap_or_default();
        anyhow::ensure!(
            canary == 0.0 || !keys.is_empty() || self.keeping.trusts_user(),
            "--canary-share gives a canary a share of the callers, but the server cannot tell them apart; set --api-key-file or --trust-user"
        );
        let cors = Cors::parse(&self.cors_origin)
            .map_err(anyhow::Error::msg)
            .context("--cors-origin")?;
        let admin_listen = self.learning.admin_listen;
        let admin_hosts = admin_hosts(admin_listen, &admin_keys, &self.learning.admin_host)?;
        Ok(HttpConfig {
            max_requests: self.max_requests,
            tenant_share: self.tenant_share,
            trusted_proxies: TrustedProxies::new(self.proxies()),
            max_body: self.max_body,
            call_memory: self.call_memory,
            max_call_tokens: self.max_call_tokens,
            keys,
            admin_keys,
            rate_limit: self.rate_limit.map(|per_second| RateLimit {
                per_second,
                burst: self.rate_burst.unwrap_or(per_second),
            }),
            cors,
            admin_hosts,
            judging: self.judging.policy(),
            ..HttpConfig::default()
        })
    }

    fn proxies(&self) -> std::sync::Arc<[IpAddr]> {
        let proxies = self.trusted_proxy.iter();
        proxies.map(IpAddr::to_canonical).collect()
    }

    fn connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            max_connections: max_connections(self.max_connections),
            share: self.tenant_share,
            proxies: self.proxies(),
            ..ConnectionLimits::default()
        }
    }
}

impl ServeArgs {
    /// Converts the arguments to the program's settings.
    fn app(&self, device: Device) -> anyhow::Result<AppConfig> {
        let http = self.http()?;
        let data_dir = self.keeping.data_dir()?;
        let named = self.model.as_deref();
        Ok(AppConfig {
            model_name: match &self.model_name {
                Some(name) => name.clone(),
                None => model_name(named),
            },
            model: ModelFiles::resolve(named)?,
            format: self.weights.0,
            adapter: self.adapter.clone(),
            prompts: self.prompts.options(),
            device,
            engine: self.engine(),
            kv_cache_memory: self.kv_cache_memory,
            http,
            traffic: self.keeping.options(data_dir.as_ref())?,
            learn: self.learning.options()?,
            data_dir,
            self_test: !self.judging.no_self_test,
            memory_check: !self.no_memory_check,
        })
    }

    fn tls(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.tls_cert.as_ref().zip(self.tls_key.as_ref())
    }
}

/// Serves until SIGTERM or SIGINT, and then until the running requests have finished.
pub fn run(args: &ServeArgs, device: Device, lines: LogFormat) -> anyhow::Result<String> {
    own_files_alone();
    let runtime = runtime(2)?;
    let (served, stopped) = runtime.block_on(async {
        let app = App::start(args.app(device)?).await?;
        let served = serve(args, &app, lines).await;
        anyhow::Ok((served, app.stop().await))
    })?;
    // Connections hold engine handles, which the runtime's shutdown drops.
    runtime.shutdown_timeout(Duration::from_secs(5));
    stopped.join();
    served.map(|()| "stopped".to_owned())
}

/// Opens the listeners, prints their addresses, and drains them on a signal.
async fn serve(args: &ServeArgs, app: &App, lines: LogFormat) -> anyhow::Result<()> {
    let mut stop = StopSignals::catch()?;
    let handle = Handle::new();
    let LearningArgs {
        admin_listen,
        metrics_listen,
        ..
    } = args.learning;
    // The banner is printed only once everything is available.
    let sockets =
        Sockets::open(Some(args.listen), admin_listen, metrics_listen, args.tls()).await?;
    let banner = Banner::of(app, &sockets, lines);
    let mut serving = sockets
        .serve(app, &handle, &args.connections())?
        .context("there is a common listener; this is a bug")?;
    banner.say();
    tokio::spawn(give_back_when_idle(app.metrics.engine.clone()));
    tokio::select! {
        () = stop.received() => {}
        ended = &mut serving => return Ok(ended??),
        why = app.failure() => {
            handle.shutdown();
            anyhow::bail!(why);
        }
    }
    tracing::info!("draining: no new connections, running requests finish");
    let patience = Duration::from_secs(args.drain_timeout);
    handle.graceful_shutdown(Some(patience));
    serving.await??;
    if handle.connection_count() > 0 {
        tracing::warn!("requests were still running after {patience:?} and are aborted");
    }
    Ok(())
}
