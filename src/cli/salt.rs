//! Where the salt of a log's surrogates is kept, for every command that opens a log.

use std::path::PathBuf;

use clap::Args;

use crate::preference::log::{LogConfig, SaltPlace};

#[derive(Debug, Args)]
pub struct SaltArgs {
    /// A file with the salt (32 characters or more) that surrogates of personal data are hashed with; all servers and tools on one
    /// log are given the same. By default a file beside an SQLite log, made at first, and for PostgreSQL the database itself.
    #[arg(long, env = "SELFJUDGE_REDACTION_SALT_FILE")]
    redaction_salt_file: Option<PathBuf>,
}

impl SaltArgs {
    /// The log with its salt where it is said to be.
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
