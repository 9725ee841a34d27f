//! The durable traffic log: requests, answers, verdicts, feedback, and the training that used them.
//!
//! One schema and one set of SQL statements serve two databases: an SQLite file, which needs no installation, or PostgreSQL, which
//! several servers can share. A record is acknowledged only after its commit. Serving never waits for the log beyond a bounded queue.

mod abandon;
mod config;
mod database;
mod derive;
mod erase;
mod error;
mod events;
mod exchange;
mod feedback;
mod generation;
mod id;
mod lease;
mod model;
mod naming;
mod private;
mod prune;
mod quota;
mod record;
mod redact;
mod replay;
mod room;
mod rows;
mod salt;
mod scrub;
mod stage;
mod stats;
mod switch;
mod writer;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use database::Database;
use naming::StoredName;
use quota::Quotas;
use redact::Redactor;
use rows::NewRow;
use writer::{Counters, Job};

pub use abandon::{Abandoned, MAX_DEATHS};
pub use config::{FeedbackTrust, LogConfig};
pub use error::{LogError, Result};
pub use events::Event;
pub use exchange::{ExportFilter, Imported, PairFormat, PromptKind};
pub use generation::{Generation, GenerationState, NewGeneration, Pointer, PointerMove, Pointers};
pub use id::{GenerationId, Principal, RecordId, StageId, UnixMillis, now};
pub use lease::TrainerLease;
pub use model::ModelIdentity;
pub use private::{tighten, tighten_all};
pub use record::{
    Addition, Consent, Feedback, FeedbackOutcome, IdempotencyKey, LoggedFeedback, LoggedPair,
    LoggedRecord, LoggedVerdict, NewRecord, PairSource, Prompt, RecordKind, RecordSize, Sample,
    Scope,
};
pub use redact::{RedactCommand, Redaction, RedactionRule};
pub use replay::{DrawSpec, DrawnRow, Eligible, HeldPreference, Split};
pub use salt::SaltPlace;
pub use stage::{NewStage, Stage, StageOutcome, StageSummary};
pub use stats::LogStats;
pub use switch::LearningSwitch;

/// Bytes per permit of the queue's semaphore.
const QUEUE_UNIT: usize = 1024;

/// A handle on the log. Clones share its writer and its connections.
///
/// The writer ends after the last clone is dropped and all queued records are written; [`TrafficLog::close`] waits for that.
#[derive(Debug, Clone)]
pub struct TrafficLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    database: Arc<Database>,
    redactor: Redactor,
    retention: Option<Duration>,
    trust: FeedbackTrust,
    /// The salt of the digests of idempotency keys and of the surrogates of personal data.
    salt: Arc<str>,
    quotas: Arc<Quotas>,
    max_record: usize,
    /// The queue's limit in bytes, one permit for each [`QUEUE_UNIT`].
    waiting: Arc<Semaphore>,
    counters: Arc<Counters>,
    /// None until [`TrafficLog::bind`].
    model: OnceLock<model::Bound>,
    /// None after [`TrafficLog::close`].
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl TrafficLog {
    /// Opens the database, migrates its schema and starts the writer, a task of the current tokio runtime.
    ///
    /// # Errors
    /// Errors with [`LogError::Config`] for an invalid URL, migration or redaction rule, and with [`LogError::Unavailable`] if the
    /// database cannot be reached.
    pub async fn open(config: &LogConfig) -> Result<Self> {
        if config.queue == 0 {
            return Err(LogError::Config("`queue` must be at least 1".to_owned()));
        }
        let database = Arc::new(Database::open(config).await?);
        let salt = salt::salt(&database, &config.salt).await?;
        let redactor = Redactor::new(&config.redaction, salt.clone())?;
        let records: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM records")
            .fetch_one(database.readers())
            .await?;
        let counters = Arc::new(Counters::default());
        counters
            .records
            .store(records.unsigned_abs(), Ordering::Relaxed);
        let dir = database::sqlite_file(&config.url)
            .and_then(|file| file.parent().map(std::path::Path::to_owned));
        let quotas = Arc::new(Quotas::of(config, dir));
        let (queue, waiting) = mpsc::channel(config.queue);
        let writer = writer::run(database.clone(), waiting, quotas.clone(), counters.clone());
        let writer = tokio::spawn(writer);
        let wanted = database.scrub_wanted.clone();
        tokio::spawn(scrub::run(Arc::downgrade(&database), wanted));
        // Removes text that a process deleted but did not scrub before it was killed.
        database.scrub_file().await;
        Ok(Self {
            shared: Arc::new(Shared {
                database,
                redactor,
                retention: config.retention,
                trust: config.trust,
                salt: salt.into(),
                quotas,
                max_record: config.max_record.min(config.queue_bytes),
                waiting: Arc::new(Semaphore::new(config.queue_bytes.div_ceil(QUEUE_UNIT))),
                counters,
                model: OnceLock::new(),
                queue: Mutex::new(Some(queue)),
                writer: Mutex::new(Some(writer)),
            }),
        })
    }

    /// Writes the queued records and closes the connections. Later calls on any clone fail with [`LogError::Unavailable`].
    pub async fn close(&self) {
        drop(locked(&self.shared.queue).take());
        let writer = locked(&self.shared.writer).take();
        if let Some(writer) = writer {
            // A writer that panicked has nothing more to write.
            let _ = writer.await;
        }
        self.shared.database.close().await;
    }

    /// Appends a record and returns its id after the commit.
    ///
    /// # Errors
    /// Errors with [`LogError::TooLarge`]; at once with [`LogError::Overloaded`] if the queue is full; with [`LogError::Unavailable`] if
    /// the database cannot write; with [`LogError::PrincipalQuota`] or [`LogError::Full`] if there is no room; with
    /// [`LogError::IdempotencyReused`] if its key belongs to another request; with [`LogError::Redaction`]; and with
    /// [`LogError::Invalid`] for a record without consent to retention or with indices out of range.
    pub async fn append(&self, mut record: NewRecord) -> Result<RecordId> {
        record.check()?;
        let (bytes, most) = (record.bytes(), self.shared.max_record);
        if bytes > most {
            return Err(LogError::TooLarge { bytes, most });
        }
        let counters = &self.shared.counters;
        let queue = locked(&self.shared.queue).clone();
        let Some(queue) = queue else {
            return Err(LogError::Unavailable("the log was closed".to_owned()));
        };
        // The place is reserved before redaction, which may be slow, so that a full queue refuses a record at once.
        let units = u32::try_from(bytes.div_ceil(QUEUE_UNIT)).unwrap_or(u32::MAX);
        let Ok(waiting) = Arc::clone(&self.shared.waiting).try_acquire_many_owned(units) else {
            counters.overloaded.fetch_add(1, Ordering::Relaxed);
            return Err(LogError::Overloaded);
        };
        let place = match queue.try_reserve() {
            Ok(place) => place,
            Err(TrySendError::Full(())) => {
                counters.overloaded.fetch_add(1, Ordering::Relaxed);
                return Err(LogError::Overloaded);
            }
            Err(TrySendError::Closed(())) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                return Err(LogError::Unavailable(
                    "the log's writer task has ended".to_owned(),
                ));
            }
        };
        let queued = Instant::now();
        let redacted = match self.shared.redactor.redact_record(&mut record).await {
            Ok(redacted) => redacted,
            Err(error) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        };
        let created_at = now();
        let name = record
            .idempotency_key
            .as_ref()
            .map(|key| StoredName::of(key, &record.principal, &self.shared.salt));
        let (reply, answer) = oneshot::channel();
        place.send(Job {
            row: NewRow {
                id: RecordId::new(created_at),
                created_at,
                record,
                redacted,
                tokenizer: self.shared.model.get().map(|model| model.tokenizer.clone()),
                name,
            },
            queued,
            _waiting: waiting,
            reply,
        });
        answer.await.unwrap_or_else(|_| {
            Err(LogError::Unavailable(
                "the log's writer task has ended".to_owned(),
            ))
        })
    }

    /// Returns a record with its samples, verdicts, pairs and feedback; none if it does not exist or is out of scope.
    pub async fn get(&self, id: &RecordId, scope: &Scope) -> Result<Option<LoggedRecord>> {
        let mut reading = self.database().snapshot().await?;
        let record = rows::read_record(&mut reading, id, scope).await?;
        reading.commit().await?;
        Ok(record)
    }

    /// Returns the size of a record without reading it; none if it does not exist or is out of scope.
    pub async fn size_of(&self, id: &RecordId, scope: &Scope) -> Result<Option<RecordSize>> {
        let mut reading = self.database().snapshot().await?;
        let size = rows::read_size(&mut reading, id, scope).await?;
        reading.commit().await?;
        Ok(size)
    }

    /// Returns the maximum size of a record in bytes.
    pub fn max_record(&self) -> usize {
        self.shared.max_record
    }

    /// Returns the policy that decides when callers' feedback becomes preference pairs.
    pub fn trust(&self) -> FeedbackTrust {
        self.shared.trust
    }

    /// Returns the numbers for the metrics.
    pub fn stats(&self) -> LogStats {
        let counters = &self.shared.counters;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let queue = locked(&self.shared.queue);
        LogStats {
            records: count(&counters.records),
            appended: count(&counters.appended),
            overloaded: count(&counters.overloaded),
            failed: count(&counters.failed),
            queue_depth: queue
                .as_ref()
                .map_or(0, |queue| queue.max_capacity() - queue.capacity()),
            commits: count(&counters.commits),
            commit_lag_seconds: count(&counters.lag_micros) as f64 / 1e6,
            healthy: queue.as_ref().is_some_and(|queue| !queue.is_closed())
                && !counters.broken.load(Ordering::Relaxed),
        }
    }

    fn database(&self) -> &Database {
        &self.shared.database
    }
}

/// Locks a mutex even if it is poisoned: guarded values are only read or replaced whole, so that a panic leaves them consistent.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_writer_is_no_full_queue() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::sqlite(&dir.path().join("log.sqlite"));
        let log = TrafficLog::open(&config).await.unwrap();
        assert!(log.stats().healthy);
        let writer = locked(&log.shared.writer).take().unwrap();
        writer.abort();
        assert!(writer.await.is_err());
        let record = NewRecord {
            kind: RecordKind::Generate,
            principal: Principal::anonymous(),
            consent: Consent {
                retain: true,
                train: false,
            },
            idempotency_key: None,
            prompt: Prompt::Text("x".to_owned()),
            prompt_token_ids: Vec::new(),
            version: "base".to_owned(),
            samples: Vec::new(),
            verdicts: Vec::new(),
            pairs: Vec::new(),
        };
        let said = log.append(record).await;
        assert!(matches!(said, Err(LogError::Unavailable(_))), "{said:?}");
        let stats = log.stats();
        assert!(
            !stats.healthy && stats.overloaded == 0 && stats.failed == 1,
            "{stats:?}"
        );
    }
}
