//! The durable traffic log: requests, answers, verdicts, feedback, and the training that used them.
//!
//! | file | |
//! |---|---|
//! | `log`, `config`, `error` | the handle on a log and its stores; settings; errors |
//! | `database` | the write connection and the readers |
//! | `migrations` | the changes of the schema |
//! | `record`, `records`, `writer` | the content of records; the queue; commits in batches |
//! | `record_read`, `record_write`, `columns` | records from rows and to rows |
//! | `idempotency`, `quota`, `disk_space` | repeated calls; limits in bytes; free space and the reserve |
//! | `redact`, `salt` | redaction before a record is written; the salt of its surrogates |
//! | `feedback`, `derive` | feedback on answers, and the pairs that follow from it |
//! | `erase`, `scrub`, `prune`, `private` | deletion from tables, from files, by age; modes of files |
//! | `lease`, `stage`, `claim`, `addition`, `abandon` | the trainer's lease; stages, their rows, their updates, their early end |
//! | `replay`, `model` | the rows that a stage may draw, of this model's tokenizer |
//! | `generation`, `switch` | generations and pointers; pauses of learning |
//! | `events`, `stats`, `id` | the audit trail; metrics; identifiers |
//! | `exchange` | export and import of pairs |
//!
//! The log is in one of two databases: an SQLite file, which needs no installation, or PostgreSQL, which several servers can share. Both
//! have the same schema; their statements differ only in lists and locks (crate `sql`). A record is acknowledged only after its commit.
//! Serving never waits for the log beyond a bounded queue.

mod abandon;
mod addition;
mod claim;
mod columns;
mod config;
mod database;
mod derive;
mod disk_space;
mod erase;
mod error;
mod events;
mod exchange;
mod feedback;
mod generation;
mod id;
mod idempotency;
mod lease;
mod log;
mod migrations;
mod model;
mod private;
mod prune;
mod quota;
mod record;
mod record_read;
mod record_write;
mod records;
mod redact;
mod replay;
mod salt;
mod scrub;
mod stage;
mod stats;
mod switch;
mod writer;

use std::sync::{Mutex, PoisonError};

pub use abandon::{Abandoned, MAX_DEATHS};
pub use config::{FeedbackTrust, LogConfig};
pub use erase::Deletions;
pub use error::{LogError, Result};
pub use events::{AuditTrail, Event};
pub use exchange::{ExportFilter, Imported, PairFormat, PromptKind, export_pairs, import_pairs};
pub use feedback::FeedbackStore;
pub use generation::{
    Generation, GenerationState, GenerationStore, NewGeneration, Pointer, PointerMove, Pointers,
};
pub use id::{GenerationId, Principal, RecordId, StageId, UnixMillis, now};
pub use lease::{Leases, TrainerLease};
pub use log::{Stores, TrafficLog};
pub use model::{ModelBinding, ModelIdentity};
pub use private::{tighten, tighten_all};
pub use record::{
    Addition, Consent, Feedback, FeedbackOutcome, IdempotencyKey, LoggedFeedback, LoggedPair,
    LoggedRecord, LoggedVerdict, NewRecord, PairSource, Prompt, RecordKind, RecordSize, Sample,
    Scope,
};
pub use records::Records;
pub use redact::{RedactCommand, Redaction, RedactionRule};
pub use replay::{DrawSpec, DrawnRow, Eligible, HeldPreference, Replay, Split};
pub use salt::SaltPlace;
pub use stage::{NewStage, Stage, StageOutcome, StageSummary, Stages};
pub use stats::LogStats;
pub use switch::{LearningSwitch, SwitchStore};

/// Locks a mutex even if it is poisoned: guarded values are only read or replaced whole, so that a panic leaves them consistent.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
