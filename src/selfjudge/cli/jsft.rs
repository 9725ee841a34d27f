//! `selfjudge train jsft`: trains a model to answer and to judge on preference data.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use super::run_flags::{RunFlags, RunSettings, progress, set_rank};
use train::{
    config::{DataFile, JsftConfig},
    interrupt,
    jsft::run as train,
};

#[derive(Debug, Args)]
pub struct JsftArgs {
    #[command(flatten)]
    run: RunFlags,
    /// Start from random weights of the model's configuration.
    #[arg(long)]
    from_scratch: bool,
    /// The adapter to train further (a PEFT directory), on the frozen model; its rank, alpha and layers apply to the run [default: none].
    #[arg(long, visible_alias = "adapter")]
    start: Option<PathBuf>,
}

impl JsftArgs {
    /// Returns the configuration file's settings, overridden by the flags. With a rank, an adapter is trained instead of the model.
    fn config(&self) -> anyhow::Result<JsftConfig> {
        let mut config = match &self.run.config {
            Some(path) => JsftConfig::from_file(path)?,
            None => JsftConfig::default(),
        };
        self.run.override_settings(RunSettings {
            model: &mut config.model,
            output_dir: &mut config.output_dir,
            learning_rate: &mut config.schedule.learning_rate,
            epochs: &mut config.epochs,
            max_steps: &mut config.max_steps,
            batch_size: &mut config.batch_size,
            micro_batch_tokens: &mut config.micro_batch_tokens,
            max_length: &mut config.mixture.max_length,
            seed: &mut config.seed,
            save_every: &mut config.save_every,
            log_every: &mut config.log_every,
            plain: &mut config.plain,
            weights: &mut config.weights,
        });
        config.own_length |= self.run.max_length.is_some();
        config.from_scratch |= self.from_scratch;
        config.start = self.start.clone().or(config.start);
        if let Some(rank) = self.run.lora_rank {
            let given = config.start.is_some();
            set_rank(config.lora.get_or_insert_default(), rank, given);
            config.own_lora.push("r".to_owned());
        }
        if !self.run.data.is_empty() {
            config.data = self.run.data.iter().cloned().map(DataFile::new).collect();
        }
        Ok(config)
    }
}

/// Trains, and returns a summary of the result.
pub fn run(args: &JsftArgs, device: Device, threads: usize) -> anyhow::Result<String> {
    interrupt::catch();
    let summary = train(&args.config()?, &args.run.options(device, threads))
        .map_err(|error| args.run.explained(error))?;
    let mut text = progress(
        summary.steps,
        summary.total_steps,
        summary.num_tokens,
        summary.tokens_per_second,
    );
    if let Some(dir) = summary.model_dir {
        let what = if summary.is_adapter {
            "adapter"
        } else {
            "model"
        };
        text.push_str(&format!("\n{what}: {}", dir.display()));
    }
    Ok(text)
}
