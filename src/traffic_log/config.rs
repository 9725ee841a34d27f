//! Settings of the traffic log.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{Redaction, SaltPlace};

/// The settings for [`TrafficLog::open`](super::TrafficLog::open).
#[derive(Clone)]
pub struct LogConfig {
    /// `sqlite:PATH` or `postgres://...`. It may contain a password and is never printed.
    pub url: String,
    /// The maximum number of records that wait for the writer; further ones are refused at once.
    pub queue: usize,
    /// The maximum size of a record in bytes, as counted by [`NewRecord::bytes`](super::NewRecord::bytes); larger ones are refused.
    pub max_record: usize,
    /// The maximum total size in bytes of records that wait for the writer; a record beyond it is refused at once.
    pub queue_bytes: usize,
    /// The retention period of records; none keeps them until they are deleted.
    pub retention: Option<Duration>,
    /// The redaction of records before they are written.
    pub redaction: Redaction,
    /// The place of the salt for the redaction's surrogates.
    pub salt: SaltPlace,
    pub trust: FeedbackTrust,
    /// The maximum size in bytes of one principal's records; none is unlimited.
    pub principal_quota: Option<u64>,
    /// The maximum size in bytes of all records; none is unlimited.
    pub quota: Option<u64>,
    /// The size in bytes of a file beside an SQLite database that is removed on a full disk so that records can be deleted.
    pub reserve: u64,
    /// The time limit for a connection or a commit, after which the database counts as unavailable.
    pub patience: Duration,
}

impl LogConfig {
    /// Returns the default settings for a database.
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

    /// Returns the default settings for an SQLite file, which is created if it does not exist.
    pub fn sqlite(file: &Path) -> Self {
        Self::new(sql::sqlite_url(file))
    }

    /// Returns the file of an SQLite log; none for a database in memory or PostgreSQL.
    pub fn file(&self) -> Option<PathBuf> {
        sql::sqlite_file(&self.url)
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

/// Returns a URL without user, password and parameters, each of which may contain a secret.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.split('?').next().unwrap_or_default().to_owned();
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}")
}

/// The policy by which feedback becomes preference pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeedbackTrust {
    /// Feedback is stored and never used for training.
    #[default]
    Never,
    /// A preference becomes a pair if the judge prefers the same answer in both orders. A record belongs to one principal, the only one
    /// that may give feedback on it, so there are no other votes to count.
    Corroborated,
    /// A preference becomes a pair as soon as a principal expresses it.
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

    /// Parses `never`, `corroborated` or `always`.
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Never, Self::Corroborated, Self::Always];
        let known = all.into_iter().find(|trust| trust.as_str() == text);
        known.ok_or_else(|| format!("unknown value `{text}`; use never, corroborated or always"))
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
    fn trust_is_spelled_in_words() {
        for word in ["never", "corroborated", "always"] {
            let trust: FeedbackTrust = word.parse().unwrap();
            assert_eq!(trust.to_string(), word);
        }
        for wrong in ["", "sometimes", "corroborated:2"] {
            assert!(wrong.parse::<FeedbackTrust>().is_err(), "{wrong}");
        }
    }
}
