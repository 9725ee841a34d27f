//! The location of the salt for a log's surrogates, common to all commands that open a log.

use std::path::PathBuf;

use clap::Args;

use traffic_log::{LogConfig, SaltPlace};

#[derive(Debug, Args)]
pub struct SaltArgs {
    /// A file with the salt (at least 32 characters) for hashing personal data to surrogates. All servers and tools on one log need the
    /// same salt. By default it is a file beside an SQLite log, created at first use, and for PostgreSQL it is in the database.
    #[arg(long, env = "SELFJUDGE_REDACTION_SALT_FILE")]
    redaction_salt_file: Option<PathBuf>,
}

impl SaltArgs {
    /// Returns the log's settings with this location of the salt.
    pub fn over(&self, log: LogConfig) -> LogConfig {
        match &self.redaction_salt_file {
            Some(file) => LogConfig {
                salt: SaltPlace::Given(file.clone()),
                ..log
            },
            None => log,
        }
    }
}
