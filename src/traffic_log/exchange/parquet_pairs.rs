//! Pairs as the columns of a Parquet file in TRL's format: strings for plain prompts, lists of messages for conversations.
//!
//! A column has one type, so a file holds only one kind of prompt.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::export::{PairRow, PromptKind};
use crate::{LogError, Prompt, Result};
use text::{Message, Role};

/// The Parquet types of a side; `SIDE` is replaced by the column's name.
const TEXT: &str = "REQUIRED BINARY SIDE (UTF8);";
const TURNS: &str = "REQUIRED GROUP SIDE (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
    REQUIRED BINARY role (UTF8); REQUIRED BINARY content (UTF8);
} } }";

fn failed(error: ParquetError) -> LogError {
    LogError::File(error.to_string())
}

/// A Parquet file of pairs that is being written.
pub(super) struct ParquetPairs<W: Write + Send> {
    kind: PromptKind,
    file: SerializedFileWriter<W>,
}

impl<W: Write + Send> ParquetPairs<W> {
    /// Starts a file of pairs with prompts of this kind.
    pub fn new(out: W, kind: PromptKind) -> Result<Self> {
        let side = match kind {
            PromptKind::Plain => TEXT,
            PromptKind::Conversation => TURNS,
        };
        let sides = ["prompt", "chosen", "rejected"].map(|name| side.replace("SIDE", name));
        let schema = format!(
            "message pair {{ {} REQUIRED FLOAT margin; REQUIRED BINARY source (UTF8); }}",
            sides.concat()
        );
        let schema = Arc::new(parse_message_type(&schema).map_err(failed)?);
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let file = SerializedFileWriter::new(out, schema, Arc::new(properties.build()));
        Ok(Self {
            kind,
            file: file.map_err(failed)?,
        })
    }

    /// Writes a row group.
    ///
    /// # Errors
    /// Errors if a prompt is of the other kind.
    pub fn write(&mut self, pairs: &[PairRow]) -> Result<()> {
        if pairs
            .iter()
            .any(|pair| PromptKind::of(&pair.prompt) != self.kind)
        {
            return Err(LogError::File(
                "some pairs have plain prompts and others conversations, but a Parquet column has one type: export them separately with \
                 `--prompts plain` and `--prompts conversations`"
                    .to_owned(),
            ));
        }
        let mut columns = Vec::new();
        for side in [prompt as Side, chosen, rejected] {
            match self.kind {
                PromptKind::Plain => {
                    let texts = pairs.iter().map(|pair| match side(pair).as_slice() {
                        [(_, text)] => ByteArray::from(*text),
                        _ => ByteArray::from(""),
                    });
                    columns.push(Column::Texts(texts.collect()));
                }
                PromptKind::Conversation => {
                    let turns: Vec<_> = pairs.iter().map(side).collect();
                    let lists = |part: &dyn Fn(&(&'static str, &str)) -> ByteArray| Column::Lists {
                        values: turns.iter().flatten().map(part).collect(),
                        // Repetition levels: 0 starts a row, 1 continues it.
                        places: turns
                            .iter()
                            .flat_map(|turns| (0..turns.len()).map(|at| i16::from(at > 0)))
                            .collect(),
                    };
                    columns.push(lists(&|(role, _)| ByteArray::from(*role)));
                    columns.push(lists(&|(_, content)| ByteArray::from(*content)));
                }
            }
        }
        columns.push(Column::Numbers(
            pairs.iter().map(|pair| pair.margin).collect(),
        ));
        let sources = pairs.iter().map(|pair| pair.source.as_str().into());
        columns.push(Column::Texts(sources.collect()));
        self.write_columns(&columns).map_err(failed)
    }

    fn write_columns(&mut self, columns: &[Column]) -> std::result::Result<(), ParquetError> {
        let mut group = self.file.next_row_group()?;
        for column in columns {
            let Some(mut out) = group.next_column()? else {
                break;
            };
            match column {
                Column::Texts(texts) => out
                    .typed::<ByteArrayType>()
                    .write_batch(texts, None, None)?,
                Column::Lists { values, places } => {
                    // No list is empty, so every value is defined.
                    let defined = vec![1; values.len()];
                    out.typed::<ByteArrayType>().write_batch(
                        values,
                        Some(&defined),
                        Some(places),
                    )?
                }
                Column::Numbers(numbers) => {
                    out.typed::<FloatType>().write_batch(numbers, None, None)?
                }
            };
            out.close()?;
        }
        group.close()?;
        Ok(())
    }

    /// Writes the footer, without which the file cannot be read.
    pub fn finish(self) -> Result<()> {
        self.file.close().map(drop).map_err(failed)
    }
}

enum Column {
    Texts(Vec<ByteArray>),
    Lists {
        values: Vec<ByteArray>,
        places: Vec<i16>,
    },
    Numbers(Vec<f32>),
}

/// Returns the roles and contents of a side's turns. A side of a plain prompt has one turn, whose role is not written.
type Side = for<'a> fn(&'a PairRow) -> Vec<(&'static str, &'a str)>;

fn prompt(pair: &PairRow) -> Vec<(&'static str, &str)> {
    let turn = |message: &'_ Message| message.role.as_str();
    match &pair.prompt {
        Prompt::Text(text) => vec![(Role::User.as_str(), text)],
        Prompt::Messages(messages) => messages
            .iter()
            .map(|message| (turn(message), message.content.as_str()))
            .collect(),
    }
}

fn chosen(pair: &PairRow) -> Vec<(&'static str, &str)> {
    vec![(Role::Assistant.as_str(), &pair.chosen)]
}

fn rejected(pair: &PairRow) -> Vec<(&'static str, &str)> {
    vec![(Role::Assistant.as_str(), &pair.rejected)]
}
