//! Streaming readers for preference files: JSON lines, a JSON array or Parquet, each optionally compressed with gzip.
//!
//! Every error names the file and the place in it. A record that is valid JSON but cannot be used does not affect the others: depending
//! on [`OnUnusable`], it makes the reading fail or is left out and counted.

use std::path::{Path, PathBuf};

use super::shapes::{self, Format, ShapeError};
use super::source::{FileKind, MAX_RECORD_BYTES, Place, Source, SourceError};
use super::{JudgeItem, Label, PreferencePair, RankedDraw, RankedPrompt};

/// An error in reading a preference file.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{path}: {source}")]
    Open {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}{place}: {source}")]
    Read {
        path: PathBuf,
        place: Place,
        source: std::io::Error,
    },
    #[error("{path}{place}: the record is longer than {MAX_RECORD_BYTES} bytes")]
    TooLong { path: PathBuf, place: Place },
    #[error("{path}{place}: not valid JSON: {source}")]
    Json {
        path: PathBuf,
        place: Place,
        source: serde_json::Error,
    },
    #[error("{path}{place}: {source}")]
    Shape {
        path: PathBuf,
        place: Place,
        source: ShapeError,
    },
}

/// One record of a preference file.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Pair(PreferencePair),
    Item(JudgeItem),
    Ranked(RankedPrompt),
}

impl Record {
    /// Returns the record as training pairs: none for a tie, several for a ranked prompt.
    ///
    /// A judge item's better answer becomes a target of supervised fine-tuning only if `sft_items` is set: judge sets compare answers,
    /// they do not vouch for their quality. The draw from a ranked prompt depends on `place`, the record's index among all records that
    /// are read.
    pub fn into_pairs(self, sft_items: bool, draw: RankedDraw, place: u64) -> Vec<PreferencePair> {
        let item = match self {
            Record::Pair(pair) => return vec![pair],
            Record::Ranked(prompt) => return prompt.pairs(draw, place),
            Record::Item(item) => item,
        };
        let (chosen, rejected) = match item.label {
            Label::A => (item.a, item.b),
            Label::B => (item.b, item.a),
            Label::Tie => return Vec::new(),
        };
        vec![PreferencePair {
            id: item.id,
            messages: item.messages,
            chosen,
            rejected,
            principles: item.principles,
            rationale: item.rationale,
            sft: sft_items,
            judge: true,
            plain: false,
            margin: None,
            source: None,
        }]
    }

    /// Returns the record as a judge item. A pair has its chosen answer first, so its label is `a`; a ranked prompt gives its best and
    /// its worst response, and none if all have the same rating.
    pub fn into_item(self) -> Option<JudgeItem> {
        match self {
            Record::Item(item) => Some(item),
            Record::Ranked(prompt) => prompt.extremes(),
            Record::Pair(pair) => {
                let pair = pair.into_chat();
                Some(JudgeItem {
                    id: pair.id,
                    messages: pair.messages,
                    a: pair.chosen,
                    b: pair.rejected,
                    label: Label::A,
                    principles: pair.principles,
                    rationale: pair.rationale,
                })
            }
        }
    }
}

/// The treatment of a record that cannot be used: of unknown shape, with two different conversations, or with a column that would change
/// its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnusable {
    #[default]
    Fail,
    /// The record is left out and counted ([`RecordReader::skipped`]).
    Skip,
}

/// The records that were left out of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    pub count: u64,
    /// The file, the place and the reason of the first record that was left out.
    pub first: Option<String>,
}

impl Skipped {
    /// Adds the records that were left out of another file.
    pub fn add(&mut self, other: &Skipped) {
        self.count += other.count;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records = if self.count == 1 { "record" } else { "records" };
        write!(f, "{} {records} left out", self.count)?;
        match &self.first {
            Some(first) => write!(f, "; the first: {first}"),
            None => Ok(()),
        }
    }
}

/// Reads one file record by record. An error ends the iteration.
pub struct RecordReader {
    path: PathBuf,
    source: Source,
    format: Format,
    on_unusable: OnUnusable,
    skipped: Skipped,
    failed: bool,
}

impl RecordReader {
    /// Opens a file.
    ///
    /// # Errors
    /// Errors if the file cannot be opened.
    pub fn open(path: &Path, format: Format, on_unusable: OnUnusable) -> Result<Self, RecordError> {
        let source = Source::open(path).map_err(|source| RecordError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            source,
            format,
            on_unusable,
            skipped: Skipped::default(),
            failed: false,
        })
    }

    pub fn kind(&self) -> FileKind {
        self.source.kind()
    }

    /// Returns the records that have been left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    fn next_record(&mut self) -> Result<Option<Record>, RecordError> {
        loop {
            let read = self.source.next();
            let (path, place) = (self.path.clone(), self.source.place());
            let value = match read {
                Ok(Some(value)) => value,
                Ok(None) => return Ok(None),
                Err(SourceError::Io(source)) => {
                    return Err(RecordError::Read {
                        path,
                        place,
                        source,
                    });
                }
                Err(SourceError::TooLong) => return Err(RecordError::TooLong { path, place }),
                Err(SourceError::Json(source)) => {
                    return Err(RecordError::Json {
                        path,
                        place,
                        source,
                    });
                }
            };
            let source = match shapes::read(value, self.format) {
                Ok(record) => return Ok(Some(record)),
                Err(source) => source,
            };
            let unusable = RecordError::Shape {
                path,
                place,
                source,
            };
            if self.on_unusable == OnUnusable::Fail {
                return Err(unusable);
            }
            self.skipped.add(&Skipped {
                count: 1,
                first: Some(unusable.to_string()),
            });
        }
    }
}

impl Iterator for RecordReader {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.next_record();
        self.failed = record.is_err();
        record.transpose()
    }
}

/// Reads every record of a file.
///
/// # Errors
/// Errors with the first [`RecordError`] of the file.
pub fn read_records(path: &Path, format: Format) -> Result<Vec<Record>, RecordError> {
    RecordReader::open(path, format, OnUnusable::Fail)?.collect()
}

/// Reads every training pair of a file, without ties. Answers of judge items are not targets of supervised fine-tuning.
///
/// # Errors
/// Errors with the first [`RecordError`] of the file.
pub fn read_pairs(
    path: &Path,
    format: Format,
    draw: RankedDraw,
) -> Result<Vec<PreferencePair>, RecordError> {
    let mut pairs = Vec::new();
    for (place, record) in RecordReader::open(path, format, OnUnusable::Fail)?.enumerate() {
        pairs.extend(record?.into_pairs(false, draw, place as u64));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use test_support::{data, shared_data};

    fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const PAIR: &str =
        r#"{"messages":[{"role":"user","content":"q"}],"chosen":"good","rejected":"bad"}"#;

    #[test]
    fn empty_lines_crlf_bom_and_a_missing_last_newline_are_tolerated() {
        let file = write(format!("\u{feff}{PAIR}\r\n\n   \n{PAIR}").as_bytes());
        assert_eq!(read_records(file.path(), Format::Auto).unwrap().len(), 2);
    }

    #[test]
    fn gzip_is_known_by_its_bytes_and_members_may_follow_each_other() {
        let mut bytes = gzip(format!("{PAIR}\n").as_bytes());
        bytes.extend(gzip(format!("{PAIR}\n{PAIR}\n").as_bytes()));
        let file = write(&bytes);
        assert_eq!(read_records(file.path(), Format::Auto).unwrap().len(), 3);
    }

    #[test]
    fn errors_name_the_line() {
        let file = write(format!("{PAIR}\n\n{{\"messages\": [}}\n").as_bytes());
        let error = read_records(file.path(), Format::Auto).unwrap_err();
        assert!(
            matches!(
                error,
                RecordError::Json {
                    place: Place::Line(3),
                    ..
                }
            ),
            "{error}"
        );

        let file = write(format!("{PAIR}\n{{\"question\":1,\"answer\":2}}\n").as_bytes());
        let error = read_records(file.path(), Format::Auto).unwrap_err();
        assert!(error.to_string().contains(":2:"), "{error}");
        assert!(error.to_string().contains("question, answer"), "{error}");

        let file = write(b"\xff\xfe{}\n");
        assert!(matches!(
            read_records(file.path(), Format::Auto).unwrap_err(),
            RecordError::Json {
                place: Place::Line(1),
                ..
            }
        ));
    }

    #[test]
    fn a_truncated_gzip_is_an_error_and_ends_the_iteration() {
        let mut bytes = gzip(format!("{PAIR}\n").repeat(2000).as_bytes());
        bytes.truncate(bytes.len() - 12);
        let file = write(&bytes);
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnUnusable::Fail).unwrap();
        let error = reader.by_ref().find_map(Result::err).unwrap();
        assert!(matches!(error, RecordError::Read { .. }), "{error}");
        assert!(reader.next().is_none());
    }

    #[test]
    fn differing_contexts_fail_or_are_skipped_and_counted() {
        let good = r#"{"chosen":"\n\nHuman: q\n\nAssistant: x","rejected":"\n\nHuman: q\n\nAssistant: y"}"#;
        let bad = r#"{"chosen":"\n\nHuman: q\n\nAssistant: x","rejected":"\n\nHuman: r\n\nAssistant: y"}"#;
        let file = write(format!("{good}\n{bad}\n{good}\n").as_bytes());
        let error = read_records(file.path(), Format::Auto).unwrap_err();
        assert!(matches!(
            error,
            RecordError::Shape {
                place: Place::Line(2),
                source: ShapeError::ContextsDiffer,
                ..
            }
        ));
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnUnusable::Skip).unwrap();
        assert_eq!(reader.by_ref().filter(Result::is_ok).count(), 2);
        assert_eq!(reader.skipped().count, 1);
        let said = reader.skipped().to_string();
        assert!(said.contains(":2: the chosen"), "{said}");
    }

    #[test]
    fn judge_items_become_pairs_and_ties_do_not() {
        let item = |label: &str| {
            let line = format!(
                r#"{{"messages":[{{"role":"user","content":"q"}}],"a":"1","b":"2","label":"{label}","rationale":"r"}}"#
            );
            read_records(write(line.as_bytes()).path(), Format::Auto)
                .unwrap()
                .remove(0)
        };
        let pairs = |record: Record, sft| record.into_pairs(sft, RankedDraw::default(), 0);
        let pair = pairs(item("b"), false).remove(0);
        assert_eq!((pair.chosen.as_str(), pair.rejected.as_str()), ("2", "1"));
        assert_eq!(pair.rationale.as_deref(), Some("r"));
        assert!(!pair.sft && pair.judge);
        assert!(pairs(item("a"), true)[0].sft);
        assert!(pairs(item("tie"), true).is_empty());
        let back = Record::Pair(pair).into_item().unwrap();
        assert_eq!((back.a.as_str(), back.label), ("2", Label::A));
    }

    #[test]
    fn every_kind_of_file_is_known_by_its_bytes() {
        let array = format!("\u{feff} [\n{PAIR},\n{PAIR}]\n");
        for (bytes, kind, records) in [
            (array.clone().into_bytes(), FileKind::JsonArray, 2),
            (gzip(array.as_bytes()), FileKind::JsonArray, 2),
            (b"[]".to_vec(), FileKind::JsonArray, 0),
            (format!("{PAIR}\n").into_bytes(), FileKind::JsonLines, 1),
            (Vec::new(), FileKind::JsonLines, 0),
        ] {
            let file = write(&bytes);
            let reader = RecordReader::open(file.path(), Format::Auto, OnUnusable::Fail).unwrap();
            assert_eq!(reader.kind(), kind);
            assert_eq!(reader.map(Result::unwrap).count(), records);
        }
        let file = write(format!("[{PAIR},\n{{\"a\": 1}}]").as_bytes());
        let error = read_records(file.path(), Format::Auto).unwrap_err();
        assert!(error.to_string().contains(": record 2: unknown"), "{error}");
        let file = write(b"PAR1 and nothing more");
        let error = read_records(file.path(), Format::Auto).unwrap_err();
        assert!(matches!(error, RecordError::Open { .. }), "{error}");
    }

    #[test]
    fn unusable_records_of_every_kind_are_skipped_and_damage_is_not() {
        let bad = [
            r#"{"prompt":"q","chosen":"x","rejected":null}"#,
            r#"{"prompt":"q","chosen":"x","rejected":"y","tools":[{"type":"function"}]}"#,
            r#"{"prompt":[{"role":"tool","content":"4"}],"chosen":"x","rejected":"y"}"#,
            r#"{"question":"q","answer":"x"}"#,
            "7",
        ];
        let file = write(format!("{PAIR}\n{}\n{PAIR}\n", bad.join("\n")).as_bytes());
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnUnusable::Skip).unwrap();
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 2);
        assert_eq!(reader.skipped().count, bad.len() as u64);
        let said = reader.skipped().to_string();
        assert!(said.contains("`rejected` is null"), "{said}");

        let file = write(format!("{PAIR}\n{{\n{PAIR}\n").as_bytes());
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnUnusable::Skip).unwrap();
        let error = reader.by_ref().find_map(Result::err).unwrap();
        assert!(matches!(error, RecordError::Json { .. }), "{error}");
    }

    #[test]
    fn the_committed_set_parses_with_the_documented_count() {
        let found = read_records(&data("oasst-100/train.jsonl.gz"), Format::Auto).unwrap();
        assert_eq!(found.len(), 646);
    }

    #[test]
    #[cfg_attr(not(has_data), ignore = "needs ../shared/data")]
    fn every_shared_set_parses_with_the_documented_counts() {
        for (file, records, ties) in [
            ("hh-helpful/train.jsonl.gz", 1559, 0),
            ("hh-helpful/valid.jsonl.gz", 164, 0),
            ("hh-harmless/train.jsonl.gz", 1546, 0),
            ("hh-harmless/valid.jsonl.gz", 174, 0),
            ("oasst-100/train.jsonl.gz", 646, 0),
            ("autoj/judge_dev.jsonl.gz", 706, 170),
            ("pandalm/judge_dev.jsonl.gz", 587, 82),
            ("llmbar/natural.jsonl.gz", 99, 0),
            ("llmbar/adversarial_gptinst.jsonl.gz", 90, 0),
            ("llmbar/faireval_human.jsonl.gz", 66, 0),
            ("llmbar/llmeval2_human.jsonl.gz", 200, 0),
            ("vicuna-reviews/reviews.jsonl.gz", 1040, 100),
        ] {
            let found = read_records(&shared_data(file), Format::Auto).unwrap();
            assert_eq!(found.len(), records, "{file}");
            let pairs = found
                .into_iter()
                .flat_map(|record| record.into_pairs(false, RankedDraw::default(), 0));
            assert_eq!(pairs.count(), records - ties, "{file}");
        }
        let error = read_records(&shared_data("gsm8k/train.jsonl.gz"), Format::Auto);
        assert!(error.is_err());
    }
}
