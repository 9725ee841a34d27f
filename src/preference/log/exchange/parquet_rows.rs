//! Pairs as the columns of a Parquet file, and back.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::{Field, Row};
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value};

use super::export::PairRow;
use crate::preference::log::{LogError, Prompt, Result, rows};

/// One text column for each side, as TRL names them.
const SCHEMA: &str = "message pair {
    REQUIRED BINARY prompt (UTF8);
    REQUIRED BINARY chosen (UTF8);
    REQUIRED BINARY rejected (UTF8);
    REQUIRED FLOAT margin;
    REQUIRED BINARY source (UTF8);
}";

fn failed(error: ParquetError) -> LogError {
    LogError::File(error.to_string())
}

/// A Parquet file of pairs that is being written.
pub(super) struct ParquetPairs<W: Write + Send>(SerializedFileWriter<W>);

impl<W: Write + Send> ParquetPairs<W> {
    pub fn new(out: W) -> Result<Self> {
        let schema = Arc::new(parse_message_type(SCHEMA).map_err(failed)?);
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        SerializedFileWriter::new(out, schema, Arc::new(properties.build()))
            .map(Self)
            .map_err(failed)
    }

    /// Writes a row group.
    pub fn write(&mut self, pairs: &[PairRow]) -> Result<()> {
        let mut prompts = Vec::with_capacity(pairs.len());
        for pair in pairs {
            prompts.push(match &pair.prompt {
                Prompt::Text(text) => text.clone(),
                messages @ Prompt::Messages(_) => rows::to_json(messages)?,
            });
        }
        let texts = |text: &dyn Fn(&PairRow) -> &str| -> Vec<ByteArray> {
            pairs.iter().map(|pair| text(pair).into()).collect()
        };
        let columns = [
            Column::Texts(
                prompts
                    .iter()
                    .map(|prompt| prompt.as_str().into())
                    .collect(),
            ),
            Column::Texts(texts(&|pair| &pair.chosen)),
            Column::Texts(texts(&|pair| &pair.rejected)),
            Column::Numbers(pairs.iter().map(|pair| pair.margin).collect()),
            Column::Texts(texts(&|pair| pair.source.as_str())),
        ];
        self.write_columns(&columns).map_err(failed)
    }

    fn write_columns(&mut self, columns: &[Column]) -> std::result::Result<(), ParquetError> {
        let mut group = self.0.next_row_group()?;
        for column in columns {
            let Some(mut out) = group.next_column()? else {
                break;
            };
            match column {
                Column::Texts(texts) => out
                    .typed::<ByteArrayType>()
                    .write_batch(texts, None, None)?,
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
        self.0.close().map(drop).map_err(failed)
    }
}

enum Column {
    Texts(Vec<ByteArray>),
    Numbers(Vec<f32>),
}

/// Reads a Parquet file of preference records row by row, each as the JSON object that JSONL would hold: also files in which TRL or
/// `datasets` wrote conversations as lists of structs.
pub(super) fn read(file: &Path, mut each: impl FnMut(Value) -> Result<()>) -> Result<()> {
    let opened =
        File::open(file).map_err(|error| LogError::File(format!("{}: {error}", file.display())))?;
    let named = |error: ParquetError| LogError::File(format!("{}: {error}", file.display()));
    let reader = SerializedFileReader::new(opened).map_err(named)?;
    for row in reader.get_row_iter(None).map_err(named)? {
        let mut object = object(row.map_err(named)?);
        // What this program wrote for a conversation.
        if let Some(Value::String(text)) = object.get("prompt")
            && let Ok(Prompt::Messages(messages)) = serde_json::from_str(text)
        {
            object.insert("prompt".to_owned(), serde_json::json!(messages));
        }
        each(Value::Object(object))?;
    }
    Ok(())
}

fn object(row: Row) -> Map<String, Value> {
    let columns = row.into_columns().into_iter();
    columns.map(|(name, field)| (name, value(field))).collect()
}

/// A field as JSON. What preference records have no use for (dates, bytes, maps) is null.
fn value(field: Field) -> Value {
    match field {
        Field::Str(text) => text.into(),
        Field::Bool(truth) => truth.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::Float(number) => number.into(),
        Field::Double(number) => number.into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        _ => Value::Null,
    }
}
