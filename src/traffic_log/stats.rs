//! Numbers of the log for metrics.

use serde::Serialize;

/// A snapshot of the log's counters, taken without a query.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LogStats {
    /// Records in the log: counted at the start, plus this process's additions and minus its deletions.
    pub records: u64,
    /// Records appended by this process.
    pub appended: u64,
    /// Records refused because the queue was full.
    pub overloaded: u64,
    /// Records refused because the database or the redaction failed.
    pub failed: u64,
    /// Records waiting for the writer.
    pub queue_depth: usize,
    /// Commits made by the writer.
    pub commits: u64,
    /// Seconds from queueing to commit, for the slowest record of the last batch.
    pub commit_lag_seconds: f64,
    /// Whether the last commit succeeded.
    pub healthy: bool,
}
