//! The run manifest: the model and data of a run, its code and its machine. It is written beside the weights.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::digest::FileDigest;
use kernels::isa::machine;

const FILE: &str = "run_manifest.json";

/// The contents of `run_manifest.json`; the resolved configuration is beside it as `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunManifest {
    pub selfjudge_version: String,
    pub git: GitState,
    /// Time of the first start. UTC, RFC 3339, as all times here.
    pub started: String,
    /// Times of the resumes from a checkpoint, in order. The machine and the code are those of the last one.
    #[serde(default)]
    pub resumed: Vec<String>,
    /// End time; absent while the run is in progress, or if it was killed.
    pub ended: Option<String>,
    /// The CPU architecture and its extensions; results may differ in their bits between two of them.
    pub isa: String,
    pub threads: usize,
    pub device: String,
    pub data: Vec<DataDigest>,
    /// SHA-256 of `config.toml`.
    pub config_sha256: String,
}

/// An input file and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDigest {
    /// The path as it was given.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// Number of examples read from the file.
    pub records: u64,
}

impl DataDigest {
    /// Computes the digest of an input file.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(path: &Path, records: u64) -> Result<Self, TrainError> {
        let digest = FileDigest::of(path)?;
        Ok(Self {
            path: path.display().to_string(),
            bytes: digest.bytes,
            sha256: digest.sha256,
            records,
        })
    }
}

/// The Git checkout in which the program was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitState {
    /// The commit; `unknown` outside a checkout.
    pub commit: String,
    /// Whether tracked files differ from the commit; absent if unknown.
    pub dirty: Option<bool>,
}

impl GitState {
    /// Returns the state of the directory's checkout, if it is in one.
    pub fn of(dir: &Path) -> Self {
        let git = |arguments: &[&str]| -> Option<String> {
            let output = Command::new("git")
                .arg("-C")
                .arg(dir)
                .args(arguments)
                // Inside Git's own hooks these are set, and would point at another checkout.
                .env_remove("GIT_DIR")
                .env_remove("GIT_WORK_TREE")
                .output()
                .ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| text.trim().to_owned())
        };
        Self {
            commit: git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned()),
            dirty: git(&["status", "--porcelain", "--untracked-files=no"])
                .map(|changes| !changes.is_empty()),
        }
    }
}

impl RunManifest {
    /// Creates the manifest of a run that begins now in the working directory. `threads` and `device` are those in use.
    pub fn begin(threads: usize, device: String, data: Vec<DataDigest>) -> Self {
        Self {
            selfjudge_version: env!("CARGO_PKG_VERSION").to_owned(),
            git: GitState::of(Path::new(".")),
            started: rfc3339(SystemTime::now()),
            resumed: Vec::new(),
            ended: None,
            isa: machine(),
            threads,
            device,
            data,
            config_sha256: String::new(),
        }
    }

    /// Marks this run as a resume of the run whose manifest is in `dir`: it keeps that run's start and earlier resumes.
    ///
    /// A missing or damaged manifest causes only a warning: no run fails because of its manifest.
    pub fn continue_from(&mut self, dir: &Path) {
        let path = dir.join(FILE);
        let now = std::mem::take(&mut self.started);
        let read = fs::read(&path)
            .map_err(TrainError::io("cannot read", &path))
            .and_then(|text| {
                serde_json::from_slice::<Self>(&text).map_err(|e| TrainError::bad_file(&path, e))
            });
        match read {
            Ok(earlier) => {
                self.started = earlier.started;
                self.resumed = earlier.resumed;
            }
            Err(error) => {
                tracing::warn!("the start time of the run is unknown: {error}");
                self.started = "unknown".to_owned();
            }
        }
        self.resumed.push(now);
    }

    /// Records the end time, and writes the manifest beside the run's log and beside its result.
    ///
    /// # Errors
    /// Same as [`RunManifest::write`].
    pub fn end(
        mut self,
        output_dir: &Path,
        result: &Path,
        config: &impl Serialize,
    ) -> Result<(), TrainError> {
        self.ended = Some(rfc3339(SystemTime::now()));
        self.write(output_dir, config)?;
        self.write(result, config)
    }

    /// Writes `config.toml` and `run_manifest.json` into `dir`.
    ///
    /// # Errors
    /// If TOML cannot represent the configuration; also those of the file system.
    pub fn write(&mut self, dir: &Path, config: &impl Serialize) -> Result<(), TrainError> {
        let text = toml::to_string_pretty(config)
            .map_err(|e| TrainError::Config(format!("cannot be written as TOML: {e}")))?;
        self.config_sha256 = super::digest::sha256_bytes(text.as_bytes());
        let path = dir.join("config.toml");
        fs::write(&path, text).map_err(TrainError::io("cannot write", &path))?;
        let path = dir.join(FILE);
        let text =
            serde_json::to_string_pretty(self).map_err(|e| TrainError::bad_file(&path, e))?;
        // Renamed into place: a kill in between must not lose the times of an earlier start.
        let new = dir.join("run_manifest.json.new");
        fs::write(&new, text + "\n").map_err(TrainError::io("cannot write", &new))?;
        fs::rename(&new, &path).map_err(TrainError::io("cannot write", &path))
    }
}

/// Formats a time in UTC, to the second.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, s) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count: years start in March, so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        s / 3600,
        s / 60 % 60,
        s % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_run_is_written_beside_the_weights() {
        #[derive(Serialize)]
        struct Config {
            learning_rate: f64,
        }
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("pairs.jsonl");
        fs::write(&data, "{}\n{}\n").unwrap();
        let data = DataDigest::of(&data, 2).unwrap();
        assert_eq!(data.bytes, 6);
        let manifest = RunManifest::begin(2, "cpu".to_owned(), vec![data]);
        let config = Config {
            learning_rate: 2e-5,
        };
        let result = dir.path().join("adapter");
        fs::create_dir(&result).unwrap();
        let begun = manifest.clone();
        manifest.end(dir.path(), &result, &config).unwrap();
        for dir in [dir.path(), &result] {
            let text = fs::read(dir.join(FILE)).unwrap();
            let read: RunManifest = serde_json::from_slice(&text).unwrap();
            assert!(read.ended.is_some());
            let config = FileDigest::of(&dir.join("config.toml")).unwrap();
            assert_eq!(read.config_sha256, config.sha256);
            let (ended, config_sha256) = (None, String::new());
            assert_eq!(
                RunManifest {
                    ended,
                    config_sha256,
                    ..read
                },
                begun
            );
        }
    }

    #[test]
    fn a_resumed_run_keeps_its_start_and_lists_its_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |time: &str| {
            let mut manifest = RunManifest::begin(2, "cpu".to_owned(), Vec::new());
            manifest.started = time.to_owned();
            manifest
        };
        let config = std::collections::BTreeMap::from([("seed", 1)]);
        begin("first").write(dir.path(), &config).unwrap();
        for time in ["second", "third"] {
            let mut manifest = begin(time);
            manifest.continue_from(dir.path());
            manifest.write(dir.path(), &config).unwrap();
        }
        let mut last = begin("fourth");
        last.continue_from(dir.path());
        assert_eq!(last.started, "first");
        assert_eq!(last.resumed, ["second", "third", "fourth"]);

        // An unreadable manifest loses the times, but the run goes on.
        fs::write(dir.path().join(FILE), "{").unwrap();
        let mut after = begin("fifth");
        after.continue_from(dir.path());
        assert_eq!(
            (after.started.as_str(), after.resumed.len()),
            ("unknown", 1)
        );
    }

    #[test]
    fn outside_a_checkout_the_commit_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let state = GitState::of(dir.path());
        assert_eq!((state.commit.as_str(), state.dirty), ("unknown", None));
    }
}
