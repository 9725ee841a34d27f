//! A load generator for a running server. Each subcommand is a scenario, and reports its numbers as a table and as JSON.
//!
//! The generator only uses HTTP. `steady` and `replay` run against any server with `/v1/completions`; the other scenarios need
//! selfjudge's own routes.
//!
//! | file | contents |
//! |---|---|
//! | `call`, `client` | one request and its outcome |
//! | `drive` | loops of many requests: closed and open |
//! | `server` | the server's metrics and memory |
//! | `admin` | the learner, through the operators' listener |
//! | `process` | a server that a scenario starts |
//! | `summary`, `stats` | a row of many records |
//! | `workload`, `trace` | prompts, and recorded traffic |
//! | `scenario/` | the scenarios, one file each |
//! | `attack/` | the requests of a hostile caller, for `scenario/attack` and the integration tests |
//! | `judging/` | a tournament beside clients that judge through completions |

mod admin;
mod attack;
mod call;
mod client;
mod drive;
mod judging;
mod process;
mod scenario;
mod server;
mod stats;
mod summary;
mod trace;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use client::Client;
use server::Server;
use summary::{Limits, Report};

#[derive(Debug, Parser)]
#[command(about = "A load generator for a running selfjudge server")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Args)]
struct Common {
    /// The URL of the server, with plain HTTP.
    #[arg(long, global = true, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The process id of the server, to read its memory.
    #[arg(long, global = true)]
    pid: Option<u32>,
    /// The file to write the numbers to.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Seconds that a request may take.
    #[arg(long, global = true, default_value_t = 300.0)]
    timeout: f64,
    /// Milliseconds to the first token up to which a request counts as good.
    #[arg(long, global = true, default_value_t = 1000.0)]
    ttft_limit: f64,
    /// Milliseconds between tokens, as the mean of a request, up to which it counts as good.
    #[arg(long, global = true, default_value_t = 100.0)]
    itl_limit: f64,
    /// The number of token ids that prompts are drawn from. All must be plain words or bytes of the model.
    #[arg(long, global = true, default_value_t = 370)]
    vocab: u32,
    /// The seed of the prompts. Without it each run draws another seed, so that no cache holds the prompts.
    #[arg(long, global = true)]
    seed: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Runs a fixed number of clients, each of which sends its next request when its last one is answered.
    Steady(scenario::steady::Steady),
    /// Replays a recorded trace at its own arrival times, scaled to the model's context and the server's capacity.
    Replay(scenario::replay::Replay),
    /// Sends answers, verdicts, tournaments and best-of-N together.
    Mixed(scenario::mixed::Mixed),
    /// Runs slow readers and clients that leave beside ordinary clients. Afterwards the server must be idle.
    Slow(scenario::slow::Slow),
    /// Sends several times the capacity, which is measured first.
    Overload(scenario::overload::Overload),
    /// Sends a long mixed load with clients that leave. Memory must stay flat.
    Soak(scenario::soak::Soak),
    /// Sends the same load without learning and while the server learns.
    Interference(scenario::interference::Interference),
    /// Swaps the weights again and again under load.
    Swap(scenario::swap::Swap),
    /// Kills the server again and again. No acknowledged record may be lost.
    Kills(scenario::kills::Kills),
    /// Runs a hostile caller beside an ordinary one, attack by attack and with all attacks at once.
    Attack(scenario::attack::Attacks),
    /// Measures a tournament beside clients that judge through completions.
    Judging(judging::Judging),
}

fn main() -> ExitCode {
    match measure(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // In one line and without a backtrace: most errors are those of arguments, files and the server.
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the scenario and reports its numbers.
fn measure(cli: &Cli) -> anyhow::Result<()> {
    // The load generator uses one thread and leaves the other cores to the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(run(cli))?;
    print!("{}", report.to_text());
    if let Some(path) = &cli.common.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    anyhow::ensure!(
        report.violations.is_empty(),
        "the server broke a promise; see the report above"
    );
    Ok(())
}

async fn run(cli: &Cli) -> anyhow::Result<Report> {
    let common = &cli.common;
    let client = Client::new(&common.url, Duration::try_from_secs_f64(common.timeout)?)?;
    let server = Server::new(client, common.pid);
    let limits = Limits {
        ttft: common.ttft_limit / 1e3,
        itl: common.itl_limit / 1e3,
    };
    let context = scenario::Context {
        server,
        limits,
        vocab: common.vocab,
        seed: common.seed.unwrap_or_else(rand::random),
    };
    let mut report = cli.scenario.run(&context).await?;
    report.notes.push(format!("seed {}", context.seed));
    Ok(report)
}

impl Scenario {
    async fn run(&self, context: &scenario::Context) -> anyhow::Result<Report> {
        match self {
            Self::Steady(scenario) => scenario.run(context).await,
            Self::Replay(scenario) => scenario.run(context).await,
            Self::Mixed(scenario) => scenario.run(context).await,
            Self::Slow(scenario) => scenario.run(context).await,
            Self::Overload(scenario) => scenario.run(context).await,
            Self::Soak(scenario) => scenario.run(context).await,
            Self::Interference(scenario) => scenario.run(context).await,
            Self::Swap(scenario) => scenario.run(context).await,
            Self::Kills(scenario) => scenario.run(context).await,
            Self::Attack(scenario) => scenario.run(context).await,
            Self::Judging(scenario) => scenario.run(context).await,
        }
    }
}
