//! The flags of a training run, whatever it trains: each overrides its setting in the configuration file.

use std::path::PathBuf;

use candle_core::Device;
use clap::{Args, ValueEnum};

use crate::model::adapter::LoraConfig;
use crate::preference::PlainText;
use crate::train::RunOptions;

#[derive(Debug, Args)]
pub struct RunFlags {
    /// A TOML file of settings; flags override it.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The model to start from: a directory or a hub id.
    #[arg(long)]
    pub model: Option<String>,
    /// A file of preference data (JSON lines, a JSON array or Parquet, gzip or not); may be given several times, and replaces the
    /// configuration's.
    #[arg(long)]
    pub data: Vec<PathBuf>,
    /// Where checkpoints, metrics and what was trained go.
    #[arg(long, alias = "out")]
    output_dir: Option<PathBuf>,
    #[arg(long)]
    learning_rate: Option<f64>,
    #[arg(long)]
    epochs: Option<f64>,
    #[arg(long)]
    max_steps: Option<u64>,
    /// Examples or pairs an optimizer step.
    #[arg(long)]
    batch_size: Option<usize>,
    #[arg(long)]
    micro_batch_tokens: Option<usize>,
    #[arg(long)]
    max_length: Option<usize>,
    #[arg(long)]
    seed: Option<u64>,
    /// How records of plain strings are read: `raw`, as TRL does, without a chat template, or `chat`, as a user's turn and its answer
    /// (default: raw).
    #[arg(long, value_enum)]
    pub plain: Option<PlainArg>,
    /// Rank of the adapter that is trained (alpha twice the rank).
    #[arg(long)]
    pub lora_rank: Option<usize>,
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

/// The settings that every run has, wherever its configuration keeps them.
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
}

impl RunFlags {
    /// Writes what was said over `settings`. The data and the adapter's rank are the caller's.
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
        *settings.max_steps = self.max_steps.or(*settings.max_steps);
    }

    pub fn options(&self, device: Device, threads: usize) -> RunOptions {
        RunOptions {
            device,
            threads,
            quiet: self.quiet,
            resume: self.resume,
            stop_after: self.stop_after,
        }
    }
}

/// An adapter's rank by flag.
pub fn set_rank(lora: &mut LoraConfig, rank: usize) {
    (lora.r, lora.lora_alpha) = (rank, 2.0 * rank as f64);
}

fn set<T: Clone>(field: &mut T, said: &Option<T>) {
    if let Some(value) = said {
        *field = value.clone();
    }
}

/// What a run that went so far says.
pub fn progress(steps: u64, total_steps: u64, num_tokens: u64, tokens_per_second: f64) -> String {
    format!("{steps} of {total_steps} steps, {num_tokens} tokens, {tokens_per_second:.0} tokens/s")
}
