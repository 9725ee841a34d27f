//! How the log is set up.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{Redaction, SaltPlace};

/// What [`TrafficLog::open`](super::TrafficLog::open) needs.
#[derive(Clone)]
pub struct LogConfig {
    /// `sqlite:PATH` or `postgres://...`. May hold a password: it is never printed.
    pub url: String,
    /// Records that may wait for the writer; one more is refused at once.
    pub queue: usize,
    /// Bytes of a record at most, as [`NewRecord::bytes`](super::NewRecord::bytes) counts them; a larger one is refused.
    pub max_record: usize,
    /// Bytes of all records that wait for the writer; a record that would be one too many is refused at once.
    pub queue_bytes: usize,
    /// How long records are kept; none keeps them until they are deleted.
    pub retention: Option<Duration>,
    /// What is taken out of records before they are written.
    pub redaction: Redaction,
    /// Where the salt of its surrogates is kept.
    pub salt: SaltPlace,
    pub trust: FeedbackTrust,
    /// Bytes that one principal's records may take; none is any number.
    pub principal_quota: Option<u64>,
    /// Bytes that all records may take; none is any number.
    pub quota: Option<u64>,
    /// Bytes beside an SQLite file that are given up so that records can be deleted on a full disk.
    pub reserve: u64,
    /// How long a connection or a commit may take before the database counts as unavailable.
    pub patience: Duration,
}

impl LogConfig {
    /// The defaults over a database.
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into();
        Self {
            salt: SaltPlace::of(&url),
            url,
            queue: 1024,
            max_record: 16 << 20,
            queue_bytes: 64 << 20,
            retention: None,
            redaction: Redaction::default(),
            trust: FeedbackTrust::default(),
            principal_quota: None,
            quota: None,
            reserve: 0,
            patience: Duration::from_secs(10),
        }
    }

    /// The defaults over an SQLite file, made if it is not there.
    pub fn sqlite(file: &Path) -> Self {
        Self::new(super::database::sqlite_url(file))
    }

    /// Returns the file of an SQLite log; none of a database in memory, and of PostgreSQL.
    pub fn file(&self) -> Option<PathBuf> {
        super::database::sqlite_file(&self.url)
    }
}

impl fmt::Debug for LogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogConfig")
            .field("url", &without_password(&self.url))
            .field("queue", &self.queue)
            .field("max_record", &self.max_record)
            .field("queue_bytes", &self.queue_bytes)
            .field("retention", &self.retention)
            .field("redaction", &self.redaction)
            .field("salt", &self.salt)
            .field("trust", &self.trust)
            .field("principal_quota", &self.principal_quota)
            .field("quota", &self.quota)
            .field("reserve", &self.reserve)
            .field("patience", &self.patience)
            .finish()
    }
}

/// The URL as it may be shown: without user, password and parameters, each of which can hold a secret.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.split('?').next().unwrap_or_default().to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}")
}

/// When feedback becomes a preference pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedbackTrust {
    /// It is kept and never trained on.
    #[default]
    Never,
    /// When the judge, reading both orders, prefers the same answer. A record belongs to one principal, who alone may speak of it:
    /// there are no other voices to count.
    Corroborated,
    /// As soon as one principal says so.
    Always,
}

impl FeedbackTrust {
    fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Corroborated => "corroborated",
            Self::Always => "always",
        }
    }
}

impl FromStr for FeedbackTrust {
    type Err = String;

    /// `never`, `corroborated` or `always`.
    fn from_str(said: &str) -> Result<Self, String> {
        let all = [Self::Never, Self::Corroborated, Self::Always];
        let known = all.into_iter().find(|trust| trust.as_str() == said);
        known.ok_or_else(|| format!("`{said}` is none of never, corroborated and always"))
    }
}

impl fmt::Display for FeedbackTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "postgres://joe:s3cret@db.example/log",
            "postgres://db.example/log?password=s3cret",
            "postgres://joe:s3cr@s3cret@db.example/log?user=s3cret",
        ] {
            let shown = format!("{:?}", LogConfig::new(url));
            assert!(!shown.contains("s3cret"), "{shown}");
            assert!(shown.contains("postgres://db.example/log"), "{shown}");
        }
        let file = LogConfig::sqlite(Path::new("/data/log.sqlite"));
        assert!(format!("{file:?}").contains("/data/log.sqlite"));
    }

    #[test]
    fn trust_is_said_in_words() {
        for said in ["never", "corroborated", "always"] {
            let trust: FeedbackTrust = said.parse().unwrap();
            assert_eq!(trust.to_string(), said);
        }
        for wrong in ["", "sometimes", "corroborated:2"] {
            assert!(wrong.parse::<FeedbackTrust>().is_err(), "{wrong}");
        }
    }
}
