//! `pocket claims`: tests the papers' claims on the pocket model.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use crate::claims::{self, ClaimsOptions, Variant, Yardstick};
use selfjudge::cli::runtime;

#[derive(Debug, Args)]
pub struct ClaimsArgs {
    /// The directory for reports, plots and temporary data. Variants with results in it are not run again.
    #[arg(long)]
    out: PathBuf,
    /// The seeds. Each has its own traffic, answers and adapters.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// The variants to run: stages, at-once, off-policy, offline, brief, polite, contrast, contrast-generator, plain. The default
    /// is all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Variant>,
    /// The number of training instructions in a stage.
    #[arg(long, default_value_t = 384)]
    stage_prompts: usize,
    /// The number of held-out instructions of a measurement.
    #[arg(long, default_value_t = 400)]
    instructions: usize,
    /// Samples per instruction. At least the largest N of best of N are drawn.
    #[arg(long, default_value_t = 16)]
    samples: usize,
    /// The largest N of best of N, a power of two.
    #[arg(long, default_value_t = 16)]
    best_of: usize,
    /// The learning rate of a stage's updates.
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
}

/// Runs the selected variants and returns the report as text.
pub fn run(args: &ClaimsArgs, threads: usize, device: Device) -> anyhow::Result<String> {
    anyhow::ensure!(
        args.best_of.is_power_of_two() && args.stage_prompts >= 32 && args.instructions > 0,
        "--best-of must be a power of two, --stage-prompts at least a batch of 32, --instructions at least 1"
    );
    let options = ClaimsOptions {
        out: args.out.clone(),
        seeds: args.seeds.clone(),
        only: args.only.clone(),
        stage_prompts: args.stage_prompts,
        yardstick: Yardstick {
            instructions: args.instructions,
            samples: args.samples,
            best_of: args.best_of,
        },
        learning_rate: args.learning_rate,
        threads,
        device,
    };
    let runtime = runtime(2)?;
    let report = runtime.block_on(claims::run(&options))?;
    Ok(report.table())
}
