//! `selfjudge train dpo --follow`: runs the learner of a server as a separate process.
//!
//! It reads the log that servers write and moves the pointers that they follow. It uses the same code as a server, with an engine for
//! its own samples and verdicts, and no sockets except the operators'.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use axum_server::Handle;
use candle_core::Device;
use clap::Args;

use super::listener::{admin_hosts, keys_in, own_files_alone};
use super::prompt_args::variables;
use super::runtime::runtime;
use super::salt::SaltArgs;
use super::sockets::{Banner, Sockets};
use super::stop_signals::StopSignals;
use super::values::address;
use crate::app::{
    App, AppConfig, DataDir, LearnOptions, ModelFiles, OnDeath, PromptOptions, TrafficOptions,
    model_name,
};
use crate::http::{ApiKeys, ConnectionLimits, HttpConfig, JudgingPolicy};
use crate::learn::LearnConfig;
use crate::service::{OnLogFailure, Permitted};
use engine::EngineConfig;
use telemetry::LogFormat;
use text::{ChatSetup, Variables};
use traffic_log::{Consent, FeedbackTrust, LogConfig};
use train::BaseWeights;

/// The flags of a run on files, which have no effect on a learner: its settings are in the file of `--learn`.
const OF_FILES: [&str; 20] = [
    "batch_size",
    "beta",
    "config",
    "data",
    "epochs",
    "learning_rate",
    "log_every",
    "lora_rank",
    "max_length",
    "max_steps",
    "micro_batch_tokens",
    "no_memory_check",
    "output_dir",
    "plain",
    "quiet",
    "reference",
    "resume",
    "save_every",
    "seed",
    "stop_after",
];

#[derive(Debug, Args)]
#[command(next_help_heading = "Following a server's log")]
pub struct FollowArgs {
    /// Learn from the log of running servers instead of files, until SIGTERM.
    #[arg(long, conflicts_with_all = OF_FILES)]
    pub follow: bool,
    /// The servers' data directory, in which generations are written.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The servers' log, if it is not in the data directory.
    #[arg(long)]
    log_url: Option<String>,
    #[command(flatten)]
    salt: SaltArgs,
    /// When feedback is learned from, with the servers' value: never, corroborated (the judge agrees) or always.
    #[arg(long, default_value = "never")]
    trust_feedback: FeedbackTrust,
    /// A TOML file of the learner's settings; the defaults without a file.
    #[arg(long)]
    learn: Option<PathBuf>,
    /// The servers' chat template, if it is not the model's own.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// The servers' variables of the chat template, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = variables)]
    chat_template_kwargs: Option<Variables>,
    /// Learn even if the judge failed its self-test.
    #[arg(long, alias = "untrained-judge")]
    allow_untrained_judge: bool,
    /// A listener for operators, as on a server: /train, /generations, /events, /metrics and so on.
    #[arg(long, value_parser = address)]
    admin_listen: Option<SocketAddr>,
    /// A file of operators' keys. Without one the operators' listener must be on a loopback address.
    #[arg(long)]
    admin_key_file: Option<PathBuf>,
    /// A host name of the operators' listener, besides its address and localhost. May be given several times.
    #[arg(long)]
    admin_host: Vec<String>,
    /// A listener for /metrics, /health and /ready only, without a key.
    #[arg(long, value_parser = address)]
    metrics_listen: Option<SocketAddr>,
}

/// Learns until a signal stops it. `model`, `adapter` and `weights` are those of the servers; the pocket model if none is given.
pub fn run(
    args: &FollowArgs,
    model: Option<&str>,
    adapter: Option<&Path>,
    weights: BaseWeights,
    device: Device,
    threads: usize,
    lines: LogFormat,
) -> anyhow::Result<String> {
    own_files_alone();
    let admin_keys = match &args.admin_key_file {
        Some(path) => keys_in(path)?,
        None => ApiKeys::default(),
    };
    let admin_hosts = admin_hosts(args.admin_listen, &admin_keys, &args.admin_host)?;
    let dir = args
        .data_dir
        .as_ref()
        .context("--follow needs --data-dir")?;
    anyhow::ensure!(
        dir.is_dir(),
        "the data directory {} {}: use the server's --data-dir",
        dir.display(),
        if dir.exists() {
            "is not a directory"
        } else {
            "does not exist"
        }
    );
    let data_dir = DataDir::open(dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let config = AppConfig {
        model_name: model_name(model),
        model: ModelFiles::resolve(model)?,
        format: weights.format(),
        adapter: adapter.map(Path::to_owned),
        prompts: PromptOptions {
            chat: ChatSetup {
                template: args.chat_template.clone(),
                variables: args.chat_template_kwargs.clone().unwrap_or_default(),
                ..ChatSetup::default()
            },
            ..PromptOptions::default()
        },
        device,
        engine: EngineConfig::default(),
        kv_cache_memory: None,
        http: HttpConfig {
            admin_keys,
            admin_hosts,
            judging: JudgingPolicy {
                allow_untrained: args.allow_untrained_judge,
                ..JudgingPolicy::default()
            },
            ..HttpConfig::default()
        },
        traffic: TrafficOptions {
            log: Some(LogConfig {
                trust: args.trust_feedback,
                ..args.salt.over(match &args.log_url {
                    Some(url) => LogConfig::new(url),
                    None => data_dir.log(),
                })
            }),
            default: Consent::default(),
            allowed: Permitted::default(),
            strangers: Permitted::default(),
            on_failure: OnLogFailure::Refuse,
            trust_user: false,
        },
        learn: Some(LearnOptions {
            config: match &args.learn {
                Some(file) => LearnConfig::from_file(file)?,
                None => LearnConfig::default(),
            },
            threads,
            // This process serves no callers.
            min_share: 1.0,
            canary_share: 0.0,
            on_death: OnDeath::End,
        }),
        data_dir: Some(data_dir),
        self_test: true,
        memory_check: true,
    };
    let runtime = runtime(2)?;
    let (ended, stopped) = runtime.block_on(async {
        let app = App::start(config).await?;
        let mut stop = StopSignals::catch()?;
        tracing::info!("learning from {}", dir.display());
        let sockets = Sockets::open(None, args.admin_listen, args.metrics_listen, None).await?;
        let banner = Banner::of(&app, &sockets, lines);
        sockets.serve(&app, &Handle::new(), &ConnectionLimits::default())?;
        banner.say();
        let ended = tokio::select! {
            () = stop.received() => Ok(()),
            why = app.failure() => Err(anyhow::anyhow!(why)),
        };
        anyhow::Ok((ended, app.stop().await))
    })?;
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    stopped.join();
    ended.map(|()| "stopped".to_owned())
}
