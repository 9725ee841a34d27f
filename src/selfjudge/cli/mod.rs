//! The command line: parses arguments and calls the selected command.

mod dpo;
mod environment;
mod eval;
mod follow;
mod global;
mod jsft;
mod keeping;
mod listener;
mod loaded;
mod memory;
mod merge;
mod needs;
mod output;
mod progress;
mod prompt_args;
mod records;
mod run_flags;
mod runtime;
mod salt;
mod serve;
mod sockets;
mod stop_signals;
mod usage;
mod values;

use std::io::Write;

use clap::{Parser, Subcommand};

pub use global::{GlobalArgs, Started};
pub use loaded::Loaded;
pub use output::{Output, keeping};
pub use runtime::runtime;
pub use usage::parse_command_line;
pub use values::{fraction, positive};

use crate::http::api_doc;

/// One language model that answers, judges its own answers and keeps improving on them.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: GlobalArgs,
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

impl Cli {
    /// Returns whether the command trains a model.
    pub fn trains(&self) -> bool {
        matches!(self.command, Command::Train(_))
    }
}

/// Runs the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let started = cli.global.start()?;
    environment::check()?;
    let threads = started.threads;
    let global = &cli.global;
    let report = match cli.command {
        Command::Train(TrainCommand::Jsft(args)) => {
            jsft::run(&args, global.device.open()?, threads)?
        }
        Command::Train(TrainCommand::Dpo(args)) if args.following.follow => follow::run(
            &args.following,
            args.model(),
            args.adapter(),
            args.weights(),
            global.device.open()?,
            threads,
            global.log_format,
        )?,
        Command::Train(TrainCommand::Dpo(args)) => dpo::run(&args, global.device.open()?, threads)?,
        Command::Serve(args) => serve::run(&args, global.device.open()?, global.log_format)?,
        Command::Eval(command) => eval::run(command, global.device.open()?)?,
        Command::Merge(args) => merge::run(&args)?,
        Command::Records(command) => records::run(command)?,
        Command::Openapi => api_doc().to_pretty_json()?,
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
pub fn say(text: &str) -> anyhow::Result<()> {
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
        let wrapped = anyhow::Error::new(model::ModelError::Io {
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
