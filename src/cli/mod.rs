//! The command line: parses arguments and calls the selected command.

mod claims;
mod dpo;
mod eval;
mod follow;
mod jsft;
mod keeping;
mod listener;
mod memory;
mod merge;
mod progress;
mod prompt_args;
mod records;
mod run_flags;
mod runtime;
mod salt;
mod serve;
mod sockets;
mod usage;
mod values;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::device::{self, DeviceChoice};
use crate::http::api_doc;
use crate::pocket;
use crate::settings;
use crate::telemetry::{self, LogFormat};

/// Help heading of the global options.
const GLOBAL: &str = "Options of every command";

/// The default log filter, overridden by `SELFJUDGE_LOG`. The hub client logs every attempt and repeats the last one in its error.
const LOGGED: &str = "info,hf_hub=off";

/// One language model that answers, judges its own answers and keeps improving on them.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Compute device: auto, cpu, cuda or cuda:N.
    #[arg(
        long,
        global = true,
        default_value = "auto",
        env = "SELFJUDGE_DEVICE",
        help_heading = GLOBAL,
        display_order = 1000
    )]
    device: DeviceChoice,
    /// Number of compute threads; by default, and with 0, as many as the process may use.
    #[arg(long, global = true, env = "SELFJUDGE_THREADS", help_heading = GLOBAL, display_order = 1001)]
    threads: Option<usize>,
    /// Format of the logs on standard error: text or json.
    #[arg(
        long,
        global = true,
        default_value = "text",
        env = "SELFJUDGE_LOG_FORMAT",
        help_heading = GLOBAL,
        display_order = 1002
    )]
    log_format: LogFormat,
    /// Address of an OTLP collector, such as http://localhost:4318; spans are sent there over HTTP.
    #[arg(
        long,
        global = true,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        help_heading = GLOBAL,
        display_order = 1003
    )]
    otlp_endpoint: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer and judge over HTTP.
    Serve(Box<serve::ServeArgs>),
    /// Train a model.
    #[command(subcommand)]
    Train(TrainCommand),
    /// Measure a model.
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Merge an adapter into the weights of its model.
    Merge(merge::MergeArgs),
    /// Export preference pairs from a traffic log, or import them.
    #[command(subcommand)]
    Records(records::RecordsCommand),
    /// The default model's synthetic tasks.
    #[command(subcommand)]
    Pocket(PocketCommand),
    /// Print the API description (OpenAPI 3.1).
    Openapi,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    /// Judge-augmented supervised fine-tuning: one model learns to answer and to judge.
    Jsft(Box<jsft::JsftArgs>),
    /// Direct preference optimisation of an adapter on preference data.
    Dpo(Box<dpo::DpoArgs>),
}

#[derive(Debug, Subcommand)]
enum PocketCommand {
    /// Write the default model's training corpus; a function of the seed.
    Corpus {
        /// The directory to write to.
        #[arg(long)]
        out: PathBuf,
        /// Seed of the random draws.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of records.
        #[arg(long, default_value_t = 200_000)]
        pairs: usize,
        /// A TOML file of curriculum options.
        #[arg(long)]
        options: Option<PathBuf>,
    },
    /// Write the default model's anchor set, on which learning must not lose accuracy; a function of the seed.
    Anchors {
        /// The file to write to.
        #[arg(long)]
        out: PathBuf,
        /// Seed of the random draws.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Print calls of `POST /generate`, one per line: training instructions, to be logged and trained on.
    Traffic {
        /// Number of calls to print.
        #[arg(long, default_value_t = 700)]
        calls: u64,
        /// Seed of the random draws.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Write judge data from a model's own samples of the synthetic training instructions.
    OwnPairs(eval::OwnPairsArgs),
    /// Reproduce the papers' claims: learn in every compared way, measure, and report which claims hold.
    Claims(claims::ClaimsArgs),
}

impl Cli {
    /// Returns whether the command trains a model.
    pub fn trains(&self) -> bool {
        matches!(self.command, Command::Train(_))
    }
}

/// Runs the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    listener::survive_full_files();
    let threads = device::init_threads(cli.threads)?;
    let otlp = cli.otlp_endpoint.as_deref().filter(|said| !said.is_empty());
    let _exporting = telemetry::init(cli.log_format, LOGGED, otlp)?;
    let report = match cli.command {
        Command::Train(TrainCommand::Jsft(args)) => jsft::run(&args, cli.device.open()?, threads)?,
        Command::Train(TrainCommand::Dpo(args)) if args.following.follow => follow::run(
            &args.following,
            args.model(),
            args.adapter(),
            cli.device.open()?,
            threads,
            cli.log_format,
        )?,
        Command::Train(TrainCommand::Dpo(args)) => dpo::run(&args, cli.device.open()?, threads)?,
        Command::Serve(args) => serve::run(&args, cli.device.open()?, cli.log_format)?,
        Command::Eval(command) => eval::run(command, cli.device.open()?)?,
        Command::Merge(args) => merge::run(&args)?,
        Command::Records(command) => records::run(command)?,
        Command::Openapi => api_doc().to_pretty_json()?,
        Command::Pocket(PocketCommand::Corpus {
            out,
            seed,
            pairs,
            options,
        }) => {
            let options = match options {
                None => pocket::corpus::CurriculumOptions::default(),
                Some(path) => {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    settings::from_toml(&text).with_context(|| path.display().to_string())?
                }
            };
            let statistics = pocket::corpus::write(&out, seed, pairs, &options)
                .with_context(|| format!("cannot write {}", out.display()))?;
            serde_json::to_string_pretty(&statistics)?
        }
        Command::Pocket(PocketCommand::Anchors { out, seed }) => {
            let mut lines = Vec::new();
            pocket::anchors::write(&mut lines, seed)?;
            std::fs::write(&out, lines)
                .with_context(|| format!("cannot write {}", out.display()))?;
            format!("anchors: {}", out.display())
        }
        Command::Pocket(PocketCommand::Traffic { calls, seed }) => {
            let calls = (0..calls).map(|call| {
                let dice = &mut pocket::Dice::new(seed ^ 0x7472_6166, call);
                let task = pocket::Task::sample(pocket::Split::Train, dice);
                serde_json::json!({
                    "messages": [{"role": "user", "content": task.prompt}],
                    "max_tokens": 64,
                    "log": {"retain": true, "train": true},
                })
                .to_string()
            });
            calls.collect::<Vec<_>>().join("\n")
        }
        Command::Pocket(PocketCommand::OwnPairs(args)) => {
            eval::own_pairs(&args, cli.device.open()?)?
        }
        Command::Pocket(PocketCommand::Claims(args)) => {
            claims::run(&args, threads, cli.device.open()?)?
        }
    };
    say(&report)
}

/// Prints why a command failed, as one line on standard error in the log's format.
pub fn fail(error: &anyhow::Error) {
    let line = one_line(error);
    match telemetry::logs_json() && tracing::enabled!(tracing::Level::ERROR) {
        true => tracing::error!("{line}"),
        false => eprintln!("Error: {line}"),
    }
}

/// Returns an error with its causes in one line, without repetitions. It has no backtrace even with RUST_BACKTRACE, because commands
/// mostly fail on their arguments and files.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let said = joined(&cause.to_string());
        let said = said.as_str();
        if line.contains(said) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(said);
    }
    line
}

/// Joins the lines of a text, without a backtrace that a library appended.
fn joined(text: &str) -> String {
    let is_frame = |line: &str| {
        let number = line.trim_start().split(':').next().unwrap_or_default();
        !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit())
    };
    let lines = text.lines().enumerate();
    let own = lines.take_while(|(at, line)| {
        *at == 0 || !(is_frame(line) || line.trim() == "Stack backtrace:")
    });
    let own = own
        .map(|(_, line)| line.trim())
        .filter(|line| !line.is_empty());
    own.collect::<Vec<_>>().join(" ")
}

/// Writes the result to standard output. A closed pipe is not an error.
fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_every_command_has_a_text() {
        fn look(command: &clap::Command, path: &str) {
            for argument in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(
                    argument.get_help().is_some(),
                    "{path} --{}",
                    argument.get_id()
                );
            }
            for inner in command.get_subcommands() {
                assert!(inner.get_about().is_some(), "{path} {}", inner.get_name());
                look(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        let command = <Cli as clap::CommandFactory>::command();
        command.clone().debug_assert();
        look(&command, "selfjudge");
    }

    #[test]
    fn causes_are_said_once() {
        let gone = || std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let wrapped = anyhow::Error::new(crate::model::ModelError::Io {
            path: "config.json".into(),
            source: gone(),
        });
        assert_eq!(one_line(&wrapped), "config.json: no such file");
        let within = anyhow::Error::new(gone()).context("cannot read x");
        assert_eq!(one_line(&within), "cannot read x: no such file");
        for (text, line) in [
            (
                "no memory\n   0: <unknown>\n   1: main\n             at ./x.c:3",
                "no memory",
            ),
            ("no memory\nStack backtrace:\n   0: main", "no memory"),
            ("a table\n  of lines\n", "a table of lines"),
            ("3: a text", "3: a text"),
        ] {
            assert_eq!(one_line(&anyhow::anyhow!(text)), line);
        }
    }
}
