//! `selfjudge train dpo`: trains an adapter on preference data.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::Args;

use super::follow::FollowArgs;
use super::run_flags::{RunFlags, RunSettings, progress, set_rank};
use train::{
    BaseWeights,
    dpo::run::{DpoRunConfig, PairFile, run as train},
    interrupt,
};

#[derive(Debug, Args)]
pub struct DpoArgs {
    #[command(flatten)]
    run: RunFlags,
    /// The adapter to start from (a PEFT directory); its rank, alpha and layers apply to the run. With --follow the adapter that the
    /// servers were started with [default: none].
    #[arg(long, visible_alias = "adapter")]
    start: Option<PathBuf>,
    /// The adapter to use as the reference policy (a PEFT directory), by default the start.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// Strength of the KL regularization towards the reference [default: 0.1].
    #[arg(long)]
    beta: Option<f64>,
    #[command(flatten)]
    pub(super) following: FollowArgs,
}

impl DpoArgs {
    /// Returns the model given by flag.
    pub(super) fn model(&self) -> Option<&str> {
        self.run.model.as_deref()
    }

    /// Returns the type of weights given by flag.
    pub(super) fn weights(&self) -> BaseWeights {
        self.run.weights.unwrap_or_default()
    }

    /// Returns the adapter given by flag.
    pub(super) fn adapter(&self) -> Option<&Path> {
        self.start.as_deref()
    }

    /// Returns the configuration file's settings, overridden by the flags.
    fn config(&self) -> anyhow::Result<DpoRunConfig> {
        let mut config = match &self.run.config {
            Some(path) => DpoRunConfig::from_file(path)?,
            None => DpoRunConfig::default(),
        };
        let update = &mut config.dpo;
        self.run.override_settings(RunSettings {
            model: &mut config.model,
            output_dir: &mut config.output_dir,
            learning_rate: &mut update.schedule.learning_rate,
            epochs: &mut config.epochs,
            max_steps: &mut config.max_steps,
            batch_size: &mut config.batch_size,
            micro_batch_tokens: &mut update.micro_batch_tokens,
            max_length: &mut config.max_length,
            seed: &mut update.seed,
            save_every: &mut config.save_every,
            log_every: &mut config.log_every,
            plain: &mut config.plain,
            weights: &mut config.weights,
        });
        update.beta = self.beta.unwrap_or(update.beta);
        config.start = self.start.clone().or(config.start);
        if let Some(rank) = self.run.lora_rank {
            set_rank(&mut update.lora, rank, config.start.is_some());
            config.own_lora.push("r".to_owned());
        }
        config.reference = self.reference.clone().or(config.reference);
        if !self.run.data.is_empty() {
            let file = |path: &PathBuf| PairFile {
                path: path.clone(),
                format: Default::default(),
            };
            config.data = self.run.data.iter().map(file).collect();
        }
        Ok(config)
    }
}

/// Trains, and returns a summary of the result.
pub fn run(args: &DpoArgs, device: Device, threads: usize) -> anyhow::Result<String> {
    interrupt::catch();
    let summary = train(&args.config()?, &args.run.options(device, threads))
        .map_err(|error| args.run.explained(error))?;
    let mut text = progress(
        summary.steps,
        summary.total_steps,
        summary.num_tokens,
        summary.tokens_per_second,
    );
    if let Some(dir) = summary.adapter_dir {
        text.push_str(&format!("\nadapter: {}", dir.display()));
    }
    Ok(text)
}
