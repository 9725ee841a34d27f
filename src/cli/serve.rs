//! `selfjudge serve`: what was said, turned into a program with its sockets, and taken down in order.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum_server::Handle;
use candle_core::Device;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::keeping::KeepingArgs;
use super::listener::{admin_hosts, keys_in, max_connections, own_files_alone, warn_of_short};
use super::memory::give_back_when_idle;
use super::prompt_args::PromptArgs;
use super::runtime::runtime;
use super::sockets::{Banner, Sockets};
use super::values::{address, bytes, fraction, ip, name, positive, share, some_bytes};
use crate::app::{App, AppConfig, LearnOptions, ModelFiles, OnDeath, model_name};
use crate::device::ArbiterConfig;
use crate::engine::{EngineConfig, KvCacheDtype, QueueLimits, TenantShare};
use crate::http::{
    ApiKeys, ConnectionLimits, Cors, HttpConfig, JudgingPolicy, RateLimit, TrustedProxies,
};
use crate::learn::LearnConfig;
use crate::service::OnDisagreement;
use crate::telemetry::LogFormat;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model directory or hub id; by default the pocket model that is part of the program.
    #[arg(long, env = "SELFJUDGE_MODEL")]
    model: Option<String>,
    /// A PEFT adapter directory to lay over the model. With --learn, learning goes on from it.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the model is called in answers and metrics; by default the hub id, or the last part of the directory's path.
    #[arg(long, value_parser = name)]
    model_name: Option<String>,
    #[command(flatten)]
    prompts: PromptArgs,
    /// The address that is listened on: HOST:PORT, or a port of 127.0.0.1 alone.
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = address, env = "SELFJUDGE_LISTEN")]
    listen: SocketAddr,
    /// Memory reserved for keys and values: bytes, or with a unit: K, M, G (or KiB, MiB, GiB) are powers of 1024, KB, MB, GB of 1000.
    #[arg(long, default_value = "256MiB", value_parser = bytes, env = "SELFJUDGE_KV_CACHE_MEMORY")]
    kv_cache_memory: usize,
    /// Start without comparing the memory that is needed (weights, cache, activations) with what the machine and the cgroup have left.
    #[arg(long)]
    no_memory_check: bool,
    /// What keys and values are kept in: auto (as the weights are), f32, or bf16, which takes half the memory of f32.
    #[arg(long, default_value = "auto", env = "SELFJUDGE_KV_CACHE_DTYPE")]
    kv_cache_dtype: KvCacheDtype,
    /// Tokens that prompt and answer may have together; by default all that the model has positions for. The cache has to hold one
    /// such sequence. Not for a server that learns: it answers logged prompts of any length.
    #[arg(long, conflicts_with = "learn", env = "SELFJUDGE_MAX_MODEL_LEN")]
    max_model_len: Option<usize>,
    /// Tokens of a block of the KV cache.
    #[arg(long, default_value_t = EngineConfig::default().block_size, value_parser = positive)]
    block_size: usize,
    /// Tokens computed in a step: more take more memory, and let others wait longer for their next token. A GPU wants thousands.
    #[arg(long, default_value_t = EngineConfig::default().max_batch_tokens, value_parser = positive)]
    max_batch_tokens: usize,
    /// Sequences that run at once.
    #[arg(long, default_value_t = EngineConfig::default().max_concurrent, value_parser = positive)]
    max_concurrent: usize,
    /// Disable prefix caching: every prompt is computed from its beginning.
    #[arg(long)]
    no_prefix_caching: bool,
    /// Let all callers find each other's prompts in the prefix cache. By default only calls of one key (without keys: of one
    /// address) share it, because how much of a prompt is cached says what others have asked.
    #[arg(long, conflicts_with = "no_prefix_caching")]
    shared_prefix_cache: bool,
    /// The part of every limit (calls and their memory, waiting requests and tokens, connections) that one tenant may hold, above 0 and at most 1. A tenant
    /// is a key, without keys the address of a client.
    #[arg(long, default_value = "0.5", value_parser = share)]
    tenant_share: TenantShare,
    /// The address of a proxy that names its clients in X-Forwarded-For: their shares are then told apart by the last address in
    /// it. May be given several times.
    #[arg(long, value_parser = ip)]
    trusted_proxy: Vec<IpAddr>,
    /// Connections that may be open at once; others are closed at once. No more than the system's limit of open files allows.
    #[arg(long, default_value_t = ConnectionLimits::default().max_connections, value_parser = positive)]
    max_connections: usize,
    /// Requests that may wait for the engine; more are answered with 429.
    #[arg(long, default_value_t = EngineConfig::default().queue.max_requests, value_parser = positive)]
    max_queued_requests: usize,
    /// Prompt tokens that may wait for the engine; more are answered with 429.
    #[arg(long, default_value_t = EngineConfig::default().queue.max_tokens, value_parser = positive)]
    max_queued_tokens: usize,
    /// Calls that are answered at once; more are answered with 429.
    #[arg(long, default_value_t = HttpConfig::default().max_requests, value_parser = positive)]
    max_requests: usize,
    /// Bytes of a request's body.
    #[arg(long, default_value = "8MiB", value_parser = some_bytes)]
    max_body: usize,
    /// Bytes that the bodies and answers of all calls may take together while they are in memory; calls beyond are answered with 429.
    #[arg(long, default_value = "512MiB", value_parser = bytes)]
    call_memory: usize,
    /// Tokens that one call may ask for: prompts x samples x tokens of an answer. By default 1048576, or max-concurrent times the
    /// context's length if that is more.
    #[arg(long)]
    max_call_tokens: Option<NonZeroUsize>,
    /// A file of API keys, `key` or `name:key` a line; with keys, only who has one may call. Behind a key, `no-train` or
    /// `no-retain` says what its traffic may not be used for. A name is what a key's records belong to: each is there once, and a key
    /// without one is named by its digest.
    #[arg(long, conflicts_with = "api_keys")]
    api_key_file: Option<PathBuf>,
    /// The keys themselves, a line each.
    #[arg(env = "SELFJUDGE_API_KEYS", hide_env_values = true, long, hide = true)]
    api_keys: Option<String>,
    /// Calls a second of each key; more are answered with 429.
    #[arg(long)]
    rate_limit: Option<NonZeroU32>,
    /// Calls of a key that may come at once; by default as many as --rate-limit allows in a second.
    #[arg(long, requires = "rate_limit")]
    rate_burst: Option<NonZeroU32>,
    /// Whose pages may call from a browser: an origin such as https://example.org, or `*` alone. May be given several times. None may
    /// call the operators' listener.
    #[arg(long)]
    cors_origin: Vec<String>,
    /// A certificate chain (PEM): the server then speaks HTTPS.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    keeping: KeepingArgs,
    #[command(flatten)]
    learning: LearningArgs,
    /// Seconds that running requests get to finish after SIGTERM.
    #[arg(long, default_value_t = 30)]
    drain_timeout: u64,
}

/// What is done with verdicts.
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
    /// Who wins a pair whose two orders name different answers, where the call does not say it: average (the answer with the higher
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

/// Learning from it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Learning")]
pub struct LearningArgs {
    /// Learn from logged traffic by this TOML file, or by the defaults where it is `default`.
    #[arg(long, requires = "data_dir", env = "SELFJUDGE_LEARN")]
    learn: Option<PathBuf>,
    /// Threads of the trainer; by default half of all.
    #[arg(long, value_parser = positive)]
    trainer_threads: Option<usize>,
    /// Of the time in which serving needs every thread (or the GPU), the share that the trainer has all the same, 0 to 1.
    #[arg(long, default_value_t = ArbiterConfig::default().min_share, value_parser = fraction)]
    trainer_share: f64,
    /// The share of the callers that a canary answers, while there is one.
    #[arg(long, default_value_t = 0.05, value_parser = fraction)]
    canary_share: f64,
    /// A listener of the operators' own: /train, /generations, /events and the like. Without operators' keys it must be on a loopback
    /// address.
    #[arg(long, value_parser = address, env = "SELFJUDGE_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// A file of operators' keys; with one their routes are on the common listener too.
    #[arg(long, conflicts_with = "admin_keys")]
    admin_key_file: Option<PathBuf>,
    /// The operators' keys themselves, a line each.
    #[arg(
        env = "SELFJUDGE_ADMIN_KEYS",
        hide_env_values = true,
        long,
        hide = true
    )]
    admin_keys: Option<String>,
    /// A name by which the operators' listener is called, besides its address and localhost: calls under any other `Host` are refused.
    /// May be given several times.
    #[arg(long, requires = "admin_listen")]
    admin_host: Vec<String>,
    /// A listener for /metrics, /health and /ready alone, without a key. Where callers have keys, /metrics on the common listener asks for
    /// an operator's.
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
            canary_share: self.canary_share,
            on_death: OnDeath::Restart,
        }))
    }
}

/// The keys that a variable of the environment lists.
fn listed(list: &str, variable: &'static str) -> anyhow::Result<ApiKeys> {
    let keys = ApiKeys::parse(list).context(variable)?;
    warn_of_short(&keys, variable);
    Ok(keys)
}

impl ServeArgs {
    fn engine(&self) -> EngineConfig {
        EngineConfig {
            kv_cache_memory: self.kv_cache_memory,
            kv_cache_dtype: self.kv_cache_dtype,
            max_model_len: self.max_model_len,
            block_size: self.block_size,
            max_batch_tokens: self.max_batch_tokens,
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
            "--max-body is {} bytes, and a tenant may hold {share} bytes (--tenant-share of --call-memory): no such body could be read",
            self.max_body
        );
        anyhow::ensure!(
            self.rate_limit.is_none() || !keys.is_empty(),
            "--rate-limit counts the calls of each API key, and there are no keys: see --api-key-file"
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
    /// What the command line means.
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
            adapter: self.adapter.clone(),
            prompts: self.prompts.options(),
            device,
            engine: self.engine(),
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

/// Serves until SIGTERM or SIGINT, and then until what runs has finished.
pub fn run(args: &ServeArgs, device: Device, lines: LogFormat) -> anyhow::Result<String> {
    own_files_alone();
    let runtime = runtime(2)?;
    let (served, stopped) = runtime.block_on(async {
        let app = App::start(args.app(device)?).await?;
        let served = serve(args, &app, lines).await;
        anyhow::Ok((served, app.stop().await))
    })?;
    // Connections hold engine handles; with the runtime they go.
    runtime.shutdown_timeout(Duration::from_secs(5));
    stopped.join();
    served.map(|()| "stopped".to_owned())
}

/// Opens the listeners, says so, and drains them when told to.
async fn serve(args: &ServeArgs, app: &App, lines: LogFormat) -> anyhow::Result<()> {
    let handle = Handle::new();
    let LearningArgs {
        admin_listen,
        metrics_listen,
        ..
    } = args.learning;
    // Nothing is said of a server before it has all it needs.
    let sockets =
        Sockets::open(Some(args.listen), admin_listen, metrics_listen, args.tls()).await?;
    let banner = Banner::of(app, &sockets, lines);
    let mut serving = sockets
        .serve(app, &handle, &args.connections())?
        .context("there is a common listener; this is a bug")?;
    banner.say();
    tokio::spawn(give_back_when_idle(app.metrics.engine.clone()));
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
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
