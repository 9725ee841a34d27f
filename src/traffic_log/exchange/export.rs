//! Export of pairs, page by page, so that only one page is in memory.

use std::io::{BufWriter, Write};

use serde_json::json;
use sql::{Row, query};

use super::PairFormat;
use super::parquet_pairs::ParquetPairs;
use crate::database::Database;
use crate::{LogError, PairSource, Prompt, Result, TrafficLog, columns};
use judge::MIN_LABEL_MASS;
use text::{Message, Role};

/// The number of pairs that are read at a time, and written as one Parquet row group.
const PAGE: usize = 512;

/// The pairs to export.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExportFilter {
    /// Only pairs of this source; none for all sources.
    pub source: Option<PairSource>,
    /// The minimum probability that `chosen` is better.
    pub min_margin: f32,
    /// Only pairs with this kind of prompt; none for both kinds.
    pub prompts: Option<PromptKind>,
}

/// The kind of a prompt: text to be continued, or a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PromptKind {
    Plain,
    Conversation,
}

impl PromptKind {
    pub(super) fn of(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Text(_) => Self::Plain,
            Prompt::Messages(_) => Self::Conversation,
        }
    }

    /// Returns the first character of such a prompt's JSON.
    fn json_begins(self) -> &'static str {
        match self {
            Self::Plain => "\"",
            Self::Conversation => "[",
        }
    }
}

/// A pair to export.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PairRow {
    pub prompt: Prompt,
    pub chosen: String,
    pub rejected: String,
    pub margin: f32,
    pub source: PairSource,
}

/// Writes the pairs of records that may be trained on, page by page. Returns their number.
///
/// Pairs from a call's comparisons are omitted if the call named its own principles, or if the judge put less than [`MIN_LABEL_MASS`]
/// on its labels: older logs contain such pairs.
///
/// # Errors
/// Errors with [`LogError::File`] if `out` cannot be written.
pub async fn export_pairs(
    log: &TrafficLog,
    format: PairFormat,
    filter: &ExportFilter,
    out: impl Write + Send + 'static,
) -> Result<u64> {
    let mut sink = match format {
        PairFormat::Jsonl => Sink::Jsonl(BufWriter::new(out)),
        PairFormat::Json => Sink::Json(BufWriter::new(out), 0),
        PairFormat::Parquet => Sink::Unbegun(out, filter.prompts),
    };
    let mut written = 0;
    let mut after = (String::new(), -1);
    loop {
        let page = page(log.database(), filter, &after).await?;
        let Some((record, place, _)) = page.last() else {
            break;
        };
        after = (record.clone(), *place);
        let pairs: Vec<PairRow> = page.into_iter().map(|(_, _, pair)| pair).collect();
        written += pairs.len() as u64;
        // Writes to files and pipes block, so they run on a blocking thread.
        sink = blocking(move || sink.write(&pairs)).await?;
    }
    blocking(move || sink.finish()).await?;
    Ok(written)
}

/// Returns the page of pairs after a place, ordered by record and by the pair's place in it.
async fn page(
    database: &Database,
    filter: &ExportFilter,
    after: &(String, i64),
) -> Result<Vec<(String, i64, PairRow)>> {
    let found = query(
        "SELECT pairs.record_id AS record_id, pairs.place AS place, trainable.prompt AS prompt, \
         chosen.text AS chosen, rejected.text AS rejected, pairs.margin AS margin, pairs.source AS source \
         FROM pairs JOIN trainable ON trainable.id = pairs.record_id \
         JOIN samples AS chosen ON chosen.record_id = pairs.record_id AND chosen.place = pairs.chosen \
         JOIN samples AS rejected ON rejected.record_id = pairs.record_id AND rejected.place = pairs.rejected \
         WHERE (pairs.record_id, pairs.place) > ($1, $2) AND pairs.margin >= $3 AND ($4 = '' OR pairs.source = $4) \
         AND (pairs.source <> 'tournament' OR pairs.principles = '[]') \
         AND (pairs.source NOT IN ('tournament', 'on_policy') OR NOT EXISTS (SELECT 1 FROM verdicts \
         WHERE verdicts.record_id = pairs.record_id AND verdicts.label_mass < $6 \
         AND ((verdicts.a = pairs.chosen AND verdicts.b = pairs.rejected) \
         OR (verdicts.a = pairs.rejected AND verdicts.b = pairs.chosen)))) \
         AND ($7 = '' OR substr(trainable.prompt, 1, 1) = $7) \
         ORDER BY pairs.record_id, pairs.place LIMIT $5",
    )
    .bind(after.0.as_str())
    .bind(after.1)
    .bind(f64::from(filter.min_margin))
    .bind(filter.source.map_or("", PairSource::as_str))
    .bind(columns::integer(PAGE))
    .bind(f64::from(MIN_LABEL_MASS))
    .bind(filter.prompts.map_or("", PromptKind::json_begins))
    .fetch_all(&mut database.reader().await?)
    .await?;
    found.iter().map(read).collect()
}

fn read(row: &Row) -> Result<(String, i64, PairRow)> {
    let pair = PairRow {
        prompt: columns::from_json(row.get("prompt")?)?,
        chosen: row.get("chosen")?,
        rejected: row.get("rejected")?,
        margin: row.get::<f64>("margin")? as f32,
        source: PairSource::stored(row.get("source")?)?,
    };
    Ok((row.get("record_id")?, row.get("place")?, pair))
}

/// Runs work that may block on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(
    doing: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(doing)
        .await
        .unwrap_or_else(|error| Err(LogError::File(error.to_string())))
}

/// An output file.
enum Sink<W: Write + Send> {
    Jsonl(BufWriter<W>),
    /// With the number of pairs written so far.
    Json(BufWriter<W>, u64),
    /// The columns of a Parquet file depend on its first pair, unless the caller names the kind of prompt.
    Unbegun(W, Option<PromptKind>),
    Parquet(ParquetPairs<W>),
}

impl<W: Write + Send> Sink<W> {
    fn write(mut self, pairs: &[PairRow]) -> Result<Self> {
        let failed = |error: std::io::Error| LogError::File(error.to_string());
        match &mut self {
            Sink::Jsonl(out) => {
                for pair in pairs {
                    writeln!(out, "{}", trl(pair)).map_err(failed)?;
                }
            }
            Sink::Json(out, written) => {
                for pair in pairs {
                    let before = if *written == 0 { "[\n" } else { ",\n" };
                    write!(out, "{before}{}", trl(pair)).map_err(failed)?;
                    *written += 1;
                }
            }
            Sink::Parquet(out) => out.write(pairs)?,
            Sink::Unbegun(..) => return self.begun(pairs.first())?.write(pairs),
        }
        Ok(self)
    }

    /// Starts a Parquet file for pairs like `first`; returns other outputs unchanged.
    fn begun(self, first: Option<&PairRow>) -> Result<Self> {
        let Sink::Unbegun(out, kind) = self else {
            return Ok(self);
        };
        let kind = kind.or(first.map(|pair| PromptKind::of(&pair.prompt)));
        let kind = kind.unwrap_or(PromptKind::Conversation);
        ParquetPairs::new(out, kind).map(Sink::Parquet)
    }

    fn finish(self) -> Result<()> {
        let failed = |error: std::io::Error| LogError::File(error.to_string());
        match self.begun(None)? {
            Sink::Jsonl(mut out) => out.flush().map_err(failed),
            Sink::Json(mut out, written) => {
                let end = if written == 0 { "[]\n" } else { "\n]\n" };
                out.write_all(end.as_bytes()).map_err(failed)?;
                out.flush().map_err(failed)
            }
            Sink::Parquet(out) => out.finish(),
            Sink::Unbegun(..) => Err(LogError::File(
                "the file was not begun; this is a bug".to_owned(),
            )),
        }
    }
}

/// Returns the pair as TRL's record: strings for a plain prompt, message lists on all three sides for a conversation.
fn trl(pair: &PairRow) -> serde_json::Value {
    let side = |text: &str| match &pair.prompt {
        Prompt::Text(_) => json!(text),
        Prompt::Messages(_) => json!([Message::new(Role::Assistant, text)]),
    };
    json!({
        "prompt": pair.prompt,
        "chosen": side(&pair.chosen),
        "rejected": side(&pair.rejected),
        "margin": pair.margin,
        "source": pair.source,
    })
}
