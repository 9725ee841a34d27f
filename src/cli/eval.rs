//! `selfjudge eval`: measuring a model.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::Device;
use clap::{Args, Subcommand};

use super::progress::Progress;
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
    /// The default model against its own world: accuracy, judging, best-of-N, principles.
    Pocket(PocketArgs),
}

#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// A model directory or hub id.
    #[arg(long)]
    model: String,
    /// A PEFT adapter directory to lay over the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A file of judge items or preference pairs (JSON lines, a JSON array or Parquet, gzip or not); may be given several times.
    #[arg(long, required = true)]
    data: Vec<PathBuf>,
    /// A built-in judge template (`hh`, `ultrafeedback`) or a file; by default the model's own.
    #[arg(long)]
    template: Option<String>,
    /// Only the first so many records of each file.
    #[arg(long)]
    limit: Option<usize>,
    /// Verdicts closer to 0.5 than this are taken as ties.
    #[arg(long, default_value_t = JudgeEvalOptions::default().tie_margin)]
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
    /// A PEFT adapter directory to lay over the model.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Held-out instructions.
    #[arg(long, default_value_t = PocketOptions::default().instructions)]
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
    /// Also draw best-of-N as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Exit with a failure where a bound of the shipped model is not kept.
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
    /// Decides what is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instructions to sample.
    #[arg(long, default_value_t = 10_000)]
    instructions: usize,
    /// Their kinds, separated by commas; all by default.
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<Kind>,
    /// Samples of each.
    #[arg(long, default_value_t = 8)]
    samples: usize,
    /// Share that is kept of the pairs which the judge gets right already; those it gets wrong are all kept.
    #[arg(long, default_value_t = 1.0)]
    easy: f64,
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name);
        format!("no kind of instruction: {}", names.join(", "))
    })
}

/// A model, and the judge its directory describes.
struct Loaded {
    model: LanguageModel,
    judge: Judge,
    /// An embedded model's files are there for as long as it is.
    _files: ModelFiles,
}

impl Loaded {
    /// As the pocket world measures it: no answer there is longer than 64 tokens.
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
    if let Some(path) = &args.json {
        write(path, &serde_json::to_string_pretty(&table)?)?;
    }
    Ok(table.to_string())
}

fn pocket(args: &PocketArgs, device: Device) -> anyhow::Result<String> {
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
        // The bounds are those of the model that is shipped, which leaves room to learn.
        report.thresholds.clear();
    }
    if let Some(path) = &args.json {
        write(path, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = &args.plot {
        write(path, &best_of_plot(&report.own.best_of)?)?;
    }
    if args.strict && !report.passed() {
        anyhow::bail!("{}\na bound is not kept", report.table());
    }
    Ok(report.table())
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

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
