//! The durable traffic log: what was asked and answered, what it was judged, and what was trained from it.
//!
//! One schema and one SQL over two databases: an SQLite file, for which nothing need be installed, or PostgreSQL, which several
//! servers can share. A record is acknowledged only after its commit. Serving never waits for the log beyond a bounded queue.

mod config;
mod database;
mod error;
mod events;
mod exchange;
mod generation;
mod id;
mod lease;
mod record;
mod redact;
mod replay;
mod stage;
mod stats;

use std::sync::Arc;

pub use config::{FeedbackTrust, LogConfig};
pub use error::{LogError, Result};
pub use events::Event;
pub use exchange::{ExportFilter, PairFormat};
pub use generation::{Generation, GenerationState, NewGeneration, Pointer, PointerMove, Pointers};
pub use id::{GenerationId, Principal, RecordId, StageId, UnixMillis, now};
pub use lease::TrainerLease;
pub use record::{
    Addition, Consent, Feedback, FeedbackOutcome, LoggedFeedback, LoggedPair, LoggedRecord,
    LoggedVerdict, NewRecord, PairSource, Prompt, RecordKind, Sample, Scope,
};
pub use redact::{RedactCommand, Redaction, RedactionRule};
pub use replay::{DrawSpec, PromptRow, Split};
pub use stage::{NewStage, Stage, StageOutcome};
pub use stats::LogStats;

/// A handle on the log; clones share its writer and its connections.
#[derive(Debug, Clone)]
pub struct TrafficLog {
    #[allow(dead_code)]
    shared: Arc<()>,
}

impl TrafficLog {
    /// Opens the database, brings its schema up to date and starts the writer (a task of the current tokio runtime).
    pub async fn open(config: &LogConfig) -> Result<Self> {
        let _ = config;
        todo!()
    }

    /// Writes what is queued and closes the connections. Later calls on any clone fail with [`LogError::Unavailable`].
    pub async fn close(&self) {
        todo!()
    }

    /// Appends a record and returns its id after the commit.
    ///
    /// # Errors
    /// [`LogError::Overloaded`] at once if the queue is full, [`LogError::Unavailable`] if the database cannot write,
    /// [`LogError::Redaction`], and [`LogError::Invalid`] for a record without consent to be kept or with indices out of range.
    pub async fn append(&self, record: NewRecord) -> Result<RecordId> {
        let _ = record;
        todo!()
    }

    /// A record with everything that belongs to it; none if it is not there or not in the scope.
    pub async fn get(&self, id: &RecordId, scope: &Scope) -> Result<Option<LoggedRecord>> {
        let _ = (id, scope);
        todo!()
    }

    /// Deletes a record with its samples, verdicts, pairs and feedback. False if it is not there or not in the scope. What stays
    /// is its id, so that [`TrafficLog::lineage`] can say which generations read it.
    pub async fn delete(&self, id: &RecordId, scope: &Scope) -> Result<bool> {
        let _ = (id, scope);
        todo!()
    }

    /// Deletes all of a principal's records and its feedback on others'. Returns the number of records.
    pub async fn delete_principal(&self, principal: &Principal) -> Result<u64> {
        let _ = principal;
        todo!()
    }

    /// Withdraws the consent to train from all of a principal's records. Returns how many had it.
    pub async fn withdraw_training(&self, principal: &Principal) -> Result<u64> {
        let _ = principal;
        todo!()
    }

    /// Deletes what is older than the retention. Returns the number of records.
    pub async fn expire(&self, now: UnixMillis) -> Result<u64> {
        let _ = now;
        todo!()
    }

    /// Stores feedback and derives the pairs that the trust policy allows.
    ///
    /// # Errors
    /// [`LogError::NotFound`] for an unknown record, [`LogError::Invalid`] for a sample it does not have.
    pub async fn add_feedback(
        &self,
        record: &RecordId,
        principal: &Principal,
        feedback: Feedback,
    ) -> Result<FeedbackOutcome> {
        let _ = (record, principal, feedback);
        todo!()
    }

    /// The numbers that metrics show.
    pub fn stats(&self) -> LogStats {
        todo!()
    }
}
