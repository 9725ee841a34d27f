//! `selfjudge eval`: evaluates a model.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::Device;
use clap::{Args, Subcommand};
use tempfile::NamedTempFile;

use super::progress::Progress;
use super::values::{fraction, positive};
use crate::app::ModelFiles;
use crate::eval::EvalError;
use crate::eval::ModelSubject;
use crate::eval::judge::{JudgeEvalOptions, evaluate_sets};
use crate::eval::pocket::{self, OwnPairsOptions, PocketOptions, best_of_plot, measure};
use crate::judge::{Judge, JudgeOptions, JudgeTemplate, principles_from_model_dir};
use crate::model::{LanguageModel, LoadOptions};
use crate::pocket::Kind;
use crate::preference::{Format, OnUnusable, Record, RecordReader};

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// How well a model judges labelled data: accuracy, both orders, label mass, ties, calibration, length bias.
    Judge(JudgeArgs),
    /// The default model on its own synthetic tasks: accuracy, judging, best-of-N, principles.
    Pocket(PocketArgs),
}

#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// A model directory or hub id.
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

#[derive(Debug, Args)]
pub struct PocketArgs {
    /// A model directory or hub id; by default the pocket model that is part of the program.
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

#[derive(Debug, Args)]
pub struct OwnPairsArgs {
    /// A model directory or hub id; by default the pocket model that is part of the program.
    #[arg(long)]
    model: Option<String>,
    /// The file to write (jsonl).
    #[arg(long)]
    out: PathBuf,
    /// Seed of the random draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instructions to sample.
    #[arg(long, default_value_t = 10_000, value_parser = positive)]
    instructions: usize,
    /// Kinds of instructions, separated by commas; all by default.
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<Kind>,
    /// Samples per instruction.
    #[arg(long, default_value_t = 8, value_parser = several)]
    samples: usize,
    /// Share of the pairs that the judge already gets right to keep; those that it gets wrong are all kept.
    #[arg(long, default_value_t = 1.0, value_parser = fraction)]
    easy: f64,
}

/// Parses a number of samples that is large enough for pairs.
fn several(text: &str) -> Result<usize, String> {
    match positive(text)? {
        1 => Err("it must be at least 2: a pair is made of two samples".to_owned()),
        samples => Ok(samples),
    }
}

/// Parses a distance from 0.5.
fn margin(text: &str) -> Result<f64, String> {
    let margin = fraction(text).ok().filter(|margin| *margin <= 0.5);
    margin.ok_or_else(|| format!("`{text}` is not a number from 0 to 0.5"))
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name);
        format!("no kind of instruction: {}", names.join(", "))
    })
}

/// A model with the judge that its directory describes.
struct Loaded {
    model: LanguageModel,
    judge: Judge,
    /// Keeps an embedded model's unpacked files while the model is in use.
    _files: ModelFiles,
}

impl Loaded {
    /// Returns the subject for the pocket evaluation, where no answer is longer than 64 tokens.
    fn pocket_subject(&self) -> ModelSubject<'_> {
        let model = &self.model;
        ModelSubject {
            tokenizer: model.tokenizer().clone(),
            chat: model.chat_template().clone(),
            stop_ids: model.stop_ids().to_vec(),
            max_new_tokens: 64,
            model,
            judge: self.judge.clone(),
        }
    }
}

fn load(
    model: Option<&str>,
    adapter: Option<&PathBuf>,
    template: Option<&str>,
    device: Device,
) -> anyhow::Result<Loaded> {
    let files = ModelFiles::resolve(model)?;
    let dir = files.path();
    let options = LoadOptions {
        device,
        adapter: adapter.cloned(),
        ..LoadOptions::default()
    };
    let model = LanguageModel::load(dir, &options)?;
    let template = match template {
        None => JudgeTemplate::from_model_dir(dir)?,
        Some(name) => match JudgeTemplate::built_in(name) {
            Some(template) => template,
            None => JudgeTemplate::from_file(Path::new(name))?,
        },
    };
    let judge = Judge::new(
        model.tokenizer().clone(),
        model.chat_template().clone(),
        template,
        principles_from_model_dir(dir)?,
        JudgeOptions::default(),
        model.max_context(),
    )?;
    Ok(Loaded {
        model,
        judge,
        _files: files,
    })
}

pub fn run(command: EvalCommand, device: Device) -> anyhow::Result<String> {
    match command {
        EvalCommand::Judge(args) => judge(&args, device),
        EvalCommand::Pocket(args) => pocket(&args, device),
    }
}

fn judge(args: &JudgeArgs, device: Device) -> anyhow::Result<String> {
    let json = Output::to(args.json.as_deref())?;
    let Loaded { model, judge, .. } = &load(
        Some(&args.model),
        args.adapter.as_ref(),
        args.template.as_deref(),
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
                "{}: there is nothing to judge in it: {}",
                path.display(),
                match records.len() {
                    0 => "it holds no record".to_owned(),
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
    let table = evaluate_sets(judge, sets, &options, |prompts, labels| {
        let scored = model.label_logprobs(prompts, labels);
        progress.add(prompts.len() as u64 / 2);
        scored
    })?;
    progress.finish();
    let text = table.to_string();
    keeping(text, || json.write(&serde_json::to_string_pretty(&table)?))
}

fn pocket(args: &PocketArgs, device: Device) -> anyhow::Result<String> {
    let (json, plot) = (
        Output::to(args.json.as_deref())?,
        Output::to(args.plot.as_deref())?,
    );
    let loaded = load(args.model.as_deref(), args.adapter.as_ref(), None, device)?;
    let mut subject = loaded.pocket_subject();
    let options = PocketOptions {
        instructions: args.instructions,
        seeds: args.seeds.clone(),
        samples: args.samples,
        comparisons: args.comparisons,
        ..PocketOptions::default()
    };
    let mut report = measure(&mut subject, &options)?;
    if args.adapter.is_some() && !args.strict {
        // The bounds are those of the shipped model, which deliberately leaves room for learning.
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

/// Runs `rest` and returns `text`, which was expensive to compute; prints the text before returning an error of `rest`.
fn keeping(text: String, rest: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<String> {
    match rest() {
        Ok(()) => Ok(text),
        Err(error) => {
            super::say(&text)?;
            Err(error)
        }
    }
}

/// A file that is written after all work is done; the constructor checks in advance that it can be written.
struct Output<'a> {
    /// The target path, and a temporary file beside it.
    place: Option<(&'a Path, NamedTempFile)>,
}

impl<'a> Output<'a> {
    /// Prepares a file at `path`, if one is given.
    ///
    /// # Errors
    /// Fails if no file can be created there.
    fn to(path: Option<&'a Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self { place: None });
        };
        let cannot = || format!("cannot write {}", path.display());
        anyhow::ensure!(!path.is_dir(), "{}: it is a directory", cannot());
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let draft = NamedTempFile::new_in(dir.unwrap_or(Path::new("."))).with_context(cannot)?;
        Ok(Self {
            place: Some((path, draft)),
        })
    }

    /// Writes the file, if a path was given.
    fn write(self, text: &str) -> anyhow::Result<()> {
        let Some((path, mut draft)) = self.place else {
            return Ok(());
        };
        let cannot = || format!("cannot write {}", path.display());
        draft.write_all(text.as_bytes()).with_context(cannot)?;
        draft.persist(path).map(drop).with_context(cannot)
    }
}

pub fn own_pairs(args: &OwnPairsArgs, device: Device) -> anyhow::Result<String> {
    let loaded = load(args.model.as_deref(), None, None, device)?;
    let cannot = || format!("cannot write {}", args.out.display());
    let mut out = BufWriter::new(File::create(&args.out).with_context(cannot)?);
    let options = OwnPairsOptions {
        seed: args.seed,
        instructions: args.instructions,
        kinds: match args.kinds.as_slice() {
            [] => Kind::ALL.to_vec(),
            kinds => kinds.to_vec(),
        },
        samples: args.samples,
        easy: args.easy,
    };
    let count = pocket::own_pairs(&mut loaded.pocket_subject(), &options, |pair| {
        let line = serde_json::to_string(pair).map_err(std::io::Error::from)?;
        writeln!(out, "{line}").map_err(EvalError::Io)
    })?;
    out.flush().with_context(cannot)?;
    Ok(format!("{count} pairs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_tried_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("report.json");
        let output = Output::to(Some(&whole)).unwrap();
        output.write("{}").unwrap();
        assert_eq!(std::fs::read_to_string(&whole).unwrap(), "{}");
        Output::to(None).unwrap().write("x").unwrap();
        for nowhere in [
            dir.path().to_owned(),
            dir.path().join("no/such/report.json"),
            whole.join("report.json"),
        ] {
            let error = Output::to(Some(&nowhere)).err().unwrap().to_string();
            assert!(error.contains("cannot write"), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn numbers_of_own_pairs_make_pairs() {
        assert_eq!(several("2"), Ok(2));
        assert_eq!(margin("0.5"), Ok(0.5));
        for none in ["0", "1", "-1"] {
            assert!(several(none).is_err(), "{none}");
        }
        for none in ["0.6", "nan", "-0.1"] {
            assert!(margin(none).is_err(), "{none}");
        }
    }
}
