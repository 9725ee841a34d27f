//! `selfjudge train dpo`: preference data to an adapter.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use super::follow::FollowArgs;
use crate::train::dpo::run::{DpoRunConfig, PairFile, RunOptions, run as train};

#[derive(Debug, Args)]
pub struct DpoArgs {
    /// A TOML file of settings; flags override it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The frozen model: a directory or a hub id.
    #[arg(long)]
    model: Option<String>,
    /// A file of preference pairs; may be given several times, and replaces the configuration's.
    #[arg(long)]
    data: Vec<PathBuf>,
    /// Where checkpoints, metrics and the trained adapter go.
    #[arg(long, alias = "out")]
    output_dir: Option<PathBuf>,
    /// The adapter to start from (a PEFT directory), by default none.
    #[arg(long)]
    start: Option<PathBuf>,
    /// The adapter to measure against (a PEFT directory), by default the start.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// How strongly the policy is held to the reference.
    #[arg(long)]
    beta: Option<f64>,
    #[arg(long)]
    learning_rate: Option<f64>,
    #[arg(long)]
    epochs: Option<f64>,
    #[arg(long)]
    max_steps: Option<u64>,
    /// Pairs an optimizer step.
    #[arg(long)]
    batch_size: Option<usize>,
    #[arg(long)]
    micro_batch_tokens: Option<usize>,
    #[arg(long)]
    max_length: Option<usize>,
    #[arg(long)]
    seed: Option<u64>,
    /// Rank of the adapter (alpha twice the rank).
    #[arg(long)]
    lora_rank: Option<usize>,
    #[arg(long)]
    save_every: Option<u64>,
    #[arg(long)]
    log_every: Option<u64>,
    /// Go on from the newest checkpoint in the output directory.
    #[arg(long)]
    resume: bool,
    /// Stop after this many steps, with a checkpoint; the schedule stays that of the whole run.
    #[arg(long)]
    stop_after: Option<u64>,
    /// No progress bar.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    pub(super) following: FollowArgs,
}

impl DpoArgs {
    /// The model that was named.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The configuration file with the flags over it.
    fn config(&self) -> anyhow::Result<DpoRunConfig> {
        let mut config = match &self.config {
            Some(path) => DpoRunConfig::from_file(path)?,
            None => DpoRunConfig::default(),
        };
        super::set(&mut config.model, &self.model);
        super::set(&mut config.output_dir, &self.output_dir);
        super::set(&mut config.epochs, &self.epochs);
        super::set(&mut config.batch_size, &self.batch_size);
        super::set(&mut config.max_length, &self.max_length);
        super::set(&mut config.save_every, &self.save_every);
        super::set(&mut config.log_every, &self.log_every);
        super::set(&mut config.dpo.beta, &self.beta);
        super::set(&mut config.dpo.micro_batch_tokens, &self.micro_batch_tokens);
        super::set(&mut config.dpo.seed, &self.seed);
        super::set(&mut config.dpo.schedule.learning_rate, &self.learning_rate);
        config.max_steps = self.max_steps.or(config.max_steps);
        config.start = self.start.clone().or(config.start);
        config.reference = self.reference.clone().or(config.reference);
        if let Some(r) = self.lora_rank {
            let lora = &mut config.dpo.lora;
            (lora.r, lora.lora_alpha) = (r, 2.0 * r as f64);
        }
        if !self.data.is_empty() {
            let file = |path: &PathBuf| PairFile {
                path: path.clone(),
                format: Default::default(),
            };
            config.data = self.data.iter().map(file).collect();
        }
        Ok(config)
    }
}

/// Trains, and says what came of it.
pub fn run(args: &DpoArgs, device: Device, threads: usize) -> anyhow::Result<String> {
    let options = RunOptions {
        device,
        threads,
        quiet: args.quiet,
        resume: args.resume,
        stop_after: args.stop_after,
    };
    let summary = train(&args.config()?, &options)?;
    let mut text = format!(
        "{} of {} steps, {} tokens, {:.0} tokens/s",
        summary.steps, summary.total_steps, summary.num_tokens, summary.tokens_per_second
    );
    if let Some(dir) = summary.adapter_dir {
        text.push_str(&format!("\nadapter: {}", dir.display()));
    }
    Ok(text)
}
