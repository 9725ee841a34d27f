//! The command line of `pocket`.

mod claims;
mod evaluate;
mod own_pairs;

use std::path::PathBuf;

use anyhow::Context;
use candle_core::Device;
use clap::{Parser, Subcommand};

use crate::world::{Dice, Split, Task, anchors, corpus};
use evaluate::{EvaluateArgs, evaluate};
use own_pairs::{OwnPairsArgs, own_pairs};
use selfjudge::cli::{GlobalArgs, Loaded, say};

/// The pocket model's world: its corpus, its traffic, its measurements, and the papers' claims on it.
#[derive(Debug, Parser)]
#[command(name = "pocket", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    OwnPairs(OwnPairsArgs),
    /// Measure a model against the world: accuracy, judging, best-of-N, principles.
    Evaluate(EvaluateArgs),
    /// Reproduce the papers' claims: learn in every compared way, measure, and report which claims hold.
    Claims(claims::ClaimsArgs),
}

/// Runs a command and prints its result.
///
/// # Errors
/// Returns the error of the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let started = cli.global.start()?;
    let global = &cli.global;
    let report = match cli.command {
        Command::Corpus {
            out,
            seed,
            pairs,
            options,
        } => {
            let options = match options {
                None => corpus::CurriculumOptions::default(),
                Some(path) => {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    settings::from_toml(&text).with_context(|| path.display().to_string())?
                }
            };
            let statistics = corpus::write(&out, seed, pairs, &options)
                .with_context(|| format!("cannot write {}", out.display()))?;
            serde_json::to_string_pretty(&statistics)?
        }
        Command::Anchors { out, seed } => {
            let mut lines = Vec::new();
            anchors::write(&mut lines, seed)?;
            std::fs::write(&out, lines)
                .with_context(|| format!("cannot write {}", out.display()))?;
            format!("anchors: {}", out.display())
        }
        Command::Traffic { calls, seed } => {
            let calls = (0..calls).map(|call| {
                let dice = &mut Dice::new(seed ^ 0x7472_6166, call);
                let task = Task::sample(Split::Train, dice);
                serde_json::json!({
                    "messages": [{"role": "user", "content": task.prompt}],
                    "max_tokens": 64,
                    "log": {"retain": true, "train": true},
                })
                .to_string()
            });
            calls.collect::<Vec<_>>().join("\n")
        }
        Command::OwnPairs(args) => own_pairs(&args, global.device.open()?)?,
        Command::Claims(args) => claims::run(&args, started.threads, global.device.open()?)?,
        Command::Evaluate(args) => evaluate(&args, global.device.open()?)?,
    };
    say(&report)
}

/// Loads a model to be measured.
fn load(model: Option<&str>, adapter: Option<&PathBuf>, device: Device) -> anyhow::Result<Loaded> {
    /// The bound of an answer in tokens. No right answer of the world is longer.
    const MAX_NEW_TOKENS: usize = 64;
    Loaded::open(model, adapter, None, MAX_NEW_TOKENS, None, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use selfjudge::cli::parse_command_line;

    #[test]
    fn a_value_that_cannot_be_is_refused_in_plain_words() {
        for (words, why) in [
            (
                &["own-pairs", "--out", "x", "--samples", "0"][..],
                "at least",
            ),
            (&["own-pairs", "--out", "x", "--easy", "5"], "from 0 to 1"),
        ] {
            let words = [&["pocket"][..], words].concat();
            let error = parse_command_line::<Cli, _, _>(words.clone()).unwrap_err();
            assert!(error.to_string().contains(why), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_is_said_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("no/such/x").display().to_string();
        for option in ["--json", "--plot"] {
            let words = ["pocket", "evaluate", option, &nowhere];
            let cli: Cli = parse_command_line(words).unwrap();
            let Command::Evaluate(args) = cli.command else {
                unreachable!("it was asked for");
            };
            let error = evaluate(&args, Device::Cpu).unwrap_err().to_string();
            assert!(
                error.contains("cannot write") && error.contains("no/such/x"),
                "{error}"
            );
        }
    }
}
