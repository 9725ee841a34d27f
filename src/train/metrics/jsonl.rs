//! `metrics.jsonl`: one JSON object per row, appended; a resume truncates the rows that it will write again.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::MetricsRow;
use crate::TrainError;

#[derive(Debug)]
pub(super) struct JsonlLog {
    file: File,
    path: PathBuf,
}

impl JsonlLog {
    /// Opens or creates the file and truncates it after the last row of `resumed_step`; an incomplete last line is removed too. Returns
    /// the remaining rows.
    pub(super) fn open<R: MetricsRow>(
        path: &Path,
        resumed_step: u64,
    ) -> Result<(Self, Vec<R>), TrainError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(TrainError::io("cannot open", path))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(TrainError::io("cannot read", path))?;
        let (mut rows, mut kept) = (Vec::new(), 0);
        for line in text.split_inclusive(|&b| b == b'\n') {
            // Rows are ordered by step: everything from the first row to remove is removed.
            match serde_json::from_slice::<R>(line) {
                Ok(row) if row.global_step() <= resumed_step && line.ends_with(b"\n") => {
                    rows.push(row);
                    kept += line.len() as u64;
                }
                _ => break,
            }
        }
        file.set_len(kept)
            .and_then(|()| file.seek(SeekFrom::Start(kept)))
            .map_err(TrainError::io("cannot truncate", path))?;
        let path = path.to_path_buf();
        Ok((Self { file, path }, rows))
    }

    pub(super) fn append(&mut self, row: &impl MetricsRow) -> Result<(), TrainError> {
        let mut line = serde_json::to_vec(row).map_err(|e| TrainError::bad_file(&self.path, e))?;
        line.push(b'\n');
        // One write: a kill damages at most the last line.
        self.file
            .write_all(&line)
            .map_err(TrainError::io("cannot write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::StepMetrics;

    #[test]
    fn a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let row = |global_step| StepMetrics {
            global_step,
            ..StepMetrics::default()
        };
        let (mut log, rows) = JsonlLog::open::<StepMetrics>(&path, 0).unwrap();
        assert!(rows.is_empty());
        log.append(&row(1)).unwrap();
        log.append(&row(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        log.append(&row(3)).unwrap();
        let torn = std::fs::read(&path).unwrap();
        std::fs::write(&path, &torn[..torn.len() - 5]).unwrap();
        let (_, rows) = JsonlLog::open::<StepMetrics>(&path, 9).unwrap();
        assert_eq!(rows, [row(1), row(2)]);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}
