//! `selfjudge eval`: evaluates a model.

use std::path::PathBuf;

use candle_core::Device;
use clap::{Args, Subcommand};

use super::loaded::Loaded;
use super::output::{Output, keeping};
use super::progress::Progress;
use super::values::{fraction, positive};
use crate::eval::judge::{JudgeEvalOptions, evaluate_sets};
use judge::{Format, OnUnusable, Record, RecordReader};

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// How well a model judges labelled data: accuracy, both orders, label mass, ties, calibration, length bias.
    Judge(JudgeArgs),
}

#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// A model directory, a GGUF file or a hub id.
    #[arg(long)]
    model: String,
    /// A PEFT adapter directory to apply to the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
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
    }
}

fn judge(args: &JudgeArgs, device: Device) -> anyhow::Result<String> {
    let json = Output::to(args.json.as_deref())?;
    let mut loaded = Loaded::open(
        Some(&args.model),
        args.adapter.as_ref(),
        args.template.as_deref(),
        JUDGES_ONLY,
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
