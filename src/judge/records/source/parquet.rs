//! The rows of a Parquet file as JSON objects like those of JSON lines: columns of text, numbers, and lists of structs, which is how
//! `datasets` stores conversations.

use std::fs::File;
use std::io::Error;

use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{SourceError, damaged};

/// The columns of this program's old exports, in which `prompt` holds the conversation as JSON text instead of a list.
const OLD_EXPORT: [&str; 5] = ["prompt", "chosen", "rejected", "margin", "source"];

/// Reads a file row by row.
pub(crate) struct ParquetRows {
    rows: RowIter<'static>,
    read: usize,
}

impl ParquetRows {
    /// Opens a file.
    ///
    /// # Errors
    /// Errors if the file has no valid footer.
    pub fn open(file: File) -> Result<Self, Error> {
        let reader = SerializedFileReader::new(file).map_err(damaged)?;
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Self { rows, read: 0 })
    }

    /// Returns the number of rows that have been started.
    pub fn read(&self) -> usize {
        self.read
    }

    pub fn next(&mut self) -> Result<Option<Value>, SourceError> {
        self.read += 1;
        let Some(row) = self.rows.next() else {
            return Ok(None);
        };
        let mut record = object(row.map_err(damaged)?);
        if record.keys().map(String::as_str).eq(OLD_EXPORT)
            && let Some(text) = record["prompt"].as_str()
            && let Ok(messages @ Value::Array(_)) = serde_json::from_str(text)
        {
            record.insert("prompt".to_owned(), messages);
        }
        Ok(Some(Value::Object(record)))
    }
}

fn object(row: Row) -> Map<String, Value> {
    let columns = row.into_columns().into_iter();
    columns.map(|(name, field)| (name, value(field))).collect()
}

/// Converts a field to JSON. A value that is present never becomes null: the readers of records decide about a column's meaning.
fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Str(text) => text.into(),
        Field::Bool(truth) => truth.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float(number) => number.into(),
        Field::Double(number) => number.into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            let entries = entries.map(|(key, field)| (name(key), value(field)));
            Value::Object(entries.collect())
        }
        // A column without a text type may still hold text.
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => text.into(),
            Err(_) => format!("{} bytes", bytes.len()).into(),
        },
        other => other.to_string().into(),
    }
}

fn name(key: Field) -> String {
    match key {
        Field::Str(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Reads the output of tests/fixtures/make_parquet.py: every kind of file that pyarrow writes, with the expected rows.
    #[test]
    fn what_pyarrow_writes_is_read_whatever_its_compression_pages_and_types() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parquet");
        let rows = std::fs::read(dir.join("rows.json")).unwrap();
        let files: Map<String, Value> = serde_json::from_slice(&rows).unwrap();
        assert!(files.len() >= 17);
        for (name, wanted) in &files {
            let file = File::open(dir.join(format!("{name}.parquet"))).unwrap();
            let mut rows = ParquetRows::open(file).unwrap();
            let mut read = Vec::new();
            while let Some(row) = rows.next().unwrap() {
                read.push(row);
            }
            assert_eq!(&Value::Array(read), wanted, "{name}");
        }
    }
}
