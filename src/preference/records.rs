//! Streaming readers for preference files: `.jsonl` and `.jsonl.gz`, one JSON object a line.
//!
//! Memory is bounded by the longest line (at most [`MAX_LINE_BYTES`]). Every error names the file and the line. Whether a
//! file is gzip is read from its first two bytes, not from its name.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::shapes::{self, Format, ShapeError};
use super::{JudgeItem, Label, PreferencePair, RankedDraw, RankedPrompt};

/// The longest line that is read; a longer one is an error, not an allocation.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// What reading a preference file can fail with.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{path}: {source}")]
    Open {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}:{line}: {source}")]
    Read {
        path: PathBuf,
        line: usize,
        source: std::io::Error,
    },
    #[error("{path}:{line}: line is longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong { path: PathBuf, line: usize },
    #[error("{path}:{line}: not valid JSON: {source}")]
    Json {
        path: PathBuf,
        line: usize,
        source: serde_json::Error,
    },
    #[error("{path}:{line}: {source}")]
    Shape {
        path: PathBuf,
        line: usize,
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
    /// The record as training pairs; none for a tie, which prefers nothing, several for a ranked prompt.
    ///
    /// A judge item's better answer becomes a target of supervised fine-tuning only if `sft_items` says so: judge sets
    /// compare answers, they do not vouch for them. What is drawn from a ranked prompt depends on the record's `place`
    /// among all that are read.
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
        }]
    }

    /// The record as a judge item: a pair shows its chosen answer first, so its label is `a`; a ranked prompt its best
    /// and its worst response, if they are not rated the same.
    pub fn into_item(self) -> Option<JudgeItem> {
        match self {
            Record::Item(item) => Some(item),
            Record::Ranked(prompt) => prompt.extremes(),
            Record::Pair(pair) => Some(JudgeItem {
                id: pair.id,
                messages: pair.messages,
                a: pair.chosen,
                b: pair.rejected,
                label: Label::A,
                principles: pair.principles,
                rationale: pair.rationale,
            }),
        }
    }
}

/// What to do with a record whose two answers follow different conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMismatch {
    #[default]
    Fail,
    /// Leave it out and count it ([`RecordReader::skipped`]).
    Skip,
}

/// Reads one file record by record. An error ends the iteration.
pub struct RecordReader {
    path: PathBuf,
    lines: Box<dyn BufRead + Send>,
    format: Format,
    on_mismatch: OnMismatch,
    line: usize,
    skipped: usize,
    failed: bool,
    buffer: Vec<u8>,
}

impl RecordReader {
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path, format: Format, on_mismatch: OnMismatch) -> Result<Self, RecordError> {
        let open_error = |source| RecordError::Open {
            path: path.to_owned(),
            source,
        };
        let mut raw = BufReader::with_capacity(1 << 16, File::open(path).map_err(open_error)?);
        let gzip = raw
            .fill_buf()
            .map_err(open_error)?
            .starts_with(&[0x1f, 0x8b]);
        let lines: Box<dyn BufRead + Send> = if gzip {
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        };
        Ok(Self {
            path: path.to_owned(),
            lines,
            format,
            on_mismatch,
            line: 0,
            skipped: 0,
            failed: false,
            buffer: Vec::new(),
        })
    }

    /// Records left out so far because their two answers follow different conversations.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Fills the buffer with the next line; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, RecordError> {
        self.buffer.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = (&mut self.lines)
            .take(limit)
            .read_until(b'\n', &mut self.buffer);
        self.line += 1;
        match read {
            Ok(0) => Ok(false),
            Ok(_) if self.buffer.len() > MAX_LINE_BYTES => Err(RecordError::LineTooLong {
                path: self.path.clone(),
                line: self.line,
            }),
            Ok(_) => Ok(true),
            Err(source) => Err(RecordError::Read {
                path: self.path.clone(),
                line: self.line,
                source,
            }),
        }
    }

    fn next_record(&mut self) -> Result<Option<Record>, RecordError> {
        loop {
            if !self.read_line()? {
                return Ok(None);
            }
            let mut bytes = self.buffer.as_slice();
            if self.line == 1 {
                bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            }
            let bytes = bytes.trim_ascii();
            if bytes.is_empty() {
                continue;
            }
            let value = serde_json::from_slice(bytes).map_err(|source| RecordError::Json {
                path: self.path.clone(),
                line: self.line,
                source,
            })?;
            match shapes::read(value, self.format) {
                Ok(record) => return Ok(Some(record)),
                Err(ShapeError::ContextsDiffer) if self.on_mismatch == OnMismatch::Skip => {
                    self.skipped += 1;
                }
                Err(source) => {
                    return Err(RecordError::Shape {
                        path: self.path.clone(),
                        line: self.line,
                        source,
                    });
                }
            }
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

/// Every record of a file.
///
/// # Errors
/// The first error met, see [`RecordError`].
pub fn read_records(path: &Path, format: Format) -> Result<Vec<Record>, RecordError> {
    RecordReader::open(path, format, OnMismatch::Fail)?.collect()
}

/// Every training pair of a file, ties left out; judge items are not imitated.
///
/// # Errors
/// The first error met, see [`RecordError`].
pub fn read_pairs(
    path: &Path,
    format: Format,
    draw: RankedDraw,
) -> Result<Vec<PreferencePair>, RecordError> {
    let mut pairs = Vec::new();
    for (place, record) in RecordReader::open(path, format, OnMismatch::Fail)?.enumerate() {
        pairs.extend(record?.into_pairs(false, draw, place as u64));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::test_support::shared_data;

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
            matches!(error, RecordError::Json { line: 3, .. }),
            "{error}"
        );

        let file = write(format!("{PAIR}\n{{\"question\":1,\"answer\":2}}\n").as_bytes());
        let error = read_records(file.path(), Format::Auto).unwrap_err();
        assert!(error.to_string().contains(":2:"), "{error}");
        assert!(error.to_string().contains("question, answer"), "{error}");

        let file = write(b"\xff\xfe{}\n");
        assert!(matches!(
            read_records(file.path(), Format::Auto).unwrap_err(),
            RecordError::Json { line: 1, .. }
        ));
    }

    #[test]
    fn a_truncated_gzip_is_an_error_and_ends_the_iteration() {
        let mut bytes = gzip(format!("{PAIR}\n").repeat(2000).as_bytes());
        bytes.truncate(bytes.len() - 12);
        let file = write(&bytes);
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnMismatch::Fail).unwrap();
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
                line: 2,
                source: ShapeError::ContextsDiffer,
                ..
            }
        ));
        let mut reader = RecordReader::open(file.path(), Format::Auto, OnMismatch::Skip).unwrap();
        assert_eq!(reader.by_ref().filter(Result::is_ok).count(), 2);
        assert_eq!(reader.skipped(), 1);
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
    fn every_shared_set_parses_with_the_documented_counts() {
        let Some(hh) = shared_data("hh-helpful") else {
            return;
        };
        let data = hh.parent().unwrap();
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
            let found = read_records(&data.join(file), Format::Auto).unwrap();
            assert_eq!(found.len(), records, "{file}");
            let pairs = found
                .into_iter()
                .flat_map(|record| record.into_pairs(false, RankedDraw::default(), 0));
            assert_eq!(pairs.count(), records - ties, "{file}");
        }
        let error = read_records(&data.join("gsm8k/train.jsonl.gz"), Format::Auto);
        assert!(error.is_err());
    }
}
