//! The common flags of training runs. Each overrides its setting in the configuration file.

use std::path::PathBuf;

use candle_core::Device;
use clap::{Args, ValueEnum};

use super::values::{positive, steps};
use judge::PlainText;
use model::adapter::LoraConfig;
use train::{BaseWeights, RunOptions, TrainError};

#[derive(Debug, Args)]
pub struct RunFlags {
    /// A TOML file of settings; flags override it. The defaults below apply to settings in neither.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The model to start from: a directory, a GGUF file or a hub id.
    #[arg(long)]
    pub model: Option<String>,
    /// A file of preference data (JSON lines, a JSON array or Parquet, optionally gzipped); may be given several times, and replaces the
    /// configuration's.
    #[arg(long)]
    pub data: Vec<PathBuf>,
    /// Directory for checkpoints, metrics and the trained weights.
    #[arg(long, alias = "out")]
    output_dir: Option<PathBuf>,
    /// The highest learning rate of the schedule [default: 0.00002 (jsft), 0.000005 (dpo)].
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Passes over the data; a fraction stops within the last one [default: 1 (jsft), 3 (dpo)].
    #[arg(long)]
    epochs: Option<f64>,
    /// Maximum optimizer steps; fewer epochs end the run sooner [default: no bound].
    #[arg(long, value_parser = steps)]
    max_steps: Option<u64>,
    /// Examples (jsft) or pairs (dpo) per optimizer step [default: 128 (jsft), 8 (dpo)].
    #[arg(long, value_parser = positive)]
    batch_size: Option<usize>,
    /// Tokens per forward pass; larger values take more memory [default: 4096 (jsft), 1024 (dpo)].
    #[arg(long, value_parser = positive)]
    micro_batch_tokens: Option<usize>,
    /// Maximum tokens of an example; longer ones are left out or cut, depending on the settings [default: 2048, or the model's positions if
    /// those are fewer].
    #[arg(long, value_parser = positive)]
    pub max_length: Option<usize>,
    /// Seed of the data order and of random weights [default: 42].
    #[arg(long)]
    seed: Option<u64>,
    /// How records of plain strings are read: `raw`, without a chat template as in TRL, or `chat`, as a user's turn and its answer
    /// (default: raw).
    #[arg(long, value_enum)]
    pub plain: Option<PlainArg>,
    /// Type of the frozen weights under an adapter: auto (the integers of a GGUF file, otherwise f32), f32, int8 or int4 [default: auto].
    #[arg(long)]
    pub weights: Option<BaseWeights>,
    /// Rank of the trained adapter (alpha is twice the rank) [default: no adapter but the whole model (jsft), 16 (dpo)].
    #[arg(long, value_parser = positive)]
    pub lora_rank: Option<usize>,
    /// Steps between two checkpoints; 0 writes only the last one [default: 200].
    #[arg(long)]
    save_every: Option<u64>,
    /// Steps between two rows of metrics [default: 10].
    #[arg(long, value_parser = steps)]
    log_every: Option<u64>,
    /// Continue from the newest checkpoint in the output directory.
    #[arg(long)]
    resume: bool,
    /// Stop after this many steps with a checkpoint; the schedule remains that of the whole run.
    #[arg(long, value_parser = steps)]
    stop_after: Option<u64>,
    /// Hide the progress bar.
    #[arg(long)]
    quiet: bool,
    /// Start without comparing the needed memory (weights, gradients, activations) with the available memory of the machine and the cgroup.
    #[arg(long)]
    no_memory_check: bool,
}

/// [`PlainText`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PlainArg {
    Raw,
    Chat,
}

impl From<PlainArg> for PlainText {
    fn from(said: PlainArg) -> Self {
        match said {
            PlainArg::Raw => Self::Raw,
            PlainArg::Chat => Self::Chat,
        }
    }
}

/// References to the common settings of a run, wherever its configuration stores them.
pub struct RunSettings<'a> {
    pub model: &'a mut String,
    pub output_dir: &'a mut PathBuf,
    pub learning_rate: &'a mut f64,
    pub epochs: &'a mut f64,
    pub max_steps: &'a mut Option<u64>,
    pub batch_size: &'a mut usize,
    pub micro_batch_tokens: &'a mut usize,
    pub max_length: &'a mut usize,
    pub seed: &'a mut u64,
    pub save_every: &'a mut u64,
    pub log_every: &'a mut u64,
    pub plain: &'a mut PlainText,
    pub weights: &'a mut BaseWeights,
}

impl RunFlags {
    /// Overrides `settings` with the given flags. The caller handles the data and the adapter's rank.
    pub fn override_settings(&self, settings: RunSettings<'_>) {
        set(settings.model, &self.model);
        set(settings.output_dir, &self.output_dir);
        set(settings.learning_rate, &self.learning_rate);
        set(settings.epochs, &self.epochs);
        set(settings.batch_size, &self.batch_size);
        set(settings.micro_batch_tokens, &self.micro_batch_tokens);
        set(settings.max_length, &self.max_length);
        set(settings.seed, &self.seed);
        set(settings.save_every, &self.save_every);
        set(settings.log_every, &self.log_every);
        set(settings.plain, &self.plain.map(PlainText::from));
        set(settings.weights, &self.weights);
        *settings.max_steps = self.max_steps.or(*settings.max_steps);
    }

    /// Returns an error of a run in the words of its user: settings that can only have come from the command line, or are missing there,
    /// by their flags, others by their keys in the configuration file.
    pub fn explained(&self, error: TrainError) -> anyhow::Error {
        let TrainError::Config(message) = error else {
            return error.into();
        };
        let mut said = message.clone();
        for (key, flag, typed) in [
            ("model", "--model", self.model.is_some()),
            ("data", "--data", !self.data.is_empty()),
            ("output_dir", "--output-dir", self.output_dir.is_some()),
            (
                "learning_rate",
                "--learning-rate",
                self.learning_rate.is_some(),
            ),
            ("epochs", "--epochs", self.epochs.is_some()),
            ("max_steps", "--max-steps", self.max_steps.is_some()),
            ("batch_size", "--batch-size", self.batch_size.is_some()),
            (
                "micro_batch_tokens",
                "--micro-batch-tokens",
                self.micro_batch_tokens.is_some(),
            ),
            ("max_length", "--max-length", self.max_length.is_some()),
            (
                "mixture.max_length",
                "--max-length",
                self.max_length.is_some(),
            ),
            ("lora", "--lora-rank", self.lora_rank.is_some()),
            ("lora.r", "--lora-rank", self.lora_rank.is_some()),
            ("log_every", "--log-every", self.log_every.is_some()),
            ("resume", "--resume", true),
            // Flags of one command alone: without a file they are the only source.
            ("beta", "--beta", false),
            ("start", "--start", false),
            ("from_scratch", "--from-scratch", false),
        ] {
            if typed || self.config.is_none() {
                said = said.replace(&format!("`{key}`"), &format!("`{flag}`"));
            }
        }
        match &self.config {
            Some(file) if said == message => anyhow::anyhow!("{}: {said}", file.display()),
            _ => anyhow::anyhow!(said),
        }
    }

    pub fn options(&self, device: Device, threads: usize) -> RunOptions {
        RunOptions {
            device,
            threads,
            quiet: self.quiet,
            resume: self.resume,
            stop_after: self.stop_after,
            memory_check: !self.no_memory_check,
        }
    }
}

/// Sets an adapter's rank by flag, and alpha unless an adapter is `given`, which has its own.
pub fn set_rank(lora: &mut LoraConfig, rank: usize, given: bool) {
    lora.r = rank;
    if !given {
        lora.lora_alpha = 2.0 * rank as f64;
    }
}

fn set<T: Clone>(field: &mut T, said: &Option<T>) {
    if let Some(value) = said {
        *field = value.clone();
    }
}

/// The last line of the summary of a run that stopped early.
const STOPPED: &str = "\nstopped after a checkpoint: continue with the same command and --resume";

/// Returns the summary of a run's progress, with the way to continue a run that stopped early.
pub fn progress(steps: u64, total_steps: u64, num_tokens: u64, tokens_per_second: f64) -> String {
    let stopped = if steps < total_steps { STOPPED } else { "" };
    format!(
        "{steps} of {total_steps} steps, {num_tokens} tokens, {tokens_per_second:.0} tokens/s{stopped}"
    )
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use train::config::JsftConfig;
    use train::dpo::run::DpoRunConfig;

    /// Returns the help of a flag in one line.
    fn help(flag: &str) -> String {
        let command = RunFlags::augment_args(clap::Command::new("train"));
        let argument = command.get_arguments().find(|arg| arg.get_id() == flag);
        let help = argument.unwrap().get_help().unwrap().to_string();
        help.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_flag_has_a_text_and_the_defaults_are_the_settings() {
        let (jsft, dpo) = (JsftConfig::default(), DpoRunConfig::default());
        let both = |a: String, b: String| match a == b {
            true => format!("[default: {a}"),
            false => format!("[default: {a} (jsft), {b} (dpo)]"),
        };
        let (lr, update) = (jsft.schedule.learning_rate, &dpo.dpo);
        for (flag, default) in [
            (
                "learning_rate",
                both(lr.to_string(), update.schedule.learning_rate.to_string()),
            ),
            (
                "epochs",
                both(jsft.epochs.to_string(), dpo.epochs.to_string()),
            ),
            (
                "batch_size",
                both(jsft.batch_size.to_string(), dpo.batch_size.to_string()),
            ),
            (
                "micro_batch_tokens",
                both(
                    jsft.micro_batch_tokens.to_string(),
                    update.micro_batch_tokens.to_string(),
                ),
            ),
            (
                "max_length",
                both(
                    jsft.mixture.max_length.to_string(),
                    dpo.max_length.to_string(),
                ),
            ),
            ("seed", both(jsft.seed.to_string(), update.seed.to_string())),
            (
                "save_every",
                both(jsft.save_every.to_string(), dpo.save_every.to_string()),
            ),
            (
                "log_every",
                both(jsft.log_every.to_string(), dpo.log_every.to_string()),
            ),
        ] {
            let help = help(flag);
            assert!(
                help.contains(&default),
                "{flag}: {help:?} says not {default}"
            );
        }
        let command = RunFlags::augment_args(clap::Command::new("train"));
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
    }
}
