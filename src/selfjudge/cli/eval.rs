//! `selfjudge eval`: evaluates a model.

use std::path::PathBuf;

use anyhow::Context;
use candle_core::Device;
use clap::{Args, Subcommand};

use super::loaded::Loaded;
use super::output::{Output, keeping};
use super::progress::Progress;
use super::values::{Weights, fraction, positive};
use crate::app::ModelFiles;
use crate::eval::judge::{JudgeEvalOptions, evaluate_sets};
use crate::eval::perplexity::{PerplexityRow, PerplexityTable, Readings, windows};
use engine::InlineEngine;
use judge::{Format, OnUnusable, Record, RecordReader};
use model::{LanguageModel, LoadOptions, WeightStore};
use train::identity::check_adapter;

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// How well a model judges labelled data: accuracy, both orders, label mass, ties, calibration, length bias.
    Judge(JudgeArgs),
    /// Perplexity on a text, for one or several types of weights, and how often each finds the same token the most probable as the first.
    Perplexity(PerplexityArgs),
}

#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// A model directory, a GGUF file or a hub id.
    #[arg(long)]
    model: String,
    /// A PEFT adapter directory to apply to the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Type of the weights in memory: auto, f32, bf16, int8 or int4, as for serve.
    #[arg(long, default_value = "auto")]
    weights: Weights,
    /// A file of judge items or preference pairs (JSON lines, a JSON array or Parquet, gzip or not); may be given several times.
    #[arg(long, required = true)]
    data: Vec<PathBuf>,
    /// A built-in judge template (`hh`, `ultrafeedback`) or a file; by default the model's own.
    #[arg(long)]
    template: Option<String>,
    /// Read at most this many records of each file.
    #[arg(long, value_parser = positive)]
    limit: Option<usize>,
    /// Verdicts closer to 0.5 than this count as ties.
    #[arg(long, default_value_t = JudgeEvalOptions::default().tie_margin, value_parser = margin)]
    tie_margin: f64,
    /// Also write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// A model directory, a GGUF file or a hub id.
    #[arg(long)]
    model: String,
    /// A PEFT adapter directory to apply to the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A text file in UTF-8.
    #[arg(long)]
    data: PathBuf,
    /// Types of the weights, separated by commas: auto, f32, bf16, int8 or int4, as for serve.
    #[arg(long, default_value = "auto", value_delimiter = ',')]
    weights: Vec<Weights>,
    /// Tokens of a window; each is read without the text before it.
    #[arg(long, default_value_t = 512, value_parser = positive)]
    window: usize,
    /// Read at most this many windows.
    #[arg(long, value_parser = positive)]
    limit: Option<usize>,
    /// Also write the report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The maximum bytes of a text whose perplexity is computed.
const MOST_TEXT: u64 = 64 << 20;

/// The maximum length of an answer of a subject that only judges.
const JUDGES_ONLY: usize = 1;

/// Parses a distance from 0.5.
fn margin(text: &str) -> Result<f64, String> {
    let margin = fraction(text).ok().filter(|margin| *margin <= 0.5);
    margin.ok_or_else(|| format!("`{text}` is not a number from 0 to 0.5"))
}

pub fn run(command: EvalCommand, device: Device) -> anyhow::Result<String> {
    match command {
        EvalCommand::Judge(args) => judge(&args, device),
        EvalCommand::Perplexity(args) => perplexity(&args, &device),
    }
}

fn judge(args: &JudgeArgs, device: Device) -> anyhow::Result<String> {
    let json = Output::to(args.json.as_deref())?;
    let mut loaded = Loaded::open(
        Some(&args.model),
        args.adapter.as_ref(),
        args.template.as_deref(),
        JUDGES_ONLY,
        args.weights.0,
        device,
    )?;
    let sets = args
        .data
        .iter()
        .map(|path| {
            let mut reader = RecordReader::open(path, Format::default(), OnUnusable::Skip)?;
            let records = reader
                .by_ref()
                .take(args.limit.unwrap_or(usize::MAX))
                .collect::<Result<Vec<Record>, _>>()?;
            let skipped = reader.skipped();
            anyhow::ensure!(
                !records.is_empty() || skipped.count == 0,
                "{}: no record can be used: {skipped}",
                path.display()
            );
            if skipped.count > 0 {
                eprintln!("{}: {skipped}", path.display());
            }
            let judged = records.iter().cloned().filter_map(Record::into_item);
            anyhow::ensure!(
                judged.count() > 0,
                "{}: the file has nothing to judge: {}",
                path.display(),
                match records.len() {
                    0 => "it has no records".to_owned(),
                    records => format!("none of its {records} records has two answers to compare"),
                }
            );
            Ok((path.display().to_string(), records))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let options = JudgeEvalOptions {
        tie_margin: args.tie_margin,
        ..JudgeEvalOptions::default()
    };
    let items = |(_, records): &(String, Vec<Record>)| {
        let items = records.iter().cloned().filter_map(Record::into_item);
        items.count() as u64
    };
    let mut progress = Progress::new("pairs", sets.iter().map(items).sum());
    let table = evaluate_sets(&mut loaded.subject, sets, &options, |judged| {
        progress.add(judged as u64);
    })?;
    progress.finish();
    let text = table.to_string();
    keeping(text, || json.write(&serde_json::to_string_pretty(&table)?))
}

fn perplexity(args: &PerplexityArgs, device: &Device) -> anyhow::Result<String> {
    let json = Output::to(args.json.as_deref())?;
    let text = files::read(&args.data, MOST_TEXT)
        .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
        .with_context(|| format!("cannot read {}", args.data.display()))?;
    let files = ModelFiles::resolve(Some(&args.model))?;
    if let Some(adapter) = &args.adapter {
        check_adapter(adapter, files.path())?;
    }
    let mut read: Option<(PerplexityTable, Vec<Vec<u32>>, Readings)> = None;
    for weights in &args.weights {
        let options = LoadOptions {
            device: device.clone(),
            format: weights.0,
            ..LoadOptions::default()
        };
        let model = LanguageModel::load(files.path(), &options)?;
        let decoder = model.decoder().clone();
        let (kind, bytes) = (decoder.weights(), decoder.bytes());
        let store = WeightStore::with_adapter_dir(decoder, args.adapter.as_deref())?;
        let mut engine = InlineEngine::new(store)?;
        // One token is left for the engine's answer.
        let most = engine.handle().capacity().max_context - 1;
        anyhow::ensure!(
            args.window <= most,
            "--window {}: the model reads at most {most} tokens",
            args.window
        );
        let (mut table, windows, first) = match read.take() {
            Some(read) => read,
            None => {
                let (start, _) = model.tokenizer().specials_around()?;
                let ids = model.tokenizer().encode_template(&text)?;
                let mut windows = windows(&ids, &start, args.window);
                windows.truncate(args.limit.unwrap_or(usize::MAX));
                anyhow::ensure!(
                    !windows.is_empty(),
                    "{}: the text has fewer than two tokens",
                    args.data.display()
                );
                (
                    PerplexityTable::of(&windows, args.window),
                    windows,
                    Readings::default(),
                )
            }
        };
        let mut progress = Progress::new("windows", windows.len() as u64);
        let readings = Readings::of(&mut engine, &windows, |count| progress.add(count as u64))?;
        progress.finish();
        let first = match table.rows.is_empty() {
            true => readings.clone(),
            false => first,
        };
        table.rows.push(PerplexityRow {
            weights: kind,
            bytes,
            perplexity: readings.perplexity(),
            agreement: readings.agreement(&first),
        });
        read = Some((table, windows, first));
    }
    let (table, ..) = read.context("--weights names no type")?;
    keeping(table.to_string(), || {
        json.write(&serde_json::to_string_pretty(&table)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_margin_is_at_most_a_half() {
        assert_eq!(margin("0.5"), Ok(0.5));
        for none in ["0.6", "nan", "-0.1"] {
            assert!(margin(none).is_err(), "{none}");
        }
    }
}
