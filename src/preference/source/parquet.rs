//! The rows of a Parquet file, each as the JSON object that a line of JSON would hold: columns of text, numbers, and lists of
//! structs, as `datasets` writes conversations.

use std::fs::File;
use std::io::Error;

use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{SourceError, damaged};

/// The columns of a file that a version of this program wrote before it wrote conversations as lists: `prompt` holds their JSON.
const OLD_EXPORT: [&str; 5] = ["prompt", "chosen", "rejected", "margin", "source"];

/// Reads a file row by row.
pub(in crate::preference) struct ParquetRows {
    rows: RowIter<'static>,
    read: usize,
}

impl ParquetRows {
    /// # Errors
    /// A file without a footer.
    pub fn open(file: File) -> Result<Self, Error> {
        let reader = SerializedFileReader::new(file).map_err(damaged)?;
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Self { rows, read: 0 })
    }

    /// Rows that were begun.
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

/// A field as JSON. Nothing that is there becomes null: what a column means is decided where records are read.
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
        // Columns without a text type of their own may hold text.
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

    /// Of tests/fixtures/make_parquet.py: every kind of file that pyarrow writes, and the rows that are in it.
    #[test]
    fn what_pyarrow_writes_is_read_whatever_its_compression_pages_and_types() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet");
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
