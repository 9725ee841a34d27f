//! The flags that set which traffic is stored and where.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::salt::SaltArgs;
use super::values::{bytes, some_bytes};
use crate::app::{DataDir, TrafficOptions};
use crate::service::{OnLogFailure, Permitted};
use traffic_log::{Consent, FeedbackTrust, LogConfig, RedactCommand, Redaction};

/// Storage of traffic.
#[derive(Debug, Args)]
#[command(next_help_heading = "Keeping traffic")]
pub struct KeepingArgs {
    /// Directory for all written files: the traffic log, generations, checkpoints. Without it nothing is stored.
    #[arg(long, env = "SELFJUDGE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Keep the log in this database (postgres://…, sqlite:PATH) instead of a file in the data directory.
    #[arg(long, env = "SELFJUDGE_LOG_URL", hide_env_values = true)]
    log_url: Option<String>,
    /// Keep calls that do not opt out.
    #[arg(long)]
    retain: bool,
    /// Train on kept calls that do not opt out.
    #[arg(long)]
    train: bool,
    /// Days after which records are deleted, from 1 to 36500; by default they are kept until deleted by hand.
    #[arg(long, value_parser = days)]
    retention_days: Option<u64>,
    /// The maximum use of calls without a key, whatever they ask for: nothing, retain (they may be kept) or train (kept and
    /// trained on).
    #[arg(long, default_value = "train")]
    strangers: Permitted,
    /// Maximum bytes of the records of one principal (a key, a trusted user, or all callers without a key together), with units as in
    /// --kv-cache-memory; 0 is no limit. Calls beyond it are answered and not kept.
    #[arg(long, default_value = "1GiB", value_parser = bytes)]
    records_quota: usize,
    /// Maximum bytes of all records, with units as in --kv-cache-memory; 0 is no limit. An SQLite log also keeps nothing while its file system has less than 256 MiB, or
    /// a 20th of its size, free.
    #[arg(long, default_value = "0", value_parser = bytes)]
    log_quota: usize,
    /// Maximum bytes of a record, with units as in --kv-cache-memory; a larger call is answered and not kept.
    #[arg(long, default_value = "16MiB", value_parser = some_bytes)]
    max_record: usize,
    /// Treatment of calls that cannot be logged: serve-unlogged or refuse.
    #[arg(long, default_value = "serve-unlogged")]
    on_log_failure: OnLogFailure,
    /// When feedback becomes a preference pair: never, corroborated (the judge agrees) or always.
    #[arg(long, default_value = "never")]
    trust_feedback: FeedbackTrust,
    /// Keep and delete records on behalf of the end user that a call names in `user`. Use it only if callers are trusted.
    #[arg(long)]
    trust_user: bool,
    /// Keep personal data unchanged, instead of replacing addresses, numbers and secrets.
    #[arg(long)]
    no_redaction: bool,
    /// A program for additional redaction: it reads a JSON array of texts and writes one of the same length. A call is not kept if the
    /// program does not answer within five seconds.
    #[arg(long, conflicts_with = "no_redaction")]
    redact_command: Option<PathBuf>,
    #[command(flatten)]
    salt: SaltArgs,
}

/// The maximum retention, a hundred years.
const MAX_RETENTION_DAYS: u64 = 36_500;

/// Reserved bytes that are released on a full disk so that records can be deleted.
const RESERVE: u64 = 32 << 20;

impl KeepingArgs {
    pub fn data_dir(&self) -> anyhow::Result<Option<DataDir>> {
        let open = |dir: &PathBuf| {
            DataDir::open(dir).with_context(|| format!("cannot use {}", dir.display()))
        };
        self.data_dir.as_ref().map(open).transpose()
    }

    /// Returns whether callers are told apart by the user that a call names.
    pub fn trusts_user(&self) -> bool {
        self.trust_user
    }

    /// Returns the settings that the flags stand for.
    ///
    /// # Errors
    /// Fails if the redaction program does not work.
    pub fn options(&self, data_dir: Option<&DataDir>) -> anyhow::Result<TrafficOptions> {
        let log = match (&self.log_url, data_dir) {
            (Some(url), _) => Some(LogConfig::new(url)),
            (None, Some(dir)) => Some(dir.log()),
            (None, None) => None,
        };
        let redaction = match &self.redact_command {
            _ if self.no_redaction => Redaction::none(),
            Some(program) => {
                let command = RedactCommand {
                    program: program.clone(),
                    arguments: Vec::new(),
                    timeout: Duration::from_secs(5),
                };
                command
                    .check()
                    .context("--redact-command does not work, so no record could be kept")?;
                Redaction {
                    command: Some(command),
                    ..Redaction::default()
                }
            }
            None => Redaction::default(),
        };
        Ok(TrafficOptions {
            log: log.map(|log| self.salt.over(log)).map(|log| LogConfig {
                retention: self
                    .retention_days
                    .map(|days| Duration::from_secs(days * 24 * 3600)),
                trust: self.trust_feedback,
                redaction,
                principal_quota: quota(self.records_quota),
                quota: quota(self.log_quota),
                reserve: RESERVE,
                max_record: self.max_record,
                queue_bytes: log.queue_bytes.max(self.max_record),
                ..log
            }),
            default: Consent {
                retain: self.retain,
                train: self.train,
            },
            allowed: Permitted::default(),
            strangers: self.strangers,
            on_failure: self.on_log_failure,
            trust_user: self.trust_user,
        })
    }
}

/// Parses a retention in days. 0 is refused, because it would delete every record within a minute: without the flag they are kept.
fn days(text: &str) -> Result<u64, String> {
    match text.trim().parse() {
        Ok(0) => Err(
            "0 would delete every record at once; it must be at least 1, and without the flag records are kept"
                .to_owned(),
        ),
        Ok(days) if days <= MAX_RETENTION_DAYS => Ok(days),
        Ok(_) => Err(format!("it must be at most {MAX_RETENTION_DAYS}")),
        Err(_) => Err(format!(
            "`{text}` is not a whole number from 1 to {MAX_RETENTION_DAYS}"
        )),
    }
}

/// Converts a quota; 0 means none.
fn quota(bytes: usize) -> Option<u64> {
    (bytes > 0).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_is_some_days() {
        assert_eq!(days("1"), Ok(1));
        assert_eq!(days("36500"), Ok(36_500));
        for (none, said) in [
            ("0", "at least 1"),
            ("36501", "at most 36500"),
            ("-1", "not a whole number"),
            ("0.5", "not a whole number"),
            ("", "not a whole number"),
        ] {
            assert!(days(none).unwrap_err().contains(said), "{none}");
        }
    }
}
