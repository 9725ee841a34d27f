//! The handle on the log: its stores over one database, and their common life.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sql::query;
use tokio::sync::Semaphore;

use super::database::Database;
use super::erase::Deletions;
use super::events::AuditTrail;
use super::feedback::FeedbackStore;
use super::generation::GenerationStore;
use super::lease::Leases;
use super::model::ModelBinding;
use super::quota::Quotas;
use super::records::{QUEUE_UNIT, Records};
use super::redact::Redactor;
use super::replay::Replay;
use super::stage::Stages;
use super::switch::SwitchStore;
use super::writer::{Counters, Writer};
use super::{LogConfig, LogError, LogStats, Result, salt, scrub};

/// A handle on the log. Clones share its stores.
///
/// The writer ends after the last clone is dropped and all queued records are written; [`TrafficLog::close`] waits for that.
#[derive(Debug, Clone)]
pub struct TrafficLog(Arc<Stores>);

/// The stores of a log, all on one database.
#[derive(Debug)]
pub struct Stores {
    pub records: Records,
    pub deletions: Deletions,
    pub feedback: FeedbackStore,
    pub replay: Replay,
    pub stages: Stages,
    pub generations: GenerationStore,
    pub leases: Leases,
    pub switch: SwitchStore,
    pub audit: AuditTrail,
    pub model: Arc<ModelBinding>,
    database: Arc<Database>,
    counters: Arc<Counters>,
    writer: Arc<Writer>,
}

impl Deref for TrafficLog {
    type Target = Stores;

    fn deref(&self) -> &Stores {
        &self.0
    }
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
        let redactor = Arc::new(Redactor::new(&config.redaction, salt.clone())?);
        let records: i64 = query("SELECT COUNT(*) FROM records")
            .fetch_value(&mut database.reader().await?)
            .await?;
        let counters = Arc::new(Counters::default());
        counters
            .records
            .store(records.unsigned_abs(), Ordering::Relaxed);
        let dir = sql::sqlite_file(&config.url)
            .and_then(|file| file.parent().map(std::path::Path::to_owned));
        let quotas = Arc::new(Quotas::of(config, dir));
        let writer = Arc::new(Writer::start(
            database.clone(),
            config.queue,
            quotas.clone(),
            counters.clone(),
        ));
        let wanted = database.scrub_wanted.clone();
        tokio::spawn(scrub::run(Arc::downgrade(&database), wanted));
        // Removes text that a process deleted but did not scrub before it was killed.
        database.scrub_file().await;
        let model = Arc::new(ModelBinding::none(database.clone()));
        let trust = config.trust;
        let max_record = config.max_record.min(config.queue_bytes);
        Ok(Self(Arc::new(Stores {
            records: Records {
                database: database.clone(),
                redactor: redactor.clone(),
                salt: salt.into(),
                max_record,
                waiting: Arc::new(Semaphore::new(config.queue_bytes.div_ceil(QUEUE_UNIT))),
                counters: counters.clone(),
                model: model.clone(),
                writer: writer.clone(),
            },
            deletions: Deletions {
                database: database.clone(),
                counters: counters.clone(),
                quotas: quotas.clone(),
                trust,
                retention: config.retention,
            },
            feedback: FeedbackStore {
                database: database.clone(),
                redactor: redactor.clone(),
                quotas,
                max_record,
                trust,
            },
            replay: Replay {
                database: database.clone(),
                model: model.clone(),
            },
            stages: Stages {
                database: database.clone(),
            },
            generations: GenerationStore {
                database: database.clone(),
            },
            leases: Leases {
                database: database.clone(),
                redactor,
                counters: counters.clone(),
                trust,
            },
            switch: SwitchStore {
                database: database.clone(),
            },
            audit: AuditTrail {
                database: database.clone(),
            },
            model,
            database,
            counters,
            writer,
        })))
    }

    /// Writes the queued records and closes the connections. Later calls on any clone fail with [`LogError::Unavailable`].
    pub async fn close(&self) {
        self.writer.close().await;
        self.database.close().await;
    }

    /// Returns the numbers for the metrics.
    pub fn stats(&self) -> LogStats {
        let counters = &self.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (queue_depth, open) = self.writer.load();
        LogStats {
            records: count(&counters.records),
            appended: count(&counters.appended),
            overloaded: count(&counters.overloaded),
            failed: count(&counters.failed),
            queue_depth,
            commits: count(&counters.commits),
            commit_lag_seconds: count(&counters.lag_micros) as f64 / 1e6,
            healthy: open && !counters.broken.load(Ordering::Relaxed),
        }
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Consent, LogError, NewRecord, Principal, Prompt, RecordKind};
    use super::*;

    #[tokio::test]
    async fn a_dead_writer_is_no_full_queue() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::sqlite(&dir.path().join("log.sqlite"));
        let log = TrafficLog::open(&config).await.unwrap();
        assert!(log.stats().healthy);
        log.writer.kill().await;
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
        let refused = log.records.append(record).await;
        assert!(
            matches!(refused, Err(LogError::Unavailable(_))),
            "{refused:?}"
        );
        let stats = log.stats();
        assert!(
            !stats.healthy && stats.overloaded == 0 && stats.failed == 1,
            "{stats:?}"
        );
    }
}
