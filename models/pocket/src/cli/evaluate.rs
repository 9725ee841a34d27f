//! The command `pocket evaluate`, which measures a model on the pocket world.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use super::load;
use crate::evaluate::{PocketOptions, best_of_plot, measure};
use selfjudge::cli::{Output, keeping, positive};

#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// A model directory or hub id. The default is the pocket model that is part of the program.
    #[arg(long)]
    model: Option<String>,
    /// A PEFT adapter directory to apply to the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Number of held-out instructions.
    #[arg(long, default_value_t = PocketOptions::default().instructions, value_parser = positive)]
    instructions: usize,
    /// Sampling seeds.
    #[arg(long, value_delimiter = ',', default_values_t = PocketOptions::default().seeds)]
    seeds: Vec<u64>,
    /// Samples per instruction and seed, a power of two: the largest N of best-of-N.
    #[arg(long, default_value_t = PocketOptions::default().samples)]
    samples: usize,
    /// Comparisons per principle and per set of combinations.
    #[arg(long, default_value_t = PocketOptions::default().comparisons)]
    comparisons: usize,
    /// Also write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also plot best-of-N as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Exit with a failure if the model misses a bound of the shipped model.
    #[arg(long)]
    strict: bool,
}

pub fn evaluate(args: &EvaluateArgs, device: Device) -> anyhow::Result<String> {
    let (json, plot) = (
        Output::to(args.json.as_deref())?,
        Output::to(args.plot.as_deref())?,
    );
    let mut loaded = load(args.model.as_deref(), args.adapter.as_ref(), device)?;
    let options = PocketOptions {
        instructions: args.instructions,
        seeds: args.seeds.clone(),
        samples: args.samples,
        comparisons: args.comparisons,
        ..PocketOptions::default()
    };
    let mut report = measure(&mut loaded.subject, &options)?;
    if args.adapter.is_some() && !args.strict {
        // The bounds are those of the shipped model, which leaves room for learning on purpose.
        report.thresholds.clear();
    }
    keeping(report.table(), || {
        json.write(&serde_json::to_string_pretty(&report)?)?;
        if args.plot.is_some() {
            plot.write(&best_of_plot(&report.own.best_of)?)?;
        }
        anyhow::ensure!(
            !args.strict || report.passed(),
            "a bound of the shipped model is not kept: see the table"
        );
        Ok(())
    })
}
