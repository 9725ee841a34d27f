//! Load on a running server: one scenario a subcommand, numbers as a table and as JSON.
//!
//! It only speaks HTTP. `steady` and `replay` run against any server with `/v1/completions`; the others need selfjudge's own routes.
//!
//! | file | what |
//! |---|---|
//! | `call`, `client` | one request, and what became of it |
//! | `drive` | many requests: closed loop, open loop |
//! | `server` | the server from outside: metrics, memory |
//! | `admin` | the learner from outside |
//! | `process` | a server that a scenario starts by itself |
//! | `summary`, `stats` | many records as one row |
//! | `workload`, `trace` | what is asked |
//! | `scenario/` | the loads, a file each |
//! | `attack/` | what a hostile caller sends, for `scenario/attack` and the integration tests |
//! | `judging/` | a tournament beside clients that hold it by themselves |

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
#[command(about = "Load on a running selfjudge server")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Args)]
struct Common {
    /// The server; plain HTTP.
    #[arg(long, global = true, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The server's process, to read its memory.
    #[arg(long, global = true)]
    pid: Option<u32>,
    /// Where to write the numbers.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Seconds a request may take.
    #[arg(long, global = true, default_value_t = 300.0)]
    timeout: f64,
    /// Milliseconds to the first token within which a request counts as good.
    #[arg(long, global = true, default_value_t = 1000.0)]
    ttft_limit: f64,
    /// Milliseconds between tokens, on the average of a request, within which it counts as good.
    #[arg(long, global = true, default_value_t = 100.0)]
    itl_limit: f64,
    /// Prompts are drawn from this many token ids, which must all be plain words or bytes of the model.
    #[arg(long, global = true, default_value_t = 370)]
    vocab: u32,
    /// What prompts are drawn with; by default another one each run, so that no cache knows them.
    #[arg(long, global = true)]
    seed: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// A fixed number of clients, each sending its next request when the last is answered.
    Steady(scenario::steady::Steady),
    /// A recorded trace at its own arrival times, scaled to the model's context and the server's capacity.
    Replay(scenario::replay::Replay),
    /// Answers, verdicts, tournaments and best-of-N together.
    Mixed(scenario::mixed::Mixed),
    /// Slow readers and clients that go away, beside ordinary ones; nothing may be left behind.
    Slow(scenario::slow::Slow),
    /// Several times the capacity, which is measured first.
    Overload(scenario::overload::Overload),
    /// A long mixed load with clients that go away; memory must stay flat.
    Soak(scenario::soak::Soak),
    /// The same load alone and while the server learns.
    Interference(scenario::interference::Interference),
    /// Weights that are swapped again and again under load.
    Swap(scenario::swap::Swap),
    /// A server that is killed again and again; nothing acknowledged may be lost.
    Kills(scenario::kills::Kills),
    /// A hostile caller beside an ordinary one, attack by attack and with all of them at once.
    Attack(scenario::attack::Attacks),
    /// A tournament beside clients that hold it through completions.
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
    // One thread: the server needs the others.
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
        "the server broke its word, see above"
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
