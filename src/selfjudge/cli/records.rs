//! `selfjudge records`: exports preference pairs from a traffic log and imports them, in TRL's formats.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use super::run_flags::PlainArg;
use super::runtime::runtime;
use super::salt::SaltArgs;
use crate::app::{DataDir, LOG_FILE};
use traffic_log::{
    Consent, ExportFilter, Imported, LogConfig, PairFormat, PairSource, Principal, PromptKind,
    TrafficLog, export_pairs, import_pairs,
};

#[derive(Debug, Subcommand)]
pub enum RecordsCommand {
    /// Write the pairs of records that may be trained on.
    Export(ExportArgs),
    /// Import pairs, each as a record of its own.
    Import(ImportArgs),
}

/// The selection of a log.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct LogArgs {
    /// The log's URL: `sqlite:PATH` or `postgres://…`.
    #[arg(long, env = "SELFJUDGE_LOG_URL", hide_env_values = true)]
    log: Option<String>,
    /// The data directory of a server, which contains the log.
    #[arg(long, env = "SELFJUDGE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    salt: SaltArgs,
    /// Output format: JSON lines, one JSON array, or Parquet. A Parquet file has either plain prompts or conversations, see `--prompts`.
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    /// Only pairs whose prompt is plain text, or only those whose prompt is a conversation.
    #[arg(long, value_enum)]
    prompts: Option<Prompts>,
    /// Only pairs of this source, as `source` in the exported pairs names it: tournament, on_policy, feedback, contrast or imported.
    #[arg(long)]
    source: Option<PairSource>,
    /// Only pairs whose chosen answer is better with at least this probability.
    #[arg(long, default_value_t = 0.0)]
    min_margin: f32,
    /// The file to write. It appears once it is complete.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    salt: SaltArgs,
    /// The expected format; files of another format are refused. By default the format is detected from the first bytes; gzip is supported.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// How pairs of plain strings are stored: `raw`, as text that is continued without a chat template, or `chat`, as a user's turn and its
    /// answer.
    #[arg(long, value_enum, default_value = "raw")]
    plain: PlainArg,
    /// The file to read.
    file: PathBuf,
    /// The owner of the records: `NAME` or `key:NAME` is a caller's key, `operator:NAME` an operator's, `anonymous` all callers
    /// without a key, which is the default.
    #[arg(long)]
    principal: Option<String>,
    /// Allow training on the records.
    #[arg(long)]
    train: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Jsonl,
    Json,
    Parquet,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Prompts {
    Plain,
    Conversations,
}

impl From<Prompts> for PromptKind {
    fn from(prompts: Prompts) -> Self {
        match prompts {
            Prompts::Plain => Self::Plain,
            Prompts::Conversations => Self::Conversation,
        }
    }
}

impl From<Format> for PairFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Jsonl => Self::Jsonl,
            Format::Json => Self::Json,
            Format::Parquet => Self::Parquet,
        }
    }
}

impl LogArgs {
    /// Returns the settings of the selected log.
    ///
    /// # Errors
    /// Fails if a data directory to be read has no log, or if one to be written cannot be created.
    fn config(&self, must_exist: bool) -> anyhow::Result<LogConfig> {
        if let Some(url) = &self.log {
            let log = LogConfig::new(url);
            let missing = log.file().filter(|file| must_exist && !file.is_file());
            anyhow::ensure!(
                missing.is_none(),
                "--log: the file {} does not exist",
                missing.unwrap_or_default().display()
            );
            return Ok(log);
        }
        let dir = self.data_dir.as_deref().unwrap_or(Path::new("."));
        let file = dir.join(LOG_FILE);
        anyhow::ensure!(
            dir.is_dir() || !dir.exists(),
            "the data directory {} is not a directory",
            dir.display()
        );
        anyhow::ensure!(
            !must_exist || dir.is_dir(),
            "the data directory {} does not exist",
            dir.display()
        );
        anyhow::ensure!(
            !must_exist || file.exists(),
            "{} does not exist: no server has logged traffic in {}",
            file.display(),
            dir.display()
        );
        if !must_exist {
            DataDir::open(dir).with_context(|| {
                format!("the data directory {} cannot be created", dir.display())
            })?;
        }
        Ok(LogConfig::sqlite(&file))
    }
}

/// Runs the command and returns a summary.
pub fn run(command: RecordsCommand) -> anyhow::Result<String> {
    let runtime = runtime(1)?;
    runtime.block_on(async {
        match command {
            RecordsCommand::Export(args) => export(args).await,
            RecordsCommand::Import(args) => import(args).await,
        }
    })
}

async fn export(args: ExportArgs) -> anyhow::Result<String> {
    anyhow::ensure!(
        (0.0..=1.0).contains(&args.min_margin),
        "--min-margin must be a probability from 0 to 1"
    );
    let log = TrafficLog::open(&args.salt.over(args.log.config(true)?)).await?;
    let filter = ExportFilter {
        source: args.source,
        min_margin: args.min_margin,
        prompts: args.prompts.map(PromptKind::from),
    };
    // The file is written atomically, so that a reader never sees half of it.
    let dir = args.out.parent().filter(|dir| !dir.as_os_str().is_empty());
    let draft = tempfile::NamedTempFile::new_in(dir.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let out = BufWriter::new(draft.reopen()?);
    let pairs = export_pairs(&log, args.format.into(), &filter, out).await?;
    log.close().await;
    draft.as_file().sync_all()?;
    draft
        .persist(&args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    Ok(format!("{pairs} pairs in {}", args.out.display()))
}

async fn import(args: ImportArgs) -> anyhow::Result<String> {
    let whose = args.principal.as_deref();
    let principal = whose.map_or_else(
        || Ok(Principal::anonymous()),
        |whose| Principal::spelled(whose, None),
    );
    let principal = principal.map_err(|problem| anyhow::anyhow!("--principal: {problem}"))?;
    // Checked before a data directory is created for it.
    std::fs::File::open(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let log = TrafficLog::open(&args.salt.over(args.log.config(false)?)).await?;
    let consent = Consent {
        retain: true,
        train: args.train,
    };
    let format = args.format.map(PairFormat::from);
    let imported = import_pairs(
        &log,
        format,
        args.plain.into(),
        &args.file,
        &principal,
        consent,
    );
    let Imported {
        new,
        known,
        skipped,
    } = imported.await?;
    log.close().await;
    let pairs = new + known;
    anyhow::ensure!(
        pairs > 0 || skipped.count == 0,
        "{}: no record can be used: {skipped}",
        args.file.display()
    );
    if skipped.count > 0 {
        eprintln!("{}: {skipped}", args.file.display());
    }
    anyhow::ensure!(
        pairs > 0,
        "{}: the file has no records",
        args.file.display()
    );
    // The stricter consent of two imports applies, so without `--train` none of the file's pairs is trained on.
    let consent = match (args.train, known) {
        (true, 0) => "they may be trained on",
        (true, _) => "the new ones may be trained on, the others keep their consent",
        (false, _) => "they are kept and not trained on (--train permits it)",
    };
    Ok(format!(
        "{new} new pairs from {}, {known} were there already; {consent}",
        args.file.display()
    ))
}
